"""What a checkpoint cannot mean: values that no training leaves behind, found by name before anything is taken up.

`find_damage` knows no page and no learner: a file must be sound by itself.  What ends in `_state_dict` is an optimizer's if its
name says so, else a network's; the moments of a file that holds one actor, one critic and one optimizer are shaped as its weights
are.  `find_misfit` compares it with the networks that are to take it up.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

#: The networks of a file in rsl_rl's layout, in the order of its optimizer, and that optimizer.
_ACTOR_CRITIC, _OPTIMIZER = ("actor_state_dict", "critic_state_dict"), "optimizer_state_dict"
#: Of all that is saved; a network's are fewer.
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8}
_DTYPES |= {torch.int8, torch.int16, torch.int32, torch.int64}
#: What torch reads without running code, beside tensors; of these very types, for it reads none that is derived from them.
_CONTAINERS = {dict, OrderedDict, list, tuple, set, torch.Size}
_PLAIN = {type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device}
#: Tensors that count something; all other integers are a module's own business.
_COUNT = re.compile(r"(^|[._])(count|num_batches_tracked)$")
_WEIGHT = re.compile(r"(^|\.)((weight|bias)(_\w+)?|(log_)?std_param|_?(running_)?(mean|var|std))$")
#: In networks and optimizers; the logarithm of a deviation (`log_std`) is another matter.
_NOT_NEGATIVE = re.compile(r"(^|\.)(?!([^.]*_)?log_)([^.]*_)?(var|std|count|num_batches_tracked|step|exp_avg_sq|square_avg)$")
_POSITIVE = re.compile(r"(^|\.)std_param$")
#: A weight beyond this is a lost one: float32 has no square of it.
LARGEST_WEIGHT = 1e18
#: A count beyond this is none: the steps of a thousand machines in a thousand years.
_MOST = 2**53
#: What a module remembers, and no optimizer moves.
_BUFFER = re.compile(r"(^|\.)_?(running_)?(mean|var|std|count|num_batches_tracked)$")
#: Numbers of the optimizer, from 0 up.
_RATES = ("lr", "eps", "alpha", "weight_decay")
#: What a run has counted; a run in which no episode has ended knows no reward.
_COUNTERS = ("env_steps", "seconds", "episodes", "candidate")
_SHARD = {"name": str, "sha256": str, "first": int, "count": int}


def find_missing(state: Any) -> list[str]:
    """List what every checkpoint has and this content has not: at least one network, and the number of its iteration."""
    content = state if isinstance(state, dict) else {}
    missing = [] if any(isinstance(content[place], dict) for place in _networks(content)) else ["*_state_dict of a network"]
    return missing if isinstance(content.get("iter"), int) else [*missing, "iter"]


def find_damage(state: dict) -> str:
    """Say the first thing that a checkpoint's content cannot mean, as `tensor: what is wrong`; empty where all is well."""
    try:
        return next(_faults(state), "")
    except RecursionError:
        return "nested without end"


def find_misfit(networks: Mapping[str, nn.Module], state: dict) -> tuple[str, bool]:
    """Say where a checkpoint's weights are not of these networks, and whether that is damage and not another page.

    It is damage where the optimizer remembers these very networks, or where one of them lies in another one's place.

    Args:
        networks: by name; `actor` is compared with `actor_state_dict`.
        state: one in which `find_damage` finds nothing.

    Returns:
        What differs first, empty where nothing does; and whether the file is damaged.
    """
    known = {f"{name}_state_dict": network for name, network in networks.items()}
    # other networks, and several optimizers, have an order of their own
    moments = _moments(state.get(_OPTIMIZER, {})) if sorted(known) == list(_ACTOR_CRITIC) else {}
    parameters = [parameter.shape for network in networks.values() for parameter in network.parameters()]
    remembered = bool(moments) and moments == dict(enumerate(parameters))
    for place, network in known.items():
        if (given := state.get(place)) is None:
            return f"{place} is missing", remembered
        if fault := _difference(place, given, network.state_dict()):
            other = next((name for name, one in known.items() if one is not network and fits(given, one)), None)
            return (f"{place} is what {other} should be: {fault}", True) if other else (fault, remembered)
        for name, wanted in network.state_dict().items():
            if given[name].is_floating_point() != wanted.is_floating_point():
                return f"{place}.{name}: {_kind(given[name])}, and not {_kind(wanted)}", True
    for index, shape in moments.items():
        if index < len(parameters) == len(moments) and shape != parameters[index]:
            found = f"{_OPTIMIZER}.state.{index}: moments of shape {tuple(shape)}"
            return f"{found}, its parameter's is {tuple(parameters[index])}", True
    return "", False


def is_stretched(value: Tensor) -> bool:
    """Whether a tensor speaks of more bytes than were saved of it."""
    return value.numel() * value.element_size() > value.untyped_storage().nbytes()


def fits(given: dict, network: nn.Module) -> bool:
    """Whether a network can take up these weights."""
    return not _difference("", given, network.state_dict())


def _difference(place: str, given: dict, wanted: dict[str, Tensor]) -> str:
    """Say the first name or shape that is not the wanted one."""
    for name in [*wanted, *given]:
        if name not in given:
            return f"{place}.{name} is missing"
        if name not in wanted:
            return f"{place}.{name} is not one of the page's"
        if given[name].shape != wanted[name].shape:
            return f"{place}.{name}: shape {tuple(given[name].shape)}, the page's is {tuple(wanted[name].shape)}"
    return ""


def _networks(state: dict) -> list[str]:
    return [name for name in _state_dicts(state) if "optimizer" not in name]


def _state_dicts(state: dict) -> list[str]:
    return [name for name in state if isinstance(name, str) and name.endswith("_state_dict")]


def _faults(state: dict) -> Iterator[str]:
    if missing := find_missing(state):
        yield f"{', '.join(missing)} missing"
    yield from _tensor_faults("", state)
    networks = _networks(state)
    for place in _state_dicts(state):
        if not isinstance(state[place], dict):
            yield f"{place}: {_shown(state[place])}, and no values by name"
        yield from _network_faults(place, state[place]) if place in networks else _optimizer_faults(place, state[place])
    if sorted(networks) == list(_ACTOR_CRITIC) and _OPTIMIZER in state:
        yield from _order_faults(state)
    yield from _counter_faults(state)
    yield from _shard_faults(state.get("shards"))
    if state.get("curricula") is not None:
        yield from _curriculum_faults(state["curricula"])


def _tensor_faults(name: str, value: Any) -> Iterator[str]:
    """Look at every tensor, wherever it lies, and for what is none and nothing plain."""
    if type(value) in _CONTAINERS:
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            place = f"{name}.{key}" if name else str(key)
            yield from _tensor_faults(place, one)
            if type(key) not in (str, int):
                yield from _tensor_faults(f"the key {place}", key)
    elif isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type == "meta":
            yield f"{name}: no plain tensor"
        # a file of a kilobyte may speak of terabytes
        elif is_stretched(value):
            yield f"{name}: shape {tuple(value.shape)}, and the file holds {value.untyped_storage().nbytes()} bytes of it"
        elif value.dtype not in _DTYPES:
            yield f"{name}: {_kind(value)}"
        elif value.is_floating_point() and (odd := int((~value.isfinite()).sum())):
            yield f"{name}: {odd} of {value.numel()} values not finite"
        elif not name.partition(".")[0].endswith("_state_dict"):  # what may be below 0 there, only its owner knows
            return
        elif _NOT_NEGATIVE.search(name) and value.dtype != torch.bool and bool((value < 0).any()):
            yield f"{name}: {_least(value)}, and no number below 0 is possible"
        elif _POSITIVE.search(name) and bool((value <= 0).any()):
            yield f"{name}: {_least(value)}, and only numbers above 0 are possible"
    elif type(value) not in _PLAIN:
        kind = type(value)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        yield f"{name}: {module}{kind.__qualname__}, and only tensors and plain values can be read again"


def _network_faults(place: str, weights: dict) -> Iterator[str]:
    """Look at the kinds of a network's tensors."""
    kinds: dict[torch.dtype, str] = {}
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            yield f"{place}.{name}: {type(value).__name__}, and no tensor"
        elif _COUNT.search(name):
            if value.is_floating_point() or value.dtype == torch.bool:
                yield f"{place}.{name}: {_kind(value)}, and it counts"
        elif _WEIGHT.search(name):
            if value.dtype not in (torch.float32, torch.float64):
                yield f"{place}.{name}: {_kind(value)}; float32 is possible, or float64 throughout"
            kinds.setdefault(value.dtype, name)
            if value.numel() and (largest := float(value.abs().max())) > LARGEST_WEIGHT:
                yield f"{place}.{name}: {largest:.3g}, and nothing beyond {LARGEST_WEIGHT:.0e} is possible"
    for name, variance in weights.items():
        deviation = weights.get(name.removesuffix("var") + "std") if name.endswith("_var") else None
        if deviation is not None and deviation.shape == variance.shape and not _agree(deviation, variance):
            yield f"{place}.{name.removesuffix('var')}std: not the root of {name}"
    if len(kinds) > 1:
        (first, one), (second, another) = list(kinds.items())[:2]
        yield f"{place}.{another}: {_kind(second)}, and {one} is {_kind(first)}"


def _agree(deviation: Tensor, variance: Tensor) -> bool:
    return torch.allclose(deviation.double(), variance.double().sqrt(), rtol=1e-2, atol=1e-6)


def _optimizer_faults(where: str, optimizer: dict) -> Iterator[str]:
    """Look at rates and moments, as torch's optimizers have them."""
    groups, state = optimizer.get("param_groups", []), optimizer.get("state", {})
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        yield f"{where}.param_groups: no list of groups"
        return
    if not isinstance(state, dict) or not all(isinstance(one, dict) for one in state.values()):
        yield f"{where}.state: no moments by parameter"
        return
    for index, group in enumerate(groups):
        place = f"{where}.param_groups.{index}"
        given = {name: group[name] for name in _RATES if name in group}
        if "betas" in group:
            betas = group["betas"]
            if not isinstance(betas, list | tuple) or len(betas) != 2:
                yield f"{place}.betas: {_shown(betas)}, and no two numbers"
                return
            given |= {f"betas.{i}": beta for i, beta in enumerate(betas)}
        for name, value in given.items():
            number, most = _number(value), 1.0 if name.startswith("betas") else math.inf
            if number is None or not 0.0 <= number < most:
                yield f"{place}.{name}: {_shown(value)}, and only numbers from 0 and below {most:g} are possible"
        if not isinstance(group.get("params", []), list):
            yield f"{place}.params: {_shown(group['params'])}, and no list"
            return
    # torch counts parameters through; in another order each would get the moments of another
    counted = [index for group in groups for index in group.get("params", [])]
    if counted != list(range(len(counted))):
        yield f"{where}.param_groups: parameters {_shown(counted)}, and torch counts them from 0 on"
    for index in state:
        if groups and (isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(counted)):
            yield f"{where}.state.{index}: moments of no parameter"
    for index, moments in state.items():
        place = f"{where}.state.{index}"
        if "step" in moments and ((step := _number(moments["step"])) is None or step < 0):
            yield f"{place}.step: {_shown(moments['step'])}, and no number below 0 is possible"
        large = {name: value for name, value in moments.items() if name.startswith(("exp_avg", "max_exp_avg", "square_avg"))}
        for name, value in large.items():
            if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
                yield f"{place}.{name}: {_shown(value)}; a tensor of float32 is possible"
            elif value.shape != (first := next(iter(large.values()))).shape:
                yield f"{place}.{name}: shape {tuple(value.shape)}, and {next(iter(large))} is {tuple(first.shape)}"


def _order_faults(state: dict) -> Iterator[str]:
    """Compare moments with weights, in rsl_rl's order: those of the actor, those of the critic."""
    weights = {f"{place}.{name}": value for place in _ACTOR_CRITIC for name, value in state[place].items()}
    names = [name for name in weights if not _BUFFER.search(name)]
    moments = _moments(state[_OPTIMIZER])
    # an optimizer that moves more than the two networks has its own order
    if sorted(moments) != list(range(len(names))):
        return
    unlike = [index for index, name in enumerate(names) if weights[name].shape != moments[index]]
    # parameters of a module itself come before those of its parts, and in what order is its own business
    if unlike and _has_other_shapes(state, moments):
        name, index = names[unlike[0]], unlike[0]
        yield f"{name}: shape {tuple(weights[name].shape)}, and its moments in the optimizer are {tuple(moments[index])}"


def _has_other_shapes(state: dict, moments: dict[int, torch.Size]) -> bool:
    """Whether the weights of a network have other shapes than its moments, in whatever order."""
    first = 0
    for place in _ACTOR_CRITIC:
        own = [value.shape for name, value in state[place].items() if not _BUFFER.search(name)]
        if sorted(own) != sorted(moments[first + index] for index in range(len(own))):
            return True
        first += len(own)
    return False


def _moments(optimizer: dict) -> dict[int, torch.Size]:
    """Shapes of what an optimizer remembers of each parameter, by its number; of torch's Adam and RMSprop, and nothing else."""
    found = {}
    for index, moments in (optimizer.get("state") or {}).items():
        if isinstance(index, int) and isinstance(average := moments.get("exp_avg", moments.get("square_avg")), Tensor):
            found[index] = average.shape
    return found


def _counter_faults(state: dict) -> Iterator[str]:
    if isinstance(state["iter"], bool) or state["iter"] < 0:
        yield f"iter: {_shown(state['iter'])}, and no number below 0 is possible"
    elif state["iter"] > _MOST:
        yield f"iter: {_shown(state['iter'])}, and no number beyond {_MOST} is possible"
    infos = state.get("infos")
    if infos is None:  # as rsl_rl's runner saves it
        return
    if not isinstance(infos, dict):
        yield f"infos: {type(infos).__name__}, and no names with values"
        return
    for name in (name for name in _COUNTERS if name in infos):
        number = _number(infos[name])
        if number is None or number < 0:
            yield f"infos.{name}: {_shown(infos[name])}, and only a number from 0 up is possible"
        elif number > _MOST:
            yield f"infos.{name}: {_shown(infos[name])}, and no number beyond {_MOST} is possible"
    if "mean_reward" in infos:
        reward = infos["mean_reward"]
        if _number(reward) is None and not (isinstance(reward, float) and math.isnan(reward)):
            yield f"infos.mean_reward: {_shown(reward)}, and only a number is possible"
    if "wait" in infos:
        yield from _wait_faults(infos["wait"])
    if "score" in infos:
        yield from _score_faults(infos["score"])


def _wait_faults(wait: Any) -> Iterator[str]:
    if not isinstance(wait, dict) or wait.keys() != {"until", "metrics", "least"} or not isinstance(wait["metrics"], dict):
        yield f"infos.wait: {_shown(wait)}, and until, least and metrics by name are needed"
        return
    for name, value in {"until": wait["until"], "least": wait["least"], **wait["metrics"]}.items():
        if _number(value) is None:
            yield f"infos.wait.{name}: {_shown(value)}, and only a number is possible"


def _score_faults(score: Any) -> Iterator[str]:
    if not isinstance(score, dict) or score.keys() != {"figures", "margin", "passed"} or not isinstance(score["figures"], dict):
        yield f"infos.score: {_shown(score)}, and figures by name, margin and passed are needed"
        return
    for name, value in score["figures"].items():  # one of nothing that was seen is not finite
        if not isinstance(name, str) or not isinstance(value, float):
            yield f"infos.score.figures.{name}: {_shown(value)}, and only a number is possible"
    margin = score["margin"]
    if not isinstance(margin, float) or not margin < math.inf:
        yield f"infos.score.margin: {_shown(margin)}, and only a number is possible"
    if not isinstance(score["passed"], bool):
        yield f"infos.score.passed: {_shown(score['passed'])}, and only True and False are possible"


def _shard_faults(shards: Any) -> Iterator[str]:
    if shards is None:
        return
    if not isinstance(shards, list):
        yield f"shards: {type(shards).__name__}, and no list"
        return
    for index, shard in enumerate(shards):
        odd = [
            name
            for name, kind in _SHARD.items()
            if not isinstance(shard, dict)
            or type(shard.get(name)) is not kind
            or (kind is int and shard[name] < (1 if name == "count" else 0))
        ]
        if odd:
            given = shard.get(odd[0]) if isinstance(shard, dict) else shard
            yield f"shards.{index}.{odd[0]}: {_shown(given)}, and {'text' if _SHARD[odd[0]] is str else 'a count'} is needed"
            return
    parts = sorted((shard["first"], shard["count"]) for shard in shards)
    for (first, count), (following, _) in itertools.pairwise(parts):
        if first + count > following:
            yield f"shards: robot {following} is in two of them"


def _curriculum_faults(curricula: Any) -> Iterator[str]:
    if not isinstance(curricula, dict) or not all(isinstance(moved, dict) for moved in curricula.values()):
        yield "curricula: no numbers by curriculum"
        return
    numbers = chain.from_iterable(((term, *one) for one in moved.items()) for term, moved in curricula.items())
    yield from (f"curricula.{term}.{path}: {_shown(v)}, and no tensor" for term, path, v in numbers if not isinstance(v, Tensor))


def _number(value: Any) -> float | None:
    """Return a finite number, bare or in a tensor of one; None of anything else."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.dtype != torch.bool and not value.is_complex():
        value = value.item()
    try:
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        good = False
    return float(value) if good else None


def _least(value: Tensor) -> str:
    return f"{value.min().item():g}"


def _kind(value: Tensor | torch.dtype) -> str:
    return str(value.dtype if isinstance(value, Tensor) else value).removeprefix("torch.")


def _shown(value: Any) -> str:
    """Write a value so that it takes part of a line."""
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"{_kind(value)} of shape {tuple(value.shape)}"
    text = repr(value.item() if isinstance(value, Tensor) else value).replace("\n", " ")
    return text if len(text) <= 40 else text[:37] + "..."
