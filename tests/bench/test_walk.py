from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from embodied_rl import runs, training
from embodied_rl.bench.walk import bench_walk
from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn.evaluate import SEEDS
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


def test_a_page_without_a_task_is_refused_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "start", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match="go2_flat: task: the page names none"):
        bench_walk(load("go2_flat", ["task=null"]))


def test_a_training_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluated once its metrics come near; the first of two passes in a row counts, if unseen seeds confirm it."""

    class Walking(Trainer):
        env_steps = 1000

        def train(self, iterations: int) -> Iterator[dict[str, float]]:
            for self.iteration in range(1, iterations + 1):
                yield dict.fromkeys(("Metrics/lin_vel_error", "Metrics/ang_vel_error"), 1.0 if self.iteration < 20 else 0.2)

        def save(self) -> Path:
            return Path(f"model_{self.iteration}")

    asked = []

    def figures(page: Page, policy: str, *, seed: int, reference: bool = False) -> dict[str, float]:
        asked.append((policy, seed, reference))
        return {"fall_rate": 0.0, "lin_vel_error": 0.18 if reference else 0.1, "ang_vel_error": 0.1}

    monkeypatch.setattr(training, "make_trainer", Walking)
    monkeypatch.setattr(runs, "load", lambda path: SimpleNamespace(policy=path.name))
    monkeypatch.setattr(runs, "evaluate_policy", figures)
    result = bench_walk(load("go2_flat", ["train.iterations=40"]))
    assert (result["env_steps_to_walk"], result["reference_lin_vel_error"]) == (1000, 0.18)
    assert 0 < result["seconds_to_start"] <= result["seconds_to_walk"]
    passes = [("model_20", SEEDS[0]), ("model_30", SEEDS[0]), ("model_20", SEEDS[1])]
    assert asked == [(*one, reference) for one in passes for reference in (False, True)]


def test_a_training_that_never_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "make_trainer", Trainer)
    assert bench_walk(load("go2_flat", ["train.iterations=20"]))["seconds_to_walk"] == float("inf")


def test_a_training_that_is_stopped_has_no_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Stopped(Trainer):
        def train(self, iterations: int) -> Iterator[dict[str, float]]:
            self.stopped = True
            return super().train(iterations)

    monkeypatch.setattr(training, "make_trainer", Stopped)
    with pytest.raises(UserError, match="stopped after 1 iterations, before it passed"):
        bench_walk(load("go2_flat"))
