"""Learning curves of our learner and of rsl_rl's PPO on the same page: velocity error against env steps, over seeds.

    python benchmarks/learning/learners.py [CONFIG] [--seeds 5] [--steps 1.5e6] [--json F] [--plot F.svg] [key=value ...]

Environments, robots, networks, observations and settings are the same; what differs is the learner (`train.learner`).  The
learning rate is constant, for rsl_rl has no linear schedule.  The evaluation protocol's figures of the last policy stand beside
the curves of the exploring one.
`--plot` needs matplotlib (extra `plot`).  With `--from F` an earlier run's figures are drawn again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from embodied_rl import runs, training
from embodied_rl.config import load
from embodied_rl.errors import install_hint
from embodied_rl.learn.evaluate import SEEDS
from embodied_rl.learn.run import Run

LEARNERS = {"ours": "ppo", "rsl_rl": "rsl_rl.algorithms:PPO"}
#: What both know.
EQUAL = ["ppo.schedule=constant"]
CURVES = ("Metrics/lin_vel_error", "Metrics/ang_vel_error", "Train/mean_reward")
FINAL = ("fall_rate", "lin_vel_error", "ang_vel_error")


def main() -> None:
    parser = argparse.ArgumentParser(description="Learning curves of both learners.")
    parser.add_argument("config", nargs="?", default="go2_flat", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--steps", type=float, default=1.5e6, metavar="S", help="env steps of each run")
    parser.add_argument("--json", type=Path, metavar="F")
    parser.add_argument("--plot", type=Path, metavar="F")
    parser.add_argument("--from", type=Path, metavar="F", dest="source", help="draw these figures, and run nothing")
    options = parser.parse_args()
    if options.source:
        result = json.loads(options.source.read_text())
    else:
        result = compare(options.config, options.overrides, options.seeds, options.steps)
        if options.json:
            options.json.write_text(json.dumps(result) + "\n")
    print(table(result))
    if options.plot:
        plot(result, options.plot)


def compare(config: str, overrides: list[str], seeds: int, steps: float) -> dict[str, Any]:
    """Curves and last figures of every learner and seed, the learners in turn."""
    runs = []
    for seed in range(1, seeds + 1):
        for name, class_name in LEARNERS.items():
            run = train(config, [*overrides, *EQUAL, f"train.learner={class_name}"], seed, steps)
            runs.append({"learner": name, "seed": seed, **run})
            last = runs[-1]["evaluation"]
            print(f"{name} seed {seed}: " + "  ".join(f"{key} {last[key]:.3f}" for key in FINAL), flush=True)
    return {"config": config, "overrides": overrides, "steps": steps, "runs": runs}


def train(config: str, overrides: list[str], seed: int, steps: float) -> dict[str, Any]:
    """One run: its curves by iteration, and the evaluation of its last policy."""
    page = load(config, [*overrides, f"env.seed={seed}"])
    iterations = max(1, round(steps / (page.env.num_envs * page.train.steps)))
    curves: dict[str, list[float]] = {name: [] for name in ("Train/env_steps", *CURVES)}
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(page, Run.create(page, Path(folder) / "run"))
        started = time.perf_counter()
        for metrics in trainer.train(iterations):  # to the end, where the policy that is evaluated is saved
            for name, values in curves.items():
                values.append(metrics.get(name, float("nan")))
        seconds = time.perf_counter() - started
        loaded = runs.load(trainer.run.path)
        evaluation = runs.evaluate_policy(page, loaded.policy, seed=SEEDS[0])
    return {"curves": curves, "seconds": seconds, "evaluation": evaluation}


def table(result: dict[str, Any]) -> str:
    """The last figures as a Markdown table: mean, and the range over seeds."""
    rows = [["learner", *FINAL, "seconds"], ["---"] * (len(FINAL) + 2)]
    for name in LEARNERS:
        runs = [run for run in result["runs"] if run["learner"] == name]
        columns = [[run["evaluation"][key] for run in runs] for key in FINAL] + [[run["seconds"] for run in runs]]
        cells = [f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in columns]
        rows.append([name, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plot(result: dict[str, Any], path: Path) -> None:
    """Mean, minimum and maximum over seeds, each curve in its own axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit(f"--plot: matplotlib is not installed; {install_hint('plot')}") from None
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        for learner, color in zip(LEARNERS, ("tab:blue", "tab:orange"), strict=True):
            runs = [run["curves"] for run in result["runs"] if run["learner"] == learner]
            length = min(len(run[name]) for run in runs)
            steps = [value / 1e6 for value in runs[0]["Train/env_steps"][:length]]
            each = list(zip(*(run[name][:length] for run in runs), strict=True))
            axes.plot(steps, [statistics.mean(values) for values in each], color=color, label=f"{learner}, {len(runs)} seeds")
            low, high = [min(values) for values in each], [max(values) for values in each]
            axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set(title=name, xlabel="env steps [millions]")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle(f"{result['config']}: mean, minimum and maximum of the exploring policy")
    figure.savefig(path)


if __name__ == "__main__":
    main()
