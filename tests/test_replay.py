from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from embodied_rl import machine, make_env
from embodied_rl.blocks import BLOCK, Rowwise, _compiled, in_blocks
from embodied_rl.replay import Calls, Notes, NotRepeatableError, _with_notes

pytestmark = pytest.mark.skipif(machine.cpp_error() is not None, reason="no compiler")


class Rows:
    """Rows that change in place, by what is computed in several functions and by an operation of torch's own."""

    def __init__(self, rows: int) -> None:
        self.x = torch.linspace(-1.0, 1.0, 6 * rows).view(rows, 6)
        self.y = torch.zeros(rows, 4)
        self.matrix, self.gain = torch.linspace(0.0, 1.0, 24).view(6, 4), torch.ones(())

    def step(self) -> None:
        projected = torch.cat((self.x, self.x.roll(1, -1)), dim=-1)[:, 3:9] @ self.matrix
        self.y.copy_(torch.tanh(projected) * self.gain + 0.5 * self.y)
        self.x[:, :4] += 0.1 * self.y

    def ordered(self) -> None:
        self.x.copy_(torch.sort(self.x, dim=-1).values * self.gain)


def _noted(caplog: pytest.LogCaptureFixture) -> bool:
    return not any("is called as torch does it" in message for message in caplog.messages)


@pytest.mark.parametrize("rows", [5, BLOCK + 3])
def test_calls_are_noted_once_and_do_the_same_again(
    rows: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "embodied_rl")
    from torch._inductor.output_code import CompiledFxGraph

    ours, theirs = Rows(rows), Rows(rows)
    step = in_blocks(Rowwise(make_env._copied(ours.step), [ours.x, ours.y]))
    assert step is not None and _noted(caplog)
    step()  # notes are taken
    theirs.step()

    def called(graph: object, inputs: object) -> None:
        raise AssertionError("a compiled graph is called")

    monkeypatch.setattr(CompiledFxGraph, "__call__", called)
    for gain in (2.0, -1.0, 0.5):
        ours.gain.fill_(gain)
        theirs.gain.fill_(gain)
        ours.y[1] = theirs.y[1] = gain  # somebody else writes there in between
        step()
        theirs.step()
        torch.testing.assert_close(ours.x, theirs.x)
        torch.testing.assert_close(ours.y, theirs.y)


def test_what_makes_other_tensors_each_time_is_called_as_torch_does_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "embodied_rl")
    ours, theirs = Rows(2 * BLOCK), Rows(2 * BLOCK)
    order = in_blocks(Rowwise(make_env._copied(ours.ordered), [ours.x]))
    assert order is not None and not _noted(caplog)
    for gain in (-1.0, 3.0):
        ours.gain.fill_(gain)
        theirs.gain.fill_(gain)
        order()
        theirs.ordered()
        assert torch.equal(ours.x, theirs.x)


def test_what_another_thread_calls_meanwhile_is_not_noted() -> None:
    """As a learner does while robots take their first step."""
    ours, theirs, others, alone = (Rows(BLOCK) for _ in range(4))
    (kernel, inputs), (learn, learned) = (_compiled(make_env._copied(rows.step)) for rows in (ours, others))

    def meanwhile(*inputs: Tensor) -> None:
        thread = threading.Thread(target=learn, args=learned)
        thread.start()
        thread.join()
        kernel(*inputs)

    with torch.no_grad():
        calls = Notes(meanwhile).take(inputs)
        calls()
    for _ in range(2):
        theirs.step()
    alone.step()
    torch.testing.assert_close(ours.x, theirs.x)
    torch.testing.assert_close(others.x, alone.x)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("buf = torch.ops.aten.sort.default(arg)", "it does `buf = torch"),
        ("buf = alloc_from_pool(pool, 0)", "it does `buf = alloc"),
        ("for block in args: f(block)", "it does `for"),
        ("with torch.cuda.device(0): f(arg)", "it does `with"),
        ("buf += 1", r"it does `buf \+= 1"),
    ],
)
def test_what_is_not_known_is_not_noted(line: str, what: str) -> None:
    with pytest.raises(NotRepeatableError, match=what):
        _with_notes(f"class Runner:\n    def call(self, args):\n        {line}\n        return ()\n")
    with pytest.raises(NotRepeatableError, match="0 functions `call`"):
        _with_notes("pass")


def test_a_function_that_inductor_did_not_make_is_not_noted() -> None:
    def kernel(tensor: Tensor) -> None:
        tensor.add_(1.0)

    with pytest.raises(NotRepeatableError, match="it is 0 graphs of 0 calls"):
        Notes(kernel).take([torch.zeros(3)])


def test_notes_that_do_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where torch does a part of it outside of what it compiled."""
    from embodied_rl import blocks

    made: list[Callable] = []

    class Forgetful(Notes):
        def take(self, inputs: Sequence[Tensor]) -> Calls:
            calls = super().take(inputs)
            made.append(calls)
            calls._calls.pop()
            return calls

    monkeypatch.setattr(blocks, "Notes", Forgetful)
    ours, theirs = Rows(BLOCK), Rows(BLOCK)
    step = in_blocks(Rowwise(make_env._copied(ours.step), [ours.x, ours.y]))
    assert step is not None and len(made) == 1
    for _ in range(2):
        step()
        theirs.step()
    torch.testing.assert_close(ours.x, theirs.x)
    assert len(made) == 1
