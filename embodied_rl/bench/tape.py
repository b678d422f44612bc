"""What an environment asks of its engine, on a tape, and who plays it: the whole environment, or its physics alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco import batch as mujoco_batch
from torch import Tensor

from embodied_rl import machine
from embodied_rl.cuda_graph import WARMUP, CudaGraph
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.physics.protocol import Physics
from embodied_rl.vector_env import Obs

#: Steps on a tape.
STEPS = 50

#: A method of an engine, its first argument, and the fields that it is given by name.
Call = tuple[str, Tensor, dict[str, Tensor]]


class Tape:
    """What an environment asks of its engine during some steps: controls, masked resets and writes, to be played again.

    Args:
        env: the environment; it is stepped operation by operation.
        policy: actions of the observations.
    """

    @torch.no_grad()
    def __init__(self, env: Env, policy: Callable[[Obs], Tensor]) -> None:
        for _ in range(STEPS):  # away from the first episodes
            env.advance(policy(env.obs))
        self.state = env.snapshot(torch.arange(env.num_envs, device=env.device))
        """Where the tape begins: the environment's snapshot."""
        self.actions: list[Tensor] = []
        self.columns: dict[str, Tensor] = {}
        """Of model fields that are written in part, the columns, int64 (C,)."""
        with _recorded(env.physics, self.columns) as calls:
            for _ in range(STEPS):
                self.actions.append(policy(env.obs).clone())
                env.advance(self.actions[-1])
        each = len(calls) // STEPS  # the same calls in every step: nothing in one depends on data
        self.calls = [_stacked(calls[index::each]) for index in range(each)]
        """A step's calls, each tensor with all steps in it, (T, N, ...)."""


@contextmanager
def _recorded(physics: Physics, columns: dict[str, Tensor]) -> Iterator[list[Call]]:
    """Record what the engine is asked from outside, meanwhile, and which columns of model fields are written."""
    calls: list[Call] = []

    def recorded(name: str) -> Callable[..., None]:
        method = getattr(physics, name)

        def call(first: Tensor, **fields: Tensor) -> None:
            calls.append((name, first.clone(), {field: value.clone() for field, value in fields.items()}))
            known = len(calls)
            if name == "write_model":
                ((field, values),) = fields.items()
                method(first, field, columns[field], values)
            else:
                method(first, **fields)
            del calls[known:]  # what the engine asked of itself, which it will again

        return call

    write_model = recorded("write_model")

    def written(mask: Tensor, field: str, places: Tensor, values: Tensor) -> None:
        columns[field] = places
        write_model(mask, **{field: values})

    names = ("step", "reset", "write", "write_model")
    for name in names:  # the engine stays the object that it was: what is compiled for it holds
        setattr(physics, name, written if name == "write_model" else recorded(name))
    try:
        yield calls
    finally:
        for name in names:
            delattr(physics, name)


def _stacked(calls: list[Call]) -> Call:
    names, firsts, fields = zip(*calls, strict=True)
    return names[0], torch.stack(firsts), {field: torch.stack([one[field] for one in fields]) for field in fields[0]}


class _Player:
    """Plays a tape on the environment that it is of."""

    def __init__(self, env: Env, tape: Tape) -> None:
        self._env, self._tape = env, tape
        self._rows = torch.arange(env.num_envs, device=env.device)

    @torch.no_grad()
    def rewind(self) -> None:
        """Go where the tape begins."""
        self._env.restore(self._rows, self._tape.state)


class WholeEnv(_Player):
    """An environment with all that it does, playing a tape: the same actions from the same state."""

    @torch.no_grad()
    def play(self) -> None:
        """Take all steps of the tape."""
        for action in self._tape.actions:
            self._env.step(action)


class PhysicsAlone(_Player):
    """An environment's engine without kinematics and terms, playing a tape, captured where the environment is.

    Raises:
        UserError: the capture failed.
    """

    @torch.no_grad()
    def __init__(self, env: Env, tape: Tape) -> None:
        super().__init__(env, tape)
        self.qpos, self.qvel = env.physics.qpos, env.physics.qvel
        # the step of the tape: read by the kernels, so that one graph serves every step
        self._slot = torch.zeros(1, dtype=torch.int64, device=env.device)
        self.step: Callable[[], None] = self._step
        if env.captured:
            for _ in range(WARMUP):
                self._step()
            self.step = CudaGraph(self._step, env.device, env.physics, what="the physics alone")

    @torch.no_grad()
    def play(self) -> None:
        """Take all steps of the tape."""
        self._slot.zero_()
        for _ in self._tape.actions:
            self.step()

    def _step(self) -> None:
        for name, first, fields in self._tape.calls:
            given = {field: self._now(values) for field, values in fields.items()}
            if name == "write_model":
                ((field, values),) = given.items()
                self._env.physics.write_model(self._now(first), field, self._tape.columns[field], values)
            else:
                getattr(self._env.physics, name)(self._now(first), **given)
        self._slot.add_(1).remainder_(len(self._tape.actions))

    def _now(self, values: Tensor) -> Tensor:
        return values.index_select(0, self._slot)[0]


class BatchAlone:
    """`mujoco.batch` and nothing else, playing a tape of the native engine.

    Args:
        model: what is simulated, the environment's model or another of the same robot.
        env: whose tape it is.
        tape: what is played.
        bound: outputs that are handed out.
    """

    def __init__(self, model: mujoco.MjModel, env: Env, tape: Tape, bound: Iterable[str] = ()) -> None:
        self._batch = mujoco_batch.Batch(model, env.num_envs, env.page.physics.num_threads or machine.cores())
        for output in bound:
            self._batch.bind(output)
        self.qpos, self.qvel, self._ctrl = (self._batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self._decimation, self._rows, clean = env.page.physics.decimation, self._batch.state, self._batch.state[:1].copy()
        self._start = tape.state["physics.integration"].numpy()[:, : self._batch.nstate]
        targets = {"qpos": self.qpos, "qvel": self.qvel} | self._expand(model, env, tape)
        # resolved beforehand, so that playing is stepping and assigning: a step's controls, and (target, rows, values)
        self._steps: list[tuple[list[np.ndarray], list[tuple[np.ndarray, Any, np.ndarray]]]] = []
        (_, controls, _), *changes = tape.calls
        for index, control in enumerate(controls.double().numpy()):
            writes = []
            for name, mask, fields in changes:
                if not len(rows := np.flatnonzero(mask[index].numpy())):
                    continue
                if name == "reset":
                    writes.append((self._rows, rows, clean))
                given = {field: values[index].double().numpy()[rows] for field, values in fields.items() if field in targets}
                for field, values in given.items():
                    if name == "write_model":
                        flat = targets[field].reshape(env.num_envs, -1)  # a view of what the engine reads
                        writes.append((flat, (rows[:, None], tape.columns[field].numpy()), values))
                    else:
                        writes.append((targets[field], rows, values))
            self._steps.append(([control] if control.ndim == 2 else list(control.swapaxes(0, 1)), writes))

    def rewind(self) -> None:
        """Go where the tape begins."""
        self._rows[:] = self._start

    def play(self) -> None:
        """Take all steps of the tape.

        Raises:
            UserError: MuJoCo met an error.
        """
        try:
            for controls, writes in self._steps:
                for control in controls:
                    self._ctrl[:] = control
                    self._batch.step(nstep=self._decimation // len(controls))
                for target, places, values in writes:
                    target[places] = values
        except mujoco_batch.SimulationError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"bench: MuJoCo failed on the tape: {reason}; train the page further, then measure it") from None

    def _expand(self, model: mujoco.MjModel, env: Env, tape: Tape) -> dict[str, np.ndarray]:
        """Give the model fields that the page randomizes their values; another model gets the friction of its feet alone."""
        prefix, expanded = "physics.model.", {}
        for name, values in tape.state.items():
            field = name.removeprefix(prefix)
            known = model is env.scene.model or (field == "geom_friction" and values.shape[1] == model.ngeom)
            if name.startswith(prefix) and known:
                expanded[field] = self._batch.expand(field)
                expanded[field][:] = values.numpy()
        if any(field in mujoco.MjModel._setconst_inputs for field in expanded):
            self._batch.set_const(np.arange(env.num_envs, dtype=np.int32))
        return expanded


def physics_alone(env: Env, tape: Tape) -> PhysicsAlone | BatchAlone:
    """Pick what plays the engine and nothing else: for native `mujoco.batch` itself, which hands out what a step reads."""
    if env.page.physics.engine != "native":
        return PhysicsAlone(env, tape)
    scene = env.scene
    return BatchAlone(scene.model, env, tape, ("sensordata", "actuator_force") if scene.joint_torque else ("sensordata",))
