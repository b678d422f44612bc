"""A GPU that is played, for tests that need one where there is none: `pytest -p played_gpu -m gpu`, with this folder on the path.

Tensors say that they are on `cuda:0`, have their numbers in the CPU's memory, and whatever is written for a GPU runs, and fails
where it would fail on one:

- an operation on tensors of two devices is refused;
- a capture does nothing of what it takes down, and refuses to read on the host, to copy from memory that is not pinned, and to
  draw from a generator of its own;
- a graph replays the operations that were captured, at the addresses and with the numbers of that moment.  What has moved since,
  and what Python would do otherwise by now, it does not see.

Kernels are the CPU's, MuJoCo Warp's too, and torch.compile does nothing.  Streams, and what runs beside what, are not played.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import played_cuda  # before torch
import torch
import torch._dynamo  # which looks functions of torch.cuda up by name, before they are others
from played_tensors import DEVICE, Graph, PlayedTensor, capture, is_capturing, launch, wait, waits, without_torch
from torch import Tensor
from torch.utils._pytree import tree_map

#: What torch makes by giving an empty tensor another shape.
_MADE_LARGER = ("arange", "arange.start", "arange.start_step", "linspace", "randperm", "randperm.generator", "eye", "eye.m")


class Stream:
    """A stream on which everything is done at once."""

    def __init__(self, device: Any = None, *_: Any, **__: Any) -> None:
        self.device, self.device_index, self.cuda_stream = DEVICE, 0, id(self)

    def synchronize(self) -> None:
        wait("synchronize")

    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...


class Event:
    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Event) -> float:
        return 0.001


def nothing(*_: Any, **__: Any) -> None: ...
def no_context(*_: Any, **__: Any) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext()


def set_sync_debug_mode(mode: int | str) -> None:
    waits.mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)  # pyright: ignore[reportArgumentType, reportCallIssue]


STREAM = Stream()
OF_TORCH_CUDA: dict[str, Any] = {
    "CUDAGraph": Graph,
    "Event": Event,
    "Stream": Stream,
    "_lazy_init": nothing,
    "_sleep": nothing,
    "current_device": lambda: 0,
    "current_stream": lambda *_: STREAM,
    "default_stream": lambda *_: STREAM,
    "device": no_context,
    "device_count": lambda: 1,
    "empty_cache": nothing,
    "get_device_capability": lambda *_: (9, 0),
    "get_device_name": lambda *_: "a played GPU",
    "get_rng_state": lambda *_: torch.get_rng_state(),
    "get_sync_debug_mode": lambda: waits.mode,
    "graph": capture,
    "graph_pool_handle": lambda: (0, 1),
    "is_available": lambda: True,
    "is_bf16_supported": lambda *_: True,
    "is_current_stream_capturing": is_capturing,
    "is_initialized": lambda: True,
    "manual_seed": nothing,
    "manual_seed_all": nothing,
    "max_memory_allocated": lambda *_: 0,
    "mem_get_info": lambda *_: (64 << 30, 80 << 30),
    "memory_allocated": lambda *_: 0,
    "reset_peak_memory_stats": nothing,
    "set_device": nothing,
    "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    "set_stream": nothing,
    "set_sync_debug_mode": set_sync_debug_mode,
    "stream": no_context,
    "synchronize": lambda *_: wait("synchronize"),
}


def on_the_gpu_later(make: Callable) -> Callable:
    """Let what torch makes past its dispatcher be made on the CPU, and copied."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return make(data, *args, device=device, **kwargs)
        wanted = kwargs.pop("requires_grad", False)
        return (data if isinstance(data, PlayedTensor) else make(data, *args, **kwargs)).to(device).requires_grad_(wanted)

    return made


def loaded_to_the_gpu_later(load: Callable) -> Callable:
    def loaded(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        if not isinstance(map_location, (str, torch.device)) or torch.device(map_location).type != "cuda":
            return load(file, map_location, **kwargs)
        return tree_map(lambda one: one.to(DEVICE) if isinstance(one, Tensor) else one, load(file, "cpu", **kwargs))

    return loaded


def play_torch() -> None:
    assert torch.version.cuda is None, "torch has CUDA of its own here"
    for name, value in OF_TORCH_CUDA.items():
        setattr(torch.cuda, name, value)
    torch.version.cuda = "13.0"
    # parameters are replaced, and not told to take over another tensor's memory
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.autograd.set_multithreading_enabled(False)
    torch.inference_mode = torch.no_grad  # tensors of that mode take no part in what wraps them
    torch.compile = lambda model=None, **_: (lambda function: function) if model is None else model
    torch.tensor, torch.as_tensor = on_the_gpu_later(torch.tensor), on_the_gpu_later(torch.as_tensor)
    torch.load = loaded_to_the_gpu_later(torch.load)
    everything, enlarging = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(lambda op, *args, **kwargs: launch(op, args, kwargs), "CUDA")
    for name in _MADE_LARGER:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        enlarging.impl(name, lambda *args, op=op, **kwargs: launch(op, args, kwargs), "CUDA")
    played_cuda.KEPT.extend((everything, enlarging))


def play_warp() -> None:
    """Let MuJoCo Warp's GPU be the played one; a graph's launches are whole steps of it."""
    try:
        import mujoco_warp
        import warp
    except ImportError:
        return
    get_device, to_torch, step = warp.get_device, warp.to_torch, mujoco_warp.step

    def stepped(model: Any, data: Any) -> None:
        flags = model.opt.disableflags  # kernels are given them when they are launched

        def again() -> None:
            now, model.opt.disableflags = model.opt.disableflags, flags
            step(model, data)
            model.opt.disableflags = now

        without_torch(again)

    mujoco_warp.step = stepped
    for name, value in {
        "ScopedStream": no_context,
        "capture_begin": nothing,
        "capture_end": nothing,
        "get_cuda_driver_version": lambda: (13, 0),
        "get_device": lambda name=None: get_device("cpu" if str(name).startswith("cuda") else name),
        "is_cuda_available": lambda: True,
        "is_mempool_enabled": lambda *_: True,
        "stream_from_torch": lambda stream: stream,
        "to_torch": lambda array, **_: PlayedTensor(to_torch(array)),
    }.items():
        setattr(warp, name, value)


play_torch()
play_warp()
