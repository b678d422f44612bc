"""Every page trained from graphs, and without: the same bits where the same kernels do both, in the same order."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from embodied_rl import make_env, training
from embodied_rl.config import config_names, load

SMALL = ["env.num_envs=16", "env.compile=false", "train.steps=8"]
PAGES = [name for name in sorted(config_names()) if (page := load(name)).env.source is None and page.pool.workers is None]
EVERYTHING = str(Path(__file__).parents[1] / "everything.yaml")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif("played_gpu" not in sys.modules, reason="a GPU that is none: a real one finds contacts in any order")
@pytest.mark.parametrize("page", [*PAGES, EVERYTHING], ids=lambda page: Path(page).stem)
def test_a_page_trains_from_graphs_as_it_does_without(page: str, tmp_path: Path) -> None:
    pytest.importorskip("mujoco_warp")
    found = {}
    for graph in ("true", "false"):
        torch.manual_seed(0)
        settings = make_env.resolve(page, [*SMALL, f"physics.graph={graph}"], device="cuda", engine="warp")
        trainer: Any = training.start(settings, tmp_path / graph)
        metrics = list(trainer.train(6))
        assert trainer.collector._env.captured is (graph == "true")
        found[graph] = [{name: value for name, value in one.items() if not timed(name)} for one in metrics]
    for one, other in zip(found["true"], found["false"], strict=True):
        assert {name: (one[name], value) for name, value in other.items() if not same(one[name], value)} == {}


def timed(name: str) -> bool:
    return name.startswith("Perf/") or name == "Train/seconds"


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
