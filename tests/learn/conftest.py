"""Ranks as threads of the test's own process, which compare what they do; processes that begin with everything imported."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from embodied_rl.learn.ranks.group import Group

T = TypeVar("T")


class Meeting:
    """Where the threads exchange what they have."""

    def __init__(self, size: int) -> None:
        self.barrier, self.slots = threading.Barrier(size, timeout=120.0), [b""] * size
        self.mail: dict[tuple[int, int], list[bytes]] = {}
        self.arrived = threading.Condition()


class ThreadRank(Group):
    """One of several ranks; everything passes through pickle, as it does between processes."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        self.rank = self.local_rank = rank
        self.size = self.local_size = size
        self._meeting = meeting

    def gather(self, value: T) -> list[T]:
        meeting = self._meeting
        meeting.slots[self.rank] = pickle.dumps(value)
        meeting.barrier.wait()
        values = [pickle.loads(one) for one in meeting.slots]
        meeting.barrier.wait()
        return values

    def sum(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack(self.gather(tensor)).sum(0))

    def broadcast(self, value: T) -> T:
        return self.gather(value)[0]

    def send(self, value: Any, rank: int) -> None:
        with self._meeting.arrived:
            self._meeting.mail.setdefault((self.rank, rank), []).append(pickle.dumps(value))
            self._meeting.arrived.notify_all()

    def receive(self, rank: int) -> Any:
        with self._meeting.arrived:
            box = self._meeting.mail.setdefault((rank, self.rank), [])
            assert self._meeting.arrived.wait_for(lambda: box, timeout=120.0)
            return pickle.loads(box.pop(0))


def _run(size: int, function: Callable[[Group], T]) -> list[T]:
    meeting = Meeting(size)

    def rank(number: int) -> T:
        try:
            return function(ThreadRank(number, size, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(rank, number) for number in range(size)]
    errors = [error for future in futures if (error := future.exception())]
    if errors:  # not that the others gave up waiting
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return [future.result() for future in futures]


@pytest.fixture
def ranks() -> Callable[[int, Callable[[Group], Any]], list[Any]]:
    """`ranks(size, function)`: what the function returns on each of so many ranks."""
    return _run


#: What a process does with its code.
PROCESS = """
import atexit, os, sys
os.setsid()  # a Ctrl-C of this terminal is not for it, nor its signal for us
os.environ.update({variables!r})
for number, path in enumerate({files!r}, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
try:
    exec({code!r}, {{"__name__": "__main__"}})
finally:
    sys.stdout.flush()
    atexit._run_exitfuncs()
"""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch.distributed", "embodied_rl.learn.ranks.group", "embodied_rl.cli", "embodied_rl.training"])


class Forked:
    """A process that runs code, and the files that it writes its output and errors to."""

    def __init__(self, code: str, variables: dict[str, str], folder: Path) -> None:
        self.output, self.errors = folder / "output", folder / "errors"
        files = [str(self.output), str(self.errors)]
        self.process = FORKS.Process(target=exec, args=(PROCESS.format(code=code, variables=variables, files=files), {}))
        self.process.start()

    def outcome(self) -> tuple[int | None, str, str]:
        """Exit code, output and errors."""
        self.process.join(120.0)
        output, errors = (path.read_text() if path.exists() else "" for path in (self.output, self.errors))
        return self.process.exitcode, output, errors


@pytest.fixture
def fork(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Forked]:
    """`fork(code, variables)`: a process that runs it, forked from one that has imported torch and the learner already."""
    return lambda code, variables=None: Forked(code, variables or {}, tmp_path_factory.mktemp("fork"))
