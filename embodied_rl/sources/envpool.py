"""EnvPool's environments: C++ on threads of its own."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from embodied_rl import machine
from embodied_rl.errors import install_hint
from embodied_rl.problems import did_you_mean
from embodied_rl.sources.batch import Outcome, SourceError


class EnvPoolBatch:
    """A `Batch` of EnvPool's.

    An environment draws from a generator of its own that is seeded once, by its global id, so that what it lives through does
    not depend on the worker that holds it; but it cannot be brought back to an earlier state.

    Args:
        name: EnvPool's name of the task.
        seeds: one for each environment, below 2^31.
        num_threads: threads that step them; 0 takes every core that this process may use.
        groups: see `ObservationMap`.
        options: keyword arguments of `envpool.make`.

    Raises:
        SourceError: EnvPool is not installed, or has no such task.
    """

    replayable = False
    episode_limit: int | None = 1
    at: int | None = None

    def __init__(
        self, name: str, seeds: np.ndarray, num_threads: int, groups: dict[str, tuple[str, ...]], options: dict[str, Any]
    ) -> None:
        try:
            import envpool

            from embodied_rl.sources.spaces import ObservationMap, action_map
        except ImportError as error:
            raise SourceError(f"env.source: envpool:{name}: {error}; {install_hint('envpool')}") from None
        known = envpool.list_all_envs()
        if name not in known:
            raise SourceError(f"env.source: envpool:{name}: EnvPool has no such task{did_you_mean(name, known)}")
        with warnings.catch_warnings(action="ignore"):  # float64 bounds, cast
            self._envs: Any = envpool.make(
                name,
                env_type="gymnasium",
                num_envs=len(seeds),
                num_threads=num_threads or machine.cores(),
                seed=[int(seed) for seed in seeds],
                **options,
            )
            self._observe = ObservationMap(self._envs.observation_space, groups)
            self.obs_sizes = self._observe.sizes
            self.action_space, self._own = action_map(self._envs.action_space)

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        obs, info = self._envs.reset(rows.astype(np.int32))
        return {name: value[_positions(info, rows)] for name, value in self._observe.batch(obs).items()}

    def step(self, rows: np.ndarray, actions: np.ndarray) -> Outcome:
        obs, rewards, terminated, truncated, info = self._envs.step(self._own(actions), rows.astype(np.int32))
        order = _positions(info, rows)
        ended = terminated[order]
        observed = {name: value[order] for name, value in self._observe.batch(obs).items()}
        return Outcome(observed, rewards[order], ended, truncated[order] & ~ended, {})

    def close(self) -> None:
        self._envs.close()


def _positions(info: dict[str, Any], rows: np.ndarray) -> np.ndarray:
    """Where each row stands in what came back."""
    given = np.asarray(info["env_id"])
    return np.argsort(given)[np.searchsorted(np.sort(given), rows)]
