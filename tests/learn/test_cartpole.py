"""Discrete actions and recurrent policies learn, through the collector and the learner that everything else uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl import random
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.learn.actor_critic import ActorCritic
from embodied_rl.learn.impala import IMPALA
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.vector_env import ActionSpace, Step

SETTINGS = {
    "actor_hidden_dims": (64,),
    "critic_hidden_dims": (64,),
    "learning_rate": 3e-3,
    "schedule": "constant",
    "gamma": 0.98,
    "entropy_coef": 0.005,
    "use_clipped_value_loss": False,
    "value_loss_coef": 0.5,
}


# Barto, Sutton and Anderson, "Neuronlike adaptive elements that can solve difficult learning control problems" (1983)
GRAVITY, CART, POLE, HALF_LENGTH, FORCE, DT = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
LIMIT_X, LIMIT_ANGLE, EPISODE = 2.4, math.radians(12.0), 200


class CartPole:
    """N poles; 1 is the reward of every step, at most `EPISODE` of them.

    Args:
        num_envs: N.
        hidden: leaves the velocities out of what is observed, so that the policy has to remember.
    """

    captured, physics_seconds = False, 0.0

    def __init__(self, num_envs: int, *, hidden: bool = False, seed: int = 1) -> None:
        self.num_envs, self.device, self._hidden = num_envs, torch.device("cpu"), hidden
        self.action_space, self.env_ids = ActionSpace(2, discrete=True), torch.arange(num_envs)
        self.buffers = {"age": torch.zeros(num_envs, dtype=torch.int64), "length": torch.zeros(num_envs, dtype=torch.int64)}
        self._key = random.stream_key(seed, "start")
        self._state = self._start()
        self.obs = {"actor": self._observe()}
        self.final_obs = {"actor": self.obs["actor"].clone()}
        self._lengths: list[Tensor] = []
        self.result = self._step_of(torch.zeros(num_envs).bool(), torch.zeros(num_envs).bool())

    def advance(self, actions: Tensor) -> None:
        x, dx, angle, rate = self._state.unbind(-1)
        force = FORCE * (2.0 * actions.float() - 1.0)
        pull = (force + POLE * HALF_LENGTH * rate.square() * angle.sin()) / (CART + POLE)
        lever = HALF_LENGTH * (4.0 / 3.0 - POLE * angle.cos().square() / (CART + POLE))
        turn = (GRAVITY * angle.sin() - angle.cos() * pull) / lever
        push = pull - POLE * HALF_LENGTH * turn * angle.cos() / (CART + POLE)
        self._state = torch.stack((x + DT * dx, dx + DT * push, angle + DT * rate, rate + DT * turn), dim=-1)
        self.buffers["age"] += 1
        self.buffers["length"] += 1
        terminated = (self._state[:, 0].abs() > LIMIT_X) | (self._state[:, 2].abs() > LIMIT_ANGLE)
        truncated = (self.buffers["length"] >= EPISODE) & ~terminated
        done = terminated | truncated
        self._lengths.append(self.buffers["length"][done].clone())
        self.final_obs["actor"].copy_(self._observe())
        self._state = torch.where(done[:, None], self._start(), self._state)
        self.buffers["length"] *= ~done
        self.obs["actor"].copy_(self._observe())
        self.result = self._step_of(terminated, truncated)

    def drain_totals(self) -> dict[str, float]:
        lengths, self._lengths = torch.cat(self._lengths).float(), []
        return {"episodes": float(len(lengths)), "episode_length": float(lengths.sum())}

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        return function

    def begin_iteration(self, iteration: int, numbers: dict[str, Tensor]) -> None: ...

    def _start(self) -> Tensor:
        return 0.1 * random.uniform(self._key, self.env_ids, self.buffers["age"], 4) - 0.05

    def _observe(self) -> Tensor:
        return self._state[:, ::2].clone() if self._hidden else self._state.clone()

    def _step_of(self, terminated: Tensor, truncated: Tensor) -> Step:
        ones = torch.ones(self.num_envs)
        return Step(self.obs, ones, terminated, truncated, self.final_obs, torch.ones(self.num_envs, dtype=torch.bool))


def lengths(kind: type[ActorCritic] = PPO, *, hidden: bool = False, iterations: int, **changes: Any) -> list[float]:
    """Mean length of the episodes that ended, by iteration."""
    page = PPOSettings.model_validate(SETTINGS | changes)
    env = CartPole(64, hidden=hidden)
    collector = LocalCollector(env, 32, seed=1)  # pyright: ignore[reportArgumentType]  it stands for one
    torch.manual_seed(1)
    learner = kind(env.obs, env.action_space, page, {}, seed=1)
    history = []
    for iteration in range(iterations):
        rollout = collector.collect(learner.policy, iteration)
        learner.update(rollout, iteration)
        history.append(rollout.totals["episode_length"] / max(rollout.totals["episodes"], 1.0))
    return history


def test_a_pole_is_balanced_by_pushes_to_either_side() -> None:
    history = lengths(iterations=14)
    assert history[0] < 30.0
    assert sum(history[-3:]) / 3 > 120.0


@pytest.mark.parametrize("rnn_type", ["gru", pytest.param("lstm", marks=pytest.mark.slow)])
def test_a_policy_that_remembers_balances_a_pole_whose_speed_it_cannot_see(rnn_type: str) -> None:
    changes = {"rnn_type": rnn_type, "rnn_hidden_dim": 32, "iterations": 16}
    assert sum(lengths(hidden=True, **changes)[-3:]) / 3 > 90.0


def test_impala_balances_it_too() -> None:
    """One pass a rollout, where PPO makes five."""
    history = lengths(IMPALA, iterations=24, lam=1.0, num_mini_batches=8)
    assert history[0] < 30.0 and sum(history[-3:]) / 3 > 80.0


def test_without_memory_it_cannot() -> None:
    assert max(lengths(hidden=True, iterations=16)[-3:]) < 70.0
