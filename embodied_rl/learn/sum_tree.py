"""A sum tree: rows drawn in proportion to their priorities.

Every inner number is summed anew from its children whenever one of them changes, in double precision, so that the root never
drifts from its leaves.  A node has many children, so that a million rows are four levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHILDREN = 32


class SumTree:
    """Priorities of `size` rows, and their sums.

    Args:
        size: how many rows there are.
        device: where they lie.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        # the leaves first, the root last
        self._levels = [torch.zeros(count, dtype=torch.float64, device=device) for count in _level_sizes(size)]
        self.leaves = self._levels[0][:size]
        """(size,)."""

    @staticmethod
    def bytes(size: int) -> int:
        """Count the memory that it takes [bytes]."""
        return 8 * sum(_level_sizes(size))

    @property
    def total(self) -> Tensor:
        """The sum of all priorities, ()."""
        return self._levels[-1][0]

    def set(self, rows: Tensor, priorities: Tensor) -> None:
        """Set priorities, float64 (R,), of rows, int64 (R,); of a row that stands twice one of both."""
        self.leaves[rows] = priorities
        for children, parents in zip(self._levels, self._levels[1:], strict=False):
            rows = rows // _CHILDREN
            parents[rows] = children.view(-1, _CHILDREN)[rows].sum(1)

    def find(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Find the rows in which these shares of the total lie, and each one's own share of it.

        A row of priority 0 is never found, unless all are.

        Args:
            shares: in [0, 1), float64 (R,).

        Returns:
            Rows, int64 (R,), and their shares, float64 (R,).
        """
        left = shares * self.total
        node = torch.zeros_like(shares, dtype=torch.int64)
        for level in reversed(self._levels[:-1]):
            children = level.view(-1, _CHILDREN)[node]
            ends = children.cumsum(1)
            # rounding may leave more than there is: the last child that has something, then
            last = _CHILDREN - 1 - (children > 0).flip(1).long().argmax(1)
            index = torch.minimum((ends <= left[:, None]).sum(1), last)
            before = ends.gather(1, index[:, None])[:, 0] - children.gather(1, index[:, None])[:, 0]
            left = (left - before).clamp(min=0.0)
            node = node * _CHILDREN + index
        return node, self._levels[0][node] / self.total


def _level_sizes(size: int) -> list[int]:
    """Count the nodes of each level, whole families of them, and one at the root."""
    sizes = []
    while size > 1 or not sizes:
        size = -(-size // _CHILDREN)
        sizes.append(size * _CHILDREN)
    return [*sizes, 1]
