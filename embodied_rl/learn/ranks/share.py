"""What a rank's share of the page is: robots, learning rate, device."""

from __future__ import annotations

import os
from typing import Literal

import torch

from embodied_rl.config import Page
from embodied_rl.config.page import DistributedSettings
from embodied_rl.errors import UserError

#: Whose `env.num_envs` are: each rank's, or shared out among all.
Scope = Literal["per_rank", "global"]


def num_envs_scope(page: Page, robots: torch.device) -> Scope:
    """Whose `env.num_envs` are, where ranks have their robots on such devices.

    A rank that simulates on a GPU brings room for robots; ranks that do not divide the cores that were there before.
    """
    if page.distributed.num_envs_scope != "auto":
        return page.distributed.num_envs_scope
    return "per_rank" if robots.type == "cuda" else "global"


def env_ids(count: int, scope: Scope, rank: int, size: int) -> range:
    """Global ids of a rank's robots: neighbours in number, so that a snapshot's rows are found by their ids alone.

    Args:
        count: the page's `env.num_envs`.
        scope: whose they are.
        rank: of the rank.
        size: how many ranks there are.

    Raises:
        UserError: there are fewer robots than ranks.
    """
    if scope == "per_rank":
        return range(rank * count, (rank + 1) * count)
    if count < size:
        raise UserError(
            f"env.num_envs: {count} for {size} ranks: with distributed.num_envs_scope: global each needs at least one; raise it, "
            "or start fewer"
        )
    each, left = divmod(count, size)
    first = rank * each + min(rank, left)
    return range(first, first + each + (rank < left))


def learning_rate_factor(rule: str, scope: Scope, size: int) -> float:
    """Return what the page's learning rate is multiplied by, for a batch that is larger than the page's."""
    times = size if scope == "per_rank" else 1
    return {"none": 1.0, "sqrt": times**0.5, "linear": float(times)}[rule]


def rank_device(
    device: torch.device, local_rank: int, settings: DistributedSettings, key: str = "physics.device"
) -> torch.device:
    """Pick the device of one of a machine's ranks, where the page says `device` under `key`.

    Raises:
        UserError: this machine has too few GPUs.
    """
    if device.type != "cuda" or int(os.environ.get("LOCAL_WORLD_SIZE", 1)) == 1:
        return device
    count = torch.cuda.device_count()
    if device.index is not None:
        raise UserError(f"{key}: {device}: one GPU for several ranks; take cuda, and each rank takes its own")
    if settings.backend == "gloo" or (count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ):
        return torch.device("cuda", local_rank % count)  # shared on purpose, or handed out by the launcher
    if local_rank >= count:
        raise UserError(
            f"{key}: {device}: this machine has {count} GPUs for {os.environ['LOCAL_WORLD_SIZE']} ranks; start torchrun "
            f"with --nproc-per-node {count}"
        )
    return torch.device("cuda", local_rank)
