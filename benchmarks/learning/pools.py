"""What pools learn: returns against stock rsl_rl PPO on the same environments, and of the modes against each other.

    python benchmarks/learning/pools.py stock pool_ant pool_halfcheetah [--seeds 3] [--steps 1e6] [--json F] [--plot F.svg]
    python benchmarks/learning/pools.py modes pool_ant pool_go2_flat [--seeds 3] [--slow 1] [--json F] [--plot F.svg]

`stock` trains each page twice for each seed: with our learner in a pool, and with rsl_rl's PPO, same settings, same pool.  The
learning rate is constant: rsl_rl has no linear schedule.  `modes` trains it in `sync`, `overlap` and `async`, and once more each
with one of two workers slowed: every step of its environments takes longer by the share `--slow`.  Over the last tenth of the
steps: the return is the mean over the episodes that ended there (nan: none did), and the reward that of a step, which counts
the episodes that go on as well.  Speed is counted from the second iteration, when all is built.
`--plot` needs matplotlib (extra `plot`).  With `--from F` an earlier run's figures are shown again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embodied_rl import training
from embodied_rl.config import load
from embodied_rl.config.rollout_size import rollout_envs
from embodied_rl.errors import install_hint
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.run import Run
from embodied_rl.pools.pool import SimPool

STOCK = "train.learner=rsl_rl.algorithms:PPO"
#: What both learners know.
EQUAL = "ppo.schedule=constant"
MODES = ("sync", "overlap", "async")


def main() -> None:
    parser = argparse.ArgumentParser(description="What pools learn.")
    parser.add_argument("what", choices=("stock", "modes"))
    parser.add_argument("words", nargs="*", metavar="PAGE or key=value")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--steps", type=float, default=1e6, metavar="S", help="env steps of each run")
    parser.add_argument("--slow", type=float, default=1.0, help="how much longer a slowed worker's steps take, as a share")
    parser.add_argument("--json", type=Path, metavar="F")
    parser.add_argument("--plot", type=Path, metavar="F")
    parser.add_argument("--from", type=Path, metavar="F", dest="source", help="show these figures, and run nothing")
    options = parser.parse_args()
    pages = [word for word in options.words if "=" not in word]
    overrides = [word for word in options.words if "=" in word]
    runs = json.loads(options.source.read_text()) if options.source else []
    if not options.source:
        for page in pages:
            for seed in range(1, options.seeds + 1):  # the cases in turn
                for case, own, slow in cases(options.what, options.slow):
                    run = {"page": page, "case": case, **train(page, [*own, *overrides], seed, int(options.steps), slow)}
                    runs.append(run)
                    print(f"{page} {case} seed {seed}: {run['return']:.1f}, {run['steps_per_s']:,.0f} steps/s", flush=True)
                    if options.json:
                        options.json.write_text(json.dumps(runs) + "\n")
    print(table(runs))
    if options.plot:
        plot(runs, options.plot)


def cases(what: str, slow: float) -> Iterator[tuple[str, list[str], float]]:
    """Names, overrides and slowness of what is compared; the first is what the others are held against."""
    if what == "stock":
        yield "rsl_rl", [STOCK, EQUAL], 0.0
        yield "ours", [EQUAL], 0.0
        return
    for share in (0.0, slow):
        for mode in MODES:
            yield f"{mode}{', one slowed' if share else ''}", [f"pool.mode={mode}", "pool.workers=2"], share


def train(page: str, overrides: list[str], seed: int, steps: int, slow: float = 0.0) -> dict[str, Any]:
    """One run: its curve (env steps, seconds, return), its return, its speed."""
    task = load(page, [f"env.seed={seed}", *overrides])
    envs = rollout_envs(task.pool, task.env.num_envs)
    each = envs * task.train.steps
    iterations = max(2, steps // each)
    task = load(page, [f"env.seed={seed}", *overrides, f"train.iterations={iterations}"])
    curve: list[tuple[float, ...]] = []
    started = 0.0
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(task, Run.create(task, Path(folder) / "run"))
        pool = trainer.collector
        assert isinstance(pool, SimPool)
        pool.collect = recorded(pool.collect, rollouts := [])  # pyright: ignore[reportAttributeAccessIssue]
        for index, metrics in enumerate(trainer.train(iterations)):
            if not index:
                if slow:
                    pool.crew._ray.get(pool.crew.workers[-1].actor.__ray_call__.remote(slow_down, slow))
                started = time.perf_counter()
            curve.append((metrics["Train/env_steps"], time.perf_counter() - started, *means(rollouts[-1:])))
        seconds = time.perf_counter() - started
        pool.close()
    episode, step = means(rollouts[int(0.9 * iterations) :])
    return {
        "overrides": overrides,
        "seed": seed,
        "slowed": slow,
        "steps": iterations * each,
        "return": episode,
        "reward": step,
        "steps_per_s": (iterations - 1) * each / seconds,
        "curve": curve,
    }


def recorded(collect: Callable[..., Rollout], rollouts: list[dict[str, float]]) -> Callable[..., Rollout]:
    """`collect` that leaves the sums of each rollout behind."""

    def collected(*arguments: Any) -> Rollout:
        rollout = collect(*arguments)
        sums = {name: rollout.totals[name] for name in ("episodes", "reward/total")}
        rewards = rollout.rewards[rollout.valid].double()
        rollouts.append(sums | {"rewards": float(rewards.sum()), "transitions": len(rewards)})
        return rollout

    return collected


def means(rollouts: list[dict[str, float]]) -> tuple[float, float]:
    """Return of an episode that ended in these rollouts (nan: none did), and reward of a step, as the learner sees it."""
    sums = {name: sum(rollout[name] for rollout in rollouts) for name in rollouts[0]}
    episode = sums["reward/total"] / sums["episodes"] if sums["episodes"] else float("nan")
    return episode, sums["rewards"] / sums["transitions"]


def slow_down(worker: Any, factor: float) -> None:
    """Let each step of a worker's environments take longer by a share of itself."""
    env = worker._env
    advance = env.advance

    def slower(actions: Any) -> None:
        started = time.perf_counter()
        advance(actions)
        time.sleep(factor * (time.perf_counter() - started))

    env.advance = slower


def table(runs: list[dict[str, Any]]) -> str:
    """Returns, rewards and speeds as a Markdown table: mean, range over seeds, share of the page's first case."""
    rows = [
        ["page", "case", "seeds", "env steps", "return", "ratio", "reward of a step", "ratio", "steps/s", "ratio"],
        ["---"] * 10,
    ]
    for page in dict.fromkeys(run["page"] for run in runs):
        first: list[float] = []
        for case in dict.fromkeys(run["case"] for run in runs if run["page"] == page):
            own = [run for run in runs if (run["page"], run["case"]) == (page, case)]
            returns, rewards = ([run[name] for run in own] for name in ("return", "reward"))
            middles = [*map(statistics.mean, (returns, rewards)), statistics.median(run["steps_per_s"] for run in own)]
            first = first or middles
            ratios = [f"{one / other:.2f}" for one, other in zip(middles, first, strict=True)]
            rows.append(
                [
                    *(page, case, str(len(own)), f"{own[0]['steps']:,}"),
                    *(f"{middles[0]:.1f} ({min(returns):.1f} to {max(returns):.1f})", ratios[0]),
                    *(f"{middles[1]:.4f} ({min(rewards):.4f} to {max(rewards):.4f})", ratios[1]),
                    *(f"{middles[2]:,.0f}", ratios[2]),
                ]
            )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Rewards of a step against env steps: mean, minimum and maximum over seeds; slowed runs in axes of their own."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit(f"--plot: matplotlib is not installed; {install_hint('plot')}") from None
    kinds = list(dict.fromkeys((run["page"], run["slowed"]) for run in runs))
    figure = Figure(figsize=(4.5 * len(kinds), 3.6), layout="constrained")
    for axes, (page, slowed) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        here = [run for run in runs if (run["page"], run["slowed"]) == (page, slowed)]
        for case in dict.fromkeys(run["case"] for run in here):
            curves = [np.array(run["curve"]) for run in here if run["case"] == case]
            steps = np.linspace(max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves), 60)
            rewards = np.stack([np.interp(steps, c[:, 0], c[:, 3]) for c in curves])
            (line,) = axes.plot(steps / 1e6, rewards.mean(0), label=case.partition(",")[0])
            axes.fill_between(steps / 1e6, rewards.min(0), rewards.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=f"{page}{', one worker slowed' if slowed else ''}", xlabel="env steps [millions]")
        axes.set(ylabel="reward of a step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
