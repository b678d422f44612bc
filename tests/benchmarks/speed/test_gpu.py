"""The GPU's benchmark: what it calls the physics alone is what the environment did; and all of it once, on the CPU."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from embodied_rl import make_env
from embodied_rl.cuda_graph import CudaGraph

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


@pytest.fixture
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_physics_alone_does_what_the_environment_did(gpu: ModuleType) -> None:
    pytest.importorskip("mujoco_warp")
    # friction is no part of the tape: it changes what the physics computes, and not how much
    small = ["env.compile=false", "env.episode_s=0.5", "events.push.interval_s=0.2", "events.randomize_friction=null"]
    with torch.no_grad():
        env: Any = make_env.make("go2_flat", small, num_envs=6, engine="warp", device="cpu")
        tape = gpu.Tape(env, lambda obs: 0.5 * torch.sin(40.0 * obs["actor"][:, :12]))
        reached = env.physics.qpos.clone(), env.physics.qvel.clone()
        assert tape.done.any(1).sum() > 2 and (tape.written & ~tape.done).any()  # resets and pushes are on the tape
        physics = gpu.PhysicsAlone(env, tape)
        for _ in range(2):
            env.restore(torch.arange(6), tape.state)
            physics.play()
            assert torch.equal(env.physics.qpos, reached[0]) and torch.equal(env.physics.qvel, reached[1])
        # and the environment goes the same way when it is given the same actions
        env.restore(torch.arange(6), tape.state)
        for action in tape.actions:
            env.step(action)
        assert torch.equal(env.physics.qpos, reached[0])
        assert "step" not in vars(env.physics) and "write" not in vars(env.physics)
    env.close()


def test_the_physics_alone_is_captured_like_the_environment(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever device there is: the graph gets what a graph takes."""
    asked = []

    def graph(*args: Any, **options: Any) -> Any:
        asked.append(inspect.signature(CudaGraph).bind(*args, **options).arguments)
        return args[0]

    monkeypatch.setattr("embodied_rl.cuda_graph.CudaGraph", graph)
    pytest.importorskip("mujoco_warp")
    with torch.no_grad():
        env: Any = make_env.make("go2_flat", ["env.compile=false"], num_envs=2, engine="warp", device="cpu")
        tape = gpu.Tape(env, lambda obs: 0.0 * obs["actor"][:, :12])
        env.restore(torch.arange(2), tape.state)
        monkeypatch.setattr(type(env), "captured", True)
        gpu.PhysicsAlone(env, tape)
    assert [(one["device"], one["physics"]) for one in asked] == [(env.device, env.physics)]
    env.close()


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
