"""What a compiled function calls, noted once and called again: for a CPU what a CUDA graph is for a GPU.

What torch's inductor makes of a function is a handful of functions of C++, and Python that makes a hundred tensors for them each
time: for a block of robots that costs as much as what is computed.  Where all shapes and addresses are fixed, so are those
tensors.
"""

from __future__ import annotations

import ast
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: What makes a tensor of memory, or of a part of another's, by the names that inductor's Python has for them.
_MAKES, _VIEWS = "empty_strided_cpu", "reinterpret_tensor"
#: Held while a graph's calls go elsewhere.
_ONE_AT_A_TIME = threading.Lock()


class NotRepeatableError(Exception):
    """A function does more than to call others on tensors that are always the same."""


class Calls:
    """Calls on tensors that stay where they are, to be called again."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def add(self, function: Callable[..., Any], *given: Any, **named: Any) -> None:
        """Call a function, and note it."""
        self._calls.append((function, given, named))
        function(*given, **named)

    def __call__(self) -> None:
        """Call them all again."""
        for function, given, named in self._calls:
            function(*given, **named)

    def __len__(self) -> int:
        return len(self._calls)


class Notes:
    """Notes what a compiled function calls for each of several inputs, one after the other.

    What lies between the calls lies in the same tensors for all of them.

    Args:
        kernel: what inductor made of a graph without an answer, as `compile_fx` gives it.
    """

    def __init__(self, kernel: Callable[..., Any]) -> None:
        self._kernel = kernel
        self._call: Callable[..., Any] | None = None
        self._scope: dict[str, Any] = {}
        self._made: list[Tensor] = []
        self._used = 0
        self._views: dict[tuple[Any, ...], Tensor] = {}

    def take(self, inputs: Sequence[Tensor]) -> Calls:
        """Call the function on inputs, and note its calls.

        Raises:
            NotRepeatableError: to call them again would do something else.
        """
        calls, self._used = Calls(), 0
        graphs = 0

        def noting(graph: Any, given: Sequence[Any]) -> Any:
            nonlocal graphs
            graphs += 1
            call = self._rewritten(graph.current_callable)
            self._scope["_note"] = calls.add
            return call(graph.current_callable.__self__, given)

        with _in_place_of_graphs(noting):
            self._kernel(*inputs)
        if graphs != 1 or not len(calls):
            raise NotRepeatableError(f"it is {graphs} graphs of {len(calls)} calls")
        return calls

    def spoil(self) -> None:
        """Fill what lies between the calls with what is no number: whoever reads it before it is written shows it."""
        for tensor in self._made:
            torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(255)

    def _rewritten(self, call: Any) -> Callable[..., Any]:
        """Rewrite inductor's Python so that it notes its calls, the first time."""
        if self._call is None:
            if not inspect.ismethod(call):
                raise NotRepeatableError(f"{call!r} is no method of inductor's")
            path = call.__func__.__code__.co_filename
            self._scope = dict(call.__func__.__globals__) | {_MAKES: self._make}
            self._scope["_view"], self._scope[_VIEWS] = self._scope[_VIEWS], self._view
            exec(compile(_with_notes(Path(path).read_text(encoding="utf-8")), path, "exec"), self._scope)
            self._call = self._scope["call"]
        assert self._call is not None
        return self._call

    def _make(self, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self._used == len(self._made):
            self._made.append(torch.empty_strided(size, stride, dtype=dtype))
        made = self._made[self._used]
        self._used += 1
        if (made.shape, made.stride(), made.dtype) != (size, stride, dtype):
            raise NotRepeatableError("it makes other tensors each time")
        return made

    def _view(self, tensor: Tensor, *where: Any) -> Tensor:
        if not any(tensor is made for made in self._made[: self._used]):
            return self._scope["_view"](tensor, *where)
        key = (id(tensor), *where)  # `_made` keeps them
        if key not in self._views:
            self._views[key] = self._scope["_view"](tensor, *where)
        return self._views[key]


@contextmanager
def _in_place_of_graphs(noting: Callable[[Any, Sequence[Any]], Any]) -> Iterator[None]:
    """Let `noting` be called instead of each graph that inductor compiled, in this thread."""
    from torch._inductor.output_code import CompiledFxGraph  # heavy

    here = threading.get_ident()
    with _ONE_AT_A_TIME:
        called = CompiledFxGraph.__call__
        ours = lambda self, inputs: (noting if threading.get_ident() == here else called)(self, inputs)  # noqa: E731
        CompiledFxGraph.__call__ = ours
        try:
            yield
        finally:
            CompiledFxGraph.__call__ = called


def _with_notes(source: str) -> ast.Module:
    """Rewrite inductor's Python so that each of its calls, `f(x)`, is `_note(f, x)`.

    Raises:
        NotRepeatableError: it does something that is not known to be the same each time.
    """
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == "call"]
    if len(found) != 1:
        raise NotRepeatableError(f"its source has {len(found)} functions `call`")
    for statement in found[0].body:
        match statement:
            case ast.Expr(ast.Call(ast.Attribute(ast.Name("args"), "clear"))):
                pass  # its list of arguments, which is a new one each time
            case ast.Expr(ast.Call() as call):
                call.args.insert(0, call.func)
                call.func = ast.Name("_note", ast.Load())
            case ast.Assign(value=ast.Name()) | ast.Delete() | ast.Return():
                pass
            case ast.Assign(value=ast.Call(func=ast.Name(name))) if name in (_MAKES, _VIEWS):
                pass
            case _:
                raise NotRepeatableError(f"it does `{ast.unparse(statement)}`")
    return ast.fix_missing_locations(ast.Module([found[0]], []))
