"""The protocol with the workers: requests out, fragments back, and another worker in the place of one that is lost.

Weights, and those numbers of the page that curricula moved, go out once an iteration.  At most one request is in flight for a
worker (two in `async`), so that nothing piles up.  A fragment says which version acted, and the checksum of what did: of a worker
that had other weights nothing is taken.  A lost worker is replaced, and by default collects its part again, with the same weights
and the same random numbers.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.learn.copies import checksum
from embodied_rl.pools.assembly import Fragment
from embodied_rl.pools.crew import Crew, Worker
from embodied_rl.pools.errors import PoolError
from embodied_rl.pools.replay import Replay, Request
from embodied_rl.pools.traffic import Traffic

log = logging.getLogger("embodied_rl")

#: Seconds between two looks at who is late.
_TICK_S = 0.05
#: Seconds without an answer that are told of, where the last one took less than a third of that.
_SILENT_S = 30.0
#: Counts of a rollout that a pool adds to its totals, under `pool/`.
_COUNTS: tuple[str, ...] = ("restarts", "masked_steps", "cut_steps", "late_fragments", "replayed_fragments")
_COUNTS += ("lost_fragments", "mismatched_fragments")
#: And in the mode `gradients`.
_OF_GRADIENTS = ("sent_gradients", "applied_gradients", "refused_gradients")


class Receiver(Protocol):
    """Whoever waits for fragments: a mode."""

    def accept(self, worker: Worker, fragment: Fragment) -> None:
        """Take a fragment that was asked for."""
        ...

    def is_straggling(self, request: Request, now: float) -> bool:
        """Whether a worker is to stop and give what it has."""
        ...

    def replaced(self, worker: Worker, owed: list[Request]) -> None:
        """Ask a replacement for what the lost worker owed, or do without."""
        ...

    def held(self) -> list[Fragment]:
        """List what was accepted and waits for its turn."""
        ...


class Dispatcher:
    """Sends requests and receives fragments.

    Args:
        crew: the workers.
    """

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.num_steps: int = crew.page.train.steps
        self.replay = Replay(crew)
        self.requests: dict[int, deque[Request]] = {worker.index: deque() for worker in crew.workers}
        """What each worker owes, the oldest first."""
        self.iteration = 0
        self.version = -1
        self.weights: Any = None
        """Reference of the newest ones: `version`, packed `weights`, and the page's `numbers`."""
        # what is sent, with its version: the oldest of as many as `pool.lag` wants and one
        self._latest: deque[tuple[Any, int]] = deque(maxlen=1 + crew.page.pool.lag)
        self._checksums: dict[int, int] = {}
        self.traffic = Traffic(crew)
        self._names = _COUNTS + (_OF_GRADIENTS if crew.page.pool.mode == "gradients" else ())
        self.counts: dict[str, int] = dict.fromkeys(self._names, 0)
        self.unstable: list[dict] = []
        """What is known of environments that failed; `row` is the pool's."""
        self._looked = time.monotonic()
        self._ray = crew.connection.ray

    # ------------------------------------------------------------------------------------------------------------- requests

    def publish(self, weights: np.ndarray, iteration: int, numbers: dict[str, Tensor]) -> None:
        """Put packed weights, and the page's numbers, where every worker fetches them, once."""
        self.iteration = iteration
        self.version += 1
        away, self._looked = time.monotonic() - self._looked, time.monotonic()
        for request in (one for requests in self.requests.values() for one in requests):
            request.away += away  # the learner was, and a worker that has answered meanwhile was not silent
        # the newest is held until it is replaced, older ones by `_latest` and by the requests that a replay needs
        self.weights = self._ray.put({"version": self.version, "weights": weights, "numbers": numbers})
        self._latest.append((self.weights, self.version))
        self._checksums[self.version] = checksum(weights)
        in_use = [self._latest[0][1], *(request.version for requests in self.requests.values() for request in requests)]
        self._checksums = {version: value for version, value in self._checksums.items() if version >= min(in_use)}

    def send(self, worker: Worker, iteration: int, *, starting: bool = False) -> None:
        """Ask for a fragment of a worker that is there or is starting, with the newest weights, or older by `pool.lag`."""
        self._send(worker, iteration, *self._latest[0], starting=starting)

    def send_again(self, worker: Worker, owed: list[Request]) -> None:
        """Ask a replacement for what the lost worker owed, collected with the weights that were sent then."""
        for request in owed:
            self._send(worker, request.iteration, request.weights, request.version, starting=True)

    def _send(self, worker: Worker, iteration: int, weights: Any, version: int, *, starting: bool) -> None:
        settings = self.crew.settings
        ref = worker.actor.collect.remote(weights, iteration, self.replay.wants_state(iteration))
        patience = settings.timeout_s + (settings.start_timeout_s if starting else 0.0)
        self.requests[worker.index].append(Request(iteration, weights, version, ref, time.monotonic(), patience))

    # ------------------------------------------------------------------------------------------------------------ fragments

    def wait(self, receiver: Receiver, *, patiently: bool = True) -> None:
        """Hand over the fragments that are there, and see who is late; `patiently`: one is waited for, a moment.

        Raises:
            PoolError: a worker was lost and `pool.on_crash` is raise, or more were lost than the page allows.
        """
        first = {requests[0].ref: index for index, requests in self.requests.items() if requests}
        ready, _ = self._ray.wait(list(first), num_returns=len(first), timeout=0.0, fetch_local=True)
        if not ready and patiently:
            # one that is here already is no reason to sleep, and one that never comes none to sleep long
            ready, _ = self._ray.wait(list(first), num_returns=1, timeout=_TICK_S, fetch_local=True)
        for ref in ready:
            self._receive(self.crew.workers[first[ref]], receiver)
        self._look_after_the_late(receiver)
        self._looked = time.monotonic()

    def _receive(self, worker: Worker, receiver: Receiver) -> None:
        request = self.requests[worker.index][0]
        try:
            fragment: Fragment = self._ray.get(request.ref, timeout=self.crew.settings.grace_s)
        except self._ray.exceptions.RayError as error:
            receiver.replaced(worker, self._replace(worker, self.crew.blame(worker, error), error))
            return
        # newer weights than those of the request may have come to the worker beside it
        if fragment["iteration"] != request.iteration or fragment["version"] < request.version:
            # not what was asked for, whoever's answer it is
            self.requests[worker.index].popleft()
            self.counts["late_fragments"] += 1
            self._send(worker, request.iteration, request.weights, request.version, starting=False)
            return
        if fragment["checksum"] != self._checksums.get(fragment["version"]):
            self.counts["mismatched_fragments"] += 1
            why = f"{worker.name}: it acted with other weights than those of version {fragment['version']}, which it names"
            receiver.replaced(worker, self._replace(worker, f"{why}: faulty memory there, or another embodied_rl"))
            return
        self.requests[worker.index].popleft()
        if self.requests[worker.index]:
            following = self.requests[worker.index][0]  # not begun before
            following.sent, following.away = time.monotonic(), 0.0
        steps, count = fragment["steps"], len(worker.env_ids)
        worker.pid, worker.node = fragment["pid"], fragment["node"] or worker.node
        worker.busy_s = fragment["seconds"]["busy"]
        worker.steps_per_s = steps * count / max(worker.busy_s, 1e-9)
        self.counts["cut_steps"] += (self.num_steps - steps) * count
        self.unstable += [dump | {"row": dump["row"] + worker.rows.start} for dump in fragment["unstable"]]
        worker.lived = fragment["age"]
        snapshot = fragment.pop("snapshot")
        self.traffic.receive(worker, fragment, snapshot)
        self.replay.add(worker, request, snapshot)
        receiver.accept(worker, fragment)

    def decide(self, worker: Worker, fragment: Fragment) -> int:
        """Count how many versions a fragment is behind whose turn has come."""
        return self.traffic.decide(worker, self.version - fragment["version"])

    def look_at_the_queue(self, receiver: Receiver) -> None:
        """Note what waits for the learner: with the receiver, and answers that nobody has fetched."""
        held = receiver.held()
        owners = {request.ref: index for index, requests in self.requests.items() for request in requests}
        ready, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=0.0, fetch_local=False) if owners else ([], [])
        size = sum(array.nbytes for fragment in held for array in fragment["arrays"].values())
        # how large what is elsewhere may be: as its worker's last one
        size += sum(self.crew.workers[owners[ref]].bytes for ref in ready)
        self.traffic.queue = {"fragments": len(held) + len(ready), "bytes": size}

    def drain_counts(self) -> dict[str, float]:
        """Hand out what went wrong since the last call, as totals of a rollout."""
        counts, self.counts = self.counts, dict.fromkeys(self._names, 0)
        return {f"pool/{name}": float(value) for name, value in counts.items()}

    def ask(self, worker: Worker, question: Callable[[Any], Any]) -> Any:
        """Ask a worker between two rollouts, after what is in flight; its replacement where it is lost.

        Raises:
            PoolError: the worker's code raised, or a worker was lost that the page does not allow to lose.
        """
        settings = self.crew.settings
        while True:
            for request in self.requests[worker.index]:
                self._ray.wait([request.ref], timeout=settings.timeout_s, fetch_local=False)
            try:
                return self._ray.get(question(worker.actor), timeout=settings.timeout_s)
            except self._ray.exceptions.RayError as error:
                if self.crew.is_its_own(error):
                    raise PoolError(f"pool: {self.crew.blame(worker, error)}") from None
                self.send_again(worker, self._replace(worker, self.crew.blame(worker, error), error))

    # ----------------------------------------------------------------------------------------------------- when things fail

    def _look_after_the_late(self, receiver: Receiver) -> None:
        """Hurry stragglers where the page says so; give up those that are silent for too long."""
        now = time.monotonic()
        for worker in self.crew.workers:
            if not (requests := self.requests[worker.index]):
                continue
            request = requests[0]
            silent = now - request.sent - request.away
            if not request.told and silent > max(_SILENT_S, 3.0 * worker.busy_s):
                request.told = True
                where, left = self.crew.where(worker), request.patience - silent
                log.warning("pool: %s: no answer for %.0f s; it is %s; lost in %.0f s", worker.name, silent, where, left)
            grace = now - request.hurried if request.hurried is not None else 0.0
            if silent > request.patience or grace > self.crew.settings.grace_s:
                waited = f"no answer for {silent:.1f} s" + (f", {grace:.1f} s after it was hurried" if grace else "")
                why = f"{worker.name}: {waited}; it is {self.crew.where(worker)}"
                receiver.replaced(worker, self._replace(worker, why))
            elif request.hurried is None and receiver.is_straggling(request, now):
                request.hurried = now
                worker.actor.stop.options(concurrency_group="control").remote(request.iteration)

    def _replace(self, worker: Worker, why: str, error: BaseException | None = None) -> list[Request]:
        """Put a new process in a lost one's place, where that one stood or at new beginnings; what the lost one still owed.

        Raises:
            PoolError: the page says so, the environment itself raised, or it has happened too often.
        """
        if error is not None and self.crew.is_its_own(error):
            # it would raise again: the code is the same
            if not isinstance(getattr(error, "cause", None), UserError):  # which says in a line all that there is to say
                log.error("%s", error)
            raise PoolError(f"pool: {why}; iteration {self.iteration}, env.seed {self.crew.page.env.seed}") from None
        if self.crew.settings.on_crash == "raise":
            raise PoolError(f"pool: {why}; iteration {self.iteration}; pool.on_crash: raise") from None
        if error is not None:
            self.crew.note_node(worker, error)
        self.counts["restarts"] += 1
        self.crew.replace(worker, why)
        owed = list(self.requests[worker.index])
        self.requests[worker.index].clear()
        if self.replay.enabled:
            self.counts["replayed_fragments"] += self.replay.run(worker)
        else:
            # beyond all that the lost one can have lived: noise and episodes of the same age would be its own again
            worker.lived += len(owed) * self.num_steps
            worker.actor.fresh.remote(worker.lived)
            self.counts["lost_fragments"] += bool(owed)
        return owed
