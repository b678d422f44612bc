"""The systems of the literature by what they learn here: return against minutes, over seeds.

    python benchmarks/learning/systems.py systems [PAGE] [--minutes 4] [--seeds 3] [--json F] [--plot F.svg] [key=value ...]
    python benchmarks/learning/systems.py cartpole ...    A2C against A3C
    python benchmarks/learning/systems.py actors [PAGE] ...    Ape-X with 1, 2 and 4 workers
    python benchmarks/learning/systems.py lag [PAGE] [--steps 1.2e6] ...    policies k versions old, by what is done about it

Each run has a pool of its own and the whole machine; the clock starts when its first iteration is done, when all is built.
`systems`, `cartpole` and `actors` stop by the clock, `lag` after its steps, and shows reward against steps.  A run that stands in
F already is not done again: give the same command to go on.  The figure of a run is the mean over its last fifth: of
episodes nan where none ended in it.
`--plot` needs matplotlib (extra `plot`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embodied_rl import training
from embodied_rl.config import load
from embodied_rl.errors import install_hint
from embodied_rl.learn.run import Run

#: What a page's own keys are changed by, for each system.
ONE_STEP = ["ppo.num_learning_epochs=1", "ppo.num_mini_batches=1"]
#: What IMPALA does not read is as it is by default, and half of the robots are 8 trajectories.
OF_IMPALA = ["ppo.num_learning_epochs=5", "ppo.use_clipped_value_loss=true", "ppo.num_mini_batches=4"]
OFF_POLICY = ["train.learner=sac", "env.final_obs_groups=[actor]", "sac.updates=0.25", "sac.n_steps=3", "sac.prioritized=true"]
SYSTEMS = {
    "PPO, sync": ["pool.mode=sync"],
    "PPO, overlap": ["pool.mode=overlap"],
    "APPO (async)": ["pool.mode=async"],
    "IMPALA": ["pool.mode=async", "train.learner=impala", *OF_IMPALA],
    "SEED (central)": ["pool.inference=central"],
    "A3C (gradients)": ["pool.mode=gradients", *ONE_STEP],
    "Ape-X": ["pool.mode=apex", *OFF_POLICY],
}
PAGES = {"systems": "pool_ant", "cartpole": "a2c_cartpole", "actors": "apex_walker_dmc", "lag": "pool_go2_flat"}
LAGS, CORRECTIONS = (0, 1, 2, 4, 8), ("none", "vtrace", "decoupled")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the systems of the literature learn here.")
    parser.add_argument("what", choices=tuple(PAGES))
    parser.add_argument("words", nargs="*", metavar="PAGE or key=value")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--minutes", type=float, default=4.0, metavar="M", help="of each run")
    parser.add_argument("--steps", type=float, default=1.2e6, metavar="S", help="env steps of each run, of `lag`")
    parser.add_argument("--only", metavar="CASE", help="the cases whose names have this in them")
    parser.add_argument("--json", type=Path, metavar="F")
    parser.add_argument("--plot", type=Path, metavar="F")
    options = parser.parse_intermixed_args()
    page = next((word for word in options.words if "=" not in word), PAGES[options.what])
    overrides = [word for word in options.words if "=" in word]
    runs = json.loads(options.json.read_text()) if options.json and options.json.is_file() else []
    done = {(run["page"], run["case"], run["seed"]) for run in runs}
    for seed in range(1, options.seeds + 1):  # the cases in turn
        for case, own in cases(options.what):
            if (page, case, seed) in done or (options.only and options.only not in case):
                continue
            steps = options.steps if options.what == "lag" else None
            found = train(page, [*own, *overrides], seed, minutes=options.minutes, steps=steps)
            runs.append({"page": page, "case": case, "seed": seed, **found})
            print(f"{page} {case} seed {seed}: {runs[-1]['figure']:.4g}, {runs[-1]['steps_per_s']:,.0f} steps/s", flush=True)
            if options.json:
                options.json.write_text(json.dumps(runs) + "\n")
    runs = [run for run in runs if run["page"] == page and run["case"] in dict(cases(options.what))]
    print(table(runs))
    if options.plot:
        plot(runs, options.plot, lag=options.what == "lag")


def cases(what: str) -> Iterator[tuple[str, list[str]]]:
    """Give names and overrides of what is compared."""
    if what == "systems":
        for name, own in SYSTEMS.items():
            yield name, ["pool.workers=2", *own] + ([] if "apex" in str(own) else ["ppo.schedule=constant"])
    elif what == "cartpole":
        for name, mode in (("A2C", "sync"), ("A3C", "gradients")):
            yield name, ["pool.workers=2", "pool.shard_size=4", f"pool.mode={mode}"]
    elif what == "actors":
        for count in (1, 2, 4):
            yield f"{count} worker{'s' if count > 1 else ''}", [f"pool.workers={count}", "pool.shard_size=2"]
    else:
        yield "lag 0", ["pool.workers=1"]
        for correction in CORRECTIONS:
            for lag in LAGS[1:]:
                yield f"lag {lag}, {correction}", ["pool.workers=1", f"pool.lag={lag}", f"train.correction={correction}"]


def train(page: str, overrides: list[str], seed: int, *, minutes: float, steps: float | None) -> dict[str, Any]:
    """Make one run: its curve (seconds, env steps, sum of returns, episodes, reward of a step), its figure and its speed."""
    task = load(page, [f"env.seed={seed}", "train.iterations=1000000", *overrides])
    curve: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(task, Run.create(task, Path(folder) / "run"))
        collect = trainer.collector.collect
        rollouts: list[Any] = []
        trainer.collector.collect = lambda *given: rollouts.append(collect(*given)) or rollouts[-1]  # pyright: ignore
        started = 0.0
        for metrics in trainer.train(task.train.iterations):
            (rollout,) = rollouts
            rollouts.clear()
            started = started or time.perf_counter()
            totals, rewards = rollout.totals, rollout.rewards[rollout.valid].double()
            row = time.perf_counter() - started, metrics["Train/env_steps"], totals["reward/total"], totals["episodes"]
            mean = float(rewards.mean()) if len(rewards) else float("nan")
            curve.append([*row, mean, metrics.get("Policy/staleness", 0.0), totals["episode_length"]])
            if (row[1] >= steps) if steps else (row[0] >= 60.0 * minutes):
                break
        trainer.collector.close()  # pyright: ignore[reportAttributeAccessIssue]
    last = [row for row in curve if row[0] >= 0.8 * curve[-1][0]]
    episodes = sum(row[3] for row in last)
    mean_of = lambda column: sum(row[column] for row in last) / episodes if episodes else float("nan")  # noqa: E731
    return {
        "overrides": overrides,
        "figure": statistics.mean(row[4] for row in last if row[4] == row[4]) if steps else mean_of(2),
        "env_steps": curve[-1][1],
        "seconds": curve[-1][0],
        "steps_per_s": (curve[-1][1] - curve[0][1]) / max(curve[-1][0], 1e-9),
        "staleness": statistics.mean(row[5] for row in last),
        "length": mean_of(6),
        "curve": thinned(curve),
    }


def thinned(curve: list[list[float]], points: int = 60) -> list[list[float]]:
    """Sum a curve up in as many stretches of its time: seconds and steps at the end, mean return, mean reward of a step."""
    found, edges = [], np.linspace(0.0, curve[-1][0], points + 1)[1:]
    rest = list(curve)
    for edge in edges:
        here = [row for row in rest if row[0] <= edge]
        rest = rest[len(here) :]
        if not here:
            continue
        episodes, rewards = sum(row[3] for row in here), [row[4] for row in here if row[4] == row[4]]
        mean = sum(row[2] for row in here) / episodes if episodes else None
        found.append([here[-1][0], here[-1][1], mean, statistics.mean(rewards) if rewards else None])
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """Write figures and speeds as a Markdown table: mean and range over seeds."""
    heads = ["case", "seeds", "figure", "steps of an episode", "env steps", "steps/s", "versions behind"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for case in dict.fromkeys(run["case"] for run in runs):
        own = [run for run in runs if run["case"] == case]
        figures = [run["figure"] for run in own]
        spread = f"{statistics.mean(figures):.4g} ({min(figures):.4g} to {max(figures):.4g})"
        rest = {"length": ",.0f", "env_steps": ",.0f", "steps_per_s": ",.0f", "staleness": ".2f"}
        middles = [format(statistics.median(run[name] for run in own), form) for name, form in rest.items()]
        lines.append("| " + " | ".join([case, str(len(own)), spread, *middles]) + " |")
    return "\n".join(lines)


def plot(runs: list[dict[str, Any]], path: Path, *, lag: bool) -> None:
    """Draw returns against minutes, mean and range over seeds; of `lag` the figures against the lag."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit(f"--plot: matplotlib is not installed; {install_hint('plot')}") from None
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    if lag:
        for correction in CORRECTIONS:
            found = [
                [run["figure"] for run in runs if run["case"] in ("lag 0" if not k else f"lag {k}, {correction}",)] for k in LAGS
            ]
            kept = [(k, values) for k, values in zip(LAGS, found, strict=True) if values]
            (line,) = axes.plot([k for k, _ in kept], [statistics.mean(v) for _, v in kept], marker="o", label=correction)
            edges = [min(v) for _, v in kept], [max(v) for _, v in kept]
            axes.fill_between([k for k, _ in kept], *edges, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(xlabel="versions that the policy which acts is behind", ylabel="reward of a step at the end")
    else:
        for case in dict.fromkeys(run["case"] for run in runs):
            curves = [
                np.array([row[:3] for row in run["curve"] if row[2] is not None], dtype=float)
                for run in runs
                if run["case"] == case
            ]
            curves = [curve for curve in curves if len(curve) > 1]
            if not curves:
                continue
            seconds = np.linspace(max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves), 60)
            returns = np.stack([np.interp(seconds, c[:, 0], c[:, 2]) for c in curves])
            (line,) = axes.plot(seconds / 60.0, returns.mean(0), label=case)
            axes.fill_between(seconds / 60.0, returns.min(0), returns.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(xlabel="minutes", ylabel="return of an episode")
    axes.set(title=runs[0]["page"])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
