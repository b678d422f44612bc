"""What the learner learns from, and who fetches it.

A collector gives `collect(actor, iteration) -> Rollout`; the trainer never sees an environment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from rsl_rl.models import MLPModel
from torch import Tensor

from embodied_rl import random
from embodied_rl.env import Env
from embodied_rl.learn.models import Obs, normalized, standard_deviation


@dataclass
class Rollout:
    """T steps of N environments.  Tensors are (T, N, ...) unless said otherwise."""

    obs: Obs
    """Observation of each group that the actions answered."""
    actions: Tensor
    mean: Tensor
    """Mean of the policy's distribution."""
    std: Tensor
    """Its standard deviation, (A,)."""
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    """False where a transition means nothing."""
    final_obs: Obs
    """The critic's observation of the state in which an episode was truncated."""
    last_obs: Obs
    """The observation after the last step, (N, O)."""
    totals: dict[str, float] = field(default_factory=dict)
    """Sums over the rollout, by metric name."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Where the time went."""


class Collector(Protocol):
    """Fetches rollouts of a fixed size."""

    num_envs: int
    mirrors: dict[str, tuple[Tensor, Tensor]]
    """Left-right reflection of each observation group and of `actions`: index and sign."""

    def observe(self) -> Obs:
        """The present observations, for their sizes."""
        ...

    def collect(self, actor: MLPModel, iteration: int) -> Rollout:
        """Let the actor drive for T steps."""
        ...

    def drain_unstable(self) -> list[dict]:
        """What is known of simulations that blew up since the last call: see `Physics.drain_unstable`."""
        ...

    def snapshot(self) -> dict[str, Tensor]:
        """The state of every environment, leading dimension N."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `snapshot`."""
        ...


class LocalCollector:
    """Steps an environment in this process.

    Args:
        env: the environment.
        num_steps: T.
        seed: keys the policy's noise, with the global env ids.
        symmetry: whether the learner will mirror what is collected.
    """

    def __init__(self, env: Env, num_steps: int, seed: int, *, symmetry: bool = False) -> None:
        self._env, self._num_steps = env, num_steps
        self.num_envs = env.num_envs
        self.mirrors = env.mirror_maps() if symmetry else {}
        self._key = random.stream_key(seed, "policy", env.device)
        self._rows = torch.arange(env.num_envs, device=env.device)
        shape, device = (num_steps, env.num_envs), env.device
        empty = lambda *size, dtype=torch.float32: torch.empty(*shape, *size, dtype=dtype, device=device)  # noqa: E731
        # where the next step is written: read by the kernels, so that one graph serves every step
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._actor: MLPModel | None = None
        self._run: Callable[[], None] = self._step
        self._policy_seconds = 0.0
        self._rollout = Rollout(
            obs={name: empty(value.shape[1]) for name, value in env.obs.items()},
            actions=empty(env.num_actions),
            mean=empty(env.num_actions),
            std=torch.empty(env.num_actions, device=device),
            rewards=empty(),
            terminated=empty(dtype=torch.bool),
            truncated=empty(dtype=torch.bool),
            valid=empty(dtype=torch.bool),
            final_obs={name: empty(value.shape[1]) for name, value in env.final_obs.items()},
            last_obs={name: torch.empty_like(value) for name, value in env.obs.items()},
        )

    def observe(self) -> Obs:
        return self._env.obs

    def collect(self, actor: MLPModel, iteration: int) -> Rollout:
        # The physics threads have the cores: torch's own would spin on them between two small operations.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._collect(actor, iteration)
        finally:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def _collect(self, actor: MLPModel, iteration: int) -> Rollout:
        env, rollout = self._env, self._rollout
        env.advance_curricula(iteration)
        rollout.std.copy_(standard_deviation(actor))
        if self._actor is not actor:
            self._actor = actor
            self._run = env.capture(self._step)
        self._slot.zero_()
        started, policy, physics = time.perf_counter(), self._policy_seconds, env.physics_seconds
        for _ in range(self._num_steps):
            self._run()
        for name, value in env.obs.items():
            rollout.last_obs[name].copy_(value)
        rollout.totals = env.drain_totals()
        total = time.perf_counter() - started
        policy, physics = self._policy_seconds - policy, env.physics_seconds - physics
        # inside a graph there is no clock
        split = {"physics": physics, "env": total - physics - policy, "policy": policy}
        rollout.seconds = {"rollout": total} if env.captured else split
        return rollout

    def _step(self) -> None:
        """One step of all environments into the rollout's next slot."""
        env, rollout, actor, before = self._env, self._rollout, self._actor, time.perf_counter()
        assert actor is not None
        for name, value in env.obs.items():
            self._store(rollout.obs[name], value)
        mean = actor.mlp(normalized(actor, env.obs["actor"]))
        noise = random.normal(self._key, env.env_ids, env.buffers["age"], env.num_actions)
        actions = mean + noise * rollout.std
        self._store(rollout.actions, actions)
        self._store(rollout.mean, mean)
        self._policy_seconds += time.perf_counter() - before
        env.advance(actions)
        result = env.result
        self._store(rollout.rewards, result.rewards)
        self._store(rollout.terminated, result.terminated)
        self._store(rollout.truncated, result.truncated)
        self._store(rollout.valid, result.valid)
        for name, value in result.final_obs.items():
            self._store(rollout.final_obs[name], value)
        self._slot.add_(1)

    def _store(self, buffer: Tensor, value: Tensor) -> None:
        buffer.index_copy_(0, self._slot, value[None])

    def drain_unstable(self) -> list[dict]:
        return self._env.physics.drain_unstable()

    def snapshot(self) -> dict[str, Tensor]:
        return self._env.snapshot(self._rows)

    def restore(self, state: dict[str, Tensor]) -> None:
        self._env.restore(self._rows, state)
