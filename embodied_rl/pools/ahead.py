"""Mode `async` with `inference: central`: a thread lets the robots go on while the learner updates.

What acts is a copy of the policy on the learner's device, which takes the learner's weights between two batches: a fragment may
be of several versions, as in SEED RL.  Each step's version and standard deviation are kept, and the log-probability of what was
done; the age of a fragment is that of its oldest step.

Legend: T steps, N environments of the pool, n of a worker.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.config.rollout_size import rollout_envs
from embodied_rl.learn.copies import pack, plain_copy, unpack
from embodied_rl.learn.cpu.team import alone
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Rollout
from embodied_rl.pools.assembly import Arrived, Assembly, Fragment, check_shards, fill
from embodied_rl.pools.central import CentralPool
from embodied_rl.pools.crew import Crew, Worker
from embodied_rl.pools.duties import to_arrays
from embodied_rl.pools.turns import Seat

#: Whole fragments of a worker that wait for the learner; with as many it waits too.
_WAITING = 2
#: Seconds after which a thread looks around, whatever else wakes it.
_TICK_S = 0.05


class AsyncCentralPool(CentralPool):
    """A `Collector` whose robots never wait for the learner; a rollout is the first `pool.batch_share` of the shards to come.

    Args:
        page: see `CentralPool`, and so the others.

    Raises:
        PoolError: the workers cannot be started, or the shards are not equal.
    """

    def __init__(self, page: Page, env_ids: Tensor, *, device: torch.device | str = "cpu", world_size: int = 1) -> None:
        check_shards(len(env_ids), page.pool.shard_size)
        super().__init__(page, env_ids, device=device, world_size=world_size)
        size = rollout_envs(page.pool, self.num_envs)
        self._assembly = Assembly(self.num_steps, size, self.crew.described["final_obs"], self._device)
        # whoever changes it tells the other
        self._arrived: Arrived = deque()
        self._news = threading.Condition()
        self._acting: Policy | None = None
        self._now: tuple[int, dict[str, Tensor]] = (0, {})
        self._late = 0
        # the thread holds the lock while it is at work, and is at work while it may go
        self._lock, self._go, self._stop = threading.Lock(), threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        given = weakref.ref(self), self._device, self._go, self._stop
        self._thread = threading.Thread(target=_work, args=given, name="robots")
        self._end.detach()
        self._end = weakref.finalize(self, _end, self._go, self._stop, self._thread, self.crew)

    def collect(self, policy: Policy, iteration: int, numbers: dict[str, Tensor] | None = None) -> Rollout:
        """Hand out the first fragments that come, not older than `max_staleness` versions.

        Raises:
            PoolError: see `CentralPool.collect`.
        """
        started, settings = time.perf_counter(), self.crew.settings
        with self._held():
            self._publish(policy)
            self.crew.keep_spares()
            version, self._now = self._inference.version, (iteration, numbers or {})
        self._go.set()
        if self._thread.ident is None:
            self._thread.start()
        age_of = lambda worker, fragment: version - fragment["version"]  # noqa: E731
        totals, staleness, late = fill(self._assembly, self._arrived, self._next, age_of, settings.max_staleness)
        self._late += late
        waited = time.perf_counter() - started
        rollout = self._assembly.done()
        rollout.totals = totals | self._drain_counts()
        rollout.seconds = {"wait": waited}
        rollout.staleness = staleness.to(self._device)
        return rollout

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the state of every environment, (N, ...), in the midst of the fragments that are under way."""
        with self._held():
            return super().snapshot()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set environments to what `snapshot` gave; what is under way is dropped, and nothing goes on before `collect`.

        Raises:
            PoolError: the state is of other environments.
        """
        self._halt()
        with self._held():
            super().restore(state)
            self._arrived.clear()

    def rest(self, *, at_once: bool = False) -> None:
        """Return when the thread does nothing any more, until the next rollout is asked for."""
        self._halt()
        with self._lock:
            pass

    def _halt(self) -> None:
        """Let the thread do nothing new."""
        self._go.clear()
        with self._news:
            self._news.notify_all()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep the thread from work meanwhile.

        Raises:
            PoolError: what went wrong in it.
        """
        going = self._go.is_set()
        self._halt()
        with self._lock:
            self._check()
            yield
            if self._device.type == "cuda":  # the thread has a stream of its own
                torch.cuda.current_stream(self._device).synchronize()
            if going:
                self._go.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _publish(self, policy: Policy) -> None:
        """Let the learner's present weights act from now on."""
        if self._policy is not policy:
            self._turns.abandon()
            self._policy, self._acting = policy, plain_copy(policy, self._device)
            self._meet(self._acting)
        else:
            assert self._acting is not None
            unpack(self._acting, pack(policy))
        self._inference.refresh()

    def _next(self) -> tuple[Worker, Fragment, slice]:
        """Wait for a fragment."""
        with self._news:
            while not self._arrived:
                self._check()
                self._news.wait(_TICK_S)
            worker, fragment, rows = self._arrived.popleft()
            self._news.notify()
        self._unstable += fragment.pop("unstable", [])
        return worker, fragment, rows

    # -------------------------------------------------------------------------------------------------------- in the thread

    def step(self) -> None:
        """Let robots that have nothing to do begin a fragment, and take and answer what has come."""
        with self._lock:
            if not self._go.is_set():
                return
            try:
                with torch.no_grad():
                    self._go_on()
            except BaseException as error:  # raised where somebody waits
                self._failure = error
                self._stop.set()

    def _go_on(self) -> None:
        turns = self._turns
        with self._news:
            waiting = [worker.index for worker, _, _ in self._arrived]
        for seat in turns.seats:
            if seat.ref is None and not seat.running and waiting.count(seat.worker.index) < _WAITING:
                turns.begin(seat, *self._now)
        if not turns.idle:
            turns.once()
            return
        with self._news:  # all have brought enough: the learner is to take some
            if len(self._arrived) >= _WAITING * len(turns.seats):
                self._news.wait(_TICK_S)

    def _finished(self, seat: Seat, rest: dict[str, Any]) -> None:
        """See `Turns`."""
        whole = seat.worker, self._fragment(seat, rest), slice(0, len(seat.worker.env_ids))
        with self._news:
            self._arrived.append(whole)
            self._news.notify()

    def _fragment(self, seat: Seat, rest: dict[str, Any]) -> Fragment:
        """Copy what was written of a worker's rollout, for the next one is written over it."""
        board, rows = self._board, seat.worker.rows
        assert board.log_prob is not None
        cut = lambda group: {name: value[:, rows] for name, value in group.items()}  # noqa: E731
        versions, stds = zip(*seat.acted, strict=True)
        plain = ("actions", "output", "rewards", "terminated", "truncated", "valid", "log_prob")
        part = Rollout(
            obs=cut(board.obs),
            **{name: getattr(board, name)[:, rows] for name in plain},
            std=None if stds[-1] is None else torch.from_numpy(stds[-1]),
            final_obs=cut(board.final_obs),
            last_obs={name: value[rows] for name, value in board.last_obs.items()},
            memory=tuple(value[:, rows] for value in board.memory),
        )
        arrays = to_arrays(part, self.num_steps)
        return rest | {
            "steps": self.num_steps,
            "version": min(versions),
            "versions": np.array(versions),
            "stds": None if stds[-1] is None else np.stack(stds),
            "arrays": {name: np.array(value) for name, value in arrays.items()},
        }

    def _drain_counts(self) -> dict[str, float]:
        late, self._late = self._late, 0
        return super()._drain_counts() | {"pool/late_fragments": float(late)}


def _work(pool: weakref.ref[AsyncCentralPool], device: torch.device, go: threading.Event, stop: threading.Event) -> None:
    """Go on until told to stop, or until nobody has the pool any more, or the program ends."""
    alone()
    # of its own, so that it does not wait for what the learner has launched
    with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
        # a question to a Ray that was shut down would start another
        while not stop.is_set() and threading.main_thread().is_alive():
            if not go.wait(_TICK_S):
                continue
            if (here := pool()) is None:
                return
            here.step()
            del here


def _end(go: threading.Event, stop: threading.Event, thread: threading.Thread, crew: Crew) -> None:
    """End the thread, then the workers."""
    stop.set()
    go.set()
    if thread.ident is not None and thread is not threading.current_thread():
        thread.join()
    crew.close()
