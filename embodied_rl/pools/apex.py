"""Mode `apex`: workers explore on a ladder of noise and fill a replay; the learner never waits for them.

Ape-X (Horgan et al., "Distributed prioritized experience replay", arXiv:1803.00933), with the learner's process as its replay.
A rollout is whatever has come since the last one, which may be nothing.  Only `sac.samples_per_insert` holds anybody back: then
workers are asked for no more, or the learner waits for rows.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from embodied_rl.learn.metrics import is_of_episodes
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Rollout
from embodied_rl.pools.assembly import Assembly, Fragment, blank_obs, sum_totals
from embodied_rl.pools.crew import Worker
from embodied_rl.pools.dispatcher import Dispatcher
from embodied_rl.pools.replay import Request

if TYPE_CHECKING:
    from embodied_rl.learn.sac import SAC

log = logging.getLogger("embodied_rl")

#: Requests in flight for a worker: one that is worked on, one that follows without a pause.
_IN_FLIGHT = 2
#: Seconds that the learner waits for rows before it says so, once.
_TOLD_S = 10.0


class Apex:
    """Nobody waits, but for the limiter.

    Args:
        dispatcher: to the workers.
        device: where the learner wants rollouts.
    """

    def __init__(self, dispatcher: Dispatcher, device: torch.device) -> None:
        self.timings: dict[str, float] = {}
        self.learner: SAC | None = None
        """Whose replay it is."""
        self._dispatcher, self._crew, self._device = dispatcher, dispatcher.crew, device
        self._arrived: deque[tuple[Worker, Fragment]] = deque()
        self._told = False
        count = len(self._crew.workers)
        for worker in self._crew.workers:
            worker.exploration = self._crew.page.sac.exploration(worker.index, count)
        told = ", ".join(f"worker {worker.index} {worker.exploration:.3g}" for worker in self._crew.workers[:16])
        log.info("exploration, as a deviation of actions in +-1: %s%s", told, ", ..." if count > 16 else "")
        self._calmest = min(self._crew.workers, key=lambda worker: worker.exploration).index

    def collect(self, policy: Policy, iteration: int) -> Rollout:
        """Take what has come, one fragment of a worker at most; wait for one where the learner may draw no more."""
        dispatcher, started = self._dispatcher, time.perf_counter()
        assert self.learner is not None, "it is not known whose replay it is"
        self._ask()
        while True:
            may_draw = self.learner.pace.may_draw()
            if any(dispatcher.requests.values()):
                dispatcher.wait(self, patiently=not (self._arrived or may_draw))
            if self._arrived or may_draw:
                break
            self._tell(time.perf_counter() - started)
        taken, later = {}, deque()
        for worker, fragment in self._arrived:
            if worker.index in taken:
                later.append((worker, fragment))
            else:
                taken[worker.index] = worker, fragment
        self._arrived = later
        self.timings["wait"] = time.perf_counter() - started
        rollout = self._assembled([taken[index] for index in sorted(taken)])
        rollout.totals |= dispatcher.drain_counts()
        rollout.seconds = {"wait": self.timings["wait"]}
        return rollout

    def held(self) -> list[Fragment]:
        """See `Receiver`."""
        return [fragment for _, fragment in self._arrived]

    def accept(self, worker: Worker, fragment: Fragment) -> None:
        """See `Receiver`."""
        self._arrived.append((worker, fragment))

    def is_straggling(self, request: Request, now: float) -> bool:
        """Never: nobody waits for it."""
        return False

    def replaced(self, worker: Worker, owed: list[Request]) -> None:
        """Ask a replacement for new fragments; what the lost worker owed is lost."""
        self._dispatcher.send(worker, self._dispatcher.iteration, starting=True)

    def _ask(self) -> None:
        """Ask each worker that has too little to do, as far as the limiter lets rows come in."""
        limiter = self.learner.pace.limiter if self.learner else None
        requests, steps = self._dispatcher.requests, self._dispatcher.num_steps
        coming = sum(len(requests[worker.index]) * len(worker.env_ids) for worker in self._crew.workers)
        coming += sum(len(worker.env_ids) for worker, _ in self._arrived)
        for _ in range(_IN_FLIGHT):  # in turn
            for worker in self._crew.workers:
                waiting = sum(other is worker for other, _ in self._arrived)
                if len(requests[worker.index]) + waiting >= _IN_FLIGHT:
                    continue
                if limiter is None or limiter.may_insert((coming + len(worker.env_ids)) * steps):
                    self._dispatcher.send(worker, self._dispatcher.iteration)
                    coming += len(worker.env_ids)

    def _tell(self, waited: float) -> None:
        if waited > _TOLD_S and not self._told:
            self._told = True
            sac = self._crew.page.sac
            rows = "the first" if sac.samples_per_insert is None else f"sac.samples_per_insert: {sac.samples_per_insert:g} of"
            log.info("pool: the learner waits for %s rows, and workers bring no more; more of them would help", rows)

    def _assembled(self, taken: list[tuple[Worker, Fragment]]) -> Rollout:
        """Put fragments side by side, and note whose rows they are."""
        rows = [np.arange(worker.rows.start, worker.rows.stop) for worker, _ in taken]
        if not taken:
            return self._nothing()
        described, steps = self._crew.described, self._dispatcher.num_steps
        count = sum(map(len, rows))
        assembly = Assembly(steps, count, described["final_obs"], self._device)
        priorities, first = np.zeros((steps, count), dtype=np.float32), 0
        for (worker, fragment), own in zip(taken, rows, strict=True):
            self._dispatcher.decide(worker, fragment)
            places = slice(first, first + len(own))
            assembly.write(fragment, places)
            if (given := fragment["arrays"].get("priorities")) is not None:
                priorities[: fragment["steps"], places] = given
            first = places.stop
        rollout = assembly.done()
        rollout.lanes = torch.from_numpy(np.concatenate(rows)).to(self._device)
        if "priorities" in taken[0][1]["arrays"]:
            rollout.priorities = torch.from_numpy(priorities).to(self._device)
        rollout.totals = self._totals(taken)
        return rollout

    def _totals(self, taken: list[tuple[Worker, Fragment]]) -> dict[str, float]:
        """Sum what fragments count; of episodes those of the worker that explores least, for the others' tell of their noise."""
        totals = sum_totals(fragment for _, fragment in taken)
        calm = sum_totals(fragment for worker, fragment in taken if worker.index == self._calmest)
        return {name: calm.get(name, 0.0) if is_of_episodes(name) else value for name, value in totals.items()}

    def _nothing(self) -> Rollout:
        steps, space, blank = self._dispatcher.num_steps, self._crew.action_space, partial(blank_obs, self._crew.described)
        zeros = lambda *shape: torch.zeros(*shape, device=self._device)  # noqa: E731
        never = zeros(steps, 0).bool()
        return Rollout(
            obs=blank(steps, 0, device=self._device),
            actions=zeros(steps, 0, space.size),
            output=zeros(steps, 0, space.size),
            std=None,
            rewards=zeros(steps, 0),
            terminated=never,
            truncated=never,
            valid=never,
            final_obs=blank(steps, 0, groups=self._crew.described["final_obs"], device=self._device),
            last_obs=blank(0, device=self._device),
            lanes=zeros(0).long(),
            totals=sum_totals([]),
        )
