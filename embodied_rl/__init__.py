"""Legged robots learn to walk with PPO on thousands of simulations on one device: one YAML page is a task.

    env = embodied_rl.make("go2_flat", num_envs=64)
    run = embodied_rl.load("latest")

Importing the package imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embodied_rl.config import Page
    from embodied_rl.env import Env
    from embodied_rl.runs import LoadedRun

__version__ = "0.1.0.dev0"
__all__ = ["__version__", "load", "make"]


def make(
    config: str | Path | Page,
    overrides: Iterable[str] = (),
    *,
    num_envs: int | None = None,
    device: str | None = None,
    engine: str | None = None,
    seed: int | None = None,
) -> Env:
    """Build the environment that a page describes.

    The page's own numbers hold: curricula are the trainer's, and nothing in an environment moves them.

    Args:
        config: The name of a shipped page (`go2_flat`), the path of a YAML file, or the page of a run (`load(run).page`).
        overrides: Changes to the page, each `key=value` (`rewards.action_rate.weight=-0.02`).
        num_envs: How many simulations step at once; by default the page's `env.num_envs`.
        device: `cpu` or `cuda`; by default the page's.
        engine: The physics engine; by default the one that suits the device.
        seed: The key of every random number; by default the page's.

    Raises:
        ValueError: The page or an override is wrong; the message has one line for each error.
    """
    from embodied_rl import make_env

    return make_env.make(config, overrides, num_envs=num_envs, device=device, engine=engine, seed=seed)


def load(run: str | Path, *, device: str = "cpu") -> LoadedRun:
    """Load a trained run: `load(run).policy(obs)` gives the mean actions, shape (num_envs, num_actions).

    Args:
        run: A run directory, a checkpoint, `latest`, or a page's name: its newest run, or without one the policy that ships.
        device: Where the policy computes.

    Raises:
        ValueError: There is no such run, or its checkpoint cannot be read.
    """
    from embodied_rl import runs

    return runs.load(run, device=device)
