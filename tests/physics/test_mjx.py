"""What only MJX has: a list of what it lacks, and a device of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import pytest
import torch

from embodied_rl.errors import UserError

jax, engine = pytest.importorskip("jax"), pytest.importorskip("embodied_rl.physics.mjx")

CPU = torch.device("cpu")
MODEL = """
<mujoco>
  <option {option}><flag {flag}="enable"/></option>
  <worldbody>
    <geom type="plane" size="0 0 1"/>
    <body pos="0 0 1"><joint name="turn" axis="0 1 0"/> <geom name="ball" type="sphere" size="0.1"/></body>
  </worldbody>
  <actuator><motor joint="turn" {motor}/></actuator>
</mujoco>
"""
PLAIN = {"option": "", "flag": "warmstart", "motor": ""}


def scene_of(**changes: str) -> Any:
    model = mujoco.MjModel.from_xml_string(MODEL.format(**PLAIN | changes))
    return SimpleNamespace(model=model, frames=(), frame_orientation=False, sensors={}, joint_torque=False, foot_touchdown=False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"option": 'solver="PGS"'}, "PGS"),
        ({"option": 'integrator="implicit"'}, "IMPLICIT"),
        ({"option": 'noslip_iterations="3"'}, "noslip iterations"),
        ({"option": 'integrator="discrete"'}, "integrator discrete"),
        ({"flag": "fwdinv"}, "FWDINV"),
        ({"motor": 'nsample="4" delay="0.012"'}, "delays of actuators and sensors"),
    ],
    ids=str,
)
def test_what_mjx_lacks_is_said_in_one_line(changes: dict[str, str], named: str) -> None:
    engine.MjxPhysics(scene_of(), 1, 4, CPU)
    with pytest.raises(UserError) as caught:
        engine.MjxPhysics(scene_of(**changes), 1, 4, CPU)
    said = str(caught.value)
    assert said.startswith("physics.engine: mjx cannot run this model: ") and said.endswith("; use native or warp")
    assert named in said and "\n" not in said


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="this jax has a GPU")
def test_a_device_that_jax_does_not_see() -> None:
    with pytest.raises(UserError) as caught:
        engine.MjxPhysics(scene_of(), 1, 4, torch.device("cuda"))
    assert str(caught.value).startswith("physics.device: cuda: this build of jax sees no such device; pip install")
    assert "\n" not in str(caught.value)


def test_it_cannot_be_captured_and_never_runs_out_of_room() -> None:
    physics = engine.MjxPhysics(scene_of(), 1, 4, CPU)
    assert not physics.capturable and physics.drain_overflow() == {}
    with pytest.raises(NotImplementedError, match="MjxPhysics cannot be captured"):
        physics.capture(None)


def test_too_little_memory_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA allocates when it runs; how much is not known before."""

    def step(message: str) -> None:
        def fail(*_: Any) -> None:
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(engine, "_step_all", fail)
        engine.MjxPhysics(scene_of(), 3, 4, CPU).step(torch.zeros(3, 1))

    with pytest.raises(UserError) as caught:
        step("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes")
    assert str(caught.value).startswith("env.num_envs: 3 robots need more memory than ") and "\n" not in str(caught.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        step("INTERNAL: something else")


HANGS = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
import engines
torch.set_grad_enabled(False)
engines.compare("mjx", "go1", "cpu", 200, "feet")
"""


@pytest.mark.slow
def test_many_robots_on_two_cores_do_not_wait_for_each_other() -> None:
    """XLA's threads would, see the engine's setting of NPROC; a process that hangs uses no processor time."""
    folder = Path(__file__).parents[2] / "benchmarks/parity"
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores and shutil.which("taskset") else []
    for _ in range(3):
        process = subprocess.Popen([*pinned, sys.executable, "-c", HANGS, str(folder)])
        try:
            assert process.wait(timeout=400) == 0
        finally:
            process.kill()
