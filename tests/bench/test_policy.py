from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from embodied_rl import make_env, runs, training
from embodied_rl.bench import policy
from embodied_rl.config import Page, load, override
from embodied_rl.learn.run import Run


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """What was loaded, and for which device; the runs are in tmp_path."""
    asked: list[tuple[str, str]] = []

    def load_run(path: Path, device: str) -> SimpleNamespace:
        asked.append((path.name, device))
        return SimpleNamespace(policy="a policy", checkpoint=path)

    monkeypatch.setattr(policy, "RUNS", tmp_path)
    monkeypatch.setattr(runs, "load", load_run)
    return asked


def test_the_newest_checkpoint_drives_where_the_robots_are(
    loaded: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(make_env, "device_of", lambda page: torch.device("cuda:1"))
    for age, name in enumerate(("a/checkpoints/model_10.pt", "b/checkpoints/model_20.pt")):
        path = tmp_path / "go2_flat" / name
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert policy.driving_policy(load("go2_flat")) == "a policy"
    assert loaded == [("model_10.pt", "cuda:1")]


@pytest.mark.parametrize(("device", "engine"), [("cpu", "native"), ("cuda", "warp")])
def test_without_a_run_one_is_trained_by_the_engine_that_is_quick_there(
    device: str, engine: str, loaded: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[Page] = []

    class Trainer:
        def __init__(self, page: Page, run: Run) -> None:
            pages.append(page)
            self.run = run

        def train(self, iterations: int) -> Iterator[dict[str, float]]:
            yield from ()

    monkeypatch.setattr(training, "make_trainer", Trainer)
    monkeypatch.setattr(make_env, "device_of", lambda page: torch.device(device))
    page = load("go2_flat", ["physics.engine=warp", "env.num_envs=8"])
    assert policy.driving_policy(override(page, ["observations.actor.last_action=null"])) == "a policy"  # not what ships for it
    assert [(page.physics.engine, page.env.num_envs) for page in pages] == [(engine, 256)]
    assert loaded == [("run", device)]
    assert policy.driving_policy(page) == "a policy"
    assert len(pages) == 1 and loaded[1:] == [("go2_flat", device)], "the policy that ships drives"
