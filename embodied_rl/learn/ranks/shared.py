"""Sums over the ranks of one machine, in memory that they share.

gloo takes half a millisecond for any sum at all, through sockets and threads of its own; an update makes dozens, and the ranks'
cores rest meanwhile.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Bytes before the slots: a counter for each rank, a cache line apart.
_LINE = 64
#: Looks at the counters before a wait begins to sleep; how long it does, in the beginning and later [s].
_LOOKS, _SHORT_S, _LONG_S = 500, 5e-5, 1e-3
#: Seconds between looks at whether the others live.
_ALIVE_S = 0.2


class SharedSum:
    """Adds tensors on the CPU up over all ranks, in place; all of them on this machine.

    Each rank writes into a slot of its own, says so, waits until everyone has, and adds all slots up by rank: the same bits
    everywhere.  There are two sets of slots, in turns: whoever has seen all arrive at a sum knows that nobody reads the slots of
    the one before any more.

    Args:
        rank: of this process.
        size: how many ranks there are.
        gather: what every rank gives, by rank; it tells them where the memory is.
    """

    def __init__(self, rank: int, size: int, gather: Callable[[Any], list[Any]]) -> None:
        self._rank, self._size, self._gather = rank, size, gather
        self._processes: list[int] = gather(os.getpid())
        self._capacity, self._count = 0, 0
        self._fence = threading.Lock()

    def __call__(self, tensor: Tensor) -> None:
        """Add it up.

        Raises:
            RuntimeError: another rank is gone.
        """
        if tensor.nbytes > self._capacity:
            self._make_room(max(2 * self._capacity, tensor.nbytes))
        slots = [self._slots[self._count % 2, rank, : tensor.nbytes].view(tensor.dtype) for rank in range(self._size)]
        flat = tensor.flatten()
        slots[self._rank].copy_(flat)
        self._count += 1
        with self._fence:  # what was written is there before it is said to be
            self._counters[self._rank] = self._count
        self._wait()
        total = slots[0].clone()
        for slot in slots[1:]:
            total += slot
        tensor.copy_(total.view_as(tensor))

    def _make_room(self, capacity: int) -> None:
        """Memory for larger tensors: all ranks get there with the same one."""
        capacity = -(-capacity // _LINE) * _LINE
        length = self._size * (_LINE + 2 * capacity)
        memory = Path("/dev/shm")
        name = None
        if self._rank == 0:
            handle, name = tempfile.mkstemp(prefix="embodied_rl_", dir=memory if memory.is_dir() else None)
            os.ftruncate(handle, length)
            os.close(handle)
        path = Path(self._gather(name)[0])
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), length)
        self._gather(None)  # all have it
        if self._rank == 0:
            path.unlink()
        whole = np.frombuffer(self._map, np.uint8)
        self._counters = whole[: self._size * _LINE].view(np.int64)[:: _LINE // 8]
        self._slots = torch.from_numpy(whole[self._size * _LINE :]).view(2, self._size, capacity)
        self._capacity, self._count = capacity, 0

    def _wait(self) -> None:
        """Until all ranks have said what they have."""
        looks, checked = 0, time.monotonic()
        while int(self._counters.min()) < self._count:
            looks += 1
            if looks < _LOOKS:
                time.sleep(0)  # whoever else wants the core, or Python, may have it
                continue
            time.sleep(_SHORT_S if looks < 2 * _LOOKS else _LONG_S)
            if time.monotonic() - checked > _ALIVE_S:
                checked = time.monotonic()
                gone = [rank for rank, process in enumerate(self._processes) if not alive(process)]
                if gone:
                    raise RuntimeError(f"rank {', '.join(map(str, gone[:4]))} is gone")
        with self._fence:  # and what they said it of is read after that
            pass


def alive(process: int) -> bool:
    """Whether it runs, or could; a zombie does not.  Linux."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
