from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embodied_rl import training
from embodied_rl.bench.walk import bench_walk
from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.run import Run


class Trainer:
    """Yields metrics far from walking until it is told to stop."""

    def __init__(self, page: Page, run: Run, group: Group) -> None:
        self.iteration, self.stopped, self.group = 0, False, group

    def train(self, iterations: int) -> Iterator[dict[str, float]]:
        for self.iteration in range(1, iterations + 1):
            yield {"Metrics/lin_vel_error": 1.0, "Metrics/ang_vel_error": 1.0}
            if self.stopped:
                return


def test_a_training_that_never_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "make_trainer", Trainer)
    assert bench_walk(load("go2_flat", ["ppo.max_iterations=20"]))["seconds_to_walk"] == float("inf")


def test_a_training_that_is_stopped_has_no_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Stopped(Trainer):
        def train(self, iterations: int) -> Iterator[dict[str, float]]:
            self.stopped = True
            return super().train(iterations)

    monkeypatch.setattr(training, "make_trainer", Stopped)
    with pytest.raises(UserError, match="stopped after 1 iterations, before it walked"):
        bench_walk(load("go2_flat"))
