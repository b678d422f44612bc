"""What `embodied-rl sim2sim` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embodied_rl.deploy.sim2sim import Export, compare_golden, judge_hanging
from embodied_rl.deploy.sim2sim import sim2sim as drive
from embodied_rl.deploy.target import Target
from embodied_rl.mdp.score import score_of

_SHOWN = ("episodes", "mean_episode_s", "saturated")


def golden(folder: Path, model: Path | None) -> int:
    """Compare an exported folder's runner with its golden numbers; 0 where they agree.

    Raises:
        DeployError: it is no exported folder, or the model is none of its robot.
    """
    export = Export(folder)
    numbers, target = export.numbers("golden.npz"), export.target(model)
    for line in (*target.notes, *target.differences):
        print(line)
    differences = compare_golden(export, numbers, target)
    changed = export.changed(numbers) if model is None else []
    if not differences:
        steps, fine, terms = len(numbers["reset"]), len(numbers["motion/step"]), len(export.contract["observations"])
        said = "all agree" if not changed else "agree, and yet"
        print(f"golden: {steps} steps of {terms} terms, actions and targets, torques of {fine} steps: {said}")
        for line in changed:
            print(f"        {line}")
        return int(bool(changed or (model is None and target.differences)))
    print(f"golden: {differences[0]}")
    if others := [one.name for one in differences[1:]]:
        print(f"        so do, each from golden numbers of what comes before it: {', '.join(others)}")
    return 1


def sim2sim(folder: Path, model: Path | None, keep_motors: bool, episodes: int | None, video: Path | None) -> dict[str, Any]:
    """Drive an exported policy and say how it did, beside what it did in training's environment; the figures.

    Raises:
        DeployError: it is no exported folder, or the model is none of its robot.
        UserError: the page has no task to be judged by.
    """
    export = Export(folder)
    target = export.target(model, keep_motors=keep_motors)
    changed = export.changed(export.numbers("rehearsal.npz")) if model is None else []
    for line in (*target.notes, *target.differences, *changed):
        print(line)
    if not keep_motors and (hanging := judge_hanging(export, target)):
        print(hanging)
    result = drive(export, target, keep_motors=keep_motors, episodes=episodes, video=video)
    limits = score_of(export.page()).limits(model is not None)
    columns = {"rehearsed": result["rehearsed"], "sim2sim": result}
    if target.twice is not None:
        twice = drive(export, Target(target.twice, target.base, lift=target.lift), episodes=episodes)
        columns["damping kept"] = result["damping_kept"] = twice
    print(" " * 24 + "".join(f"{name:>14s}" for name in columns))
    hidden = {"said", "rehearsed", "passed", "sentence", "not_judged", "damping_kept"}
    for name in (name for name in result if name not in hidden):
        values = "".join(f"{column[name]:14.4f}" if name in column else " " * 14 for column in columns.values())
        bound = f"   (limit {limits[name]:g})" if name in limits else ""
        print(f"{name:24s}{values}{bound}")
    for line in result["said"]:
        print(f"run_policy.py: {line}")
    if result["not_judged"]:
        print(f"not judged here, as nothing measures it: {', '.join(result['not_judged'])}")
    if video:
        print(f"filmed: {video}")
    print(result["sentence"])
    return result
