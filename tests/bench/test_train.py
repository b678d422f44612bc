from __future__ import annotations

from collections.abc import Iterator

import pytest

from embodied_rl import training
from embodied_rl.bench import train
from embodied_rl.config import Page, load, override
from embodied_rl.learn.run import Run


@pytest.mark.usefixtures("standing")
def test_training_beside_its_physics(page: Page) -> None:
    result = train.bench_train(override(page, ["train.iterations=1"]))  # however short the page's own training is
    shares = {f"share_{name}" for name in ("physics", "env", "policy", "update")}
    each = {"num_envs", "train_steps_per_s", "physics_steps_per_s", "ratio", *shares}
    assert set(result) == each | {f"shipped_{name}" for name in each}
    assert min(result.values()) > 0.0


@pytest.mark.usefixtures("standing")
def test_a_step_that_is_one_graph_has_one_share(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Trainer:
        def __init__(self, page: Page, run: Run) -> None: ...

        def train(self, iterations: int) -> Iterator[dict[str, float]]:
            while True:
                yield {"Perf/iteration_time": 2.0, "Perf/share_rollout": 0.75, "Perf/share_update": 0.25}

    monkeypatch.setattr(training, "make_trainer", Trainer)
    result = train.bench_train(load("go2_flat", tiny))
    assert (result["share_rollout"], result["shipped_share_update"]) == (0.75, 0.25)
    assert result["train_steps_per_s"] == 4 * 4 / 2.0  # robots x steps
