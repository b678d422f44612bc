"""What can go wrong with a pool, said in one line."""

from __future__ import annotations

from embodied_rl.errors import UserError


class PoolError(UserError):
    """A pool cannot be had, or has lost more than the page allows."""
