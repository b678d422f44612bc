"""A function of rows, compiled for a block of them, so that what is compiled once serves any number of robots.

Legend: N rows, B rows of a block: BLOCK, or N where there are fewer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from embodied_rl.replay import Calls, Notes

log = logging.getLogger("embodied_rl")

#: Few enough that what lies between two operations stays in the second-level cache and a last block that is not full wastes
#: little, many enough that calling a block costs little beside computing it.
BLOCK = 128


@dataclass(frozen=True)
class Rowwise:
    """A function without arguments or answer that makes each row of some tensors from that row alone.

    What it does is fixed when it is compiled, as in a CUDA graph: which tensors, by address, and all that is no tensor.
    """

    function: Callable[[], Any]
    rows: Sequence[Tensor]
    """Every tensor (N, ...) that it reads or writes; whatever else it reads is the same for all rows, and not written."""

    def __call__(self) -> None:
        """Do it for all rows at once."""
        self.function()


class _NotRowwiseError(Exception):
    """The function is none of those that a `Rowwise` holds."""


def in_blocks(work: Rowwise) -> Callable[[], None] | None:
    """Compile a function for B rows and make of it one for all N; None where that is not the same.

    It is not for a function that answers, changes what is no tensor, or lets rows influence each other.
    """
    rows = {id(tensor): tensor for tensor in work.rows}
    try:
        with _narrowed(list(rows.values())), torch.no_grad():
            kernel, inputs = _compiled(work.function)
            ours = [id(tensor) in rows for tensor in inputs]
            notes = _notes(kernel, inputs, _rows_are_apart(kernel, inputs, ours))
    except Exception as error:  # what is really wrong will be so again when all rows are compiled at once, and told then
        log.debug("%r is not compiled for blocks of rows: %s", work.function, error)
        return None
    return _Blocks(kernel, inputs, ours, notes)


def _compiled(function: Callable[[], Any]) -> tuple[Callable[..., Any], list[Tensor]]:
    """Compile a function for the present shapes: what takes the tensors that it reads and writes, and these.

    Raises:
        _NotRowwiseError: it does something beside writing into tensors.
    """
    from torch._inductor.compile_fx import compile_fx  # heavy

    found: list[tuple[Callable[..., Any], list[Tensor]]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        # `self.steps += 1` answers `self.steps`, to be noted where it is already
        value = lambda node: node.meta.get("example_value")  # noqa: E731
        given = [id(value(node)) for node in graph.graph.find_nodes(op="placeholder")]
        output = graph.graph.output_node()
        answers = cast("Sequence[torch.fx.Node]", output.args[0])
        if any(id(value(node)) not in given for node in answers):
            raise _NotRowwiseError("it leaves tensors behind")
        places = [given.index(id(value(node))) for node in answers]
        output.args = ((),)
        graph.recompile()
        # what it is called with is always the same: nothing to look at before each call
        kernel = cast("Callable[..., Any]", compile_fx(graph, inputs, config_patches={"size_asserts": False}))
        found.append((kernel, list(inputs)))
        return lambda *tensors: tuple(tensors[place] for place in places)

    traced = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
    for _ in range(2):  # what changes by being called is traced again at the second call
        traced()
    if len(found) != 1:
        raise _NotRowwiseError("it changes something that is no tensor" if found else "it does nothing")
    return found[0]


def _rows_are_apart(kernel: Callable[..., Any], inputs: list[Tensor], ours: list[bool]) -> list[Tensor]:
    """Check on copies of the inputs that the first row becomes the same whatever the others are; what the inputs become.

    Raises:
        _NotRowwiseError: it does not, or something is written that is no row.
    """
    once, again = ([tensor.clone() for tensor in inputs] for _ in range(2))
    for tensor, own in zip(again, ours, strict=True):
        if own:
            tensor[1:] = tensor[:1].clone()
    kernel(*once)
    kernel(*again)
    for before, one, two, own in zip(inputs, once, again, ours, strict=True):
        if own and not _same(one[:1], two[:1]):
            raise _NotRowwiseError("rows influence each other")
        if not own and not _same(before, one):
            raise _NotRowwiseError("it writes what all rows share")
    return once


def _notes(kernel: Callable[..., Any], inputs: list[Tensor], once: list[Tensor]) -> Notes | None:
    """Make notes of what the kernel calls; None where copies of the inputs do not become what it makes of them once."""
    notes, again = Notes(kernel), [tensor.clone() for tensor in inputs]
    try:
        calls = notes.take(again)
    except Exception as error:  # of what torch has inside, which it may change
        log.debug("what is compiled is called as torch does it: %s", error)
        return None
    for tensor, before in zip(again, inputs, strict=True):
        tensor.copy_(before)
    notes.spoil()
    calls()
    return notes if all(map(_same, once, again)) else None


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


@contextmanager
def _narrowed(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let tensors be their first B rows, for whoever holds them."""
    whole = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data[:BLOCK]  # all there are, if there are fewer
        yield
    finally:
        for tensor, data in zip(tensors, whole, strict=True):
            tensor.data = data


class _Blocks:
    """A kernel of B rows on all N.

    Args:
        kernel: takes the inputs.
        inputs: tensors (N, ...), which are given to it by blocks, among those that all rows share.
        ours: which of them are (N, ...).
        notes: of what it calls for a block, where that need be found out but once.
    """

    def __init__(self, kernel: Callable[..., Any], inputs: list[Tensor], ours: list[bool], notes: Notes | None) -> None:
        self._kernel, self._notes = kernel, notes
        self._calls: dict[int, Calls] = {}
        rows = [tensor for tensor, own in zip(inputs, ours, strict=True) if own]
        block = min(BLOCK, len(rows[0]))
        full, left = divmod(len(rows[0]), block)

        def given(of_rows: Sequence[Tensor]) -> list[Tensor]:
            parts = iter(of_rows)
            return [next(parts) if own else tensor for tensor, own in zip(inputs, ours, strict=True)]

        self._full = [given([tensor[index * block : (index + 1) * block] for tensor in rows]) for index in range(full)]
        self._last: list[Tensor] = []
        if left:
            # beside the rows that are left stand copies of others, which nobody reads
            self._copies = [tensor[:block].clone() for tensor in rows]
            self._last, self._own = given(self._copies), [tensor[:left] for tensor in self._copies]
            self._left = [tensor[full * block :] for tensor in rows]

    @torch.no_grad()
    def __call__(self) -> None:
        for index, inputs in enumerate(self._full):
            self._call(index, inputs)
        if self._last:
            torch._foreach_copy_(self._own, self._left)  # pyright: ignore[reportPrivateImportUsage]
            self._call(-1, self._last)
            torch._foreach_copy_(self._left, self._own)  # pyright: ignore[reportPrivateImportUsage]

    def _call(self, index: int, inputs: list[Tensor]) -> None:
        if self._notes is None:
            self._kernel(*inputs)
        elif calls := self._calls.get(index):
            calls()
        else:
            self._calls[index] = self._notes.take(inputs)
