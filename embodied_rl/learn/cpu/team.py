"""Threads that share work, each with all of torch's operations on itself."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from embodied_rl import machine

T = TypeVar("T")
R = TypeVar("R")


class Team:
    """Runs a function on several arguments at once: the calling thread, and one for each other core.

    torch's own threads meet at the end of every operation, which costs little where the cores are idle and ten times the work
    itself where something else wants them; here they meet once.
    """

    def __init__(self) -> None:
        others = own_cores() - 1
        self._pool = ThreadPoolExecutor(others, "embodied_rl", alone) if others else None
        self._others = others

    def map(self, function: Callable[[T], R], arguments: Sequence[T]) -> list[R]:
        """Call the function on all arguments; the results, in their order."""
        if self._pool is None or len(arguments) < 2:
            return [function(argument) for argument in arguments]
        grad = torch.is_grad_enabled()  # a thread has its own
        results: list[Any] = [None] * len(arguments)
        indices = iter(range(len(arguments)))  # whoever is free takes the next

        def work() -> None:
            with torch.set_grad_enabled(grad):
                for index in indices:
                    results[index] = function(arguments[index])

        futures = [self._pool.submit(work) for _ in range(min(self._others, len(arguments) - 1))]
        try:
            work()
        finally:
            wait(futures)
        for future in futures:
            future.result()
        return results


def cut(rows: int, parts: int) -> list[slice]:
    """Cut rows into one to eight parts, which threads take one at a time: eight are enough for the cores of a desk.

    Never by the machine's cores: results are to be the same on all.
    """
    count = min(8, max(1, parts))
    return [slice(*pair) for pair in itertools.pairwise(rows * index // count for index in range(count + 1))]


def own_cores() -> int:
    """Count this process's share of the cores that it may use, where torchrun has started several on them."""
    return max(1, machine.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's operations on the calling thread alone, meanwhile."""
    with threads(1):
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's operations on so many threads, meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def alone() -> None:
    """torch's operations on the calling thread alone, from now on: how a thread of ours begins."""
    torch.set_num_threads(1)
