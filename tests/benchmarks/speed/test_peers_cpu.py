"""The comparison with EnvPool, as small as it goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks/speed/peers_cpu.py"


@pytest.mark.slow
def test_a_short_comparison_reports_every_side(tmp_path: Path) -> None:
    pytest.importorskip("envpool", reason="needs envpool==1.2.5")
    report = tmp_path / "peers.json"
    settings = ["--peer-envs", "2", "--envs", "3", "4", "--rounds", "2", "--seconds", "0.05", "env.compile=false"]
    subprocess.run([sys.executable, str(SCRIPT), "--json", str(report), *settings], check=True)
    sides = json.loads(report.read_text())["subjects"]
    assert list(sides) == ["envpool", "go1_flat", "go1_flat_full"]
    assert sides["envpool"]["ratio"] == 1.0
    assert sides["go1_flat"]["num_envs"] in (3, 4)
    for side in sides.values():
        assert len(side["rounds"]) == 2
        assert side["env_steps_per_s"] > 0
        assert side["versions"]
