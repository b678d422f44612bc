"""Sums over an iteration, kept on the device and read once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from embodied_rl.mdp.bind import Terms


class Totals:
    """Sums over all robots and steps since they were last read.

    Args:
        names: of the sums, in the order of the columns that are added.
        num_envs: N.
        device: where they are kept.
    """

    def __init__(self, names: list[str], num_envs: int, device: torch.device) -> None:
        self.names = names
        self.columns = torch.zeros(num_envs, len(names), device=device)
        """What a step adds, (N, names)."""
        self._sums = torch.zeros(len(names), device=device)

    def add(self) -> None:
        """Add one step, as it stands in `columns`."""
        self._sums.add_(self.columns.sum(0))

    def drain(self) -> dict[str, float]:
        """Read the sums by name, and begin anew; waits for the device."""
        totals = dict(zip(self.names, self._sums.tolist(), strict=True))
        self._sums.zero_()
        return totals

    def save(self) -> Tensor:
        """Return a copy of the sums, for `load`."""
        return self._sums.clone()

    def load(self, saved: Tensor) -> None:
        """Set the sums to what `save` gave."""
        self._sums.copy_(saved)


def total_names(terms: Terms, told: list[str]) -> list[str]:
    """Name the columns of a step of `Env`: what is counted of it, and of the episodes that it ends.

    Args:
        terms: the page's.
        told: names of what terms tell of the robots.
    """
    names = ["steps", "unstable", "episodes", "terminated", "episode_length"]
    names += [f"termination/{term.name}" for term in terms.terminations]
    return [*names, *told, *(f"reward/{term.name}" for term in terms.rewards), "reward/total"]
