"""Modes `sync` and `overlap`: a rollout is one fragment of every worker, all collected with one policy.

`sync` asks for fragments and waits for them.  `overlap` sends the next requests before it hands out what came, so that
simulators work while the learner does; it hands out what an older policy did, and says how much older (`Rollout.staleness`).
"""

from __future__ import annotations

import logging
import time

import torch

from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Rollout
from embodied_rl.pools.assembly import Assembly, Fragment, sum_totals
from embodied_rl.pools.crew import Worker
from embodied_rl.pools.dispatcher import Dispatcher
from embodied_rl.pools.replay import Request

log = logging.getLogger("embodied_rl")


class _Lockstep:
    """Waits for a fragment of every worker.

    Args:
        dispatcher: to the workers.
        device: where the learner wants rollouts.
    """

    def __init__(self, dispatcher: Dispatcher, device: torch.device) -> None:
        self.timings: dict[str, float] = {}
        self._dispatcher = dispatcher
        self._crew = dispatcher.crew
        self._assembly = Assembly(dispatcher.num_steps, self._crew.num_envs, self._crew.described["final_obs"], device)
        # of the rollout that is waited for, by the worker's index; None: it is left out
        self._got: dict[int, Fragment | None] = {}
        self._share_came: float | None = None
        self._copying_s = 0.0

    def gather(self) -> tuple[Rollout, list[Fragment]]:
        """Wait until every worker has sent its fragment, or is left out; the rollout, and what it was put together from."""
        started = time.perf_counter()
        self._got, self._share_came, self._copying_s = {}, None, 0.0
        while len(self._got) < len(self._crew.workers):
            self._dispatcher.wait(self)
        self.timings["wait"] = time.perf_counter() - started - self._copying_s
        fragments: list[Fragment] = []
        for worker in self._crew.workers:
            if (fragment := self._got[worker.index]) is not None:
                self._dispatcher.decide(worker, fragment)
                fragments.append(fragment)
            else:
                self._assembly.leave_out(worker.rows)
                self._dispatcher.counts["masked_steps"] += len(worker.env_ids) * self._dispatcher.num_steps
        rollout = self._assembly.done()
        rollout.totals = sum_totals(fragments) | self._dispatcher.drain_counts()
        rollout.seconds = {"wait": self.timings["wait"]}
        return rollout, fragments

    def _dated(self, rollout: Rollout, fragments: list[Fragment]) -> Rollout:
        """Say how many versions ago the policy was the present one that all fragments are of."""
        age = float(self._dispatcher.version - fragments[0]["version"])
        rollout.staleness = torch.full((self._crew.num_envs,), age, device=rollout.rewards.device)
        return rollout

    def held(self) -> list[Fragment]:
        """Nothing: what comes is written into the rollout at once."""
        return []

    def accept(self, worker: Worker, fragment: Fragment) -> None:
        """See `Receiver`."""
        started = time.perf_counter()
        self._assembly.write(fragment, worker.rows)
        self._copying_s += time.perf_counter() - started
        del fragment["arrays"]  # they would hold the whole fragment in the object store
        self._got[worker.index] = fragment

    def is_straggling(self, request: Request, now: float) -> bool:
        """See `Receiver`."""
        settings, workers = self._crew.settings, self._crew.workers
        if settings.deadline_share is None:
            return False
        arrived = sum(len(workers[index].shards) for index in self._got)
        if arrived < settings.deadline_share * sum(len(worker.shards) for worker in workers):
            return False
        if self._share_came is None:
            self._share_came = now
        return now - request.sent > settings.deadline_factor * (self._share_came - request.sent)

    def replaced(self, worker: Worker, owed: list[Request]) -> None:
        """See `Receiver`."""
        if not self._dispatcher.replay.enabled and self._may_do_without(worker):
            self._got[worker.index] = None
            owed = owed[1:]
        self._dispatcher.send_again(worker, owed)

    def _may_do_without(self, worker: Worker) -> bool:
        """Whether enough of the rollout is left when this worker's part of it is left out too."""
        missing = sum(len(self._crew.workers[index].env_ids) for index, fragment in self._got.items() if fragment is None)
        left = self._crew.num_envs - missing - len(worker.env_ids)
        return left > 0 and left >= self._crew.settings.min_valid * self._crew.num_envs


class Sync(_Lockstep):
    """Simulators wait while the learner updates, and act with its policy, or with one that is `pool.lag` versions older."""

    def collect(self, policy: Policy, iteration: int) -> Rollout:
        """Ask every worker for a fragment, and wait for all."""
        lag = self._crew.page.pool.lag
        if lag and not self._dispatcher.version:
            log.warning(
                "pool.lag: %d: no policy of before iteration %d is there or in a checkpoint, so %s",
                *(lag, iteration, f"the first {lag} rollouts are fewer versions behind, from 0 on"),
            )
        for worker in self._crew.workers:
            self._dispatcher.send(worker, iteration)
        rollout, fragments = self.gather()
        rollout.seconds = self._seconds([fragment["seconds"] for fragment in fragments])
        return self._dated(rollout, fragments) if lag else rollout

    def _seconds(self, seconds: list[dict[str, float]]) -> dict[str, float]:
        """Where the time went: means over workers, what the slowest took beyond that, and what no worker accounts for."""
        mean = {name: sum(one.get(name, 0.0) for one in seconds) / len(seconds) for name in ("physics", "env", "policy")}
        busy = [one["busy"] for one in seconds]
        average = sum(busy) / len(busy)
        self.timings |= {"busy": average, "slowest": max(busy)}
        return mean | {"slowest": max(busy) - average, "transfer": max(0.0, self.timings["wait"] - max(busy))}


class Overlap(_Lockstep):
    """Simulators collect the next rollout while the learner updates, with the policy as it was before."""

    def collect(self, policy: Policy, iteration: int) -> Rollout:
        """Hand out what was asked for one update ago, and ask for the next before it is learned from."""
        for worker in self._crew.workers:
            if not self._dispatcher.requests[worker.index]:
                self._dispatcher.send(worker, iteration)
        rollout, fragments = self.gather()
        for worker in self._crew.workers:
            self._dispatcher.send(worker, iteration + 1)
        return self._dated(rollout, fragments)
