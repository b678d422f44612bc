"""The report tells the truth about a machine, and its exit code can be relied on."""

from __future__ import annotations

import os
import sys
import tomllib
from importlib import metadata
from typing import Any

import pytest
import torch

from embodied_rl import doctor, machine
from embodied_rl.paths import PACKAGE


def test_training_works_where_the_tests_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Training works here: embodied-rl train go2_flat"
    assert not any("\x1b" in line for line in lines)
    assert any(line.startswith("ok") and "mujoco.batch" in line for line in lines)


def test_each_missing_thing_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing_installed)
    monkeypatch.setenv("CXX", "no-such-compiler")
    checks = list(doctor.report())
    missing = {check.name: check for check in checks if not check.works}
    assert {"torch", "mujoco", "rsl-rl-lib", "tensorboard", "onnxruntime", "av", "gymnasium", "compiler"} <= set(missing)
    assert all(check.remedy and "\n" not in check.detail + check.remedy for check in missing.values())
    assert missing["gymnasium"].remedy == 'pip install -e ".[gym]" in the clone'
    assert not missing["gymnasium"].required
    extras = {"ray": "ray", "wandb": "wandb", "dm-control": "dmc", "shimmy": "dmc", "envpool": "envpool"}
    assert all(missing[name].remedy == f'pip install -e ".[{extra}]" in the clone' for name, extra in extras.items())
    assert "windows" in {check.name for check in checks}
    assert max(len(check.name) for check in checks) <= doctor._WIDTH
    assert not missing["compiler"].required


def test_an_outdated_mujoco_ends_with_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "3.17.0" if name == "mujoco" else installed(name))
    monkeypatch.setattr(doctor, "_film", lambda: doctor.Check("films", True, "not looked at"))
    assert doctor.main() == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("missing"))
    assert line.endswith('3.17.0 is too old; pip install --upgrade "mujoco>=4.0"')


def test_a_package_that_does_not_import_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = next(check for check in doctor.report() if check.name == "onnxruntime")
    assert not check.works
    assert "does not import" in check.detail


def engine(name: str) -> doctor.Check:
    return next(check for check in doctor._mujoco() if check.name == f"engine {name}")


def test_engines_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco_warp")
    pytest.importorskip("mujoco.mjx")
    assert engine("native").works
    for name in ("warp", "mjx"):
        check = engine(name)
        assert check.works and metadata.version(f"mujoco-{name}") in check.detail and "\n" not in check.detail
    assert "known to agree" not in engine("mjx").remedy  # the versions of constraints.txt are those of the parity tests


@pytest.mark.parametrize(("package", "version"), [("jax", "0.9.2"), ("mujoco-mjx", "4.1.0"), ("mujoco", "4.3.0")])
def test_versions_of_mjx_that_nobody_compared_with_c_are_said_so(
    monkeypatch: pytest.MonkeyPatch, package: str, version: str
) -> None:
    pytest.importorskip("mujoco.mjx")
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version if name == package else installed(name))
    check = engine("mjx")
    assert check.works
    assert check.remedy.startswith("known to agree with C: mujoco-mjx 3.17, mujoco 4.0, jax 0.10; ")


def test_jax_leaves_a_gpu_to_whoever_trains_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    pytest.importorskip("mujoco.mjx")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    met = []

    def default_backend() -> str:
        met.append(os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE"))
        return "gpu"

    monkeypatch.setattr(jax, "default_backend", default_backend)
    assert engine("mjx").works and set(met) == {"false"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with a GPU, as far as the report looks at it; Warp's side of it."""
    warp = pytest.importorskip("warp")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * 2**30, 80 * 2**30))
    monkeypatch.setattr(warp, "is_cuda_available", lambda: True)
    monkeypatch.setattr(warp, "get_cuda_driver_version", lambda: (12, 8))
    monkeypatch.setattr(warp, "is_mempool_enabled", lambda device: True)
    monkeypatch.setattr(machine, "triton_error", lambda: None)
    return warp


def test_a_gpu_that_takes_graphs(gpu: Any) -> None:
    check = engine("warp")
    assert check.works and check.detail.endswith("driver for CUDA 12.8, 60 of 80 GiB free") and check.remedy == ""


def test_what_makes_a_gpu_slower(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "get_cuda_driver_version", lambda: (12, 1))
    monkeypatch.setattr(machine, "triton_error", lambda: "triton does not import: no such module")
    check = engine("warp")
    assert check.works
    assert check.remedy == (
        "the NVIDIA driver is one for CUDA 12.1, and capturing needs one for 12.4; triton does not import: no such module: "
        "the step runs without a CUDA graph or fused terms, slower"
    )


def test_a_gpu_that_warp_does_not_see(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "is_cuda_available", lambda: False)
    check = engine("warp")
    assert not check.works and check.detail.endswith("sees no GPU, though torch does")
    assert check.remedy == "pip install --force-reinstall warp-lang"


@pytest.mark.skipif(not (PACKAGE.parent / "pyproject.toml").is_file(), reason="needs a source checkout")
def test_minimum_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [item for name in ("cuda", "mjx") for item in project["optional-dependencies"][name]]
    required = dict(item.replace("~=", ">=").split(">=") for item in [*project["dependencies"], *extras])
    assert {name: required[name] for name in doctor.MINIMUM} == doctor.MINIMUM
