from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mujoco import batch as mujoco_batch
from torch import Tensor

from embodied_rl import make_env
from embodied_rl.bench import tape as module
from embodied_rl.bench.tape import BatchAlone, PhysicsAlone, Tape, WholeEnv, physics_alone
from embodied_rl.config import Page, load
from embodied_rl.cuda_graph import CudaGraph
from embodied_rl.errors import UserError
from embodied_rl.vector_env import Obs

#: A page of which nearly everything is random, actions that arrive late among it.
EVERYTHING = Path(__file__).parents[1] / "everything.yaml"


def swaying(env: Any) -> Callable[[Obs], Tensor]:
    """Actions that shake the robot, whatever it is."""
    return lambda obs: 0.5 * torch.sin(40.0 * obs["actor"][:, : env.num_actions])


def check_that_the_physics_alone_does_what_the_environment_did(page: Page) -> Any:
    env: Any = make_env.make(page)
    tape = Tape(env, swaying(env))
    assert vars(env.physics).keys().isdisjoint({"step", "reset", "write", "write_model"})  # it is asked by the environment again
    reached = [np.asarray(env.physics._state[name]).copy() for name in ("qpos", "qvel")]  # in the engine's own precision
    names, masks, _ = zip(*tape.calls, strict=True)
    assert names[:3] == ("step", "reset", "write")
    assert masks[1].any() and (masks[2] & ~masks[1]).any()  # resets and pushes are on the tape
    alone = physics_alone(env, tape)
    for side, state in ((alone, alone), (WholeEnv(env, tape), env.physics)):
        side.rewind()
        assert not np.array_equal(state.qpos, reached[0])
        side.play()
        for got, wanted in zip((state.qpos, state.qvel), reached, strict=True):
            np.testing.assert_array_equal(np.asarray(got), wanted.astype(np.asarray(got).dtype))
    env.close()
    return tape


def test_the_physics_alone_does_what_the_environment_did(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 25)  # as many as an episode has
    check_that_the_physics_alone_does_what_the_environment_did(page)


def test_controls_that_change_within_a_step_and_robots_that_differ() -> None:
    small = ["env.compile=false", "env.num_envs=8", "env.episode_s=0.5", "physics.num_threads=1", "physics.device=cpu"]
    tape = check_that_the_physics_alone_does_what_the_environment_did(load(str(EVERYTHING), small))
    assert tape.calls[0][1].dim() == 4 and tape.state["physics.model.body_mass"].std(0).max() > 0.0


@pytest.fixture
def native(tiny: list[str]) -> Any:
    return make_env.make("go2_flat", tiny)


def test_it_is_captured_like_the_environment(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever device there is: the graph gets what a graph takes."""
    asked = []

    def graph(*args: Any, **options: Any) -> Any:
        asked.append(inspect.signature(CudaGraph).bind(*args, **options).arguments)
        return args[0]

    monkeypatch.setattr(module, "CudaGraph", graph)
    monkeypatch.setattr(module, "STEPS", 2)
    tape = Tape(native, swaying(native))
    PhysicsAlone(native, tape)
    assert not asked
    monkeypatch.setattr(type(native), "captured", True)
    PhysicsAlone(native, tape)
    assert [(one["device"], one["physics"]) for one in asked] == [(native.device, native.physics)]


def test_what_an_engine_asks_of_itself_is_not_on_the_tape(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native engine resets a row that blew up within its step."""
    monkeypatch.setattr(module, "STEPS", 2)
    native.physics.write(torch.ones(4, dtype=torch.bool), qvel=torch.full_like(native.physics.qvel, 1e9))
    with module._recorded(native.physics, {}) as calls:
        native.advance(torch.zeros(4, 12))
    assert native.physics.unstable.any()
    assert [name for name, *_ in calls] == ["step", "reset", "write", "write_model"]


def test_an_error_of_mujoco_is_one_line(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(nstep: int) -> None:
        raise mujoco_batch.SimulationError(np.array([0]), "mj_stackAlloc: insufficient memory\nmore")

    monkeypatch.setattr(module, "STEPS", 2)
    alone = BatchAlone(native.scene.model, native, Tape(native, swaying(native)))
    monkeypatch.setattr(alone, "_batch", SimpleNamespace(step=fail))
    alone.rewind()
    said = r"^bench: MuJoCo failed on the tape: MuJoCo raised .*: mj_stackAlloc: insufficient memory; train"
    with pytest.raises(UserError, match=said):
        alone.play()
