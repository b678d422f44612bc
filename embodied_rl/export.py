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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from rsl_rl.models import MLPModel
from rsl_rl.modules import EmpiricalNormalization
from torch import Tensor

from embodied_rl.env import Env
from embodied_rl.errors import UserError

_OPSET = 18
#: Largest difference between onnxruntime and torch that rounding in float32 explains, and the rows that are compared.
_TOLERANCE, _ROWS = 1e-5, 64


class ExportError(UserError):
    """The policy cannot be exported, or a file is no exported policy; one line."""


def export(actor: MLPModel, env: Env, path: Path, *, git_commit: str = "") -> Path:
    """Write the policy with its contract, once onnxruntime gives the same actions as torch.

    Args:
        actor: the policy.
        env: an environment of the page that it was trained on, of any size.
        path: the file, `policy.onnx`; its folder is made.
        git_commit: of the code that trained it.

    Returns:
        The path.

    Raises:
        ExportError: the policy does not fit the page, or the exported network computes something else.
    """
    if actor.is_recurrent:
        raise ExportError(
            "ppo.rnn_type: a recurrent policy needs its memory carried from step to step, which the contract has no words for"
        )
    agreed = contract(env, git_commit)
    size = sum(term["size"] * term["history"] for term in agreed["observations"])
    if size != actor.obs_dim:
        raise ExportError(
            f"the policy takes {actor.obs_dim} observations, the page {env.page.name} gives {size}; "
            "export it with the page that it was trained on"
        )
    model = _to_onnx(actor)
    onnx.helper.set_model_props(model, {"contract": json.dumps(agreed)})
    _check(model, actor)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(model.SerializeToString())
    os.replace(temporary, path)
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

    Once every `control_dt` seconds: observe; a = clip(network(obs), +-`action_clip`); target = `default_joint_pos` +
    `action_scale` a.  At least every `physics_dt` seconds, or in the motor itself: torque = `stiffness` (target - q) -
    `damping` qd, within +-`effort_limit`.

    `obs` are the `observations` side by side.  Each is a value of `size` numbers, bounded to `clip` [low, high] if that
    is not null, then times `scale`; with a `history` of h the last h values, oldest first, all the same one at the start.
    `delay` [least, most control steps] is what training added; a robot adds none.  The values, in the base frame:

    - base_lin_vel, base_ang_vel: velocities of the base [m/s, rad/s].
    - projected_gravity: direction of gravity; (0, 0, -1) when upright.
    - velocity_command: vx, vy [m/s] in the frame of the heading, wz [rad/s], within `command_ranges`.
    - gait_phase: sin, cos of 2 pi `gait_frequency` t, t [s] since the start; both 0 while the command means standing, and has
      done so for `gait_settle_s`, or since the start:
      |v_xy| <= 0.1 and |wz| <= 0.1.
    - joint_pos: q - `default_joint_pos`; joint_vel: qd.
    - last_action: a of the step before, clipped; 0 at the start.
    """
    page, robot = env.page, env.robot.spec
    (action,) = page.actions.values()
    (actor,) = (group for group in env.groups if group.name == "actor")
    entries = page.observations["actor"]
    gaits = [command.params for command in page.commands.values() if "gait_frequency" in command.params]
    return {
        "robot": robot.name,
        "joint_names": list(robot.joint_names),
        "default_joint_pos": list(robot.default_joint_pos),
        "stiffness": list(robot.stiffness),
        "damping": list(robot.damping),
        "effort_limit": list(robot.effort_limit),
        "action_scale": action.params["scale"],
        "action_clip": action.params["clip"],
        "control_dt": page.control_dt,
        "physics_dt": page.physics.dt,
        "observations": [
            {
                "name": entries[term.name].term,
                "size": term.size,
                "scale": entries[term.name].scale,
                "clip": term.clip and list(term.clip),
                "history": term.history,
                "delay": list(term.delay),
            }
            for term in actor.terms
        ],
        "command_names": list(page.commands),
        "command_ranges": {name: _ranges(env, name) for name in page.commands},
        "gait_frequency": gaits[0]["gait_frequency"] if gaits else None,
        "gait_settle_s": gaits[0]["settle_s"] if gaits else None,
        "git_commit": git_commit,
    }


def _ranges(env: Env, command: str) -> dict[str, list[float]]:
    """Bounds of each component of a command, in its order: the page's parameters that the term keeps in `ranges`."""
    ranges = env.terms.commands[command].ranges
    names = {id(env.params.get(f"commands.{command}.{key}")): key for key in env.page.commands[command].params}
    return {names[id(bounds)]: list(env.page.commands[command].params[names[id(bounds)]]) for bounds in ranges}


def _to_onnx(actor: MLPModel) -> onnx.ModelProto:
    module = actor.as_onnx(verbose=False).cpu().eval()
    with _quiet():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, actor.obs_dim),),
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


def _check(model: onnx.ModelProto, actor: MLPModel) -> None:
    """Compare with torch on observations as the normalizer knows them, for more than one number of rows."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (group,) = actor.obs_groups
    obs = _random_obs(actor)
    for rows in (obs, obs[:1]):
        with torch.no_grad():
            wanted = actor({group: rows}).cpu()  # pyright: ignore[reportArgumentType]  a dict serves
        (actions,) = session.run(["actions"], {"obs": rows.cpu().numpy()})
        error = float((torch.from_numpy(actions) - wanted).abs().max())
        if not error <= _TOLERANCE:
            raise ExportError(
                f"the exported network differs from torch by {error:.1e}, more than {_TOLERANCE:.0e}: nothing written"
            )


def _random_obs(actor: MLPModel) -> Tensor:
    device = next(actor.parameters()).device
    noise = torch.randn(_ROWS, actor.obs_dim, generator=torch.Generator().manual_seed(0)).to(device)
    normalizer = actor.obs_normalizer
    return normalizer.mean + normalizer.std * noise if isinstance(normalizer, EmpiricalNormalization) else noise


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
