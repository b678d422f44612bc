"""Gymnasium's spaces as the learner sees them: groups of flat observations, and a box of +-1 or choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from embodied_rl.problems import did_you_mean
from embodied_rl.sources.batch import SourceError
from embodied_rl.vector_env import ActionSpace

#: Bounds farther apart stand for none: some write 1e10, or the largest float there is.
_WIDEST = 2e6
#: Most numbers of an observation; a choice among a billion is no vector for a network.
_MOST = 10_000_000


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
        self.sizes = {name: sum(self._size(key) for key in keys or ("",)) for name, keys in self._parts.items()}
        for name, size in self.sizes.items():
            if not 0 < size <= _MOST:
                many = f"{size:,} numbers, and at most {_MOST:,} are possible" if size else "no numbers"
                raise SourceError(f"env.source: observations of the group {name!r} have {many}")

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
        space = self._space[key] if key else self._space  # type: ignore[index]
        try:
            return spaces.flatdim(space)
        except (NotImplementedError, ValueError):  # Gymnasium raises the one or the other
            of = f"'{key}' " if key else ""
            advice = "; choose among the others: env.groups: {actor: [KEY, ...]}" if key and len(self._space.spaces) > 1 else ""  # type: ignore[attr-defined]
            kind = type(space).__name__
            raise SourceError(f"env.source: observations {of}of the kind {kind} have no fixed size{advice}") from None

    def _flat(self, keys: tuple[str, ...], obs: Any) -> np.ndarray:
        if not keys:
            return _flatten(self._space, obs)
        return _flatten_parts({key: self._space[key] for key in keys}, obs)  # type: ignore[index]


def _flatten(space: spaces.Space, obs: Any) -> np.ndarray:
    """Flatten an observation, (O,); what it has must be what its space says, or numbers would come to stand elsewhere."""
    if isinstance(space, spaces.Box):
        given = numbers(obs, "an observation")
        if given.size != space.low.size:
            raise ValueError(f"an observation has the shape {given.shape}, and its space {space.shape}")
        with np.errstate(over="ignore"):  # it is looked at later
            return given.astype(np.float32).reshape(-1)
    if isinstance(space, spaces.Dict):
        return _flatten_parts(space.spaces, obs)
    if isinstance(space, spaces.Tuple):
        return _flatten_parts(dict(enumerate(space.spaces)), dict(enumerate(obs)) if isinstance(obs, tuple | list) else obs)
    if isinstance(space, spaces.Discrete) and np.size(obs) == 1:
        obs = np.asarray(obs).reshape(()).item()  # some return an array of one
    if not space.contains(obs):
        raise ValueError(f"an observation is {_shown(obs)}, and its space {_shown(space)}")
    return np.asarray(spaces.flatten(space, obs), dtype=np.float32)


def _flatten_parts(parts: Mapping[Any, spaces.Space], obs: Any) -> np.ndarray:
    there = obs if isinstance(obs, Mapping) else {}
    if missing := [key for key in parts if key not in there]:
        raise ValueError(f"an observation has no {missing[0]!r}, which its space has")
    return np.concatenate([_flatten(part, there[key]) for key, part in parts.items()])


def numbers(value: Any, name: str) -> np.ndarray:
    """Take what another's code gives for numbers as an array; what is none is refused and not guessed at."""
    given = np.asarray(value)
    if given.dtype.kind not in "biuf":
        raise TypeError(f"{name} is {_shown(value)}, and numbers are wanted")
    return given


def number(value: Any, name: str) -> float:
    """Take one number, bare or in an array of one."""
    given = numbers(value, name)
    if given.size != 1:
        raise TypeError(f"{name} has the shape {given.shape}, and one number is wanted")
    return float(given.item())


def _shown(value: Any) -> str:
    """Write a value as part of a line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


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
    least, most = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
    if not least.size:
        raise SourceError(f"env.source: actions of the shape {shape}: there is nothing to choose")
    if odd := np.flatnonzero(~(least <= most)).tolist():
        at = odd[0]
        raise SourceError(f"env.source: the bounds of action {at} are {least[at]:g} and {most[at]:g}; the lower one comes first")
    bounded = np.isfinite(least) & np.isfinite(most)
    bounded &= np.where(bounded, most, 0.0) - np.where(bounded, least, 0.0) <= _WIDEST
    whole = np.issubdtype(kind, np.integer)
    # each whole number has a stretch of its own of one length
    low, high = np.where(bounded, least, -1.0) - 0.5 * whole, np.where(bounded, most, 1.0) + 0.5 * whole
    middle, half = np.where(bounded, (low + high) / 2, 0.0), np.where(bounded, (high - low) / 2, 1.0)

    def own(actions: np.ndarray) -> np.ndarray:
        scaled = middle + half * np.where(bounded, np.clip(actions, -1.0, 1.0), actions)
        return np.clip(np.rint(scaled) if whole else scaled, least, most).astype(kind).reshape(-1, *shape)

    return ActionSpace(len(least), bound=tuple(np.where(bounded, 1.0, np.inf).tolist())), own
