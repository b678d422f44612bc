"""Asking for an engine or a device that is not there: one line that says what to do, through the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embodied_rl import machine, make_env
from embodied_rl.cli import main
from embodied_rl.config import load

BARE = ["observations={actor: {joint_pos: {}}}", "env.final_obs_groups=[actor]", "rewards={alive: {weight: 1.0}}", "events={}"]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says of a mistake: one line, and exit code 2."""
    assert main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Warp CUDA warning")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["train", "go2_flat"], ["bench", "env", "go2_flat"]):
        line = said(capsys, *verb, "--device", "cuda")
        assert line.startswith("physics.device: cuda: ") and line.endswith("; take --device cpu")
        assert machine.cuda_error() in line


def test_a_gpu_beyond_the_last(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert said(capsys, "train", "go2_flat", "--device", "cuda:2") == (
        "physics.device: cuda:2: this machine has 2; take --device cpu"
    )


@pytest.mark.parametrize(("engine", "module", "extra"), [("warp", "mujoco_warp", "cuda"), ("mjx", "jax", "mjx")])
def test_an_engine_that_is_not_installed(
    engine: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"embodied_rl.physics.{engine}", raising=False)
    line = said(capsys, "train", "go2_flat", "--engine", engine, "--num-envs", "2", "env.compile=false")
    assert line.startswith(f"physics.engine: {engine}: ")
    assert line.endswith(f'pip install -e ".[{extra}]" in the clone, or take engine: native')


@pytest.mark.parametrize(
    ("engine", "option", "lacking"),
    [
        ("warp", '><flag fwdinv="enable"/></option', "FWDINV"),
        ("mjx", 'noslip_iterations="2"/', "it has no noslip iterations"),
    ],
)
def test_a_robot_with_a_feature_that_the_engine_lacks(
    engine: str,
    option: str,
    lacking: str,
    hopper: Callable[[Path, str], None],
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip({"warp": "mujoco_warp", "mjx": "mujoco.mjx"}[engine])
    hopper(here, option)
    arguments = ["go2_flat", "robot=.", "--engine", engine, "--num-envs", "2", "env.compile=false", "ppo.symmetry=none", *BARE]
    line = said(capsys, "train", *arguments)
    assert line.startswith(f"physics.engine: {engine} cannot run this model: ") and lacking in line


@pytest.mark.parametrize(
    ("engine", "override", "lacking"),
    [("warp", "physics.solver=pgs", "no such solver"), ("mjx", "physics.integrator=implicit", "no such integrator")],
)
def test_a_page_with_a_feature_that_the_engine_lacks(
    engine: str, override: str, lacking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lacking in said(capsys, "train", "go2_flat", "--engine", engine, override)


def test_environments_in_one_process_do_not_use_up_each_others_variants() -> None:
    """torch.compile gives up on code that it has compiled for eight shapes, and each environment brings its own."""
    page = load("go2_flat", ["env.compile=true"])
    wrap = make_env.compiler(page, torch.device("cpu"))

    class Owner:
        def __init__(self, rows: int) -> None:
            self.rows = rows
            self.total = wrap(self.total)

        def total(self, given: torch.Tensor, *, factor: float = 2.0) -> torch.Tensor:
            return given.sum() * factor + self.rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **options: compiled(function, backend="eager", **options))
        owners = [Owner(rows) for rows in range(2, 14)]
        for owner in owners:
            assert owner.total(torch.ones(owner.rows)) == 3.0 * owner.rows


compiled = torch.compile
