"""Threads that share work, each with all of torch's operations on itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Team:
    """Runs a function on several arguments at once.

    torch's own threads meet at the end of every operation, which costs little where the cores are idle and ten times the work
    itself where something else wants them; here they meet once.
    """

    def __init__(self) -> None:
        size = cores()
        self._pool = ThreadPoolExecutor(size, "embodied_rl", _alone) if size > 1 else None

    def map(self, function: Callable[[T], R], arguments: Iterable[T]) -> list[R]:
        """The results, in the order of the arguments."""
        if self._pool is None:
            return [function(argument) for argument in arguments]
        grad = torch.is_grad_enabled()  # a thread has its own

        def run(argument: T) -> R:
            with torch.set_grad_enabled(grad):
                return function(argument)

        return list(self._pool.map(run, arguments))


def cores() -> int:
    """This process's share of the machine's cores, where torchrun has started several."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's operations on the calling thread alone, meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _alone() -> None:
    torch.set_num_threads(1)
