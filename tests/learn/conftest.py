"""Ranks as threads of the test's own process: what they do is compared without starting anything."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
