from __future__ import annotations

import threading
import time

import pytest
import torch

from embodied_rl import machine
from embodied_rl.learn.cpu.team import Team, own_cores


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Team:
    monkeypatch.setattr(machine, "cores", lambda: 3)
    return Team()


def test_results_stand_in_the_order_of_the_arguments_whoever_was_first(three: Team) -> None:
    threads = set()

    def slowly(number: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.02 * (3 - number % 4))
        return number

    assert three.map(slowly, range(12)) == [*range(12)]
    assert len(threads) == 3 and threading.get_ident() in threads
    assert three.map(slowly, []) == [] and three.map(slowly, [7]) == [7]


@pytest.mark.parametrize("bad", [0, 5])
def test_a_failure_is_the_callers_once_all_have_stopped(three: Team, bad: int) -> None:
    running = []

    def work(number: int) -> None:
        running.append(number)
        time.sleep(0.01)
        running.remove(number)
        if number == bad:
            raise ValueError(f"part {number}")

    with pytest.raises(ValueError, match=f"part {bad}"):
        three.map(work, range(6))
    assert not running
    assert three.map(lambda number: number, range(3)) == [0, 1, 2]


def test_gradients_are_on_where_the_caller_has_them_on(three: Team) -> None:
    barrier = threading.Barrier(3, timeout=60.0)

    def grad(_: int) -> bool:
        barrier.wait()
        return torch.is_grad_enabled()

    with torch.no_grad():
        assert three.map(grad, range(3)) == [False] * 3
    assert three.map(grad, range(3)) == [True] * 3


def test_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    for ranks, expected in (("1", 8), ("3", 2), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert own_cores() == expected
