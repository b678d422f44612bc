"""Mode `async`: workers never wait, and a rollout is the first shards that come, whatever policy collected them.

How far behind the present one that is, `Rollout.staleness` says.
"""

from __future__ import annotations

import time
from collections import deque

import torch

from embodied_rl.config.rollout_size import rollout_envs
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Rollout
from embodied_rl.pools.assembly import Arrived, Assembly, Fragment, fill
from embodied_rl.pools.crew import Worker
from embodied_rl.pools.dispatcher import Dispatcher
from embodied_rl.pools.replay import Request


class Async:
    """Nobody waits for a worker.

    Args:
        dispatcher: to the workers.
        device: where the learner wants rollouts.
    """

    def __init__(self, dispatcher: Dispatcher, device: torch.device) -> None:
        self.timings: dict[str, float] = {}
        self._dispatcher = dispatcher
        self._crew = dispatcher.crew
        size = rollout_envs(self._crew.settings, self._crew.num_envs)
        self._assembly = Assembly(dispatcher.num_steps, size, self._crew.described["final_obs"], device)
        self._arrived: Arrived = deque()

    def collect(self, policy: Policy, iteration: int) -> Rollout:
        """Take the first shards that come, not older than `max_staleness` versions."""
        dispatcher, settings = self._dispatcher, self._crew.settings
        for worker in self._crew.workers:
            worker.actor.renew.options(concurrency_group="control").remote(dispatcher.weights)
            self._fill_up(worker)
        started = time.perf_counter()
        given = self._assembly, self._arrived, self._following, dispatcher.decide, settings.max_staleness
        totals, staleness, late = fill(*given)
        dispatcher.counts["late_fragments"] += late
        self.timings["wait"] = time.perf_counter() - started
        rollout = self._assembly.done()
        rollout.totals = totals | dispatcher.drain_counts()
        rollout.seconds = {"wait": self.timings["wait"]}
        rollout.staleness = staleness.to(rollout.rewards.device)
        return rollout

    def _following(self) -> tuple[Worker, Fragment, slice]:
        while not self._arrived:
            self._dispatcher.wait(self)
        return self._arrived.popleft()

    def held(self) -> list[Fragment]:
        """See `Receiver`."""
        return [fragment for _, fragment, _ in self._arrived]

    def accept(self, worker: Worker, fragment: Fragment) -> None:
        """See `Receiver`."""
        self._arrived.append((worker, fragment, slice(0, len(worker.env_ids))))
        self._fill_up(worker)

    def is_straggling(self, request: Request, now: float) -> bool:
        """Never: nobody waits for it."""
        return False

    def replaced(self, worker: Worker, owed: list[Request]) -> None:
        """Ask a replacement for new fragments; nobody waits for those that the lost worker owed."""
        self._fill_up(worker, starting=True)

    def _fill_up(self, worker: Worker, *, starting: bool = False) -> None:
        """Two requests in flight: one that is worked on, one that follows without a pause."""
        while len(self._dispatcher.requests[worker.index]) < 2:
            self._dispatcher.send(worker, self._dispatcher.iteration, starting=starting)
