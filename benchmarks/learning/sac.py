"""Our soft actor-critic and Stable-Baselines3's on the same Gymnasium tasks: return against env steps, over seeds, and speed.

    python benchmarks/learning/sac.py [PAGE ...] [--seeds 3] [--steps 3e5] [--json F] [--plot F.svg]
    python benchmarks/learning/sac.py [PAGE ...] --rates 3       env steps a second, in turns, on a machine that does nothing else

The pages are sac_halfcheetah and sac_hopper.  Stable-Baselines3's SAC has its own defaults: one environment, and one update for
each of its steps, from 10,000 on, as the tuned settings of RL Zoo have it.  Both are evaluated alike, on ten episodes without
exploration, in environments of their own.  Each run is a process of its own.  A run that stands in F is not done again: give the
same command to go on, or several at a time, with `--only`, `--seed` and a file each.
`--plot` needs matplotlib (extra `plot`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embodied_rl import training
from embodied_rl.config import load
from embodied_rl.errors import install_hint
from embodied_rl.learn.policy import Player
from embodied_rl.learn.run import Run

OURS, THEIRS = "ours", "Stable-Baselines3"
PAGES = ("sac_halfcheetah", "sac_hopper")
EPISODES, EVERY, WARM_UP = 10, 25_000, 10_000
#: Env steps from which a rate is measured, and until when: both learners are at work.
RATED = 12_000, 18_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Our soft actor-critic and Stable-Baselines3's.")
    parser.add_argument("pages", nargs="*", default=PAGES, metavar="PAGE")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, metavar="S", help="this one alone")
    parser.add_argument("--steps", type=float, default=3e5, metavar="S", help="env steps of each run")
    parser.add_argument("--only", choices=(OURS, THEIRS))
    parser.add_argument("--rates", type=int, default=0, metavar="ROUNDS", help="measure speed, and no return")
    parser.add_argument("--json", type=Path, action="append", default=[], metavar="F", help="the first is written")
    parser.add_argument("--plot", type=Path, metavar="F")
    options = parser.parse_args()
    if options.rates:
        for page in options.pages:
            print_rates(page, options.rates)
        return
    read = {path: json.loads(path.read_text()) for path in options.json if path.is_file()}
    runs: list[dict[str, Any]] = [run for found in read.values() for run in found]
    own: list[dict[str, Any]] = read.get(options.json[0], []) if options.json else []
    done = {(run["page"], run["learner"], run["seed"]) for run in runs if run["curve"][-1][0] >= options.steps}
    for seed in [options.seed] if options.seed else range(1, options.seeds + 1):
        for page in options.pages:
            for learner in (OURS, THEIRS):
                if (page, learner, seed) in done or options.only not in (None, learner):
                    continue
                curve = apart(train, learner, page, seed, int(options.steps))
                run = {"page": page, "learner": learner, "seed": seed, "curve": curve}
                runs.append(run)
                own.append(run)
                if options.json:
                    options.json[0].write_text(json.dumps(own) + "\n")
    print(table(runs))
    if options.plot:
        plot(runs, options.plot)


def apart(function: Callable, *given: Any) -> Any:
    """Call it in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def train(learner: str, page: str, seed: int, steps: int, every: int = EVERY, rated: tuple[int, int] | None = None) -> Any:
    """Make one run: [env steps, seconds of training, mean return] every so many steps; or its rate, env steps a second."""
    environment = str(load(page).env.source).partition(":")[2]
    clock = Clock(environment, seed, every, rated)
    print(f"{page} {learner} seed {seed}", flush=True)
    with contextlib.suppress(RatedError):
        (train_ours if learner == OURS else train_theirs)(page, environment, seed, steps, clock)
    return clock.rate if rated else clock.curve


class RatedError(Exception):
    """The rate is measured: the run is over."""


class Clock:
    """What stops the time of a run while it is evaluated.

    Args:
        environment: Gymnasium's id.
        seed: of the run; evaluations have seeds of their own.
        every: env steps from one evaluation to the next.
        rated: env steps between which a rate is measured, instead.
    """

    def __init__(self, environment: str, seed: int, every: int, rated: tuple[int, int] | None) -> None:
        import gymnasium

        self._environment, self._seed, self._every, self._rated = gymnasium.make(environment), seed, every, rated
        self.curve: list[tuple[int, float, float]] = []
        self.rate, self._started, self._paused = 0.0, time.perf_counter(), 0.0
        self._begun: tuple[int, float] | None = None

    def step(self, steps: int, act: Callable[[np.ndarray], np.ndarray]) -> None:
        """Note that so many env steps are done; `act` is the policy as it is, without exploration."""
        now = time.perf_counter()
        if self._rated:
            if self._begun is None and steps >= self._rated[0]:
                self._begun = steps, now
            if steps >= self._rated[1] and self._begun:
                self.rate = (steps - self._begun[0]) / (now - self._begun[1])
                raise RatedError
        elif steps // self._every > len(self.curve):
            seconds, value = now - self._started - self._paused, self._evaluate(act)
            self.curve.append((steps, seconds, value))
            self._paused += time.perf_counter() - now
            print(f"  {steps:,} steps, {seconds:.0f} s: {value:.0f}", flush=True)

    def _evaluate(self, act: Callable[[np.ndarray], np.ndarray]) -> float:
        returns = []
        for episode in range(EPISODES):
            obs, _ = self._environment.reset(seed=1_000_000 + 100 * self._seed + episode)
            total, done = 0.0, False
            while not done:
                obs, reward, terminated, truncated, _ = self._environment.step(act(obs))
                total, done = total + float(reward), terminated or truncated
            returns.append(total)
        return statistics.mean(returns)


def train_ours(page: str, _: str, seed: int, steps: int, clock: Clock) -> None:
    """Train as `embodied-rl train PAGE` does."""
    task = load(page, [f"env.seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(task, Run.create(task, Path(folder) / "run"))
        player = Player(trainer.learner.policy)
        for metrics in trainer.train(steps // (task.env.num_envs * task.train.steps)):
            clock.step(
                int(metrics["Train/env_steps"]),
                lambda obs: player(torch.as_tensor(obs, dtype=torch.float32)[None])[0].clamp(-1.0, 1.0).numpy(),
            )


def train_theirs(_: str, environment: str, seed: int, steps: int, clock: Clock) -> None:
    """Train Stable-Baselines3's SAC with its defaults."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.callbacks import BaseCallback

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            clock.step(self.num_timesteps, lambda obs: self.model.predict(obs, deterministic=True)[0])
            return True

    SAC("MlpPolicy", environment, learning_starts=WARM_UP, seed=seed, device="cpu").learn(steps, callback=Count())


def print_rates(page: str, rounds: int) -> None:
    """Print env steps a second of both, in turns, and the median of the rounds' ratios of their times."""
    found: dict[str, list[float]] = {OURS: [], THEIRS: []}
    for _ in range(rounds):
        for learner, rates in found.items():
            rates.append(apart(train, learner, page, 1, 10 * RATED[1], EVERY, RATED))
    for learner, rates in found.items():
        print(f"{page} {learner}: " + ", ".join(f"{rate:.0f}" for rate in rates) + " steps/s")
    ratios = [theirs / ours for ours, theirs in zip(found[OURS], found[THEIRS], strict=True)]
    print(f"{page}: {statistics.median(ratios):.2f} of its time")


def table(runs: list[dict[str, Any]]) -> str:
    """Write the last returns as a Markdown table: mean and each seed's, and the ratio of the means."""
    lines = ["| page | env steps | learner | return, mean | seeds | ratio |", "| --- | --- | --- | --- | --- | --- |"]
    for page in dict.fromkeys(run["page"] for run in runs):
        means: dict[str, float] = {}
        for learner in (THEIRS, OURS):
            last = {run["seed"]: run["curve"][-1] for run in runs if (run["page"], run["learner"]) == (page, learner)}
            if not last:
                continue
            means[learner] = statistics.mean(row[2] for row in last.values())
            each = ", ".join(f"{last[seed][2]:.0f}" for seed in sorted(last))
            ratio = f"{means[OURS] / means[THEIRS]:.2f}" if len(means) == 2 else ""
            steps = min(row[0] for row in last.values())
            lines.append(f"| {page} | {steps:,} | {learner} | {means[learner]:.0f} | {each} | {ratio} |")
    return "\n".join(lines)


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw returns against env steps, mean and range over seeds, each page in its own axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit(f"--plot: matplotlib is not installed; {install_hint('plot')}") from None
    pages = list(dict.fromkeys(run["page"] for run in runs))
    figure = Figure(figsize=(5.0 * len(pages), 3.6), layout="constrained")
    for axes, page in zip(figure.subplots(1, len(pages), squeeze=False)[0], pages, strict=True):
        for learner, color in ((OURS, "tab:blue"), (THEIRS, "tab:orange")):
            curves = [np.array(run["curve"]) for run in runs if (run["page"], run["learner"]) == (page, learner)]
            if not curves:
                continue
            length = min(map(len, curves))
            steps, returns = curves[0][:length, 0] / 1e6, np.stack([curve[:length, 2] for curve in curves])
            axes.plot(steps, returns.mean(0), color=color, label=f"{learner}, {len(curves)} seeds")
            axes.fill_between(steps, returns.min(0), returns.max(0), color=color, alpha=0.2, linewidth=0)
        axes.set(title=page, xlabel="env steps [millions]", ylabel="return without exploration")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
