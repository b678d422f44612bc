"""A policy that answers robots which are elsewhere, on the learner's device: one copy there, one copy back, for a whole batch.

Legend: T steps, N environments of the pool, R of a batch, A actions, P outputs of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from embodied_rl import random
from embodied_rl.learn.cpu.perceptron import FrozenPerceptron
from embodied_rl.learn.policy import Policy
from embodied_rl.vector_env import ActionSpace


class Question(NamedTuple):
    """Some environments that want to know what to do."""

    step: int
    """Of their own rollout."""
    rows: slice
    """Where they stand among the pool's."""


class Answers(NamedTuple):
    """What a batch was told, on the host; overwritten by the next."""

    actions: np.ndarray
    """(R, A), or choices, (R,)."""
    output: np.ndarray
    """(R, P)."""
    log_prob: np.ndarray
    """Log-probabilities of the actions, (R,)."""


class Inference:
    """Answers observations.

    On the CPU the bits are those of a `LocalCollector` with the same `shard_size`, however robots are batched: the products of
    `perceptron.cpp` do not depend on how many rows there are, and of other networks each shard has a product of its own.

    Args:
        policy: what acts; it is used where it is, by reference.
        env_ids: global ids, int64 (N,).
        action_space: of the environments.
        num_steps: T.
        seed: keys the noise, with the global ids.
        shard_size: how many environments a `LocalCollector`'s policy answers at once.
        device: the policy's.
    """

    def __init__(
        self,
        policy: Policy,
        env_ids: Tensor,
        action_space: ActionSpace,
        num_steps: int,
        *,
        seed: int,
        shard_size: int,
        device: torch.device,
    ) -> None:
        count = len(env_ids)
        self.policy, self.device, self._space = policy, device, action_space
        self._network = FrozenPerceptron(policy.network)
        whole = device.type != "cpu" or (self._network.fuses and policy.memory is None)
        self._shard_size = None if whole else shard_size
        self.memory = policy.start(count, device)
        """What a recurrent policy remembers of all environments, each (layers, N, hidden)."""
        self._key = random.stream_key(seed, "policy").to(device)
        self._env_ids = env_ids.to(device)
        self._draw = policy.distribution(torch.zeros(1, action_space.size, device=device)).noise
        self._noise = torch.zeros(num_steps, count, action_space.size, device=device)
        self._steps = torch.arange(num_steps, device=device)
        pinned = device.type == "cuda"
        self._given = torch.zeros(count, policy.obs_size, pin_memory=pinned)
        width = (1 if action_space.discrete else action_space.size) + action_space.size + 1
        self._said = torch.zeros(count * width, pin_memory=pinned)
        self.version = -1
        """How often it has taken new weights, the first not counted."""
        self.std: np.ndarray | None = None
        """The policy's, (A,), on the host."""

    def refresh(self) -> None:
        """Take the policy's present weights."""
        self._network.refresh()
        self.version += 1
        std = self.policy.std
        self.std = None if std is None else std.detach().cpu().numpy().copy()

    def begin(self, rows: slice, ages: Tensor) -> None:
        """Draw the noise of all steps of a rollout.

        Args:
            rows: whose rollout begins.
            ages: steps that they have lived, int64 (rows,), on the host.
        """
        when = (ages.to(self.device) + self._steps[:, None]).flatten()
        noise = self._draw(self._key, self._env_ids[rows].repeat(len(self._steps)), when, self._space.size)
        self._noise[:, rows] = noise.view(len(self._steps), -1, self._space.size)

    def forget(self, rows: slice, ended: np.ndarray) -> None:
        """Begin without memories where an episode has ended, bool (rows,)."""
        if self.memory and ended.any():
            keep = torch.from_numpy(~ended).to(self.device)[:, None]
            for part in self.memory:
                part[:, rows] *= keep

    @torch.no_grad()
    def answer(self, questions: Sequence[Question], obs: Sequence[Tensor]) -> Answers:
        """Let the policy act.

        Args:
            questions: of whom, in the order of the answers' rows.
            obs: the observations of each, on the host.
        """
        count = sum(len(one) for one in obs)
        seen = torch.cat(list(obs), out=self._given[:count]).to(self.device, non_blocking=True)
        parts = [self._answer(piece, rows) for piece, rows in self._pieces(questions, seen)]
        # choices are whole numbers, which float32 has without error
        said = torch.cat([torch.cat([part[index] for part in parts]).float().flatten() for index in range(3)])
        host = self._said[: len(said)].copy_(said, non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        wide = (count,) if self._space.discrete else (count, self._space.size)
        actions, output, log_prob = np.split(host.numpy(), [host.numel() - count * (self._space.size + 1), len(host) - count])
        kind = np.int64 if self._space.discrete else np.float32
        return Answers(actions.reshape(wide).astype(kind, copy=False), output.reshape(count, -1), log_prob)

    def _pieces(self, questions: Sequence[Question], seen: Tensor) -> list[tuple[list[Question], Tensor]]:
        """Cut a batch into what is answered at once: all of it, or single shards."""
        if self._shard_size is None:
            return [(list(questions), seen)]
        pieces, at = [], 0
        for step, rows in questions:
            for first in range(rows.start, rows.stop, self._shard_size):
                shard = slice(first, min(first + self._shard_size, rows.stop))
                size = shard.stop - shard.start
                # a copy, as a `LocalCollector` makes
                pieces.append(([Question(step, shard)], seen[at : at + size].clone()))
                at += size
        return pieces

    def _answer(self, questions: list[Question], obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, outputs and log-probabilities; what is remembered is kept."""
        memory = tuple(torch.cat([part[:, rows] for _, rows in questions], dim=1) for part in self.memory)
        distribution, memory = self.policy(obs, memory, self._network)
        actions = distribution.sample(torch.cat([self._noise[step, rows] for step, rows in questions]))
        sizes = [rows.stop - rows.start for _, rows in questions]
        for part, present in zip(self.memory, memory, strict=True):
            for (_, rows), value in zip(questions, present.split(sizes, dim=1), strict=True):
                part[:, rows] = value
        return actions, distribution.output, distribution.log_prob(actions)
