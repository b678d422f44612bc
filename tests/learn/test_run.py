from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embodied_rl.config import load
from embodied_rl.learn.run import Run, RunError, find_run, runs_of


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


def test_runs_of_one_second_have_folders_of_their_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "2000-01-01_00-00-00")
    made = [Run.create(load("go2_flat")).path.name for _ in range(3)]
    assert made == ["2000-01-01_00-00-00", "2000-01-01_00-00-00_2", "2000-01-01_00-00-00_3"]


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


def test_latest_is_the_run_begun_last_that_has_a_checkpoint() -> None:
    with pytest.raises(RunError, match=r"latest: no run under .*[^0-9]; start one with `embodied-rl train go2_flat`"):
        find_run("latest")
    names = {"go2_flat/a": 5, "go1_flat/b": 1, "go2_flat/c": 3, "go2_flat/d": 0}
    for name, age in names.items():
        Run.create(load(name.partition("/")[0]), path := Path("runs") / name)
        os.utime(path / "config.yaml", (1e9 - age, 1e9 - age))
    with pytest.raises(RunError, match=r"latest: no run under .* has a checkpoint, of 4; start one with"):
        find_run("latest")
    for name in ("go2_flat/a", "go1_flat/b", "go2_flat/c"):  # d failed, or is still before its first
        Run(Path("runs") / name).checkpoint(50).touch()
    latest = lambda *page, **options: str(find_run("latest", *page, **options)[0].path)  # noqa: E731
    assert (latest(), latest("go2_flat"), latest(trained=False)) == ("runs/go1_flat/b", "runs/go2_flat/c", "runs/go2_flat/d")
    assert find_run("latest")[1] is None
    assert str(find_run("go2_flat")[0].path) == latest("go2_flat")
    with pytest.raises(
        RunError, match=r"latest: no run of go1_flat_full under .*; start one with `embodied-rl train go1_flat_full`"
    ):
        find_run("latest", "go1_flat_full")


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


HOLD = """
import sys, time
from pathlib import Path
from embodied_rl.learn.run import Run
run = Run(Path(sys.argv[1]))
run.lock()
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_one_process_trains_in_a_directory(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that ends in time is waited for; one that does not is named."""
    run = Run.create(load("go2_flat"), here / "run")
    command = [sys.executable, "-c", HOLD, str(run.path), "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        with pytest.raises(RunError) as caught:
            run.lock(seconds=0.0)
        assert str(caught.value).startswith(f"{run.path}: pid {holder.pid} on ") and "; end that first, or name" in str(
            caught.value
        )
        caplog.clear()
        holder.kill()
    run.lock(seconds=0.0)
    run.lock(seconds=0.0)  # a process does not stand in its own way
    assert not caplog.messages


def test_a_restart_finds_the_run_that_its_launcher_began(here: Path) -> None:
    first, second = (Run.create(load("go2_flat"), Path("runs") / "go2_flat" / name) for name in "ab")
    for run, names in ((first, ["one 12 345", "two 6 78"]), (second, ["one 99 999"])):
        run.launchers = names
        run.note_launchers()
    found = [run.path.name for run in runs_of("go2_flat") if run.begun_by(["one 12 345", "three 1 1"])]
    assert found == ["a"]  # one of two machines is still the same
    assert not first.begun_by([]) and not Run(here / "nowhere").begun_by(["one 12 345"])
    assert runs_of("go1_flat") == []


def test_other_ranks_get_the_directory_alone(here: Path) -> None:
    run = Run.create(load("go2_flat"), here / "run")
    run.lock()
    copy = pickle.loads(pickle.dumps(run))
    assert copy.path == run.path and copy._lock is None
