"""A packed policy: of a run, what plays, is evaluated and is exported, in a run directory that is small enough to ship.

    policy.json                  what it is, for people: page, steps, date, commit
    config.yaml                  the page that it was trained on
    environment.txt              what it was trained with, and at which commit
    checkpoints/model_000180.pt  of the networks the one that acts
    evaluations/                 figures of its evaluations, if any were made

No training goes on from it, and nothing is written into it (`Run.check_whole`, `Run.products`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from embodied_rl.config import Page, override
from embodied_rl.config.page import LEARNERS
from embodied_rl.family import family_names
from embodied_rl.learn import checkpoint
from embodied_rl.learn.learner import learner_class
from embodied_rl.learn.run import Run, RunError
from embodied_rl.paths import LABEL
from embodied_rl.robot import robot_names

#: Bytes that a packed policy may have.
MOST_BYTES = 1_000_000
#: What a checkpoint's infos tell of the policy itself.
_TOLD = ("env_steps", "seconds", "score", "verified")
#: What a page says of the machine that trained; a packed policy acts on any.
_ANYWHERE = ("physics.engine=native", "physics.device=auto", "physics.num_threads=0", "train.device=auto", "train.overlap=false")


def pack(path: Path, folder: Path) -> Run:
    """Write the policy of a run's checkpoint into a folder, in place of what is there.

    The page is the run's, but for what it says of the machine: engine, devices and threads are those of any other page.

    Args:
        path: the checkpoint, in RUN/checkpoints.
        folder: where it goes, named as the page where it is to ship.

    Raises:
        RunError: its page needs files that do not ship, the policy is too large, or the folder cannot be written.
        CheckpointError: the checkpoint cannot be read.
    """
    run = Run(path.parent.parent)
    page = run.page
    own = {
        "terms": bool(page.terms),
        "robot": page.robot not in robot_names(),
        "task": page.task not in (None, *family_names()),
        "train.learner": page.train.learner not in LEARNERS,
    }
    if any(own.values()):
        raise RunError(f"{run.path}: its page has {', '.join(key for key in own if own[key])} of its own, which does not ship")
    state = checkpoint.read(path)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        _write(run, path, override(page, _ANYWHERE), state, Run(temporary))
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise RunError(f"{path}: packed, {size:,} bytes, and at most {MOST_BYTES:,} are shipped; take smaller networks")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Run(folder)


def _write(run: Run, path: Path, page: Page, state: dict, packed: Run) -> None:
    packed.checkpoints.mkdir(parents=True)
    packed.change(page)
    infos = state.get("infos") or {}
    kept = _acting(page, state) | {"iter": state["iter"], "infos": {name: infos[name] for name in _TOLD if name in infos}}
    if state.get("curricula"):
        kept["curricula"] = state["curricula"]
    checkpoint.save(packed.checkpoints / path.name, kept)
    label = {
        "page": page.name,
        "date": time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime)),
        "commit": run.code or "unknown",
        "engine": run.page.physics.engine,
        "iteration": int(state["iter"]),
        "env_steps": int(infos.get("env_steps", 0)),
        "seconds": round(float(infos.get("seconds", 0.0)), 1),
    }
    (packed.path / LABEL).write_text(json.dumps(label, indent=2) + "\n")
    (packed.path / "environment.txt").write_text(_environment(run))
    for figures in sorted((run.path / "evaluations").glob(f"{path.stem}.*_seed_[0-9].json")):
        (packed.path / "evaluations").mkdir(exist_ok=True)
        told = json.loads(figures.read_text()) | {"checkpoint": path.name}  # and not where it lay
        (packed.path / "evaluations" / figures.name).write_text(json.dumps(told, indent=2) + "\n")


def _acting(page: Page, state: dict) -> dict[str, Any]:
    """Pick the networks that the policy is made of: those that its learner does not do without."""
    learner = learner_class(page)
    kept = {name: value for name, value in state.items() if name.endswith("_state_dict")}
    for name in list(kept):
        fewer = {other: value for other, value in kept.items() if other != name}
        try:
            learner.load_policy(page, fewer, "cpu")
        except KeyError:
            continue
        kept = fewer
    return kept


def _environment(run: Run) -> str:
    """Shorten what a run noted of what it ran on: versions and commit, without the command, the machine and the changes."""
    file = run.path / "environment.txt"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    lines = [line for line in text.partition("\ngit commit: ")[0].splitlines() if re.fullmatch(r"[\w-]+ [\w.+]+|device .+", line)]
    return "\n".join([*lines, "", f"git commit: {run.git_commit or 'none'}"]) + "\n"
