"""A function of fixed-shape tensor operations as one CUDA graph, torch's kernels and the engine's together."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from embodied_rl.errors import UserError
from embodied_rl.physics.protocol import Physics


class CudaGraph:
    """Replays what `function` launches, with a fraction of its cost on the host.

    torch owns the capture and the engine adopts its stream, so that the temporaries of both come from pools which live as long
    as the graph.

    Args:
        function: reads and writes the same tensors at every call, and nothing on the host; it has run before, so that
            everything it launches is compiled.
        physics: the engine that `function` steps.

    Raises:
        UserError: the capture failed; the process must end, for torch's allocator may be left in capture mode.
    """

    def __init__(self, function: Callable[[], None], physics: Physics) -> None:
        # private to this graph: torch frees the workspaces of every graph of a stream when one of them goes
        self._stream = torch.cuda.Stream(physics.device)
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(physics.device)
        gc.collect()
        gc.disable()  # a collection could free memory or unload kernels, which a capture forbids
        try:
            with (
                torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"),
                physics.capture(self._stream),
            ):
                function()
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"physics.graph: the step cannot be captured here: {reason}; set physics.graph=false") from error
        finally:
            gc.enable()

    def __call__(self) -> None:
        """Launch it once."""
        self._graph.replay()
