from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from embodied_rl import training
from embodied_rl.bench.walk import bench_walk
from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn.examiner import Passed
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.run import Run


class Trainer:
    """Does three iterations of a hundredth of a second, and takes half a second beside each; the second has passed."""

    passes, stops = True, False

    def __init__(self, page: Page, run: Run, group: Group, *_: Any) -> None:
        assert page.train.stop_when == "passed"
        self.iteration, self.stopped, self.group, self.examiner = 0, self.stops, group, SimpleNamespace(seconds=0.0)
        self.passed = Passed(2, 1000, 0.02, "it walks", {"reference_lin_vel_error": 0.18}) if self.passes else None

    def train(self, iterations: int) -> Iterator[dict[str, float]]:
        for self.iteration in (1, 2, 3):
            time.sleep(0.01)
            paused = time.perf_counter()
            time.sleep(0.5)
            self.examiner.seconds += time.perf_counter() - paused
            yield {}


def test_a_page_without_a_task_is_refused_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "start", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match="go2_flat: task: the page names none"):
        bench_walk(load("go2_flat", ["task=null"]))


def test_a_training_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy that has passed counts, by the clock of its iteration, without evaluations."""
    monkeypatch.setattr(training, "make_trainer", Trainer)
    monkeypatch.setattr(training, "inspect", lambda page: None)
    monkeypatch.setattr(training, "warnings_of", lambda page, found: ())
    result = bench_walk(load("go2_flat"))
    assert list(result) == ["seconds_to_walk", "env_steps_to_walk", "seconds_to_start", "reference_lin_vel_error"]
    assert (result["env_steps_to_walk"], result["reference_lin_vel_error"]) == (1000, 0.18)
    assert 0.01 <= result["seconds_to_start"] < result["seconds_to_walk"] < 0.5


def test_a_training_that_never_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "make_trainer", type("Falling", (Trainer,), {"passes": False}))
    result = bench_walk(load("go2_flat"))
    assert result["seconds_to_walk"] == result["env_steps_to_walk"] == float("inf") and result["seconds_to_start"] >= 0.0


def test_a_training_that_is_stopped_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "make_trainer", type("Stopped", (Trainer,), {"passes": False, "stops": True}))
    with pytest.raises(UserError, match="stopped after 3 iterations, before it passed"):
        bench_walk(load("go2_flat"))
