"""What a pool costs: its env-steps/s against the same page in this process, on as many cores."""

from __future__ import annotations

import statistics
import time

import torch

from embodied_rl import machine
from embodied_rl.config import Page, override
from embodied_rl.learn.models import build_actor, policy_of
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.make_env import compiler, make_vector
from embodied_rl.pools.pool import SimPool

#: Rounds of which the median counts, and rollouts before them and in each.
_ROUNDS, _WARMUP, _ROLLOUTS = 7, 3, 3
_SIZE = ["env.num_envs=1024", "train.steps=24"]


def bench_pool(page: Page) -> dict[str, float]:
    """Collect in turns: here without a pool, and in one, with the same threads for the physics on both sides.

    A page without a pool is given one of one worker, and our own robots are 1024, for 24 steps.  While one side works the other
    waits, so each has all cores.

    Returns:
        num_envs, workers, local_steps_per_s, pool_steps_per_s, ratio (the median of the rounds'), put_ms (the weights on their
        way out), return_ms (all of a rollout's time in which the slowest worker does not work), wait_share (the share of
        a rollout's time in which a worker has nothing to do, on average).
    """
    if not page.env.source:
        page = override(page, _SIZE)
    if page.pool.workers is None:
        page = override(page, ["pool.workers=1"])
    if page.physics.num_threads == 0 and not page.env.source:
        page = override(page, [f"physics.num_threads={machine.cores() // max(1, page.pool.workers or 1)}"])
    seed, steps, ids = page.env.seed, page.train.steps, torch.arange(page.env.num_envs)
    alone = page if page.env.source else override(page, ["pool.workers=null", "physics.num_threads=0"])
    env = make_vector(alone, ids)
    wrap = compiler(alone, env.device) if not page.env.source else (lambda function: function)
    local = LocalCollector(env, steps, seed, compiler=wrap, chunk=page.pool.shard_size if page.env.source else None)
    torch.manual_seed(seed)
    policy = policy_of(build_actor(env.obs, env.action_space, page.ppo))
    pool = SimPool(page, ids)
    try:
        rounds, iteration = [], 0
        for round_ in range(_ROUNDS + 1):
            rollouts = _ROLLOUTS if round_ else _WARMUP
            seconds = {"local": 0.0, "pool": 0.0}
            put, back, idle = [], [], []
            for _ in range(rollouts):
                for name, collector in (("local", local), ("pool", pool)):
                    started = time.perf_counter()
                    collector.collect(policy, iteration)
                    seconds[name] += time.perf_counter() - started
                timings = pool.timings
                put.append(timings["put"])
                back.append(timings["collect"] - timings["put"] - timings["slowest"])
                idle.append(1.0 - timings["busy"] / timings["collect"])
                iteration += 1
            done = rollouts * steps * len(ids)
            rounds.append(
                {
                    "local_steps_per_s": done / seconds["local"],
                    "pool_steps_per_s": done / seconds["pool"],
                    "ratio": seconds["local"] / seconds["pool"],
                    "put_ms": 1e3 * statistics.mean(put),
                    "return_ms": 1e3 * statistics.mean(back),
                    "wait_share": statistics.mean(idle),
                }
            )
    finally:
        pool.close()
        env.close()
    result: dict[str, float] = {"num_envs": len(ids), "workers": len(pool.crew.workers)}
    return result | {name: statistics.median(one[name] for one in rounds[1:]) for name in rounds[0]}
