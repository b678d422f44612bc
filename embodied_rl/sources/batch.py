"""What every source offers: environments of one kind, in NumPy, without resets of their own.

Legend: N environments, R rows of them, A actions, O observations.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from embodied_rl.errors import UserError
from embodied_rl.vector_env import ActionSpace


class SourceError(UserError):
    """A source cannot be had, or one of its environments cannot be used; one line."""


class Outcome(NamedTuple):
    """What a step led to, for R rows."""

    obs: dict[str, np.ndarray]
    """Observation of each group, float32 (R, O); of rows whose episode ended, the last one of it."""
    rewards: np.ndarray
    """(R,)."""
    terminated: np.ndarray
    """Bool (R,): there is nothing to bootstrap from."""
    truncated: np.ndarray
    """Bool (R,): ended by the clock."""
    errors: dict[int, str]
    """What the step of a row raised, by position among the R; its other entries mean nothing."""


class Batch(Protocol):
    """N environments of one kind."""

    action_space: ActionSpace
    obs_sizes: dict[str, int]
    """Width of each observation group."""
    replayable: bool
    """Whether a seed and the actions since then bring an environment back to where it was."""

    episode_limit: int | None
    """The most steps of an episode, where that is known."""
    at: int | None
    """The row that is in its own code just now, where they go one by one: who does not come back is to be named."""

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Begin new episodes in some rows, int64 (R,), each with a seed below 2^32; the first observations, (R, O).

        Raises:
            SourceError: one of them cannot begin; names it by its row.
        """
        ...

    def step(self, rows: np.ndarray, actions: np.ndarray) -> Outcome:
        """Advance some rows, int64 (R,), by actions (R, A) in +-1, or choices, int64 (R,).

        Bounds of a source's own lie at +-1; what is beyond them is clipped, what has no bounds is passed on.
        """
        ...

    def close(self) -> None:
        """Free them."""
        ...
