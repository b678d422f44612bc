"""The run directory: `runs/<config>/<time>/`, all that is needed to resume, evaluate, play and export a run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

from embodied_rl.config import Page, load
from embodied_rl.errors import UserError

RUNS = Path("runs")
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


def find_run(name: str | Path) -> tuple[Run, Path | None]:
    """A run directory, a checkpoint in one, or `latest`; and the checkpoint where one was named.

    Raises:
        RunError: there is none.
    """
    if str(name) == "latest":
        runs = sorted(RUNS.glob("*/*/config.yaml"), key=lambda p: p.stat().st_mtime)
        if not runs:
            raise RunError(f"latest: no run under {RUNS.resolve()}; start one with `embodied-rl train go2_flat`")
        return Run(runs[-1].parent), None
    path = Path(name)
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
