"""Finds the rank that hangs: a thread beside the training that notes how far this rank has come, and looks at the others."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from datetime import timedelta

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

#: Seconds between two looks, and how many of them a suspicion has to last.
_LOOK_S, _CONFIRMATIONS = 1.0, 3
#: Seconds that the store may take to answer.
_ANSWER_S = 10.0
#: What all that is said of a lost rank has in common: it is said once.
LOST = "lost"


class Watch(threading.Thread):
    """Ends this process with one line that names the culprit once it has waited longer than `patience` for another rank.

    A rank that is stopped, deadlocked or cut off raises no error by itself, and those who wait for it sit in a call that
    Python cannot interrupt.  So every rank counts the collectives that it enters, and its thread writes the count into the
    store that all ranks reach: whoever lags behind those who wait is the one that hangs.

    It also asks this process to stop (SIGTERM) when the launcher that started it is gone: nobody would restart it, and the
    launcher's successor wants the run directory.

    Args:
        store: reached by every rank, with a connection of its own, for the main thread may block in another.
        rank: of this process.
        size: how many ranks there are.
        patience: seconds before a rank that others wait for is taken for hung.
        parent: process id of the launcher; None: there is none to watch.
    """

    def __init__(self, store: Store, rank: int, size: int, patience: float, parent: int | None = None) -> None:
        super().__init__(name="embodied_rl.watch", daemon=True)
        self._store, self._rank, self._size, self._parent = store, rank, size, parent
        self.patience = patience
        self.entered = self.left = 0
        """Collectives that this rank has entered, and left."""
        self._over, self._reachable = threading.Event(), True
        store.set_timeout(timedelta(seconds=_ANSWER_S))
        store.set(f"who/{rank}", f"{os.uname().nodename}, pid {os.getpid()}")
        self._note()
        # a thread that is in the store's C++ while Python shuts down takes the process down with it
        atexit.register(self.stop)

    def run(self) -> None:
        """Look again and again until `stop`."""
        seen, since, before, suspicions = (0, 0), time.monotonic(), time.monotonic(), 0
        while not self._over.wait(min(_LOOK_S, self.patience / 10.0)):
            now, own = time.monotonic(), (self.entered, self.left)
            # a count that stood still while this process was asleep proves nothing
            if own != seen or now - before > 5.0 * _LOOK_S:
                seen, since, suspicions = own, now, 0
            before = now
            if self._parent is not None and os.getppid() != self._parent:
                self._parent = None
                os.kill(os.getpid(), signal.SIGTERM)
            verdict = self._look(own, overdue=now - since > self.patience)
            suspicions = suspicions + 1 if verdict else 0
            if verdict and suspicions >= _CONFIRMATIONS:
                self._end(verdict)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        if self.is_alive():
            self.join()

    def first(self, key: str) -> bool:
        """Whether this rank is the first to ask, of all ranks; those who cannot know are."""
        try:
            return self._store.add(f"said/{key}", 1) == 1
        except RuntimeError:
            return True

    def _look(self, own: tuple[int, int], *, overdue: bool) -> str | None:
        """Note how far this rank is; who is to blame, where it has waited too long."""
        try:
            if self._reachable:
                self._note()
                return self._verdict(own) if overdue else None
        except RuntimeError:  # the store's host is gone, for good; the connections between the ranks may live on
            self._reachable = False
        return "the store that all ranks share, on rank 0's node, does not answer" if overdue and own[0] > own[1] else None

    def _note(self) -> None:
        self._store.set(f"progress/{self._rank}", f"{self.entered} {self.left}")

    def _verdict(self, own: tuple[int, int]) -> str | None:
        """Who is to blame that this rank waits; None where it does not wait for anyone."""
        notes = self._store.multi_get([f"progress/{rank}" for rank in range(self._size)])
        entered = [int(note.split()[0]) for note in notes]
        behind = [rank for rank, count in enumerate(entered) if count < own[0]]
        if behind:
            names = self._store.multi_get([f"who/{rank}" for rank in behind[:4]])
            who = ", ".join(f"rank {rank} ({name.decode()})" for rank, name in zip(behind, names, strict=False))
            who += f" and {len(behind) - 4} more" if len(behind) > 4 else ""
            return f"{who} {'hangs' if len(behind) == 1 else 'hang'}: not at collective {own[0]} yet, where others wait"
        if own[0] > own[1] and min(entered) == max(entered):
            return f"all ranks are in collective {own[0]}, which does not end: the network between them is broken"
        return None

    def _end(self, verdict: str) -> None:
        if self.first(LOST):
            line = f"{verdict} for {self.patience:.0f} s (distributed.timeout_s); the job ends, for torchrun to restart it"
            print(line, file=sys.stderr, flush=True)
        os._exit(1)
