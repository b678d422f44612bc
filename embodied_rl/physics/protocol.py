"""What every engine offers: thousands of simulations of one model, as tensors.

Names and conventions are MuJoCo's: SI units, z up, quaternions wxyz; joints and controls in robot.yaml's order.  The tensors
below are float32, live on `device`, and keep their address: the engine fills them in place.

Freshness, the same on every engine:
- *state*: `qpos`, `qvel`, always current;
- *kinematic*: `frame_*`, current after `refresh()`;
- *force*: `sensors`, `joint_torque`, those of the last substep; zero for rows that were just reset.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import mujoco
import torch
from torch import Tensor

#: Called between substeps: (physics, substep) -> controls (N, nu).
Controller = Callable[["Physics", int], Tensor]


class Physics(Protocol):
    """N simulations of one model."""

    num_envs: int
    device: torch.device
    capturable: bool
    """Whether a CUDA graph of torch may hold its steps."""
    model: mujoco.MjModel
    """The model on the host, for names and sizes; per-simulation values are behind `expand`."""
    qpos: Tensor
    """Generalised positions, (N, nq).  *state*"""
    qvel: Tensor
    """Generalised velocities, (N, nv).  *state*"""
    frame_pos: Tensor
    """World positions of the scene's frames [m], (N, K, 3).  *kinematic*"""
    frame_lin_vel: Tensor
    """World velocities of the frames' origins [m/s], (N, K, 3).  *kinematic*"""
    frame_quat: Tensor
    """Orientations of the frames in the world, wxyz, (N, K, 4); (N, 0, 4) unless the scene's `frame_orientation`.  *kinematic*"""
    sensors: dict[str, Tensor]
    """By meaning, in {0, 1}: `foot_contact` (N, F), `contact:<group>` (N, B); and `foot_touchdown` (N, F), how often each foot
    came down in the last control step, whose every substep is looked at.  *force*"""
    joint_torque: Tensor
    """Torques of the actuators at the joints [N m], (N, nu).  *force*"""
    unstable: Tensor
    """Rows whose last step raised, or left a state that is not finite, bool (N,); they are handed out reset."""

    def step(self, ctrl: Tensor, controller: Controller | None = None) -> None:
        """Advance one control step: `decimation` substeps with ctrl (N, nu), or (N, decimation, nu), a row per substep.

        With a `controller`, it is called before every substep and its result replaces `ctrl`.
        """
        ...

    def write(self, mask: Tensor, **fields: Tensor) -> None:
        """Set qpos, qvel, mocap_pos, mocap_quat, xfrc_applied or expanded model fields of the rows in mask (N,)."""
        ...

    def write_model(self, mask: Tensor, field: str, columns: Tensor, values: Tensor) -> None:
        """Set some numbers of an expanded model field, of the rows in mask (N,); all others keep what the engine has.

        Args:
            mask: which rows, bool (N,).
            field: its name, as `expand` was given it.
            columns: distinct places in the field flattened per simulation, as `expand` shapes it on this engine, int64 (C,).
            values: what to set them to, float32 (N, C).
        """
        ...

    def reset(self, mask: Tensor) -> None:
        """Clear what `write` does not set: warm start, controls, applied forces, actuator state, time, force sensors."""
        ...

    def refresh(self) -> None:
        """Make the kinematic tensors those of the present qpos and qvel."""
        ...

    def expand(self, field: str) -> Tensor:
        """Give a model field, or `opt.gravity`, per-simulation values; returns a float32 copy (N, ...).

        `write(mask, field=...)` and `write_model` set them.  Those of `mujoco.MjModel._setconst_inputs` act as in a model that
        was compiled with them only after `set_const`: masses, inertias, `body_ipos`, `dof_armature`.  Friction, gains,
        `dof_frictionloss` and `opt.gravity` need none.  What has a value per simulation is decided before the first step.

        Raises:
            UserError: the engine has one value of the field for all simulations.
        """
        ...

    def set_const(self, mask: Tensor) -> None:
        """Recompute what MuJoCo derives from masses and inertias, for the rows in mask; not for the hot path."""
        ...

    def snapshot(self, rows: Tensor) -> dict[str, Tensor]:
        """All that the rows' future depends on, exact on the same engine; rows int64 (R,), every tensor (R, ...)."""
        ...

    def restore(self, rows: Tensor, state: dict[str, Tensor]) -> None:
        """Set rows to what `snapshot` gave."""
        ...

    def drain_unstable(self) -> list[dict]:
        """Hand out the rows that blew up since the last call, with what replays them; at most a few between two calls.

        Each has `row`, `error` (the engine's message or ""), `states` (K, nstate), mjSTATE_INTEGRATION at the beginning of
        its last K control steps, `ctrl` (K, decimation, nu), and `model.<field>` for every expanded field.
        """
        ...

    def drain_overflow(self) -> dict[str, int]:
        """How many rows ran out of room since the last call, by the setting of the page that makes more; contacts were lost."""
        ...

    def capture(self, stream: torch.cuda.Stream) -> AbstractContextManager[None]:
        """While torch captures `stream`, launch on it as well; where `capturable`."""
        ...

    def close(self) -> None:
        """Free the engine's threads and memory."""
        ...


def tensors_of(physics: Physics) -> dict[str, Tensor]:
    """Collect what an engine hands out of each simulation, (N, ...), by name."""
    names = ("qpos", "qvel", "frame_pos", "frame_lin_vel", "frame_quat", "joint_torque", "unstable")
    return {f"physics.{name}": getattr(physics, name) for name in names} | physics.sensors
