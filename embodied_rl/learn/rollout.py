"""What the learner learns from, and who fetches it.

A collector gives `collect(policy, iteration, numbers) -> Rollout`; the trainer never sees an environment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from embodied_rl import random
from embodied_rl.blocks import Rowwise
from embodied_rl.learn.cpu.perceptron import FrozenPerceptron
from embodied_rl.learn.cpu.team import one_thread, own_cores
from embodied_rl.learn.policy import Memory, Policy, memory_and_rest, memory_by_robot
from embodied_rl.vector_env import ActionSpace, Obs, VectorEnv


@dataclass
class Gradient:
    """What a worker made of a rollout of its own, with the weights that acted: the first half of the learner's update."""

    bucket: Tensor
    """The summed gradient, and behind it the sums of `GradientSteps`, float32 (P + S,)."""
    explained_variance: Tensor
    """Of the values that were predicted, ()."""
    moments: dict[str, Tensor]
    """Of raw observations, by the network that they are normalized for: see `normalizer.moments_of`."""


@dataclass
class Rollout:
    """T steps of N environments.  Tensors are (T, N, ...) unless said otherwise."""

    obs: Obs
    """Observation of each group that the actions answered."""
    actions: Tensor
    output: Tensor
    """What the policy's network said: the mean of a Gaussian, the logits of a choice."""
    std: Tensor | None
    """Standard deviation of a Gaussian, (A,); with `staleness`, of one of the policies that acted."""
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    """False where a transition means nothing."""
    final_obs: Obs
    """The critic's observation of the state in which an episode was truncated."""
    last_obs: Obs
    """The observation after the last step, (N, O)."""
    memory: Memory = ()
    """What a recurrent policy remembered before the first step, each (layers, N, hidden)."""
    log_prob: Tensor | None = None
    """log mu(a|s) of the policy mu that acted, (T, N), noted where it did; there with `staleness`."""
    staleness: Tensor | None = None
    """How many versions mu is behind the policy that learns, (N,); None: it is that policy."""
    lanes: Tensor | None = None
    """Which of the robots they are, int64 (N,), each once; None: all, in order."""
    priorities: Tensor | None = None
    """How wrong the critics were about each step where it was made, for a replay, (T, N)."""
    gradient: Gradient | None = None
    """Where a worker has learned from it already: observations, actions and output stayed there, and are empty here."""
    totals: dict[str, float] = field(default_factory=dict)
    """Sums over the rollout, by metric name."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Where the time went."""


class Collector(Protocol):
    """Fetches rollouts of a fixed size."""

    num_envs: int
    num_steps: int
    action_space: ActionSpace
    mirrors: dict[str, tuple[Tensor, Tensor]]
    """Left-right reflection of each observation group and of `actions`: index and sign."""

    def observe(self) -> Obs:
        """Give the present observations, for their sizes."""
        ...

    def collect(self, policy: Policy, iteration: int, numbers: dict[str, Tensor] | None = None) -> Rollout:
        """Let the policy drive for T steps; the rollout's tensors are overwritten by the next call.

        Args:
            policy: what acts.
            iteration: the trainer's.
            numbers: of the page, that have moved since the run began (`Curricula.numbers`), for `VectorEnv.begin_iteration`.
        """
        ...

    def drain_unstable(self) -> list[dict]:
        """Hand out what is known of simulations that blew up since the last call: see `Physics.drain_unstable`."""
        ...

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the state of every environment and what the policy remembers of it, leading dimension N."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set everything to what `snapshot` gave."""
        ...

    def rest(self, *, at_once: bool = False) -> None:
        """Return when nothing in this process steps beside its caller; `at_once`: what is under way is cut short and dropped."""
        ...


class LocalCollector:
    """Steps an environment in this process.

    Args:
        env: the environment.
        num_steps: T.
        seed: keys the policy's noise, with the global env ids.
        symmetry: whether the learner will mirror what is collected.
        compiler: wraps what the policy computes in a step, `torch.compile` or the identity.
        chunk: how many environments the policy answers at once; a matrix product's last bits depend on it, and so a pool
            and this process agree to the bit where they have it in common.  None: all.
    """

    def __init__(
        self,
        env: VectorEnv,
        num_steps: int,
        seed: int,
        *,
        symmetry: bool = False,
        compiler: Callable = lambda f: f,
        chunk: int | None = None,
    ) -> None:
        self._env, self.num_steps, self.num_done = env, num_steps, 0
        self.num_envs, self.action_space = env.num_envs, env.action_space
        self.mirrors = env.mirror_maps() if symmetry else {}
        self._key = random.stream_key(seed, "policy", env.device)
        self._rows = torch.arange(env.num_envs, device=env.device)
        # where the next step is written: read by the kernels, so that one graph serves every step
        self._slot = torch.zeros(1, dtype=torch.int64, device=env.device)
        self._policy: Policy | None = None
        self._network: FrozenPerceptron | None = None
        self._memory: Memory = ()
        self._run: Callable[[], None] = self._step
        size = chunk or env.num_envs
        self._chunks = [slice(first, first + size) for first in range(0, env.num_envs, size)]
        self._chunk = chunk
        self.interrupted: Callable[[], bool] = lambda: False
        """Asked before each step; once it says yes, the rollout ends early, and `num_done` says where."""
        self.pinned = False
        """Whether a rollout is to lie in pinned memory, from which a GPU copies it by itself."""
        self.notes_log_prob = False
        """Whether a rollout is to have `log_prob`: where the policy that learns from it may be another one."""
        self._drawn: Tensor | None = None
        self._compiler = compiler
        self._prepare: Callable[[], None] | None = None
        if chunk is None:
            self._act = compiler(self._act)
        else:  # one chunk's arithmetic, whatever their number: it must not depend on it
            self._answer = compiler(self._answer)
        self._policy_seconds = 0.0

    def observe(self) -> Obs:
        return self._env.obs

    def collect(self, policy: Policy, iteration: int, numbers: dict[str, Tensor] | None = None) -> Rollout:
        # the physics threads have the cores: torch's own would spin on them between two small operations
        with one_thread():
            return self._collect(policy, iteration, numbers or {})

    @torch.no_grad()
    def _collect(self, policy: Policy, iteration: int, numbers: dict[str, Tensor]) -> Rollout:
        env = self._env
        env.begin_iteration(iteration, numbers)
        if self._policy is not policy:
            self._meet(policy)
        assert self._network is not None
        self._network.refresh()
        rollout = self._rollout
        std = policy.std
        if rollout.std is not None and std is not None:
            rollout.std.copy_(std)
        for kept, present in zip(rollout.memory, self._memory, strict=True):
            kept.copy_(present)
        self._slot.zero_()
        started, thinking, physics = time.perf_counter(), self._policy_seconds, env.physics_seconds
        self.num_done = 0
        if self._chunk is not None:
            self._draw_ahead()
        while self.num_done < self.num_steps and not self.interrupted():
            self._run()
            self.num_done += 1
        for name, value in env.obs.items():
            rollout.last_obs[name].copy_(value)
        if rollout.log_prob is not None:
            rollout.log_prob.copy_(policy.distribution(rollout.output, rollout.std).log_prob(rollout.actions))
        rollout.totals = env.drain_totals()
        total = time.perf_counter() - started
        thinking, physics = self._policy_seconds - thinking, env.physics_seconds - physics
        # inside a graph there is no clock
        split = {"physics": physics, "env": total - physics - thinking, "policy": thinking}
        rollout.seconds = {"rollout": total} if env.captured else split
        return rollout

    def _meet(self, policy: Policy) -> None:
        """Make room for what the policy does, and capture the step with it."""
        env, restored = self._env, self._memory if self._policy is None else ()
        self._policy = policy
        # the cores are free while the policy thinks, but a pool's workers share them
        self._network = FrozenPerceptron(policy.network, helpers=own_cores() - 1 if self._chunk is None else 0)
        self._memory = policy.start(env.num_envs, env.device)
        for part, value in zip(self._memory, restored, strict=bool(restored)):
            part.copy_(value)
        distribution, _ = policy(env.obs["actor"], self._memory)
        self._noise = distribution.noise
        noise = self._noise(self._key, env.env_ids, env.buffers["age"], env.action_space.size)
        pinned = self.pinned
        space = lambda like: like.new_empty((self.num_steps, *like.shape), pin_memory=pinned)  # noqa: E731
        step = env.result
        self._rollout = Rollout(
            obs={name: space(value) for name, value in env.obs.items()},
            actions=space(distribution.sample(noise)),
            output=space(distribution.output),
            std=None if policy.std is None else policy.std.detach().clone(),
            rewards=space(step.rewards),
            terminated=space(step.terminated),
            truncated=space(step.truncated),
            valid=space(step.valid),
            final_obs={name: space(value) for name, value in env.final_obs.items()},
            last_obs={name: torch.empty_like(value, pin_memory=pinned) for name, value in env.obs.items()},
            memory=tuple(torch.empty_like(part, pin_memory=pinned) for part in self._memory),
            log_prob=space(step.rewards) if self.notes_log_prob else None,
        )
        self._prepare = None
        if self._network.fuses and self._chunk is None and not self._memory:
            self._features, self._noises = policy.normalizer(env.obs["actor"]).clone(), noise.clone()
            rows = (env.obs["actor"], env.env_ids, env.buffers["age"], self._features, self._noises)
            self._prepare = self._compiler(Rowwise(self._prepare_rows, rows))
        remembered = [part.clone() for part in self._memory]
        self._slot.zero_()  # the steps before a capture write too
        self._run = env.capture(self._step)
        for part, value in zip(self._memory, remembered, strict=True):
            part.copy_(value)

    def _step(self) -> None:
        """One step of all environments into the rollout's next slot."""
        env, rollout, before = self._env, self._rollout, time.perf_counter()
        actions = self._act() if self._prepare is None else self._act_in_parts()
        self._policy_seconds += time.perf_counter() - before
        env.advance(actions)
        step = env.result
        self._store(rollout.rewards, step.rewards)
        self._store(rollout.terminated, step.terminated)
        self._store(rollout.truncated, step.truncated)
        self._store(rollout.valid, step.valid)
        for name, value in step.final_obs.items():
            self._store(rollout.final_obs[name], value)
        for part in self._memory:
            part.mul_(~(step.terminated | step.truncated)[:, None])
        self._slot.add_(1).remainder_(self.num_steps)

    def _act(self) -> Tensor:
        """Ask the policy what to do now, and note it in the rollout."""
        env, rollout, policy = self._env, self._rollout, self._policy
        assert policy is not None
        for name, value in env.obs.items():
            self._store(rollout.obs[name], value)
        answers = [self._answer(policy, *self._inputs(rows)) for rows in self._chunks]
        actions, output, memory = answers[0]
        if len(answers) > 1:
            actions, output = torch.cat([answer[0] for answer in answers]), torch.cat([answer[1] for answer in answers])
            memory = tuple(torch.cat(parts, dim=1) for parts in zip(*(answer[2] for answer in answers), strict=True))
        for part, value in zip(self._memory, memory, strict=True):
            part.copy_(value)
        self._store(rollout.actions, actions)
        self._store(rollout.output, output)
        return actions

    def _act_in_parts(self) -> Tensor:
        """Do what `_act` does, with what is one operation for all robots outside of what is compiled."""
        env, rollout, policy = self._env, self._rollout, self._policy
        assert policy is not None and self._prepare is not None and self._network is not None
        for name, value in env.obs.items():
            self._store(rollout.obs[name], value)
        self._prepare()
        distribution = policy.distribution(self._network(self._features))
        actions = distribution.sample(self._noises)
        self._store(rollout.actions, actions)
        self._store(rollout.output, distribution.output)
        return actions

    def _prepare_rows(self) -> None:
        """Find what the network answers, and the noise of its answers."""
        env, policy = self._env, self._policy
        assert policy is not None
        self._features.copy_(policy.normalizer(env.obs["actor"]))
        self._noises.copy_(self._noise(self._key, env.env_ids, env.buffers["age"], env.action_space.size))

    def _draw_ahead(self) -> None:
        """Draw the noise of all T steps at once: few rows at a time cost as much as many, and are drawn more often."""
        env, steps = self._env, torch.arange(self.num_steps, device=self._env.device)
        ages = (env.buffers["age"] + steps[:, None]).flatten()
        noise = self._noise(self._key, env.env_ids.repeat(self.num_steps), ages, env.action_space.size)
        self._drawn = noise.view(self.num_steps, env.num_envs, -1)

    def _inputs(self, rows: slice) -> tuple[Tensor, Tensor | None, Memory]:
        """Gather what the policy's answer to some rows depends on: observations, noise where it is drawn already, memory."""
        env = self._env
        obs, memory = env.obs["actor"][rows], tuple(part[:, rows] for part in self._memory)
        if self._chunk is not None:
            # copies: the last bits of some processors' products of few rows depend on where in memory these begin
            obs, memory = obs.clone(), tuple(part.clone(memory_format=torch.contiguous_format) for part in memory)
        return obs, self._drawn[self.num_done, rows] if self._drawn is not None else None, memory

    def _answer(self, policy: Policy, obs: Tensor, noise: Tensor | None, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        """Actions, what the policy's network said, and what is remembered from now on."""
        env = self._env
        distribution, memory = policy(obs, memory, self._network)
        if noise is None:
            noise = distribution.noise(self._key, env.env_ids, env.buffers["age"], env.action_space.size)
        return distribution.sample(noise), distribution.output, memory

    def _store(self, buffer: Tensor, value: Tensor) -> None:
        buffer.index_copy_(0, self._slot, value[None])

    def drain_unstable(self) -> list[dict]:
        return self._env.drain_unstable()

    def snapshot(self) -> dict[str, Tensor]:
        return self._env.snapshot(self._rows) | memory_by_robot(self._memory)

    def restore(self, state: dict[str, Tensor]) -> None:
        self._policy = None  # meets the policy anew, with what it remembered
        memory, rest = memory_and_rest(state)
        self._memory = tuple(part.to(self._env.device, copy=True) for part in memory)
        self._env.restore(self._rows, rest)

    def rest(self, *, at_once: bool = False) -> None:
        pass
