"""A few robots are moved twice from the same state, under watch: what a person's terms may not do is seen here, and named.

A training cannot look: its steps are compiled, and read nothing on the host.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.mdp.finder import OWN_FILES
from embodied_rl.physics.protocol import tensors_of
from embodied_rl.strict_yaml import display

#: Control steps of either time; early in them each third robot's time is out, so that it is reset while others go on.
_STEPS = 6
#: Of torch's random numbers, which nobody touches meanwhile; one that no person would take.
_SEED = 1_620_339_415


def check_steps(env: Env) -> None:
    """Take some steps twice from the same state, in which some episodes end, where a page has terms of a person's own.

    Raises:
        UserError: a term of a person's own writes into what is not its own, draws from elsewhere than `env.draw`, or gives other
            numbers the second time; one line.
    """
    if not OWN_FILES:
        return
    rows = torch.arange(env.num_envs)
    env.episode.episode_length[::3] = env.max_episode_length - 2
    begun = env.snapshot(rows)
    with torch.random.fork_rng([]), _Watch(env):
        torch.default_generator.manual_seed(_SEED)
        seed = torch.default_generator.get_state()
        first = _steps(env)
        bound = env.memory.rebound()
        if bound:
            raise UserError(
                f"{bound}: its state is another tensor after a step, which nobody saves or resets; write x.copy_(...)"
            )
        env.restore(rows, begun)
        second = _steps(env)
        seeded = not torch.equal(seed, torch.default_generator.get_state())
    if seeded:
        raise UserError(
            f"{env.page.name}: a term draws or seeds random numbers of torch's, which are the policy's; draw env.draw(size)"
        )
    for name, once in first.items():
        if not torch.equal(once, second[name]):
            raise UserError(
                f"{name}: another value when the same steps are taken again from the same state, and no run could be repeated: "
                "what a term remembers belongs in its `state`, and what it draws is drawn from env.draw, in events and in "
                "resample(env, done)"
            )


def _steps(env: Env) -> dict[str, Tensor]:
    """Step; what came of it, by the name of who made it, all steps' side by side."""
    found: dict[str, list[Tensor]] = {}
    names = [*(f"rewards.{term.name}" for term in env.terms.rewards), "the reward"]
    for step in range(_STEPS):
        waves = torch.arange(env.num_envs * env.num_actions, dtype=torch.float32).view(env.num_envs, -1)
        env.step(torch.sin(waves + step))
        made = dict(zip(names, env.episode.reward_terms.unbind(-1), strict=True))
        for group in env.groups:
            sizes = [term.size * term.history for term in group.terms]
            parts = env.obs[group.name].split(sizes, dim=-1)
            made |= {term.path: part for term, part in zip(group.terms, parts, strict=True)}
        # what is wrong with a term is seen in its own values before it is seen in the robots
        made |= env.buffers | tensors_of(env.physics)
        for name, value in made.items():
            found.setdefault(name, []).append(value.clone())
    return {name: torch.stack(values).nan_to_num() for name, values in found.items()}


def _own_line() -> str | None:
    """Find the line of a person's file that is at work now; None where none is."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename in OWN_FILES:
            return f"{display(Path(frame.f_code.co_filename))}:{frame.f_lineno}"
        frame = frame.f_back
    return None


class _Watch(TorchFunctionMode):
    """Refuses calls of people's files that write into what is not theirs, or draw random numbers of torch's."""

    def __init__(self, env: Env) -> None:
        super().__init__()
        constants = {f"robot.{name}": one for name, one in vars(env.robot).items() if isinstance(one, Tensor)}
        own = {id(value) for owner in env.terms.owners.values() for value in _parts(owner) if _is_own(owner)}
        watched = (
            env._registered()
            | tensors_of(env.physics)
            | constants
            | {f"params[{path!r}]": one for path, one in env.params.items()}
        )
        self._names = {one.untyped_storage().data_ptr(): name for name, one in watched.items() if id(one) not in own}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch's, and see what it did."""
        kwargs = kwargs or {}
        if (line := _own_line()) is None:
            return function(*args, **kwargs)
        given = [one for value in (*args, *kwargs.values()) for one in _tensors(value)]
        names = [(one, one._version, name) for one in given if (name := self._names.get(one.untyped_storage().data_ptr()))]
        seed = torch.default_generator.get_state()
        found = function(*args, **kwargs)
        # torch counts what is written into each tensor, by whichever view
        for one, version, name in names:
            if one._version != version:
                raise UserError(f"{line}: writes into {name}; what a term is given is not its own: change a clone()")
        if not torch.equal(seed, torch.default_generator.get_state()):
            raise UserError(
                f"{line}: draws random numbers of torch's, which are others in each run; draw env.draw(size) in an event, or in "
                "the method resample(env, done)"
            )
        if names and isinstance(found, np.ndarray):  # of whose memory torch counts nothing
            found.flags.writeable = False
        return found


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        return (value,)
    return [one for one in value if isinstance(one, Tensor)] if isinstance(value, list | tuple) else ()


def _parts(owner: Any) -> Iterable[Tensor]:
    return [getattr(owner, part) for part in getattr(owner, "state", {})]


def _is_own(owner: Any) -> bool:
    module = sys.modules.get(type(owner).__module__)
    return getattr(module, "__file__", None) in OWN_FILES
