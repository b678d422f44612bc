"""What pools learn: returns against stock rsl_rl PPO on the same environments, and of the modes against each other.

    python benchmarks/pool_learning.py stock pool_ant pool_halfcheetah [--seeds 3] [--steps 1000000] [--json F]
    python benchmarks/pool_learning.py modes pool_ant pool_go2_flat [--seeds 3] [--slow 0.5] [--json F]

`stock` trains each page twice for each seed: with our learner in a pool, and with rsl_rl's PPO, same settings, same pool.
`modes` trains it in `sync`, `overlap` and `async`, and once more each with one worker slowed: every step of its takes `--slow`
times longer.  The return is the mean over the episodes that ended in the last tenth of the steps.
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

from embodied_rl import factory
from embodied_rl.config import load
from embodied_rl.learn.run import Run
from embodied_rl.pools.pool import SimPool

STOCK = "ppo.class_name=rsl_rl.algorithms:PPO"


def slow_down(worker: Any, factor: float) -> None:
    """Let each step of a worker's environments take longer by a share of itself."""
    env = worker._env
    advance = env.advance

    def slower(actions: Any) -> None:
        started = time.perf_counter()
        advance(actions)
        time.sleep(factor * (time.perf_counter() - started))

    env.advance = slower


def train(page: str, overrides: list[str], seed: int, steps: int, slow: float = 0.0) -> dict[str, Any]:
    """One run: its curve, its return, its speed."""
    task = load(page, [f"env.seed={seed}", *overrides])
    each = task.env.num_envs * task.ppo.num_steps_per_env
    if task.pool.mode == "async":
        each = (
            max(1, round(task.pool.batch_share * task.env.num_envs / task.pool.shard_size))
            * task.pool.shard_size
            * (task.ppo.num_steps_per_env)
        )
    iterations = max(1, steps // each)
    task = load(page, [f"env.seed={seed}", *overrides, f"ppo.max_iterations={iterations}"])
    curve: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = factory.make_trainer(task, Run.create(task, Path(folder) / "run"))
        pool = trainer.collector
        assert isinstance(pool, SimPool)
        started = time.perf_counter()
        for index, metrics in enumerate(trainer.train(iterations)):
            if slow and not index:
                # its first rollout has built all there is
                pool.crew._ray.get(pool.crew.workers[-1].actor.__ray_call__.remote(slow_down, slow))
            if "Train/mean_reward" in metrics:
                curve.append((metrics["Train/env_steps"], metrics["Train/mean_reward"]))
        seconds = time.perf_counter() - started
        pool.close()
    last = [reward for done, reward in curve if done >= 0.9 * iterations * each]
    return {
        "page": page,
        "overrides": overrides,
        "seed": seed,
        "slowed": slow,
        "steps": iterations * each,
        "return": statistics.mean(last) if last else float("nan"),
        "steps_per_s": iterations * each / seconds,
        "curve": curve,
    }


def cases(options: argparse.Namespace) -> Iterator[tuple[str, list[str], float]]:
    """Names, overrides and slowness of what is compared."""
    if options.what == "stock":
        yield "pool", [], 0.0
        yield "stock rsl_rl", [STOCK], 0.0
        return
    for slow in (0.0, options.slow):
        for mode in ("sync", "overlap", "async"):
            yield f"{mode}{' slowed' if slow else ''}", [f"pool.mode={mode}", "pool.workers=2"], slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("stock", "modes"))
    parser.add_argument("pages", nargs="+", metavar="PAGE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--slow", type=float, default=1.0, help="how much longer a slowed worker's steps take, as a share")
    parser.add_argument("--json", type=Path, metavar="F")
    options = parser.parse_args()
    runs = []
    for page in options.pages:
        first: float | None = None
        for name, overrides, slow in cases(options):
            results = [train(page, overrides, seed, options.steps, slow) for seed in range(1, options.seeds + 1)]
            runs += [result | {"case": name} for result in results]
            returns = [result["return"] for result in results]
            mean, spread = statistics.mean(returns), statistics.pstdev(returns)
            speed = statistics.mean(result["steps_per_s"] for result in results)
            first = mean if first is None else first
            print(f"{page:18s} {name:16s} return {mean:9.1f} +- {spread:7.1f}   {speed:9,.0f} steps/s", flush=True)
            if options.what == "stock" and name != "pool":
                print(f"{page:18s} ratio {first / mean:.2f}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
