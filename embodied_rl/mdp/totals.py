"""Sums over an iteration, kept on the device and read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from embodied_rl.mdp.bind import Terms


class Share(NamedTuple):
    """What a term counts of each robot, for one of some names: the sum of the numbers over that of the wholes is told of each."""

    names: list[str]
    """As in TensorBoard."""
    number: Tensor
    """(N,)."""
    whole: Tensor
    """(N,)."""
    at: Tensor | None = None
    """Which of the names each robot counts for, int64 (N,); None: there is one."""


class Told(NamedTuple):
    """What commands and events tell of the robots in a step."""

    errors: list[str]
    """Names of errors."""
    shares: list[list[str]]
    """Names of each share."""
    numbers: Tensor
    """Errors, then number and whole of each share, side by side, (N, errors + 2 shares)."""
    cells: Tensor
    """Which name of each share a robot counts for, int64 (N, shares)."""


class Totals:
    """Sums over all robots and steps since they were last read.

    Args:
        names: of the sums, in the order of the columns that are added.
        shares: names of each share, whose numbers and wholes are the last columns.
        num_envs: N.
        device: where they are kept.
    """

    def __init__(self, names: list[str], shares: list[list[str]], num_envs: int, device: torch.device) -> None:
        self._names, self._shared = names, [name for share in shares for name in share]
        self.columns = torch.zeros(num_envs, len(names) + 2 * len(shares), device=device)
        """What a step adds, (N, names + 2 shares)."""
        self.cells = torch.zeros(num_envs, len(shares), dtype=torch.int64, device=device)
        """Which name of each share it adds to, (N, shares)."""
        self.rows = (self.columns, self.cells)
        begins = np.cumsum([0, *(len(share) for share in shares)])[:-1].tolist()
        self._begins = torch.tensor(begins, dtype=torch.int64, device=device)
        self._sums = torch.zeros(len(names) + 2 * len(self._shared), device=device)

    def add(self) -> None:
        """Add one step, as it stands in `columns` and `cells`."""
        plain, shares = self.columns.split([len(self._names), self.columns.shape[1] - len(self._names)], dim=1)
        self._sums[: len(self._names)].add_(plain.sum(0))
        if self._shared:
            pairs = self._sums[len(self._names) :].view(-1, 2)
            pairs.index_add_(0, (self.cells + self._begins).flatten(), shares.reshape(-1, 2))

    def drain(self) -> dict[str, float]:
        """Read the sums by name, and begin anew; waits for the device."""
        pairs = [f"{kind}/{name}" for name in self._shared for kind in ("share", "share_of")]
        totals = dict(zip([*self._names, *pairs], self._sums.tolist(), strict=True))
        self._sums.zero_()
        return totals

    def save(self) -> Tensor:
        """Return a copy of the sums, for `load`."""
        return self._sums.clone()

    def load(self, saved: Tensor) -> None:
        """Set the sums to what `save` gave."""
        self._sums.copy_(saved)


def total_names(terms: Terms, errors: list[str]) -> list[str]:
    """Name the columns of a step of `Env` but its shares': what is counted of it, and of the episodes that it ends.

    Args:
        terms: the page's.
        errors: what commands tell of how far robots are from them.
    """
    names = ["steps", "unstable", "episodes", "terminated", "episode_length"]
    names += [f"termination/{term.name}" for term in terms.terminations]
    names += [*(f"reward/{term.name}" for term in terms.rewards), "reward/total"]
    return [*names, *(f"error/{name}" for name in errors)]
