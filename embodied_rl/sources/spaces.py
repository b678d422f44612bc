"""Gymnasium's spaces as the learner sees them: groups of flat observations, and a box of +-1 or choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from embodied_rl.problems import did_you_mean
from embodied_rl.sources.batch import SourceError
from embodied_rl.vector_env import ActionSpace

#: A bound beyond it stands for none: some write 1e10, or the largest float there is.
_BOUND = 1e6


class ObservationMap:
    """Turns observations of a space into float32 vectors, one for each group.

    Args:
        space: any space that flattens to a vector; a `Dict` may be split.
        groups: keys of a `Dict` by group; empty: everything is the group `actor`.

    Raises:
        SourceError: a key is not there, or the space has no fixed size.
    """

    def __init__(self, space: spaces.Space, groups: dict[str, tuple[str, ...]]) -> None:
        if groups and not isinstance(space, spaces.Dict):
            raise SourceError(f"env.groups: the observations have no keys to choose from, they are a {space}; leave it out")
        known = list(space.spaces) if isinstance(space, spaces.Dict) else []
        for group, keys in groups.items():
            for key in keys:
                if key not in known:
                    near = did_you_mean(key, known)
                    raise SourceError(
                        f"env.groups.{group}: '{key}' is no key of the observations{near} (it has {', '.join(known)})"
                    )
        self._parts = {name: tuple(keys) for name, keys in groups.items()} or {"actor": tuple(known)}
        self._space = space
        try:
            self.sizes = {name: sum(self._size(key) for key in keys or ("",)) for name, keys in self._parts.items()}
        except (NotImplementedError, ValueError):  # Gymnasium raises the one or the other
            raise SourceError(f"env.source: observations of the kind {type(space).__name__} have no fixed size") from None

    def __call__(self, obs: Any) -> dict[str, np.ndarray]:
        """Observations of one environment, (O,) for each group."""
        return {name: self._flat(keys, obs) for name, keys in self._parts.items()}

    def batch(self, obs: Any) -> dict[str, np.ndarray]:
        """Flatten R observations of boxes at once: (R, O)."""
        joined = {}
        for name, keys in self._parts.items():
            parts = [np.asarray(obs[key] if key else obs) for key in keys or ("",)]
            joined[name] = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1, dtype=np.float32)
        return joined

    def _size(self, key: str) -> int:
        return spaces.flatdim(self._space[key] if key else self._space)  # type: ignore[index]

    def _flat(self, keys: tuple[str, ...], obs: Any) -> np.ndarray:
        if not keys:
            return _flatten(self._space, obs)
        return np.concatenate([_flatten(self._space[key], obs[key]) for key in keys])  # type: ignore[index]


def _flatten(space: spaces.Space, obs: Any) -> np.ndarray:
    if isinstance(space, spaces.Box):
        return np.asarray(obs, dtype=np.float32).reshape(-1)
    return np.asarray(spaces.flatten(space, obs), dtype=np.float32)


def action_map(space: spaces.Space) -> tuple[ActionSpace, Callable[[np.ndarray], np.ndarray]]:
    """Find what an action is to the learner, and what turns R of them into the space's own.

    Raises:
        SourceError: the learner has no such actions.
    """
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return ActionSpace(int(space.n), discrete=True), lambda actions: actions + first
    if not isinstance(space, spaces.Box):
        kind = type(space).__name__
        raise SourceError(f"env.source: actions of the kind {kind}; there are boxes of numbers (Box) and choices (Discrete)")
    shape, kind = space.shape, space.dtype
    least, most = space.low.reshape(-1), space.high.reshape(-1)
    bounded = (least >= -_BOUND) & (most <= _BOUND)
    whole = np.issubdtype(kind, np.integer)
    # each whole number has a stretch of its own of one length
    low, high = np.where(bounded, least, -1.0) - 0.5 * whole, np.where(bounded, most, 1.0) + 0.5 * whole
    middle, half = np.where(bounded, (low + high) / 2, 0.0), np.where(bounded, (high - low) / 2, 1.0)

    def own(actions: np.ndarray) -> np.ndarray:
        scaled = middle + half * np.where(bounded, np.clip(actions, -1.0, 1.0), actions)
        return np.clip(np.rint(scaled) if whole else scaled, least, most).astype(kind).reshape(-1, *shape)

    return ActionSpace(len(least)), own
