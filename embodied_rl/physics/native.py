"""MuJoCo in C on all cores: `mujoco.batch.Batch` behind the Physics protocol.

The batch keeps float64 rows of MuJoCo's integration state; the protocol's float32 tensors are one cast each.  Rows never
influence each other and the number of threads changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco import batch as mujoco_batch
from torch import Tensor

from embodied_rl import machine
from embodied_rl.blocks import Rowwise
from embodied_rl.errors import UserError
from embodied_rl.physics.field_contacts import smooth_fields
from embodied_rl.physics.kinematics import Kinematics
from embodied_rl.physics.protocol import Controller
from embodied_rl.physics.tensors import touchdowns, touches, track
from embodied_rl.scene import Scene
from embodied_rl.vector_env import LARGEST

#: Steps kept before a blow-up, and blow-ups kept between two drains.
_HISTORY, _DUMPS = 4, 8
_STATE_FIELDS = ("qpos", "qvel", "mocap_pos", "mocap_quat", "xfrc_applied")


class _Closed:
    """Stands where the engine was."""

    def __getattr__(self, name: str) -> Any:
        raise UserError("the environment is closed; make another one")


class NativePhysics:
    """The `native` engine; see `embodied_rl.physics.protocol.Physics` for what each member means.

    Args:
        scene: the model, the meaning of its sensors, and the frames to track.
        num_envs: how many simulations.
        decimation: substeps in a control step.
        num_threads: physics threads; 0 takes every core that this process may use.
        compiler: wraps the kinematics, `torch.compile` or the identity.
    """

    capturable = False

    def __init__(
        self, scene: Scene, num_envs: int, decimation: int, num_threads: int = 0, compiler: Callable = lambda f: f
    ) -> None:
        self.num_envs, self.device, self.model = num_envs, torch.device("cpu"), scene.model
        if scene.model.nhfield:
            smooth_fields()
        # MuJoCo prints each blow-up to the terminal and a log file; they are counted and dumped here instead.
        mujoco.set_mju_user_warning(lambda message: None)
        self._batch: Any = mujoco_batch.Batch(scene.model, num_envs, num_threads or machine.cores())
        self._decimation = decimation
        self._rows = self._batch.state
        self._clean = self._rows[:1].copy()  # a row as mj_resetData leaves it
        self._state = {name: self._batch.bind(name) for name in _STATE_FIELDS}
        self._ctrl = self._batch.bind("ctrl")
        self._model_fields: dict[str, np.ndarray] = {}
        self.qpos = torch.zeros(num_envs, scene.model.nq)
        self.qvel = torch.zeros(num_envs, scene.model.nv)
        oriented = scene.frame_orientation
        self.frame_pos = torch.zeros(num_envs, len(scene.frames), 3)
        self.frame_lin_vel = torch.zeros(num_envs, len(scene.frames), 3)
        self.frame_quat = torch.zeros(num_envs, len(scene.frames) if oriented else 0, 4)
        self._frames = Kinematics(scene.model, scene.frames, self.device, orientation=oriented) if scene.frames else None
        frames = (self.frame_pos, self.frame_lin_vel, self.frame_quat)
        self._kinematics = compiler(Rowwise(self._kinematics, (self.qpos, self.qvel, *frames)))
        self._sensordata = _writable(self._batch.bind("sensordata")) if scene.sensors else None
        self._sensor_slices = scene.sensors
        self.sensors = {n: torch.zeros(num_envs, shape[0], *shape[2:]) for n, (_, shape) in scene.sensors.items()}
        self._touchdowns = touchdowns(scene, self.sensors)
        self._torque = _writable(self._batch.bind("actuator_force")) if scene.joint_torque else None
        self.joint_torque = torch.zeros(num_envs, scene.model.nu)
        self.unstable = torch.zeros(num_envs, dtype=torch.bool)
        self._history = np.zeros((_HISTORY, *self._rows.shape))
        self._history_ctrl = np.zeros((_HISTORY, num_envs, decimation, scene.model.nu))
        self._steps = 0
        self._dumps: list[dict] = []
        self._pull_state()

    def step(self, ctrl: Tensor, controller: Controller | None = None) -> None:
        slot = self._steps % _HISTORY
        np.copyto(self._history[slot], self._rows)
        self._steps += 1
        errors: dict[int, str] = {}
        if controller is None and ctrl.dim() == 2 and self._touchdowns is None:
            self._ctrl[:] = ctrl.numpy()
            self._history_ctrl[slot] = self._ctrl[:, None]
            errors = self._advance(self._decimation)
        else:
            if self._touchdowns is not None:
                self._touchdowns.start()
            ctrl = ctrl[:, None].expand(-1, self._decimation, -1) if ctrl.dim() == 2 else ctrl
            for substep in range(self._decimation):
                row = controller(self, substep) if controller else ctrl[:, substep]
                self._ctrl[:] = row.numpy()
                self._history_ctrl[slot, :, substep] = self._ctrl
                errors = self._advance(1) | errors
                if self._touchdowns is not None and self._sensordata is not None:
                    self._touchdowns.look(self._sensordata)
                if controller and substep + 1 < self._decimation:
                    self._pull_state()
        self._pull_state()
        self._pull_forces()
        # nan fails every comparison
        bad = ~((self.qpos.abs().amax(1) < LARGEST) & (self.qvel.abs().amax(1) < LARGEST))
        bad[list(errors)] = True
        self.unstable.copy_(bad)
        if bool(bad.any()):
            self._record(bad, errors)
            self.reset(bad)

    def write(self, mask: Tensor, **fields: Tensor) -> None:
        rows = np.flatnonzero(mask.numpy())
        if not len(rows):
            return
        for name, value in fields.items():
            target = self._state.get(name)
            target = self._model_fields[name] if target is None else target
            target[rows] = value.numpy()[rows].reshape(len(rows), *target.shape[1:])
        for name in ("qpos", "qvel"):
            if name in fields:
                getattr(self, name)[rows] = fields[name][rows]

    def write_model(self, mask: Tensor, field: str, columns: Tensor, values: Tensor) -> None:
        rows = np.flatnonzero(mask.numpy())
        flat = self._model_fields[field].reshape(self.num_envs, -1)  # a view of what the engine reads
        flat[rows[:, None], columns.numpy()] = values.numpy()[rows]

    def reset(self, mask: Tensor) -> None:
        rows = np.flatnonzero(mask.numpy())
        if not len(rows):
            return
        self._rows[rows] = self._clean
        for tensor in (*self.sensors.values(), self.joint_torque):
            tensor[rows] = 0.0
        self._pull_state()

    def refresh(self) -> None:
        if self._frames is not None:
            self._kinematics()

    def expand(self, field: str) -> Tensor:
        if field not in self._model_fields:
            self._model_fields[field] = self._batch.expand(field)
        return torch.from_numpy(self._model_fields[field]).float()

    def set_const(self, mask: Tensor) -> None:
        self._batch.set_const(np.flatnonzero(mask.numpy()).astype(np.int32))

    def snapshot(self, rows: Tensor) -> dict[str, Tensor]:
        index = rows.numpy()
        state = {"integration": torch.from_numpy(self._rows[index].copy())}
        state |= {f"model.{name}": torch.from_numpy(v[index].copy()) for name, v in self._model_fields.items()}
        state |= {f"sensor.{name}": tensor[rows].clone() for name, tensor in self.sensors.items()}
        return state | {"joint_torque": self.joint_torque[rows].clone()}

    def restore(self, rows: Tensor, state: dict[str, Tensor]) -> None:
        index = rows.numpy()
        self._rows[index] = state["integration"].numpy()
        for name, value in state.items():
            kind, _, key = name.partition(".")
            if kind == "model":
                self.expand(key)
                self._model_fields[key][index] = value.numpy()
            elif kind == "sensor":
                self.sensors[key][rows] = value
        self.joint_torque[rows] = state["joint_torque"]
        if any(name in mujoco.MjModel._setconst_inputs for name in self._model_fields):
            self._batch.set_const(index.astype(np.int32))
        self._pull_state()
        self.refresh()

    def drain_unstable(self) -> list[dict]:
        dumps, self._dumps = self._dumps, []
        return dumps

    def drain_overflow(self) -> dict[str, int]:
        return {}

    def capture(self, stream: torch.cuda.Stream) -> AbstractContextManager[None]:
        raise NotImplementedError("C steps on the CPU: there is nothing to capture")

    def close(self) -> None:
        self._batch = _Closed()

    def _advance(self, substeps: int) -> dict[int, str]:
        """Step all rows; the errors of those that raised one, the others having stepped all the same."""
        try:
            self._batch.step(nstep=substeps)
        except mujoco_batch.SimulationError as error:
            return {int(row): self._batch.error(int(row)) for row in error.ids}
        return {}

    def _kinematics(self) -> None:
        """Find where the frames are."""
        assert self._frames is not None
        track(self._frames, self)

    def _pull_state(self) -> None:
        self.qpos.copy_(torch.from_numpy(self._state["qpos"]))
        self.qvel.copy_(torch.from_numpy(self._state["qvel"]))

    def _pull_forces(self) -> None:
        if self._sensordata is not None:
            data = self._sensordata
            for name, (columns, shape) in self._sensor_slices.items():
                self.sensors[name].copy_(touches(data[:, columns].view(-1, *shape)))
        if self._torque is not None:
            self.joint_torque.copy_(self._torque)

    def _record(self, bad: Tensor, errors: dict[int, str]) -> None:
        order = [(self._steps + i) % _HISTORY for i in range(_HISTORY)][-min(self._steps, _HISTORY) :]
        for row in np.flatnonzero(bad.numpy())[: _DUMPS - len(self._dumps)].tolist():
            states, ctrl = self._history[order, row].copy(), self._history_ctrl[order, row].copy()
            fields = {f"model.{name}": values[row].copy() for name, values in self._model_fields.items()}
            self._dumps.append({"row": row, "error": errors.get(row, ""), "states": states, "ctrl": ctrl} | fields)


def _writable(output: np.ndarray) -> Tensor:
    """Lay a tensor over a bound output, which NumPy marks read-only and torch has no flag for; nothing here writes it."""
    interface = dict(output.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    owner = type("Output", (), {"__array_interface__": interface, "keep": output})()
    return torch.from_numpy(np.asarray(owner))
