"""Robots on the CPU with a learner that is elsewhere, or learns while they go on.

The robots have a copy of the policy and a rollout of their own, the learner has its rollout: neither ever reads what the other
writes.  Between the two the policy's numbers go one way as one array, and the rollout comes back, one copy a tensor.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from embodied_rl.learn.copies import pack, plain_copy, unpack
from embodied_rl.learn.cpu.team import alone
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import LocalCollector, Rollout
from embodied_rl.learn.transfer import Transfer
from embodied_rl.vector_env import Obs


class ApartCollector:
    """A `Collector` of robots on the CPU for a learner on another device.

    Args:
        robots: steps them; nobody else does from now on.
        device: the learner's; everything is handed out there.
    """

    def __init__(self, robots: LocalCollector, device: torch.device) -> None:
        robots.pinned = device.type == "cuda"
        self._robots, self._device = robots, device
        self.num_envs, self.num_steps, self.action_space = robots.num_envs, robots.num_steps, robots.action_space
        self.mirrors = {name: (index.to(device), sign.to(device)) for name, (index, sign) in robots.mirrors.items()}
        self._transfer = Transfer(device)
        # the learner's, and its copy that acts
        self._policies: tuple[Policy, Policy] | None = None

    def observe(self) -> Obs:
        return {name: value.to(self._device, copy=True) for name, value in self._robots.observe().items()}

    def collect(self, policy: Policy, iteration: int, numbers: dict[str, Tensor] | None = None) -> Rollout:
        started = time.perf_counter()
        acting = self._acting(policy)
        sent = time.perf_counter()
        rollout = self._robots.collect(acting, iteration, numbers)
        done = time.perf_counter()
        there = self._transfer(rollout)
        there.seconds["transfer"] = sent - started + time.perf_counter() - done
        return there

    def drain_unstable(self) -> list[dict]:
        return self._robots.drain_unstable()

    def snapshot(self) -> dict[str, Tensor]:
        return self._robots.snapshot()

    def restore(self, state: dict[str, Tensor]) -> None:
        self._robots.restore(state)

    def rest(self, *, at_once: bool = False) -> None:
        pass

    def _acting(self, policy: Policy) -> Policy:
        """Give the copy that acts the policy's present numbers."""
        if self._policies is None or self._policies[0] is not policy:
            self._policies = policy, plain_copy(policy)
        else:
            unpack(self._policies[1], pack(policy))
        return self._policies[1]


class OverlapCollector(ApartCollector):
    """Robots on the CPU that collect the next rollout, in a thread, while the learner updates.

    So a policy has acted that is one update older, under the page's numbers of its time; `Rollout.staleness` says so.  Whatever
    the timing, the bits are the same.  The first rollout, and the first after a `restore`, is collected in the calling thread
    with the present policy.

    Args:
        robots: steps them; nobody else does from now on.
        device: the learner's; everything is handed out there.
    """

    def __init__(self, robots: LocalCollector, device: torch.device) -> None:
        super().__init__(robots, device)
        robots.notes_log_prob = True
        # as in `one_thread`, which sets the count of its own thread, and that of threads to come
        self._thread = ThreadPoolExecutor(1, "robots", alone)
        self._ahead: Future[Rollout] | None = None
        self._cut = threading.Event()
        robots.interrupted = self._cut.is_set
        self._unstable: list[dict] = []

    def observe(self) -> Obs:
        self.rest()
        return super().observe()

    def collect(self, policy: Policy, iteration: int, numbers: dict[str, Tensor] | None = None) -> Rollout:
        """Hand out what was collected meanwhile, and begin the next before it is learned from.

        What went wrong in the thread is raised here, or by `snapshot`, if that comes first.
        """
        if self._cut.is_set():  # a second Ctrl-C has ended the waiting in `rest`
            self.rest(at_once=True)
        started = time.perf_counter()
        age = 0.0 if self._ahead is None else 1.0
        if self._ahead is None:  # whatever there is to compile is compiled in here
            rollout = self._robots.collect(self._acting(policy), iteration, numbers)
        else:
            wait((self._ahead,))
            ahead, self._ahead = self._ahead, None
            rollout = ahead.result()
        waited = time.perf_counter()
        there = self._transfer(rollout)
        there.staleness = torch.full((self.num_envs,), age, device=self._device)
        self._unstable += self._robots.drain_unstable()
        given = self._acting(policy), iteration + 1, {name: number.clone() for name, number in (numbers or {}).items()}
        self._ahead = self._thread.submit(self._robots.collect, *given)
        # the thread's own seconds are no part of this one's
        there.seconds = {"robots": waited - started, "transfer": time.perf_counter() - waited}
        return there

    def drain_unstable(self) -> list[dict]:
        """Hand out what is known of robots that failed in the rollouts that were handed out."""
        dumps, self._unstable = self._unstable, []
        return dumps

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the state of every robot, at the end of the rollout that is under way; what went wrong in it is raised."""
        self.rest()
        if self._ahead is not None:
            self._ahead.result()
        return super().snapshot()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set everything to what `snapshot` gave; what is under way is dropped."""
        self.rest(at_once=True)
        super().restore(state)

    def rest(self, *, at_once: bool = False) -> None:
        """Wait for the rollout that is under way; `at_once`: end it after the step at hand, and drop it."""
        if at_once:
            self._cut.set()
        if self._ahead is not None:
            wait((self._ahead,))
        if at_once:
            self._ahead = None
            self._robots.drain_unstable()
            self._unstable.clear()
            self._cut.clear()
