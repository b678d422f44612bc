"""The probes say in one line why something does not work here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from embodied_rl import machine
from embodied_rl.config.page import PhysicsSettings
from embodied_rl.physics.native import NativePhysics
from embodied_rl.robot import load_robot
from embodied_rl.scene import build_scene


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process")
def test_a_pinned_process_counts_its_own_cores_and_starts_as_many_threads() -> None:
    """MuJoCo and EnvPool, told 0, take one thread for each core of the machine, which then wait for each other on one."""
    before, core = os.sched_getaffinity(0), min(os.sched_getaffinity(0))
    scene = build_scene(load_robot("go2"), collisions="feet", physics=PhysicsSettings())
    try:
        os.sched_setaffinity(0, {core})
        assert machine.cores() == 1
        threads = len(os.listdir("/proc/self/task"))
        physics = NativePhysics(scene, 2, 1)
        assert len(os.listdir("/proc/self/task")) == threads, "the calling thread is the only one"
        del physics
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(sys.platform == "win32", reason="triton has its own compiler there")
def test_what_triton_builds_with_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert machine.triton_error() == "there is no C compiler, gcc or clang, which triton needs"
    broken = tmp_path / "broken-compiler"
    broken.write_text("#!/bin/sh\necho 'stdin:1:10: fatal error: Python.h: no such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert machine.triton_error() == "stdin:1:10: fatal error: Python.h: no such file"


@pytest.mark.skipif(sys.platform == "win32", reason="cl is not run")
def test_the_compiler_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert machine.cpp_error() == "there is no C++ compiler: no-such-compiler is not on the PATH"
    broken = tmp_path / "broken-compiler"
    first, last = "stdin:1:10: fatal error: Python.h: no such file", "compilation ended"
    broken.write_text(f"#!/bin/sh\necho '{first}' >&2\necho '{last}' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert machine.cpp_error() == first


def test_rendering_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    backend, reason = machine.gl_backend()
    assert backend is None
    assert "no-such-backend" in reason
    assert "\n" not in reason


def test_memory_is_that_of_the_container() -> None:
    assert 2**28 < machine.total_memory() < 2**50
