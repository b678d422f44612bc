"""Mode `gradients`: workers learn from their own fragments and send the gradients, which are applied as they come.

A3C (Mnih et al., "Asynchronous methods for deep reinforcement learning", arXiv:1602.01783), with workers that copy the learner's
networks whole before each fragment and one optimizer where the networks are.  A worker waits until its gradient is applied or
refused; its next fragment is collected with the weights of then.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import torch

from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Gradient, Rollout
from embodied_rl.pools.assembly import Fragment, sum_totals
from embodied_rl.pools.crew import Worker
from embodied_rl.pools.dispatcher import Dispatcher
from embodied_rl.pools.replay import Request


class Gradients:
    """One iteration is one worker's gradient.

    Args:
        dispatcher: to the workers.
        device: where the learner is, which copies gradients there itself.
    """

    def __init__(self, dispatcher: Dispatcher, device: torch.device) -> None:
        self.timings: dict[str, float] = {}
        self._dispatcher = dispatcher
        self._crew = dispatcher.crew
        self._arrived: deque[tuple[Worker, Fragment]] = deque()

    def collect(self, policy: Policy, iteration: int) -> Rollout:
        """Take the first gradient that comes and is not older than `max_staleness` versions; the others are refused."""
        dispatcher, started = self._dispatcher, time.perf_counter()
        waiting = {worker.index for worker, _ in self._arrived}
        for worker in self._crew.workers:
            if worker.index not in waiting and not dispatcher.requests[worker.index]:
                dispatcher.send(worker, iteration)
        while True:
            while not self._arrived:
                dispatcher.wait(self)
            worker, fragment = self._arrived.popleft()
            age = dispatcher.decide(worker, fragment)
            if age <= self._crew.settings.max_staleness:
                break
            dispatcher.counts["refused_gradients"] += 1
            dispatcher.send(worker, iteration)
        dispatcher.counts["applied_gradients"] += 1
        self.timings["wait"] = time.perf_counter() - started
        rollout = unpacked(fragment)
        rollout.totals = sum_totals([fragment]) | dispatcher.drain_counts()
        rollout.totals["policy_mean/staleness"] = age * rollout.totals["steps"]
        rollout.seconds = {"wait": self.timings["wait"]}
        return rollout

    def held(self) -> list[Fragment]:
        """See `Receiver`."""
        return [fragment for _, fragment in self._arrived]

    def accept(self, worker: Worker, fragment: Fragment) -> None:
        """See `Receiver`."""
        self._dispatcher.counts["sent_gradients"] += 1
        self._arrived.append((worker, fragment))

    def is_straggling(self, request: Request, now: float) -> bool:
        """Never: nobody waits for it."""
        return False

    def replaced(self, worker: Worker, owed: list[Request]) -> None:
        """Ask a replacement for a gradient of the newest weights; the one that the lost worker owed is lost."""
        self._dispatcher.send(worker, self._dispatcher.iteration, starting=True)


def unpacked(fragment: Fragment) -> Rollout:
    """Make a rollout of what a worker learned from, by copies: a view would hold the fragment in the object store."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in fragment["arrays"].items()}
    moments = {name.partition(":")[2]: tensor for name, tensor in tensors.items() if name.startswith("moments:")}
    nothing = torch.zeros(*tensors["rewards"].shape, 0)
    return Rollout(
        obs={},
        actions=nothing,
        output=nothing,
        std=None,
        rewards=tensors["rewards"],
        terminated=tensors["terminated"],
        truncated=tensors["truncated"],
        valid=tensors["valid"],
        final_obs={},
        last_obs={},
        gradient=Gradient(tensors["gradient"], tensors["explained_variance"], moments),
    )
