"""The run directory: `runs/<config>/<time>/`, all that is needed to resume, evaluate, play and export a run."""

from __future__ import annotations

import itertools
import json
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
from typing import IO, Any

import torch

from embodied_rl import machine, paths
from embodied_rl.config import Page, config_names, load
from embodied_rl.config.page import ROBOT_SECTIONS
from embodied_rl.errors import UserError
from embodied_rl.learn import checkpoint
from embodied_rl.paths import LABEL, policy_names

log = logging.getLogger("embodied_rl")

RUNS = Path("runs")
#: Seconds to wait for another process that trains in the same directory: one that was orphaned saves and ends meanwhile.
_LOCK_S = 60.0
#: Digits of a commit that people are shown.
_SHORT = 7
#: In a diff, a file that a training depends on.
_CODE = r"^diff --git a/(embodied_rl|configs|robots|tasks)/"
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
        """Make a fresh directory with the resolved page and what it runs on, written before anything is built.

        Raises:
            RunError: the directory holds a run already, or cannot be written.
        """
        run = cls(path if path is not None else _folder(RUNS / page.name / time.strftime("%Y-%m-%d_%H-%M-%S")))
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
        """The page that the run was started with.

        Raises:
            RunError: it is of an earlier version, which had other keys.
        """
        self.check_version()
        return load(str(self.path / "config.yaml"))

    def check_version(self) -> None:
        """Refuse a run whose page is of an earlier version, or was cut off.

        Raises:
            RunError: it is; the message names the commit that reads it, where that is known.
        """
        path = self.path / "config.yaml"
        text = _text(path) if path.is_file() else ""
        if "\ufffd" in text or "\0" in text:
            return  # no text: who reads it says so
        written = re.findall(r"^(\w+):", text, re.MULTILINE)
        known = [section for section in Page.model_fields if "robot" in written or section not in ROBOT_SECTIONS]
        if len(written) > 2 and written == known[: len(written)] != known:
            raise RunError(
                f"{path}: cut off in or after `{written[-1]}:`, `{known[len(written)]}:` is missing; put it back whole"
            )
        wanted = {"train": r"^train:"}
        if re.search(r"^robot: ", text, re.MULTILINE):
            # shipped robots have their dry friction since pages can leave it out: an earlier page trained without
            wanted["dry_friction"] = r"\bdry_friction:"
        missing = [key for key, written in wanted.items() if not re.search(written, text, re.MULTILINE)]
        if text and missing:
            that = f"that of commit {self.git_commit}" if self.git_commit else "that version"
            raise RunError(f"{self.path}: an earlier embodied_rl trained it, its page has no `{missing[0]}:`; {that} reads it")

    def change(self, page: Page) -> None:
        """Make this the run's page.

        Raises:
            OSError: it cannot be written; the page before is still there.
        """
        temporary = self.path / f"config.{os.getpid()}.tmp"
        temporary.write_text(page.to_yaml())
        temporary.replace(self.path / "config.yaml")

    @property
    def git_commit(self) -> str:
        """The commit that the run was started from; empty where there was none."""
        environment = self.path / "environment.txt"
        lines = _text(environment).splitlines() if environment.is_file() else []
        commit = next((line.removeprefix("git commit: ") for line in lines if line.startswith("git commit: ")), "none")
        return "" if commit == "none" else commit

    @property
    def code(self) -> str:
        """The code that trained it, for people: the commit in short, `dirty` where what trains had changes beside it."""
        environment = self.path / "environment.txt"
        changes = _text(environment).partition("\ngit commit: ")[2] if self.git_commit else ""
        return self.git_commit[:_SHORT] + (", dirty" if re.search(_CODE, changes, re.MULTILINE) else "")

    @property
    def label(self) -> dict[str, Any] | None:
        """What a packed policy says of its training; None where this is a run, which can go on."""
        if not (self.path / LABEL).is_file():
            return None
        try:
            found = json.loads(_text(self.path / LABEL))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def products(self) -> Path:
        """Where exports and evaluations are written: in the run, and for a packed policy under the current directory."""
        return self.path if self.label is None else RUNS / self.path.name / "shipped"

    def check_whole(self) -> None:
        """Refuse a packed policy where a run is needed.

        Raises:
            RunError: it is one.
        """
        if (label := self.label) is not None:
            raise RunError(
                f"{self.path}: a policy alone, without the optimizer and the robots that a training goes on with; train one of "
                f"your own: embodied-rl train {label.get('page', 'CONFIG')}"
            )

    def checkpoint(self, iteration: int) -> Path:
        """Where the checkpoint after so many iterations lies."""
        return self.checkpoints / f"model_{iteration:06d}.pt"

    def newest_checkpoints(self) -> list[Path]:
        """List the checkpoints, newest first; folders, backups and links to nowhere are none."""
        found = {path: re.fullmatch(r"model_(\d+)\.pt", path.name) for path in self.checkpoints.glob("model_*.pt")}
        numbers = {path: int(name[1]) for path, name in found.items() if name and path.is_file()}
        # by number: beyond six digits names have another order
        return sorted(numbers, key=lambda path: (numbers[path], path.name), reverse=True)

    def best_checkpoint(self) -> Path:
        """Find the one whose evaluation came out best, or, where none was evaluated, before which episodes brought most reward.

        Raises:
            RunError: there is none that knows.
        """
        merits: dict[Path, checkpoint.Merit] = {}
        for path in self.newest_checkpoints():
            try:
                merit = checkpoint.merit(checkpoint.read(path))
            except checkpoint.CheckpointError as error:
                log.warning("%s", error)
                continue
            if merit.evaluated or math.isfinite(merit.value):
                merits[path] = merit
        if not merits:
            raise RunError(f"{self.path}/best: no checkpoint yet that knows its reward or was evaluated")
        return max(merits, key=lambda path: merits[path])

    def lock(self, seconds: float = _LOCK_S) -> None:
        """Keep other processes from training in this directory, as long as this object lives.

        Raises:
            RunError: another one trains in it, and still does after so many seconds; or it is a packed policy.
        """
        self.check_whole()
        if os.name != "posix":
            return
        import fcntl

        place = self.path / "lock"
        try:
            file = place.open("a+", errors="replace")
        except OSError as error:
            raise RunError(f"{place}: cannot be written ({error.strerror}); move it away, or name another --run-dir") from None
        told, deadline = False, time.monotonic() + seconds
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
            known = _text(self.path / "launchers.txt").splitlines()
        except OSError:
            return False
        return not set(known).isdisjoint(names)


def runs_of(page_name: str) -> list[Run]:
    """List the runs of a page, or of all (`*`), the one begun last first."""
    found = sorted(RUNS.glob(f"{page_name}/*/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [Run(path.parent) for path in found]


def find_run(name: str | Path, page_name: str = "*", *, trained: bool = True, packed: bool = False) -> tuple[Run, Path | None]:
    """Find a run directory, a checkpoint in one, `latest`, a page's last, or RUN/best; and the checkpoint where one was named.

    Args:
        name: a path, `latest`: the run begun last that has a checkpoint, or the name of a page: the last of its runs.
        page_name: the page whose `latest` is meant; by default any.
        trained: whether `latest` passes over runs that failed, were stopped or are still before their first checkpoint.
        packed: whether a packed policy will do: one that is named, or that of a page without runs which ships.

    Raises:
        RunError: there is none.
    """
    try:
        run, named = _find_run(name, page_name, trained)
    except RunError as error:
        if packed and str(name) == "latest" and (ships := ", ".join(policy_names())):
            raise RunError(f"{error}, or name a page whose policy ships: {ships}") from None
        raise
    if not packed:
        run.check_whole()
    return run, named


def _find_run(name: str | Path, page_name: str, trained: bool) -> tuple[Run, Path | None]:
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
        run.check_version()  # before its checkpoints have their say
        return run, run.best_checkpoint()
    if path.is_file():
        run = Run(path.parent.parent)
        if not (run.path / "config.yaml").is_file():
            raise RunError(f"{path}: {_near(path) or f'no config.yaml in {run.path}; a checkpoint lies in RUN/checkpoints/'}")
        return run, path
    if not (path / "config.yaml").is_file():
        if re.fullmatch(r"\w+", str(name)) and (runs_of(str(name)) or str(name) in config_names()):
            ships = trained and str(name) in policy_names()
            if ships and not any(run.newest_checkpoints() for run in runs_of(str(name))):
                return Run(paths.shipped("policies") / str(name)), None
            return _find_run("latest", str(name), trained)
        near = _near(path) or "no run here (no config.yaml); give a run directory, a checkpoint, or `latest`"
        raise RunError(f"{path}: {near}")
    return Run(path), None


def _near(path: Path) -> str:
    """Say what is meant by a path in a run's folder that is no run and no checkpoint; empty where it is in none."""
    for folder in list(path.absolute().parents)[:2]:
        if (folder / "config.yaml").is_file():
            there = ", ".join(one.name for one in Run(folder).newest_checkpoints()[:5]) or "none yet"
            what = "no run and no checkpoint" if path.exists() else "no such file"
            return f"{what}; give {folder}, {folder}/best or one of {folder}/checkpoints/ ({there})"
    return ""


def _text(path: Path) -> str:
    """Read a text that may have been overwritten with anything."""
    return path.read_text(encoding="utf-8", errors="replace")


def _folder(path: Path) -> Path:
    """Make a folder of this name, or of one with a number where another run of the same second has it.

    Raises:
        RunError: it cannot be written.
    """
    names = (path.with_name(f"{path.name}_{number}") for number in itertools.count(2))
    for made in itertools.chain((path,), names):
        try:
            made.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"{made}: cannot be written ({error.strerror}); name another --run-dir") from None
        return made
    raise AssertionError


def _environment() -> str:
    """Versions, machine, and the code as it is: commit and diff of the working directory's repository."""
    lines = [f"{name} {_version(name)}" for name in _PACKAGES]
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"python {platform.python_version()}",
        f"platform {platform.platform()}",
        *lines,
    ]
    lines += [f"cores {machine.cores()}", f"torch threads {torch.get_num_threads()}"]
    lines += [f"device {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "device cpu"]
    return "\n".join([*lines, "", "git commit: " + (git("rev-parse", "HEAD") or "none"), git("diff", "HEAD")]) + "\n"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def git(*arguments: str) -> str:
    """Ask git for what it says in the package's checkout; empty where there is none."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
