"""Tensors of a played GPU, whose numbers are in the CPU's memory, and CUDA graphs of what was done with them.

Every operation on one, and every one that torch sends to CUDA, comes to `launch`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("cuda", 0)
#: Operations whose result the host waits for.
_READS = {
    *("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"),
    *("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount"),
}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_COPIES = {"aten::copy_", "aten::_to_copy"}
_MAKES_ROOM = {"aten::empty", "aten::empty_strided", "aten::empty_like", "aten::new_empty", "aten::new_empty_strided"}


class PlayedTensor(Tensor):
    """Says that it is on the GPU; its numbers are those of `there`, on the CPU."""

    there: Tensor

    @staticmethod
    def __new__(cls, there: Tensor) -> PlayedTensor:
        given = {"strides": there.stride(), "storage_offset": there.storage_offset(), "dtype": there.dtype, "device": DEVICE}
        made = Tensor._make_wrapper_subclass(cls, there.shape, **given)  # pyright: ignore[reportAttributeAccessIssue]
        made.there = there
        return made

    def __init__(self, there: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return launch(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"played({self.there!r})"

    # what torch does with a tensor's memory and not by its operations

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory first.")

    def data_ptr(self) -> int:
        return self.there.data_ptr()

    def quantile(self, *args: Any, **kwargs: Any) -> PlayedTensor:  # which gives a tensor another shape on its way
        return PlayedTensor(self.there.quantile(*args, **kwargs))

    def __deepcopy__(self, memo: dict) -> PlayedTensor:
        if id(self) not in memo:
            memo[id(self)] = copied = PlayedTensor(self.there.detach().clone()).requires_grad_(self.requires_grad)
            for name in self.__dict__.keys() - {"there"}:  # that it is a parameter, for one
                setattr(copied, name, getattr(self, name))
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.there.detach().__reduce_ex__(protocol)  # kept as the CPU's

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_with_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_with_tensors(index), value)


def _with_tensors(index: Any) -> Any:
    """Make an index of a list, which torch does past its dispatcher."""
    if isinstance(index, tuple):
        return tuple(_with_tensors(one) for one in index)
    return torch.as_tensor(index).to(DEVICE) if isinstance(index, (list, range)) else index


# ------------------------------------------------------------------------------------------------------- graphs and waiting


class Graph:
    """What a capture saw."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.launches: list[Callable[[], object]] = []
        self.captured = False
        # memory that the capture was about to write to, and what was there: what is captured is not done
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def replay(self) -> None:
        assert self.captured, "a graph that was not captured"
        refuse_in_a_capture("a graph's launch")
        for one in self.launches:
            one()

    def reset(self) -> None:
        self.launches.clear()

    def keep(self, tensor: Tensor) -> None:
        """Remember what is about to be written over."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._before:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)  # pyright: ignore[reportArgumentType]
            self._before[storage.data_ptr()] = whole, whole.clone()

    def undo(self) -> None:
        """Take back what the capture did."""
        for whole, before in self._before.values():
            whole.copy_(before)
        self._before.clear()


class _Now(threading.local):
    graph: Graph | None = None


_now = _Now()
#: How often the host has waited for the GPU, and torch's mode of debugging it.
waits = SimpleNamespace(count=0, mode=0)


@contextlib.contextmanager
def capture(graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
    """Let a graph take down what this thread launches."""
    refuse_in_a_capture("a capture")
    graph.reset()
    _now.graph = graph
    try:
        yield
        graph.captured = True
    finally:
        _now.graph = None
        graph.undo()


def is_capturing() -> bool:
    return _now.graph is not None


def refuse_in_a_capture(what: str) -> None:
    if _now.graph is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {what}")


def wait(what: str) -> None:
    """Let the host wait for the GPU."""
    refuse_in_a_capture(what)
    waits.count += 1
    if waits.mode == 2:
        raise RuntimeError(f"called a synchronizing CUDA operation: {what}")


def without_torch(launch: Callable[[], object]) -> None:
    """Do it, or let the capture that is going on take it down: an engine's step."""
    if _now.graph is None:
        launch()
    else:
        _now.graph.launches.append(launch)


# ------------------------------------------------------------------------------------------------------------- operations


def launch(func: Any, args: tuple, kwargs: dict) -> Any:
    """Do an operation on the GPU, which is to say on the CPU."""
    name, schema, graph = func._schema.name, func._schema, _now.graph
    flat, spec = tree_flatten((args, kwargs))
    ours = [one for one in flat if isinstance(one, PlayedTensor)]
    others = [one for one in flat if isinstance(one, Tensor) and not isinstance(one, PlayedTensor)]
    theirs = [one for one in others if one.dim() > 0]  # a number of the CPU's goes with anything
    if ours and theirs and name not in _COPIES | _INDEXED:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu: {name}"
        )
    to_host = bool(ours) and _goes_to_the_host(name, args, kwargs)
    if to_host or name in _READS or (name in _INDEXED and _is_by_mask(name, args)):
        wait(name)
    if graph is not None:
        if (name in _COPIES and not all(one.is_pinned() for one in others)) or (name in _INDEXED and theirs):
            raise RuntimeError("Cannot copy between CPU and CUDA tensors during a capture unless the CPU tensor is pinned")
        if any(isinstance(one, torch.Generator) for one in flat):
            raise RuntimeError("a capture draws from a generator that is not registered with its graph")
    wrappers = {id(one.there): one for one in ours}
    here, named = tree_unflatten([_on_the_cpu(one) for one in flat], spec)
    if graph is not None:
        for tensor in _written(schema, here, named):
            graph.keep(tensor)
    kernel: Callable = KERNELS.get(name) or func
    with _generators(flat):
        found = kernel(*here, **named)
    if graph is not None and name not in _MAKES_ROOM:
        _take_down(graph, schema, kernel, here, named, found)
    for one in ours:
        assert (one.shape, one.stride()) == (one.there.shape, one.there.stride()), f"{name} has given a tensor another shape"
    if to_host:
        return args[0] if name == "aten::copy_" else found
    return tree_map(lambda one: _there(one, wrappers), found)


def _there(one: Any, wrappers: dict[int, PlayedTensor]) -> Any:
    if not isinstance(one, Tensor):
        return one
    return wrappers[id(one)] if id(one) in wrappers else PlayedTensor(one)


def _goes_to_the_host(name: str, args: tuple, kwargs: dict) -> bool:
    if name == "aten::copy_":
        return not isinstance(args[0], PlayedTensor)
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"


def _is_by_mask(name: str, args: tuple) -> bool:
    """Whether how many rows an index has is only known on the GPU."""
    if not any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]):
        return False
    return name == "aten::index" or args[2].numel() != 1 or isinstance(args[2], PlayedTensor)  # a number fills the mask


def _on_the_cpu(one: Any) -> Any:
    if isinstance(one, PlayedTensor):
        return one.there
    if isinstance(one, torch.device):
        return torch.device("cpu")
    return _companion(one) if isinstance(one, torch.Generator) and one.device.type == "cuda" else one


def _written(schema: Any, args: tuple, kwargs: dict) -> Iterator[Tensor]:
    """What an operation writes to."""
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from value if isinstance(value, (list, tuple)) else () if value is None else (value,)


def _take_down(graph: Graph, schema: Any, kernel: Callable, args: tuple, kwargs: dict, found: Any) -> None:
    """Note an operation on these tensors; one that only looks at memory another way is none."""
    tensors = lambda tree: [one for one in tree_flatten(tree)[0] if isinstance(one, Tensor)]  # noqa: E731
    known = {one.untyped_storage().data_ptr() for one in tensors((args, kwargs))}
    outs = tensors(found)
    new = any(one.untyped_storage().data_ptr() not in known for one in outs)

    def again() -> None:
        for out, value in zip(outs, tensors(kernel(*args, **kwargs)), strict=True):
            if out is not value:
                out.copy_(value)

    if new or any(True for _ in _written(schema, args, kwargs)):
        graph.launches.append(again)


_companions: dict[int, tuple[torch.Generator, torch.Generator]] = {}


def _companion(generator: torch.Generator) -> torch.Generator:
    """Give the CPU's generator that draws in its place."""
    return _companions.setdefault(id(generator), (generator, torch.Generator()))[1]


@contextlib.contextmanager
def _generators(flat: list) -> Iterator[None]:
    """Carry the states of generators over to those that draw in their place, and back."""
    played = [one for one in flat if isinstance(one, torch.Generator) and one.device.type == "cuda"]
    for one in played:
        _companion(one).set_state(one.get_state())
    yield
    for one in played:
        one.set_state(_companion(one).get_state())


def _gru_cell(inputs: Tensor, hidden: Tensor, state: Tensor, bias: Tensor | None, other: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state that follows, and what the gradient wants."""
    given = inputs if bias is None else inputs + bias, hidden if other is None else hidden + other
    (r, z, n), (reset, update, new) = (one.chunk(3, 1) for one in given)
    reset, update = (r + reset).sigmoid(), (z + update).sigmoid()
    candidate = (n + reset * new).tanh()
    return candidate + update * (state - candidate), torch.cat((reset, update, candidate, state, new), 1)


def _gru_cell_backward(gradient: Tensor, kept: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    reset, update, candidate, state, new = kept.chunk(5, 1)
    of_candidate = gradient * (1 - update) * (1 - candidate.square())
    of_update = gradient * (state - candidate) * update * (1 - update)
    of_reset = of_candidate * new * reset * (1 - reset)
    inputs = torch.cat((of_reset, of_update, of_candidate), 1)
    hidden = torch.cat((of_reset, of_update, of_candidate * reset), 1)
    return inputs, hidden, gradient * update, *((inputs.sum(0), hidden.sum(0)) if has_bias else (None, None))


def _lstm_cell(inputs: Tensor, hidden: Tensor, cell: Tensor, bias: Tensor | None, other: Tensor | None) -> tuple[Tensor, ...]:
    gates = (inputs if bias is None else inputs + bias) + (hidden if other is None else hidden + other)
    enter, forget, candidate, leave = gates.chunk(4, 1)
    kept = enter.sigmoid(), forget.sigmoid(), candidate.tanh(), leave.sigmoid()
    following = kept[1] * cell + kept[0] * kept[2]
    return kept[3] * following.tanh(), following, torch.cat(kept, 1)


def _lstm_cell_backward(
    of_state: Tensor | None, of_cell: Tensor | None, cell: Tensor, following: Tensor, kept: Tensor, has_bias: bool
) -> tuple[Tensor | None, ...]:
    enter, forget, candidate, leave = kept.chunk(4, 1)
    state = torch.zeros_like(following) if of_state is None else of_state
    inner = state * leave * (1 - following.tanh().square()) + (0.0 if of_cell is None else of_cell)
    gates = (
        inner * candidate * enter * (1 - enter),
        inner * cell * forget * (1 - forget),
        inner * enter * (1 - candidate.square()),
        state * following.tanh() * leave * (1 - leave),
    )
    whole = torch.cat(gates, 1)
    return whole, inner * forget, whole.sum(0) if has_bias else None


#: What torch has for CUDA alone.
KERNELS: dict[str, Callable] = {
    "aten::_thnn_fused_gru_cell": _gru_cell,
    "aten::_thnn_fused_gru_cell_backward": _gru_cell_backward,
    "aten::_thnn_fused_lstm_cell": _lstm_cell,
    "aten::_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
}
