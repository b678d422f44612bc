"""Small pages, one for each engine, and a robot that stands while its step is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embodied_rl.bench import env, tape, train
from embodied_rl.config import Page, load

Hopper = Callable[[Path, str], None]
MODULES = {"native": "mujoco", "warp": "mujoco_warp", "mjx": "mujoco.mjx"}


@pytest.fixture
def tiny() -> list[str]:
    """What makes a page train in no time."""
    return [
        *("env.compile=false", "env.num_envs=4", "physics.num_threads=1", "train.steps=4", "ppo.symmetry=none"),
        *("ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]", "ppo.num_learning_epochs=1", "ppo.num_mini_batches=2"),
    ]


@pytest.fixture(params=["native", *(pytest.param(engine, marks=pytest.mark.slow) for engine in ("warp", "mjx"))])
def page(request: pytest.FixtureRequest, tiny: list[str], hopper: Hopper, tmp_path: Path) -> Page:
    """A page of each engine whose robots are pushed and begin anew."""
    pytest.importorskip(MODULES[request.param])
    changes = [f"physics.engine={request.param}", "physics.device=cpu", "env.episode_s=0.5", "events.push.interval_s=0.2"]
    if request.param == "mjx":
        hopper(tmp_path, "/")
        obs = "{joint_pos: {}, joint_vel: {}}"
        changes += [f"robot={tmp_path}", f"observations={{actor: {obs}, critic: {obs}}}", "rewards={alive: {weight: 1.0}}"]
    return load("go2_flat", [*tiny, *changes])


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch, tiny: list[str]) -> None:
    """The tape is driven by a robot that stands, and all is short."""
    for module in (env, train):
        monkeypatch.setattr(module, "driving_policy", lambda page: lambda obs: torch.zeros(len(obs["actor"]), _actions(page)))
        monkeypatch.setattr(module, "_ROUNDS", 2)
    monkeypatch.setattr(tape, "STEPS", 3)
    monkeypatch.setattr(train, "COMPARABLE", tiny)
    monkeypatch.setattr(train, "_WARMUP", 1)
    monkeypatch.setattr(train, "_ITERATIONS", 1)


def _actions(page: Page) -> int:
    return 12 if page.robot == "go2" else 1
