"""A trained policy as one ONNX file that a robot needs nothing else for.

The network takes `obs` (n, size) and gives `actions` (n, joints); the normalizer is inside.  The metadata key
`contract` holds, as JSON, what stands around it; see `contract`.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from embodied_rl.config import Page
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn.policy import Policy

_OPSET = 18
#: Largest difference between onnxruntime and torch that rounding in float32 explains, and the rows that are compared.
_TOLERANCE, _ROWS = 1e-5, 64


class ExportError(UserError):
    """The policy cannot be exported, or a file is no exported policy; one line."""


def export(policy: Policy, env: Env, path: Path, *, git_commit: str = "") -> Path:
    """Write the policy with its contract, once onnxruntime gives the same actions as torch.

    Args:
        policy: what acts.
        env: an environment of the page that it was trained on, of any size.
        path: the file, `policy.onnx`; its folder is made.
        git_commit: of the code that trained it.

    Returns:
        The path.

    Raises:
        ExportError: the policy does not fit the page, the exported network computes something else, or there is no room for it.
    """
    if policy.memory is not None:
        raise ExportError(
            "ppo.rnn_type: a recurrent policy needs its memory carried from step to step, which the contract has no words for"
        )
    agreed = contract(env, git_commit)
    size = sum(term["size"] * term["history"] for term in agreed["observations"])
    if size != policy.obs_size:
        raise ExportError(
            f"the policy takes {policy.obs_size} observations, the page {env.page.name} gives {size}; "
            "export it with the page that it was trained on"
        )
    module = policy.deploy().cpu()
    model = _to_onnx(module, size)
    onnx.helper.set_model_props(model, {"contract": json.dumps(agreed)})
    _check(model, module, _usual_obs(policy))
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(model.SerializeToString())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # a full disk needs the room
            temporary.unlink(missing_ok=True)
        raise ExportError(f"{path}: not written ({error.strerror}); name another --output") from None
    return path


def read_contract(path: Path) -> dict[str, Any]:
    """Read the contract of an exported policy.

    Raises:
        ExportError: there is no such file, or it holds none.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise ExportError(f"{path}: no such file; write it with `embodied-rl export RUN`") from None
    except Exception as error:  # protobuf's DecodeError is no public class
        raise ExportError(f"{path}: not an ONNX file ({type(error).__name__})") from None
    for entry in model.metadata_props:
        if entry.key == "contract":
            return json.loads(entry.value)
    raise ExportError(f"{path}: an ONNX file without a contract; write it with `embodied-rl export RUN`")


def contract(env: Env, git_commit: str = "") -> dict[str, Any]:
    """All that a robot must know to run a policy of the page, in SI units; lists per joint follow `joint_names`.

    Once every `control_dt` seconds: observe; the network's outputs are shared out among the `actions` in their order, each of
    which drives its own `joint_names`: a = clip(output, +-`clip`), target = `offset` + `scale` a, of the joint's position [rad]
    or velocity [rad/s] as `target` says.  Joints that none drives hold `default_joint_pos`.  At least every `physics_dt` seconds,
    or in the motor itself: torque = `stiffness` (target - q) - `damping` qd, or `damping` (target - qd) of a velocity, within
    +-`effort_limit`.

    `obs` are the `observations` side by side.  Each is a value of `size` numbers, bounded to `clip` [low, high] if that
    is not null, then times `scale`; with a `history` of h the last h values, oldest first, all the same one at the start.
    `delay` [least, most control steps] is what training added; a robot adds none.  `description` says what the value is;
    last_action is what a was the step before, 0 at the start.  `commands` say what they are made of; beside `size` and `names`
    it is the command term's own part.

    Raises:
        ExportError: an action or a command does not say what it does.
    """
    page, robot = env.page, env.robot.spec
    (actor,) = (group for group in env.groups if group.name == "actor")
    entries = page.observations["actor"]
    return {
        "robot": robot.name,
        "joint_names": list(robot.joint_names),
        "default_joint_pos": list(robot.default_joint_pos),
        "stiffness": list(robot.stiffness),
        "damping": list(robot.damping),
        "effort_limit": list(robot.effort_limit),
        "control_dt": page.control_dt,
        "physics_dt": page.physics.dt,
        "actions": [_part(page, "actions", name, term) for name, term in env.terms.actions.terms],
        "observations": [
            {
                "name": entries[term.name].term,
                "description": (term.function.__doc__ or "").partition("\n")[0],
                "size": term.size,
                "scale": entries[term.name].scale,
                "clip": term.clip and list(term.clip),
                "history": term.history,
                "delay": list(term.delay),
            }
            for term in actor.terms
        ],
        "commands": [
            _part(page, "commands", name, term, size=term.size, names=list(term.names))
            for name, term in env.terms.commands.items()
        ],
        "git_commit": git_commit,
    }


def _part(page: Page, section: str, name: str, term: Any, **known: Any) -> dict[str, Any]:
    """Ask an action or a command term what a robot must know of it; plain values."""
    entry = getattr(page, section)[name]
    if not hasattr(term, "contract"):
        raise ExportError(
            f"{page.name}: {section}.{name}: {entry.term} has no contract(), so that a robot cannot know what it does; "
            "give the class one that returns its numbers by name"
        )
    return {"name": name, "term": entry.term, **known} | {key: _plain(value) for key, value in term.contract().items()}


def _plain(value: Any) -> Any:
    """Write tensors as lists of the numbers that the page has: the shortest ones that float32 tells apart."""
    if isinstance(value, Tensor):
        return _plain(value.detach().cpu().numpy())
    if isinstance(value, np.ndarray):
        return float(str(value)) if value.ndim == 0 else [_plain(one) for one in value]
    if isinstance(value, np.floating):
        return float(str(value))
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _to_onnx(module: nn.Module, size: int) -> onnx.ModelProto:
    with _quiet():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, size),),
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=["obs"],
            output_names=["actions"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    assert program is not None
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del part.metadata_props[:]  # stack traces, with the paths of this machine
    return model


def _check(model: onnx.ModelProto, module: nn.Module, obs: Tensor) -> None:
    """Compare with torch on observations, for more than one number of rows."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (obs, obs[:1]):
        with torch.no_grad():
            wanted = module(rows)
        (actions,) = session.run(["actions"], {"obs": rows.numpy()})
        error = float((torch.from_numpy(actions) - wanted).abs().max())
        if not error <= _TOLERANCE:
            raise ExportError(
                f"the exported network differs from torch by {error:.1e}, more than {_TOLERANCE:.0e}: nothing written"
            )


def _usual_obs(policy: Policy) -> Tensor:
    """Draw observations as the policy's normalizer knows them, on the CPU."""
    noise = torch.randn(_ROWS, policy.obs_size, generator=torch.Generator().manual_seed(0))
    mean, std = getattr(policy.normalizer, "mean", None), getattr(policy.normalizer, "std", None)
    return noise if mean is None or std is None else mean.cpu() + std.cpu() * noise


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings of packages that it does without and of its own deprecations."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
