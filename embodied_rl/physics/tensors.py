"""Engines whose simulations are float32 tensors: all of the Physics protocol but the substeps themselves.

Every operation on the way of a step has a fixed shape and takes a mask; nothing is read on the host, so that a step can be
captured into a CUDA graph.  `warp` and `mjx` are the engines that stand on it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.physics.kinematics import Kinematics
from embodied_rl.physics.protocol import Controller, Physics
from embodied_rl.scene import Scene
from embodied_rl.vector_env import LARGEST

#: Steps kept before a blow-up, and blow-ups handed out by one drain.
_HISTORY, _DUMPS = 4, 8
#: What MuJoCo's mj_setConst derives from masses, inertias and armature, as far as the dynamics read it.
_DERIVED = ("body_subtreemass", "body_invweight0", "dof_invweight0", "tendon_invweight0", "actuator_acc0")


class TensorPhysics(ABC):
    """What `warp` and `mjx` share; see `embodied_rl.physics.protocol.Physics` for what each member means.

    Args:
        scene: the model, the meaning of its sensors, and the frames to track.
        decimation: substeps in a control step.
        state: what the future of a simulation depends on, live, each (N, ...), by its name in MjData; qpos and qvel first.
        ctrl: what the engine reads its controls from, (N, nu).
        sensordata: where it leaves its sensors, (N, nsensordata).
        actuator_force: where it leaves the actuators' torques, (N, nu).
        compiler: wraps what surrounds the substeps, `torch.compile` or the identity.
    """

    name: str
    capturable = False

    def __init__(
        self,
        scene: Scene,
        decimation: int,
        state: dict[str, Tensor],
        ctrl: Tensor,
        sensordata: Tensor,
        actuator_force: Tensor,
        compiler: Callable = lambda f: f,
    ) -> None:
        self.model, self.num_envs, self.device = scene.model, len(ctrl), ctrl.device
        self._decimation, self._state, self._ctrl = decimation, state, ctrl
        self._sensordata, self._actuator_force = sensordata, actuator_force
        self.qpos, self.qvel = state["qpos"], state["qvel"]
        fresh = mujoco.MjData(scene.model)  # as mj_resetData leaves it
        self._clean = {
            name: torch.as_tensor(np.array(getattr(fresh, name)), dtype=torch.float32, device=self.device).view(tensor.shape[1:])
            for name, tensor in state.items()
        }
        self._model_fields: dict[str, Tensor] = {}
        self._slices, self._reads_torque = scene.sensors, scene.joint_torque
        self.sensors = {name: self._zeros(shape[0], *shape[2:]) for name, (_, shape) in scene.sensors.items()}
        self._touchdowns = touchdowns(scene, self.sensors)
        self.joint_torque = self._zeros(scene.model.nu)
        self.unstable = self._zeros().bool()
        self.frame_pos, self.frame_lin_vel = self._zeros(len(scene.frames), 3), self._zeros(len(scene.frames), 3)
        oriented = scene.frame_orientation
        self.frame_quat = self._zeros(len(scene.frames) if oriented else 0, 4)
        kinematics = Kinematics(scene.model, scene.frames, self.device, orientation=oriented) if scene.frames else None
        self._kinematics = kinematics
        width = sum(tensor[0].numel() for tensor in state.values())
        self._history = self._zeros(_HISTORY, width)
        self._history_ctrl = self._zeros(_HISTORY, decimation, scene.model.nu)
        self._steps = torch.zeros(1, dtype=torch.int64, device=self.device)
        # a row that blew up keeps its history until it is drained, with the number of steps until then
        self._kept, self._kept_at = self._zeros().bool(), self._zeros().long()
        # history older than the row's last drain is not dumped again
        self._drained_at = self._zeros().long()
        self._remember, self._finish = compiler(self._remember), compiler(self._finish)
        self._assign, self._track = compiler(_assign), compiler(self._track)
        self._assign_columns: dict[str, Callable] = {}
        self._compiler = compiler
        forces = [*self.sensors.values(), self.joint_torque]
        # what a reset sets, and to what
        self._fresh = [*state.values(), *forces], [*self._clean.values(), *(torch.zeros_like(tensor[0]) for tensor in forces)]
        self.reset(torch.ones_like(self.unstable))

    # ------------------------------------------------------------------------------------------- what an engine adds

    @abstractmethod
    def _advance(self, substeps: int, *, sense: bool = True) -> None:
        """Run some substeps on `ctrl`; `sense`: what sensors say after the last of them is wanted."""

    @abstractmethod
    def _expanded(self, field: str) -> Tensor:
        """Give a model field a value per simulation; the live tensor, (N, ...).

        Raises:
            AttributeError: the engine has no such values.
        """

    def drain_overflow(self) -> dict[str, int]:
        return {}

    def capture(self, stream: torch.cuda.Stream) -> AbstractContextManager[None]:
        raise NotImplementedError(f"{type(self).__name__} cannot be captured")

    def close(self) -> None:
        return None

    # ------------------------------------------------------------------------------------------------------ the protocol

    def step(self, ctrl: Tensor, controller: Controller | None = None) -> None:
        if controller is None and ctrl.dim() == 2 and self._touchdowns is None:
            self._remember(ctrl[:, None].expand(-1, self._decimation, -1))
            self._ctrl.copy_(ctrl)
            self._advance(self._decimation)
        else:
            ctrl = ctrl if ctrl.dim() == 3 else ctrl[:, None].expand(-1, self._decimation, -1)
            self._remember(ctrl)
            if self._touchdowns is not None:
                self._touchdowns.start()
            slot = (self._steps - 1) % _HISTORY
            for substep in range(self._decimation):
                self._ctrl.copy_(controller(self, substep) if controller else ctrl[:, substep])
                if controller:
                    held = self._history_ctrl[:, :, substep]
                    current = torch.arange(_HISTORY, device=self.device) == slot
                    held.copy_(torch.where((current & ~self._kept[:, None])[..., None], self._ctrl[:, None], held))
                self._advance(1, sense=self._touchdowns is not None or substep == self._decimation - 1)
                if self._touchdowns is not None:
                    self._touchdowns.look(self._sensordata)
        self._finish()

    def write(self, mask: Tensor, **fields: Tensor) -> None:
        targets = [self._state[name] if name in self._state else self._model_fields[name] for name in fields]
        self._assign(mask, targets, list(fields.values()))

    def write_model(self, mask: Tensor, field: str, columns: Tensor, values: Tensor) -> None:
        if field not in self._assign_columns:  # one each: torch.compile gives up at the ninth variant
            self._assign_columns[field] = self._compiler(_assign_columns)
        self._assign_columns[field](mask, self._model_fields[field].view(self.num_envs, -1), columns, values)

    def reset(self, mask: Tensor) -> None:
        self._assign(mask, *self._fresh)

    def refresh(self) -> None:
        if self._kinematics is not None:
            self._track()

    def expand(self, field: str) -> Tensor:
        if field not in self._model_fields:
            try:
                self._model_fields[field] = self._expanded(field)
            except AttributeError:
                raise UserError(
                    f"physics.engine: {self.name} has no values of {field} per simulation: take the event off, or use native"
                ) from None
        return self._model_fields[field].clone()

    def set_const(self, mask: Tensor) -> None:
        # On the host and in double precision: C's own derivation, at start-up or between iterations only.
        given = {n: v.double().cpu().numpy() for n, v in self._model_fields.items() if n in mujoco.MjModel._setconst_inputs}
        if not given:
            return
        rows = mask.nonzero()[:, 0].tolist()
        # before the first row is derived, so that expanded fields begin with the model's own values
        derived = {name: self._derived(name) for name in _DERIVED if np.size(getattr(self.model, name))}
        derived = {name: tensor for name, tensor in derived.items() if tensor is not None}
        values = {name: tensor.double().cpu().numpy() for name, tensor in derived.items()}
        model, data = copy.deepcopy(self.model), mujoco.MjData(self.model)
        for row in rows:
            for name, value in given.items():
                getattr(model, name)[:] = value[row].reshape(getattr(model, name).shape)
            mujoco.mj_setConst(model, data)
            for name, value in values.items():
                value[row] = getattr(model, name).reshape(value.shape[1:])
        for name, tensor in derived.items():
            tensor.copy_(torch.from_numpy(values[name]))

    def snapshot(self, rows: Tensor) -> dict[str, Tensor]:
        state = {f"state.{name}": tensor[rows].clone() for name, tensor in self._state.items()}
        state |= {f"model.{name}": tensor[rows].clone() for name, tensor in self._model_fields.items()}
        state |= {f"sensor.{name}": tensor[rows].clone() for name, tensor in self.sensors.items()}
        return state | {"joint_torque": self.joint_torque[rows].clone()}

    def restore(self, rows: Tensor, state: dict[str, Tensor]) -> None:
        for name in state:
            kind, _, key = name.partition(".")
            if kind == "model":
                self.expand(key)
        own = {"state": self._state, "model": self._model_fields, "sensor": self.sensors}
        for name, value in state.items():
            kind, _, key = name.partition(".")
            target = own[kind][key] if key else self.joint_torque
            target[rows] = value.to(self.device)
        self.refresh()

    def drain_unstable(self) -> list[dict]:
        rows = self._kept.nonzero()[:_DUMPS, 0]
        if not len(rows):
            return []
        steps, known = self._kept_at[rows].tolist(), (self._kept_at - self._drained_at)[rows].tolist()
        histories, ctrls = self._history[rows].cpu(), self._history_ctrl[rows].cpu().double().numpy()
        dumps = []
        for index, row in enumerate(rows.tolist()):
            order = [(steps[index] + i) % _HISTORY for i in range(_HISTORY)][-min(known[index], _HISTORY) :]
            states = np.stack([self._integration_state(histories[index, slot]) for slot in order])
            fields = {f"model.{name}": tensor[row].cpu().double().numpy() for name, tensor in self._model_fields.items()}
            dumps.append({"row": row, "error": "", "states": states, "ctrl": ctrls[index, order]} | fields)
        self._drained_at.copy_(torch.where(self._kept, self._steps, self._drained_at))
        self._kept.zero_()
        return dumps

    # ------------------------------------------------------------------------------------------------ parts of a step

    def _remember(self, ctrl: Tensor) -> None:
        """Note state and controls (N, decimation, nu) in the history of the rows that have not blown up."""
        now = torch.cat([tensor.reshape(len(tensor), -1) for tensor in self._state.values()], dim=1)
        # a comparison and not an index, which would be a copy through the whole ring as well and a scatter on top
        current = (torch.arange(_HISTORY, device=self.device) == self._steps % _HISTORY) & ~self._kept[:, None]
        self._history.copy_(torch.where(current[..., None], now[:, None], self._history))
        self._history_ctrl.copy_(torch.where(current[..., None, None], ctrl[:, None], self._history_ctrl))
        self._steps.add_(1)

    def _finish(self) -> None:
        """Sensors by meaning, and quarantine: rows that are not finite are flagged and reset."""
        # nan fails every comparison
        bad = ~((self.qpos.abs().amax(1) < LARGEST) & (self.qvel.abs().amax(1) < LARGEST))
        self.unstable.copy_(bad)
        self._kept_at.copy_(torch.where(bad & ~self._kept, self._steps, self._kept_at))
        self._kept.copy_(self._kept | bad)
        for name, (columns, shape) in self._slices.items():
            values = touches(self._sensordata[:, columns].view(-1, *shape))
            self.sensors[name].copy_(torch.where(bad.view(-1, *[1] * (values.dim() - 1)), 0.0, values))
        if self._reads_torque:
            self.joint_torque.copy_(torch.where(bad[:, None], 0.0, self._actuator_force))
        _assign(bad, list(self._state.values()), list(self._clean.values()))

    def _track(self) -> None:
        assert self._kinematics is not None
        track(self._kinematics, self)

    def _derived(self, field: str) -> Tensor | None:
        """Find the live tensor of a derived field, None where the engine has none of that name."""
        if field in self._model_fields:
            return self._model_fields[field]
        try:
            tensor = self._expanded(field)
        except AttributeError:
            return None
        self._model_fields[field] = tensor
        return tensor

    def _integration_state(self, row: Tensor) -> np.ndarray:
        """Write a row of the history as MuJoCo's mjSTATE_INTEGRATION."""
        data, kind = mujoco.MjData(self.model), mujoco.mjtState.mjSTATE_INTEGRATION
        start = 0
        for name, tensor in self._state.items():
            size = tensor[0].numel()
            values = row[start : start + size].double().numpy()
            if name == "time":
                data.time = float(values[0])
            else:
                target = getattr(data, name)
                target[:] = values.reshape(target.shape)
            start += size
        state = np.zeros(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, data, state, kind)
        return state

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(self.num_envs, *shape, device=self.device)


def _assign(mask: Tensor, targets: list[Tensor], values: list[Tensor]) -> None:
    """Set the rows in mask of each target (N, ...) to its value, (N, ...) or one for all rows (...)."""
    for target, value in zip(targets, values, strict=True):
        target.copy_(torch.where(mask.view(-1, *[1] * (target.dim() - 1)), value, target))


def _assign_columns(mask: Tensor, target: Tensor, columns: Tensor, values: Tensor) -> None:
    """Set the columns (C,) of the rows in mask of the target (N, M) to the values (N, C)."""
    held = target.index_select(1, columns)
    target.index_copy_(1, columns, torch.where(mask[:, None], values, held))


class Touchdowns:
    """Counts how often feet come down within a control step.

    Args:
        columns: of the sensor data, that are the contacts of the feet's geoms.
        shape: feet, and geoms of each.
        contact: whether each foot touched after the last control step, (N, F).
        count: how often each came down in it, (N, F).
    """

    def __init__(self, columns: slice, shape: tuple[int, ...], contact: Tensor, count: Tensor) -> None:
        self._columns, self._shape, self._contact, self._count = columns, shape, contact, count
        self._touching = contact

    def start(self) -> None:
        """Begin a control step."""
        self._count.zero_()
        self._touching = self._contact

    def look(self, sensordata: Tensor) -> None:
        """Look at the contacts after a substep, in sensor data (N, nsensordata)."""
        touching = touches(sensordata[:, self._columns].view(-1, *self._shape))
        self._count.add_(touching * (1.0 - self._touching))
        self._touching = touching


def touchdowns(scene: Scene, sensors: dict[str, Tensor]) -> Touchdowns | None:
    """Make what counts touchdowns into an engine's sensors, where they are asked for."""
    if not scene.foot_touchdown:
        return None
    count = sensors["foot_touchdown"] = torch.zeros_like(sensors["foot_contact"])
    return Touchdowns(*scene.sensors["foot_contact"], sensors["foot_contact"], count)


def touches(values: Tensor) -> Tensor:
    """Say 1 where any geom of a foot or body B has matches: (N, B, geoms of each) to (N, B)."""
    return (values.amax(2) > 0).float()


def track(kinematics: Kinematics, physics: Physics) -> None:
    """Find where the frames are, and write it into what an engine hands out."""
    position, velocity, quat = kinematics(physics.qpos, physics.qvel)
    physics.frame_pos.copy_(position)
    physics.frame_lin_vel.copy_(velocity)
    if quat is not None:
        physics.frame_quat.copy_(quat)


def runnable(model: mujoco.MjModel) -> mujoco.MjModel:
    """Copy the model without the flags that only C's engine knows: auto-reset, which these engines have none of."""
    model = copy.deepcopy(model)
    model.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    return model
