"""The benchmarks of what is learned: what they call a return, and which policy they evaluate."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from embodied_rl import runs
from embodied_rl.learn.rollout import Rollout


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[3] / f"benchmarks/learning/{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rollout(rewards: list[float], valid: list[bool], episodes: int, total: float) -> Rollout:
    nothing = torch.zeros(1)
    numbers = {"rewards": torch.tensor(rewards), "valid": torch.tensor(valid)}
    fields = dict.fromkeys(("actions", "output", "terminated", "truncated"), nothing) | numbers
    totals = {"episodes": float(episodes), "reward/total": total}
    return Rollout(obs={}, std=None, final_obs={}, last_obs={}, totals=totals, **fields)  # pyright: ignore[reportArgumentType]


def test_returns_are_means_over_episodes_and_rewards_means_over_valid_steps() -> None:
    pool_learning, rollouts = script("pools"), []
    # one episode of 10 and three of 2 are 4 in the mean, not 6; 99 means nothing
    for one in (rollout([1.0, 2.0], [True, True], 1, 10.0), rollout([99.0, 6.0], [False, True], 3, 6.0)):
        assert pool_learning.recorded(lambda policy, one=one: one, rollouts)("policy") is one
    assert pool_learning.means(rollouts) == (4.0, 3.0)
    none = []
    pool_learning.recorded(lambda: rollout([1.0], [True], 0, 0.0), none)()
    episode, step = pool_learning.means(none)
    assert math.isnan(episode) and step == 1.0


def test_the_policy_that_is_evaluated_is_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    learning, loaded = script("learners"), []

    def load(*arguments: Any) -> Any:
        loaded.append(real(*arguments))
        return loaded[-1]

    real = runs.load
    monkeypatch.setattr(runs, "load", load)
    monkeypatch.setattr(runs, "evaluate_policy", lambda page, policy, seed: {"policy": policy})
    overrides = [
        "env.num_envs=4",
        "env.compile=false",
        "train.steps=4",
        "ppo.num_mini_batches=1",
        "train.save_every=2",
    ]
    result = learning.train("go2_flat", [*overrides, *learning.EQUAL], seed=1, steps=3 * 16)
    assert loaded[0].iteration == 3 and result["evaluation"]["policy"] is loaded[0].policy
    assert result["curves"]["Train/env_steps"] == [16.0, 32.0, 48.0]
