"""Pools: simulators in processes of their own, on this machine's cores or on other machines, through Ray.

To the trainer a pool is a collector like any other.  Ray is imported here alone, and nothing of RLlib.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from embodied_rl.config import Page
    from embodied_rl.learn.rollout import Collector


def make_collector(
    page: Page,
    env_ids: torch.Tensor,
    *,
    device: torch.device | str = "cpu",
    status: Path | None = None,
    world_size: int = 1,
) -> Collector:
    """Make the collector that the page's `pool` section describes.

    Args:
        page: the task.
        env_ids: global ids of its environments, int64 (N,): all of the page's, or one rank's part.
        device: where the learner wants rollouts.
        status: file that says, once a second, how the pool is.
        world_size: how many learners share the cluster's cores, each with other environments.

    Raises:
        PoolError: the workers cannot be started.
    """
    if page.pool.inference == "central":
        from embodied_rl.pools.ahead import AsyncCentralPool
        from embodied_rl.pools.central import CentralPool

        kind = AsyncCentralPool if page.pool.mode == "async" else CentralPool
        return kind(page, env_ids, device=device, world_size=world_size)
    from embodied_rl.pools.pool import SimPool

    return SimPool(page, env_ids, device=device, status=status, world_size=world_size)
