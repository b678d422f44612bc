"""The physics kernels compile for a GPU that is not here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/aot.py"


@pytest.mark.slow
def test_every_kernel_of_a_page_compiles_for_hopper(tmp_path: Path) -> None:
    pytest.importorskip("mujoco_warp")
    command = [sys.executable, str(SCRIPT), "go2_flat", "--arch", "90", "--cache", str(tmp_path)]
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    compiled, of, modules = last.split()[:3]
    assert of == "of" and int(compiled) == int(modules) > 20
    # blocks of many threads too, which a launch on the CPU never has
    assert len(list(tmp_path.rglob("*.sm90.cubin"))) == int(modules)
