"""How much a rollout is, which a pool's mode has a say in."""

from __future__ import annotations

from embodied_rl import machine
from embodied_rl.config.pool import PoolSettings


def rollout_envs(pool: PoolSettings, num_envs: int) -> int:
    """Count the environments in a rollout where there are so many: in some modes it is not all of them.

    `async` takes `batch_share` of the shards, one at least; of `gradients` it is one worker's, on average.
    """
    if not pool.has_processes or pool.mode not in ("async", "gradients"):
        return num_envs
    shards = max(1, num_envs // pool.shard_size)
    if pool.mode == "async":
        return max(1, round(pool.batch_share * shards)) * pool.shard_size
    return max(1, num_envs // min(pool.workers or machine.cores(), shards))
