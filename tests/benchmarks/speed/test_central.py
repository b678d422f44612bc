"""Where the policy is better off, by its size: which sizes the crossover lies between, and all of it once."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks/speed/central.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_speed_central", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        ("nnnyy", "the crossover lies between 512x3 and 1024x3"),
        ("ynnny", "the crossover lies between 1024x3 and 2048x3"),  # ahead once is not yet ahead
        ("nyyyy", "the crossover lies between 64x64 and 256x2"),
        ("yyyyy", "central is ahead at every size"),
        ("yyyyn", "local is ahead at the largest size: there is no crossover up to it"),
    ],
)
def test_the_crossover_is_where_central_stays_ahead(script: Any, ahead: str, said: str) -> None:
    result = [
        {"widths": widths, "parameters": 1, "local": 2.0, "central": 3.0 if one == "y" else 1.0}
        for widths, one in zip(script.SIZES, ahead, strict=True)
    ]
    assert script.crossover(result) == said
    last = script.report(result).splitlines()
    assert last[-1] == f"{said}." and last[2].startswith("| 64x64 | 1 | 2 | ")


@pytest.mark.slow
def test_both_ways_once(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: an extra, ray")
    pytest.importorskip("gymnasium", reason="needs Gymnasium: an extra, gym")
    report, small = tmp_path / "central.json", ["env.num_envs=4", "pool.shard_size=2", "train.steps=2"]
    command = [sys.executable, str(SCRIPT), "pool_ant", *small, "--workers", "1", "--rounds", "1", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert len(found) == 5 and all(one["local"] > 0.0 and one["central"] > 0.0 for one in found)
