"""The GPU's benchmark: what it says without one, and all of it once, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "benchmarks/speed/gpu.py"
#: As much of mjlab 1.6 as the script asks of it.
MJLAB = {
    "__init__.py": "",
    "tasks/__init__.py": "",
    "tasks/registry.py": """
from types import SimpleNamespace
def load_env_cfg(task_name, play=False):
    assert task_name == "Mjlab-Velocity-Flat-Unitree-Go1" and not play
    return SimpleNamespace(scene=SimpleNamespace(num_envs=1), seed=None, decimation=4)
""",
    "envs/__init__.py": """
import time
from types import SimpleNamespace
class ManagerBasedRlEnv:
    def __init__(self, cfg, device, render_mode=None):
        self.num_envs, self.is_reset = cfg.scene.num_envs, False
        self.sim = SimpleNamespace(step=lambda: time.sleep(0.0001))
        self.action_manager = SimpleNamespace(total_action_dim=12)
    def reset(self):
        self.is_reset = True
    def step(self, action):
        assert self.is_reset and action.shape == (self.num_envs, 12)
        print("whatever a library says")
        time.sleep(0.001)
""",
    "utils/__init__.py": "",
    "utils/torch.py": "def configure_torch_backends(allow_tf32=True, deterministic=False): pass",
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "there is no CUDA device" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_all_of_it_once_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("mujoco_warp")
    for name, source in MJLAB.items():
        path = tmp_path / "peer/mjlab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    known = tmp_path / "peer/mjlab-1.6.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: mjlab\nVersion: 1.6.0\n")
    report = tmp_path / "gpu.json"
    tiny = "--device cpu --pages go2_flat --num-envs 16 --rounds 1 --seconds 0.05 --iterations 2 --no-tests env.compile=false"
    command = [sys.executable, str(SCRIPT), "--json", str(report), "--peer-python", sys.executable, *tiny.split()]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path / "peer")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(report.read_text())
    (row,) = figures["steps"]
    assert (row["page"], row["num_envs"], row["captured"], row["iterations"]) == ("go2_flat", 16, False, 2)
    rates = [row[f"{name}_steps_per_s"] for name in ("physics", "env", "policy", "update")]
    assert min(rates) > 0.0 and row["ratio"] == pytest.approx(rates[1] / rates[0])
    assert row["kernels_s"] > 0.0 and row["kernels_compiled"] + row["kernels_cached"] > 10
    (peer,) = figures["peer"]
    assert peer["mjlab_versions"]["mjlab"] == "1.6.0" and peer["times_peer"] == pytest.approx(
        peer["ours_steps_per_s"] / peer["mjlab_steps_per_s"]
    )
    assert peer["peer_physics_steps_per_s"] > 0.0
    table = done.stdout.splitlines()
    assert any(line.startswith("go2_flat") for line in table) and "GPU tests: not run" in table[-1]
