"""A function of fixed-shape tensor operations as one CUDA graph, torch's kernels and the engine's together."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch

from embodied_rl.errors import UserError
from embodied_rl.physics.protocol import Physics

log = logging.getLogger("embodied_rl")

#: Eager runs before a capture of what has not run yet: by the second one every kernel is compiled.
WARMUP = 3


class CudaGraph:
    """Replays what `function` launches, with a fraction of its cost on the host.

    torch owns the capture and the engine adopts its stream, so that the temporaries of both come from pools which live as long
    as the graph.

    Args:
        function: reads and writes the same tensors at every call, and nothing on the host; it has run before, so that
            everything it launches is compiled.
        device: where it launches.
        physics: the engine that it steps, if it steps one.
        what: the error's name for the function.

    Raises:
        UserError: the capture failed; `function` can still be called as it is.
    """

    def __init__(
        self, function: Callable[[], None], device: torch.device, physics: Physics | None = None, *, what: str = "the step"
    ) -> None:
        # A graph knows addresses and not their owners: whatever it reads must live as long as it does.
        self._kept = function, physics
        # Private to this graph: torch frees the workspaces of every graph of a stream when one of them goes.
        self._stream = torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()
        # named here, because a capture that fails tells nobody
        pool, before = torch.cuda.graph_pool_handle(), torch.cuda.current_stream(device)
        torch.cuda.synchronize(device)
        try:
            with (
                torch.cuda.device(device),
                _without_collections(),
                # the mode that the engine's capture has too, and that leaves other threads alone
                torch.cuda.graph(self._graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"),
                physics.capture(self._stream) if physics else nullcontext(),
            ):
                function()
        except Exception as error:
            _leave(before, pool)
            reason = str(_first(error)).partition("\n")[0]
            raise UserError(f"physics.graph: {what} cannot be captured here: {reason}; set physics.graph=false") from error

    def __call__(self) -> None:
        """Launch it once."""
        self._graph.replay()


def try_to_capture(
    function: Callable[[], None], device: torch.device, physics: Physics | None = None, *, what: str = "the step"
) -> CudaGraph | None:
    """Capture a function, or warn why that cannot be done and return None: it can still be called as it is.

    Args:
        function: see `CudaGraph`.
        device: see `CudaGraph`.
        physics: see `CudaGraph`.
        what: see `CudaGraph`.
    """
    try:
        return CudaGraph(function, device, physics, what=what)
    except UserError as error:
        log.warning("%s; until then its operations are launched one by one, several times slower", error)
        return None


@contextmanager
def _without_collections() -> Iterator[None]:
    """No garbage collection meanwhile: it could free memory or unload kernels, which a capture forbids."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _leave(stream: torch.cuda.Stream, pool: Any) -> None:
    """Out of a capture that failed.

    What ends torch's capture raises half-way then: the capturing stream is still the current one, and the allocator still takes
    from the graph's pool (torch 2.11 to 2.13, CUDAGraph::capture_end).
    """
    torch.cuda.set_stream(stream)
    with suppress(RuntimeError):  # an error that was Python's alone left nothing behind, and then there is nothing to end
        torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        torch._C._cuda_releasePool(stream.device_index, pool)


def _first(error: BaseException) -> BaseException:
    """Find what went wrong first: ending a capture that has failed raises again, and says less."""
    while error.__context__ is not None:
        error = error.__context__
    return error
