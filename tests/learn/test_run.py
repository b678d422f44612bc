from __future__ import annotations

import os
from pathlib import Path

import pytest

from embodied_rl.config import load
from embodied_rl.learn.run import Run, RunError, find_run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_knows_its_page() -> None:
    page = load("go2_flat", ["env.num_envs=3", "rewards.pose=null"])
    run = Run.create(page)
    assert run.path.parts[:2] == ("runs", "go2_flat")
    assert run.page == page == Run(run.path).page
    text = (run.path / "environment.txt").read_text()
    for said in ("command: ", "python 3", "mujoco ", "torch ", "cores ", "git commit: "):
        assert said in text


def test_a_directory_holds_one_run(here: Path) -> None:
    page = load("go2_flat")
    Run.create(page, here / "run")
    with pytest.raises(RunError, match="holds a run already; continue it with --resume"):
        Run.create(page, here / "run")


def test_a_directory_that_cannot_be_written(here: Path) -> None:
    (here / "file").touch()
    with pytest.raises(RunError, match=r"cannot be written \(Not a directory\); name another --run-dir"):
        Run.create(load("go2_flat"), here / "file" / "run")


def test_checkpoints_newest_first(here: Path) -> None:
    run = Run.create(load("go2_flat"), here / "run")
    assert run.newest_checkpoints() == []
    for iteration in (50, 100, 1000, 9):
        run.checkpoint(iteration).touch()
    for name in ("model_000200.tmp", "model_x.pt", "notes.txt", "model_000300.pt.bak"):
        (run.checkpoints / name).touch()
    found = [path.name for path in run.newest_checkpoints()]
    assert found == ["model_001000.pt", "model_000100.pt", "model_000050.pt", "model_000009.pt"]


def test_latest_is_the_run_begun_last() -> None:
    with pytest.raises(RunError, match=r"latest: no run under .*; start one with"):
        find_run("latest")
    paths = [Run.create(load(name), Path("runs") / name / time).path for name, time in (("go2_flat", "b"), ("go1_flat", "a"))]
    for age, path in enumerate(reversed(paths)):
        os.utime(path / "config.yaml", (1e9 - age, 1e9 - age))
    found, named = find_run("latest")
    assert (found.path, named) == (paths[1], None)


def test_a_run_by_its_path_or_a_checkpoint_of_it(here: Path) -> None:
    run = Run.create(load("go2_flat"), here / "run")
    run.checkpoint(50).touch()
    assert find_run("run")[0].path == Path("run")
    found, named = find_run(run.checkpoint(50))
    assert (found.path, named) == (run.path, run.checkpoint(50))


@pytest.mark.parametrize("name", ["nowhere", ".", "stray.pt", "run/config.yaml"])
def test_no_run(here: Path, name: str) -> None:
    Run.create(load("go2_flat"), here / "run")
    (here / "stray.pt").touch()
    with pytest.raises(RunError) as caught:
        find_run(name)
    assert str(caught.value).startswith(f"{name}: no ") and "\n" not in str(caught.value)
