"""Environments in processes of their own, and one policy for all of them, where the learner is.

What SEED RL is (Espeholt et al., arXiv:1910.06591): observations come over the wire, actions go back, every step, and the
workers hold no policy.  A rollout is written on the host, and copied to the learner's device once.

Legend: T steps, N environments.
"""

from __future__ import annotations

import dataclasses
import time
import weakref
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.learn.cpu.team import one_thread
from embodied_rl.learn.policy import Policy, memory_and_rest, memory_by_robot
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.transfer import Transfer
from embodied_rl.pools.assembly import blank_obs, sum_totals
from embodied_rl.pools.cluster import Connection
from embodied_rl.pools.crew import Crew
from embodied_rl.pools.errors import PoolError
from embodied_rl.pools.inference import Inference
from embodied_rl.pools.turns import Seat, Turns
from embodied_rl.vector_env import Obs


class CentralPool:
    """A `Collector` whose policy is the learner's own.

    The learner waits while robots are simulated, and they while it learns.  On the CPU the bits are those of workers that hold
    the policy, whatever the number of workers and however they are batched.

    Args:
        page: the task.
        env_ids: global ids of the environments, int64 (N,).
        device: the learner's.
        world_size: how many learners share the cluster's cores.
        connection: to the cluster; by default what `pool.address` says.

    Raises:
        PoolError: the workers cannot be started.
    """

    def __init__(
        self,
        page: Page,
        env_ids: Tensor,
        *,
        device: torch.device | str = "cpu",
        world_size: int = 1,
        connection: Connection | None = None,
    ) -> None:
        self.page, self.num_envs, self.num_steps = page, len(env_ids), page.train.steps
        self._device, self._env_ids = torch.device(device), env_ids
        self.crew = Crew.open(page, env_ids, connection, world_size)
        self._end = weakref.finalize(self, self.crew.close)
        self.action_space, self.mirrors = self.crew.action_space, self.crew.mirrors(self._device)
        self._board = self._make_board()
        self._turns = Turns(self.crew, self._board, self._finished)
        self._transfer = Transfer(self._device)
        self._policy: Policy | None = None
        self._remembered: tuple[Tensor, ...] = ()
        self._rest: dict[int, dict[str, Any]] = {}
        self._unstable: list[dict] = []

    def observe(self) -> Obs:
        """Zeros of the observations' sizes, (N, O): they themselves are elsewhere."""
        return blank_obs(self.crew.described, self.num_envs, device=self._device)

    def collect(self, policy: Policy, iteration: int, numbers: dict[str, Tensor] | None = None) -> Rollout:
        """Let the policy drive for T steps; the rollout's tensors are overwritten by the next call.

        Raises:
            PoolError: a worker was lost and `pool.on_crash` is raise, or more were lost than the page allows.
        """
        started, turns = time.perf_counter(), self._turns
        turns.abandon()  # one that an interrupt has left
        if self._policy is not policy:
            self._policy = policy
            self._meet(policy)
        self._inference.refresh()
        turns.seconds = dict.fromkeys(turns.seconds, 0.0)
        with one_thread():  # the workers may have the other cores
            for seat in turns.seats:
                turns.begin(seat, iteration, numbers or {})
            while not turns.idle:
                turns.once()
        std = None if policy.std is None else policy.std.detach().clone()
        # the odds of what the present policy did are in its output
        rollout = dataclasses.replace(self._board, std=std, log_prob=None)
        if self._device.type != "cpu":
            rollout = self._transfer(rollout)
        parts = [self._rest.pop(seat.worker.index) for seat in turns.seats]
        rollout.totals = sum_totals(parts) | self._drain_counts()
        self._unstable += [dump for part in parts for dump in part["unstable"]]
        self.crew.keep_spares()  # not before the rollout is there: they would take its cores while they load
        total = time.perf_counter() - started
        # what is spent neither waiting nor in the policy goes into messages and copies
        rollout.seconds = turns.seconds | {"transfer": max(0.0, total - sum(turns.seconds.values()))}
        return rollout

    def drain_unstable(self) -> list[dict]:
        """Hand out what is known of environments that failed since the last call; `row` is the pool's."""
        dumps, self._unstable = self._unstable, []
        return dumps

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the state of every environment and what the policy remembers of it, (N, ...), on the host."""
        parts = self._turns.ask_all(lambda seat, actor: actor.snapshot.remote())
        state = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
        memory = self._remembered if self._policy is None else self._inference.memory
        return state | {name: part.cpu() for name, part in memory_by_robot(memory).items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set environments to what `snapshot` gave, from any number of workers or from this process.

        Raises:
            PoolError: the state is of other environments.
        """
        self._policy = None  # meets the policy anew, with what it remembered
        self._remembered, others = memory_and_rest(state)
        rest = {name: value.cpu().numpy() for name, value in others.items()}
        parts = [{name: value[seat.worker.rows] for name, value in rest.items()} for seat in self._turns.seats]
        try:
            self._turns.restore(parts)
        except PoolError as error:
            raise PoolError(str(error).rpartition("): ")[2]) from None

    def rest(self, *, at_once: bool = False) -> None:
        """See `Collector`: what is under way is in other processes."""

    def close(self) -> None:
        """End the workers, and leave the cluster, or shut it down if this pool started it."""
        self._end()

    @property
    def _inference(self) -> Inference:
        assert self._turns.inference is not None, "no policy has been met"
        return self._turns.inference

    def _meet(self, acting: Policy) -> None:
        """Let this policy answer from now on."""
        seed, size = self.page.env.seed, self.page.pool.shard_size
        given = acting, self._env_ids, self.action_space, self.num_steps
        inference = Inference(*given, seed=seed, shard_size=size, device=self._device)
        for part, value in zip(inference.memory, self._remembered, strict=bool(self._remembered)):
            part.copy_(value)
        self._remembered = ()
        if self._turns.inference is not None:
            inference.version = self._turns.inference.version
        self._board.memory = tuple(torch.zeros_like(part) for part in inference.memory)
        self._turns.inference = inference

    def _make_board(self) -> Rollout:
        """Make room for a rollout on the host, in memory from which a GPU copies by itself."""
        steps, count, space = self.num_steps, self.num_envs, self.action_space
        pinned, blank = self._device.type == "cuda", partial(blank_obs, self.crew.described)
        room = lambda *shape, kind=torch.float32: torch.zeros(*shape, dtype=kind, pin_memory=pinned)  # noqa: E731
        flag = lambda: room(steps, count, kind=torch.bool)  # noqa: E731
        return Rollout(
            obs=blank(steps, count, pin_memory=pinned),
            actions=room(steps, count, kind=torch.int64) if space.discrete else room(steps, count, space.size),
            output=room(steps, count, space.size),
            std=None,
            rewards=room(steps, count),
            terminated=flag(),
            truncated=flag(),
            valid=flag(),
            final_obs=blank(steps, count, groups=self.crew.described["final_obs"], pin_memory=pinned),
            last_obs=blank(count, pin_memory=pinned),
            log_prob=room(steps, count),
        )

    def _finished(self, seat: Seat, rest: dict[str, Any]) -> None:
        """See `Turns`."""
        self._rest[seat.worker.index] = rest

    def _drain_counts(self) -> dict[str, float]:
        """Hand out what went wrong since the last call, as totals of a rollout."""
        restarts, self._turns.restarts = self._turns.restarts, 0
        return {"pool/restarts": float(restarts)}
