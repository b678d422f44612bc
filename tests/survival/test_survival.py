"""Jobs of two ranks are killed, and come to what nobody's interference would have come to; see benchmarks/faults/survival.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/faults/survival.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc")


def play(folder: Path, *arguments: str) -> dict[str, Any]:
    """The figures of some scenarios, which the script has checked."""
    figures = folder / "figures.json"
    command = [sys.executable, str(SCRIPT), *arguments, "--folder", str(folder / "runs"), "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(figures.read_text())


def test_a_job_outlives_a_rank_and_its_launcher(tmp_path: Path) -> None:
    figures = play(tmp_path, "kill_rank_1", "kill_launcher", "--forks")
    assert figures["kill_rank_1"]["iterations_done_again"]
    assert figures["kill_launcher"]["iterations_done_again"] == []  # orphans save before they end


@pytest.mark.slow
def test_every_way_to_die(tmp_path: Path) -> None:
    ways = ("kill_rank_0", "terminate", "terminate_rank", "stop", "flipped_bit", "torn")
    figures = play(tmp_path, *ways, "--forks", "--kills", "100")
    assert figures["terminate_rank"]["iterations_done_again"] == 0
    assert figures["torn"]["kills"] == 100 and figures["torn"]["torn_on_disk"] >= 30


@pytest.mark.slow
def test_torchrun_starts_again_what_has_died(tmp_path: Path) -> None:
    play(tmp_path, "kill_rank_1", "kill_rank_0", "kill_launcher", "terminate", "terminate_rank")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("nothing may be mounted here")
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert play(tmp_path, "disk_full", "--forks")["disk_full"]["checkpoints_missed"] == [8, 12, 16]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2")
def test_a_node_that_is_killed_comes_back(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--net", "true"], check=False).returncode:
        pytest.skip("no network namespaces here")
    play(tmp_path, "nodes")
