"""The processes that train together: as many as torchrun started, on one node or many; without it there is one.

Every rank simulates its own robots and holds the same networks, to the last bit: gradients and statistics are added up over all
ranks, with the numbers of samples beside them, and every rank makes the same step of the sums.  docs/distributed.md says how a
job is started, and what it survives.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from embodied_rl.config.page import DistributedSettings
from embodied_rl.errors import UserError
from embodied_rl.learn.ranks.meeting import backend_of, choose_interface, name_this_attempt

if TYPE_CHECKING:
    from embodied_rl.learn.ranks.watch import Watch

T = TypeVar("T")

#: How many times `timeout_s` the first iteration may take: kernels are compiled in it.
_FIRST = 10.0


class LostError(UserError):
    """Another rank is gone, or never came; one line."""


class Group:
    """The processes that train together.  This is a group of one; `Ranks` are several."""

    rank, size = 0, 1
    """Which of how many processes this is."""
    local_rank, local_size = 0, 1
    """Which of how many processes on this machine this is."""

    def sum(self, tensor: Tensor) -> None:
        """Sum the tensor over all ranks, in place; the same bits on every rank."""

    def gather(self, value: T) -> list[T]:
        """Collect what every rank gives, by rank."""
        return [value]

    def table(self, numbers: list[float]) -> Tensor:
        """Numbers of every rank, float64 (ranks, K); each gives as many."""
        return torch.tensor(self.gather(numbers), dtype=torch.float64)

    def broadcast(self, value: T) -> T:
        """Hand what rank 0 gives to every rank."""
        return value

    def lead(self, function: Callable[[], T]) -> T:
        """Run the function on rank 0, and return its result, or raise its UserError, on all ranks."""
        return _result(self.broadcast(_attempt(function) if self.rank == 0 else (None, None)))

    def together(self, function: Callable[[], T]) -> T:
        """Run the function on every rank, and return this rank's result; where one raises a UserError, all do."""
        answer = _attempt(function)
        errors = self.gather(answer[1])
        if any(errors):
            rank, error = next((rank, error) for rank, error in enumerate(errors) if error)
            everyone = len({str(error) for error in errors}) == 1
            raise error if everyone else type(error)(f"rank {rank}: {error}")
        return _result(answer)

    def send(self, value: Any, rank: int) -> None:
        """Hand something to a rank that calls `receive`."""
        raise NotImplementedError("a group of one has nobody to send to")

    def receive(self, rank: int) -> Any:
        """Wait for what a rank sends."""
        raise NotImplementedError("a group of one has nobody to receive from")

    def waited(self) -> float:
        """Seconds spent in collectives since the last call."""
        return 0.0

    def settle(self) -> None:
        """Note that the first iteration is over: from now on a rank that takes longer than `timeout_s` is taken for hung."""

    def close(self) -> None:
        """Leave the group; for those who are done, not for those who fail."""


class Ranks(Group):
    """Several processes, connected by gloo on the CPU and by NCCL on GPUs.

    Args:
        settings: the page's `distributed` section.
        device: what the networks are on.

    Raises:
        UserError: the backend cannot serve the device.
        LostError: not all of them came.
    """

    def __init__(self, settings: DistributedSettings, device: torch.device) -> None:
        import torch.distributed as dist
        from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]

        from embodied_rl.learn.ranks.shared import SharedSum
        from embodied_rl.learn.ranks.watch import Watch

        self._dist, self._waited, self._events = dist, 0.0, []
        self.local_rank, self.local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        backend = backend_of(settings, device)
        choose_interface()
        patience = timedelta(seconds=_FIRST * settings.timeout_s)
        address = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
        try:
            store, self.rank, self.size = next(rendezvous("env://", timeout=patience))
            name = name_this_attempt(store, self.rank, self.size, patience.total_seconds())
            own = PrefixStore(f"{name}/embodied_rl", store.clone())  # pyright: ignore[reportAttributeAccessIssue]
            parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
            self._watch: Watch = Watch(own, self.rank, self.size, patience.total_seconds(), parent)
            self._watch.start()
            if device.index is not None:  # a rank alone on its machine has the GPU that is current
                torch.cuda.set_device(device)
            dist.init_process_group(
                backend,
                store=PrefixStore(name, store),
                rank=self.rank,
                world_size=self.size,
                timeout=2 * patience,  # the watch says more, and sooner
            )
        except RuntimeError as error:
            raise LostError(f"MASTER_ADDR {address}: the ranks did not find each other: {_reason(error)}") from None
        self._patience = settings.timeout_s
        one_machine = device.type == "cpu" and self.local_size == self.size and sys.platform == "linux"
        self._shared = SharedSum(self.rank, self.size, self._gather) if one_machine else None

    def sum(self, tensor: Tensor) -> None:
        with self._collective(tensor.device):
            if self._shared is not None and tensor.device.type == "cpu":
                self._shared(tensor)
            else:
                dense = tensor.contiguous()  # gloo (torch 2.13) adds up what lies between, too
                self._dist.all_reduce(dense)
                if dense is not tensor:
                    tensor.copy_(dense)

    def gather(self, value: T) -> list[T]:
        with self._collective():
            return self._gather(value)

    def _gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        self._dist.all_gather_object(values, value)
        return values

    def table(self, numbers: list[float]) -> Tensor:
        rows = [torch.empty(len(numbers), dtype=torch.float64) for _ in range(self.size)]
        with self._collective():
            self._dist.all_gather(rows, torch.tensor(numbers, dtype=torch.float64))
        return torch.stack(rows)

    def broadcast(self, value: T) -> T:
        values: list[Any] = [value]
        with self._collective():
            self._dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def send(self, value: Any, rank: int) -> None:
        # object by object: torch's own way of sending objects pads, compares and copies more
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        with self._collective():
            self._dist.send(torch.tensor([len(data)]), rank)
            self._dist.send(data, rank)

    def receive(self, rank: int) -> Any:
        size = torch.zeros(1, dtype=torch.int64)
        with self._collective():
            self._dist.recv(size, rank)
            data = torch.empty(int(size), dtype=torch.uint8)
            self._dist.recv(data, rank)
        return pickle.loads(data.numpy().tobytes())  # of a rank of this very job

    def waited(self) -> float:
        waited, self._waited = self._waited, 0.0
        for before, after in self._events:
            after.synchronize()
            waited += before.elapsed_time(after) / 1000.0
        self._events.clear()
        return waited

    def settle(self) -> None:
        self._watch.patience = self._patience

    def first(self, error: Exception) -> bool:
        """Whether this rank is the first of all to have this to say."""
        from embodied_rl.learn.ranks.watch import LOST

        return self._watch.first(LOST if isinstance(error, LostError) else hashlib.sha256(str(error).encode()).hexdigest())

    def close(self) -> None:
        global _joined
        _joined = None
        self._watch.stop()
        self._dist.destroy_process_group()

    @contextmanager
    def _collective(self, device: torch.device | None = None) -> Iterator[None]:
        """Count it, time it, and put into words what goes wrong in it."""
        cuda = device is not None and device.type == "cuda"
        if cuda:  # the host does not wait there: the stream does
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
        started = time.perf_counter()
        self._watch.entered += 1
        try:
            yield
        except RuntimeError as error:
            raise LostError(
                f"the connection to another rank broke off: {_reason(error)}; torchrun says which one failed"
            ) from None
        self._watch.left += 1
        if cuda:
            after.record()
            self._events.append((before, after))
        else:
            self._waited += time.perf_counter() - started


#: The group of this process, once it has joined one.
_joined: Ranks | None = None


def join(settings: DistributedSettings, device: Callable[[int], torch.device]) -> Group:
    """Join the group that this process belongs to: torchrun's, or its own where nobody started others.

    Args:
        settings: the page's `distributed` section.
        device: what the networks of a local rank are on.

    Raises:
        UserError: there is no such device, or the ranks do not find each other.
    """
    global _joined
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return Group()
    if _joined is None:
        _joined = Ranks(settings, device(int(os.environ.get("LOCAL_RANK", 0))))
    return _joined


def reports(error: Exception) -> bool:
    """Say whether this process prints an error: true on one of the ranks that share it."""
    if "RANK" not in os.environ:
        return True
    if _joined is None:  # one a machine, for they may differ in their files
        return os.environ.get("LOCAL_RANK", "0") == "0"
    return _joined.first(error)


def launchers(group: Group) -> list[str]:
    """Name the group's torchrun agents (host, pid, time of birth), by which a restarted job, which shares some, finds its run."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    parent = os.getppid()
    try:  # process ids come back: the time of birth does not
        birth = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        birth = os.environ["TORCHELASTIC_RUN_ID"]
    return sorted(set(group.gather(f"{socket.gethostname()} {parent} {birth}")))


def fingerprint(state: Any) -> str:
    """Hash all tensors in nested dicts and lists, to the last bit."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in value:
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for one in value:
                add(one)
        elif isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(str(value).encode())

    add(state)
    return digest.hexdigest()


def _attempt(function: Callable[[], T]) -> tuple[T | None, UserError | None]:
    try:
        return function(), None
    except UserError as error:
        return None, error


def _result(answer: tuple[Any, UserError | None]) -> Any:
    value, error = answer
    if error is not None:
        raise error
    return value


def _reason(error: Exception) -> str:
    """torch's message without the place in its sources, and without advice."""
    line = str(error).partition("\n")[0]
    line = line.rpartition(".cc:")[2].partition("] ")[2] if ".cc:" in line else line
    return line.partition(". This is typically")[0]
