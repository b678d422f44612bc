"""The run directory: `runs/<config>/<time>/`, all that is needed to resume, evaluate, play and export a run."""

from __future__ import annotations

import logging
import math
import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import IO

import torch

from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn import checkpoint

log = logging.getLogger("embodied_rl")

RUNS = Path("runs")
#: Seconds to wait for another process that trains in the same directory: one that was orphaned saves and ends meanwhile.
_LOCK_S = 60.0
_PACKAGES = ("torch", "numpy", "mujoco", "rsl-rl-lib", "tensordict", "embodied-rl")


class RunError(UserError):
    """There is no such run, or it cannot be read; one line."""


class Run:
    """One run directory.

    Args:
        path: the directory; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.launchers: list[str] = []
        """What started the processes that train here, by names that survive a restart."""
        self._lock: IO[str] | None = None

    def __reduce__(self) -> tuple:
        """Other ranks get the directory, and not the lock on it."""
        return Run, (self.path,)

    @classmethod
    def create(cls, page: Page, path: Path | None = None) -> Run:
        """A fresh directory with the resolved page and what it runs on, written before anything is built.

        Raises:
            RunError: the directory holds a run already, or cannot be written.
        """
        run = cls(path if path is not None else RUNS / page.name / time.strftime("%Y-%m-%d_%H-%M-%S"))
        if (run.path / "config.yaml").exists():
            raise RunError(f"{run.path}: holds a run already; continue it with --resume {run.path}, or name another --run-dir")
        try:
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            run.change(page)
            (run.path / "environment.txt").write_text(_environment())
        except OSError as error:
            raise RunError(f"{run.path}: cannot be written ({error.strerror}); name another --run-dir") from None
        return run

    @property
    def page(self) -> Page:
        """The page that the run was started with."""
        return load(str(self.path / "config.yaml"))

    def change(self, page: Page) -> None:
        """Make this the run's page."""
        temporary = self.path / "config.tmp"
        temporary.write_text(page.to_yaml())
        temporary.replace(self.path / "config.yaml")

    @property
    def git_commit(self) -> str:
        """The commit that the run was started from; empty where there was none."""
        lines = (self.path / "environment.txt").read_text().splitlines()
        commit = next((line.removeprefix("git commit: ") for line in lines if line.startswith("git commit: ")), "none")
        return "" if commit == "none" else commit

    def checkpoint(self, iteration: int) -> Path:
        """Where the checkpoint after so many iterations lies."""
        return self.checkpoints / f"model_{iteration:06d}.pt"

    def newest_checkpoints(self) -> list[Path]:
        """The checkpoints, newest first."""
        found = self.checkpoints.glob("model_*.pt")
        return sorted((p for p in found if re.fullmatch(r"model_\d+\.pt", p.name)), reverse=True)

    def best_checkpoint(self) -> Path:
        """The one before which episodes brought the most reward.

        Raises:
            RunError: there is none that knows.
        """
        rewards: dict[Path, float] = {}
        for path in self.newest_checkpoints():
            try:
                reward = (checkpoint.read(path).get("infos") or {}).get("mean_reward", math.nan)
            except checkpoint.CheckpointError as error:
                log.warning("%s", error)
                continue
            if not math.isnan(reward):
                rewards[path] = reward
        if not rewards:
            raise RunError(f"{self.path}/best: no checkpoint yet that knows its reward")
        return max(rewards, key=lambda path: rewards[path])

    def lock(self, seconds: float = _LOCK_S) -> None:
        """Keep other processes from training in this directory, as long as this object lives.

        Raises:
            RunError: another one trains in it, and still does after so many seconds.
        """
        if os.name != "posix":
            return
        import fcntl

        file, told, deadline = (self.path / "lock").open("a+"), False, time.monotonic() + seconds
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                if time.monotonic() > deadline:
                    raise RunError(f"{self.path}: {owner} trains in it; end that first, or name another --run-dir") from None
                if not told:
                    log.warning("%s: %s trains in it; waiting up to %.0f s for its end", self.path, owner, seconds)
                told = True
                time.sleep(0.2)
            except OSError:  # a file system without locks
                return
        try:
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {platform.node()}")
            file.flush()
        except OSError:  # a full disk
            pass
        self._lock = file

    def note_launchers(self) -> None:
        """Note who trains in this directory, so that `begun_by` finds it after a restart."""
        if self.launchers:
            try:
                (self.path / "launchers.txt").write_text("\n".join(self.launchers) + "\n")
            except OSError as error:
                log.warning("%s: launchers.txt not written (%s): a restart will begin a new run", self.path, error.strerror)

    def begun_by(self, names: list[str]) -> bool:
        """Whether one of these launchers began, or resumed, this run."""
        try:
            known = (self.path / "launchers.txt").read_text().splitlines()
        except OSError:
            return False
        return not set(known).isdisjoint(names)


def runs_of(page_name: str) -> list[Run]:
    """List the runs of a page, or of all (`*`), the one begun last first."""
    found = sorted(RUNS.glob(f"{page_name}/*/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [Run(path.parent) for path in found]


def find_run(name: str | Path, page_name: str = "*", *, trained: bool = True) -> tuple[Run, Path | None]:
    """Find a run directory, a checkpoint in one, `latest`, or RUN/best; and the checkpoint where one was named.

    Args:
        name: a path, or `latest`: the run begun last that has a checkpoint.
        page_name: the page whose `latest` is meant; by default any.
        trained: whether `latest` passes over runs that failed, were stopped or are still before their first checkpoint.

    Raises:
        RunError: there is none.
    """
    if str(name) == "latest":
        known = runs_of(page_name)
        found = next((run for run in known if run.newest_checkpoints() or not trained), None)
        if found is None:
            of = "" if page_name == "*" else f" of {page_name}"
            why = f"no run{of} under {RUNS.resolve()}"
            why += f" has a checkpoint, of {len(known)}" if known else ""
            raise RunError(f"latest: {why}; start one with `embodied-rl train {'go2_flat' if page_name == '*' else page_name}`")
        return found, None
    path = Path(name)
    if path.name == "best" and (path.parent / "config.yaml").is_file():
        run = Run(path.parent)
        return run, run.best_checkpoint()
    if path.is_file():
        run = Run(path.parent.parent)
        if not (run.path / "config.yaml").is_file():
            raise RunError(f"{path}: no config.yaml in {run.path}; a checkpoint lies in RUN/checkpoints/")
        return run, path
    if not (path / "config.yaml").is_file():
        raise RunError(f"{path}: no run here (no config.yaml); give a run directory, a checkpoint, or `latest`")
    return Run(path), None


def _environment() -> str:
    """Versions, machine, and the code as it is: commit and diff of the working directory's repository."""
    lines = [f"{name} {_version(name)}" for name in _PACKAGES]
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"python {platform.python_version()}",
        f"platform {platform.platform()}",
        *lines,
    ]
    lines += [f"cores {os.cpu_count()}", f"torch threads {torch.get_num_threads()}"]
    lines += [f"device {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "device cpu"]
    return "\n".join([*lines, "", "git commit: " + (git("rev-parse", "HEAD") or "none"), git("diff", "HEAD")]) + "\n"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def git(*arguments: str) -> str:
    """What git says in the package's checkout; empty where there is none."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
