"""Environments that step one by one in Python: Gymnasium's, dm_control's, a user's own."""

from __future__ import annotations

import contextlib
import importlib
import os
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from embodied_rl.errors import install_hint
from embodied_rl.problems import did_you_mean
from embodied_rl.sources.batch import Outcome, SourceError
from embodied_rl.sources.spaces import ObservationMap, action_map


class Singles:
    """A `Batch` of environments that are each a `gymnasium.Env`.

    One that raises is thrown away and made anew.

    Args:
        make: makes one.
        num_envs: how many.
        groups: see `ObservationMap`.
    """

    replayable = True

    def __init__(self, make: Callable[[], gymnasium.Env], num_envs: int, groups: dict[str, tuple[str, ...]]) -> None:
        self._make = make
        self.at: int | None = None
        self._envs = [make() for _ in range(num_envs)]
        first = self._envs[0]
        self._observe = ObservationMap(first.observation_space, groups)
        self.obs_sizes = self._observe.sizes
        self.action_space, self._own = action_map(first.action_space)
        self.episode_limit = _limit(first)

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        obs = {name: np.empty((len(rows), size), np.float32) for name, size in self.obs_sizes.items()}
        for position, (row, seed) in enumerate(zip(rows.tolist(), seeds.tolist(), strict=True)):
            self.at = row
            try:
                observed = self._observe(self._envs[row].reset(seed=seed)[0])
            except Exception as error:  # another's code: it may raise anything
                self._replace(row)
                raise SourceError(f"row {row}: reset(seed={seed}) raised {_brief(error)}") from error
            for name, value in observed.items():
                obs[name][position] = value
        self.at = None
        return obs

    def step(self, rows: np.ndarray, actions: np.ndarray) -> Outcome:
        obs = {name: np.zeros((len(rows), size), np.float32) for name, size in self.obs_sizes.items()}
        rewards = np.zeros(len(rows))
        terminated, truncated = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        errors: dict[int, str] = {}
        own = self._own(actions)
        discrete = self.action_space.discrete
        for position, row in enumerate(rows.tolist()):
            self.at = row
            try:
                action = int(own[position]) if discrete else own[position]
                observed, reward, terminated[position], truncated[position], _ = self._envs[row].step(action)
                rewards[position] = np.asarray(reward, dtype=np.float64).item()  # some return an array of one
                for name, value in self._observe(observed).items():
                    obs[name][position] = value
            except Exception as error:
                errors[position] = _brief(error)
                self._replace(row)
        self.at = None
        return Outcome(obs, rewards, terminated, truncated & ~terminated, errors)

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _replace(self, row: int) -> None:
        with contextlib.suppress(Exception):  # it is broken, and what it held goes with it
            self._envs[row].close()
        self._envs[row] = self._make()


def _limit(env: gymnasium.Env) -> int | None:
    """The most steps of an episode, where it is told."""
    inner = getattr(env.unwrapped, "_env", None)  # dm_control counts by itself
    steps = getattr(inner, "_step_limit", None) or (env.spec.max_episode_steps if env.spec else None)
    return int(steps) if steps and steps < float("inf") else None


def gymnasium_maker(name: str, options: dict[str, Any]) -> Callable[[], gymnasium.Env]:
    """What makes `gymnasium:NAME`; a name with a module, `my_package:MyEnv-v0`, imports that first."""

    def make() -> gymnasium.Env:
        with warnings.catch_warnings(action="ignore"):  # of older versions of an environment, which the page asked for
            return gymnasium.make(name, disable_env_checker=True, **options)

    try:
        make().close()
    except gymnasium.error.NameNotFound:
        near = did_you_mean(name, gymnasium.registry)
        raise SourceError(f"env.source: gymnasium:{name}: Gymnasium knows no such environment{near}") from None
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        extra = "box2d" if "Box2D" in str(error) else "gym"
        lacks = f"; {install_hint(extra)}" if isinstance(error, ImportError) or "not installed" in str(error) else ""
        raise SourceError(f"env.source: gymnasium:{name}: {_line(error)}{lacks}") from None
    return make


def dm_control_maker(name: str, options: dict[str, Any]) -> Callable[[], gymnasium.Env]:
    """What makes `dm_control:DOMAIN-TASK`, through shimmy."""
    # MuJoCo renders with it, and dm_control asks for a window as it is imported
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        with warnings.catch_warnings(action="ignore"):
            from dm_control import suite
            from shimmy.dm_control_compatibility import DmControlCompatibilityV0
    except ImportError as error:
        raise SourceError(f"env.source: dm_control:{name}: {error}; {install_hint('dmc')}") from None
    _forget_fields()
    tasks = {f"{domain}-{task}": (domain, task) for domain, task in suite.ALL_TASKS}
    if name not in tasks:
        near = did_you_mean(name, tasks) or f"; there are {', '.join(tasks)}"
        raise SourceError(f"env.source: dm_control:{name}: the suite has no such task{near}")
    return lambda: DmControlCompatibilityV0(suite.load(*tasks[name], **options))


def _forget_fields() -> None:
    """Let dm_control 1.0.50 run on MuJoCo 4, which has dropped some fields of soft bodies from its table of sizes."""
    import mujoco
    from dm_control.mujoco.wrapper.mjbindings import sizes

    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    for kind, struct in (("mjmodel", model), ("mjdata", mujoco.MjData(model))):
        table = sizes.array_sizes[kind]
        for field in [field for field in table if not hasattr(struct, field)]:
            del table[field]


def python_maker(name: str, options: dict[str, Any]) -> Callable[[], gymnasium.Env]:
    """What makes `python:MODULE:FUNCTION`: the function, called for each environment, returns a `gymnasium.Env`."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SourceError(f"env.source: python:{name}: {_line(error)}; write python:MODULE:FUNCTION") from None
    return lambda: function(**options)


MAKERS = {"gymnasium": gymnasium_maker, "dm_control": dm_control_maker, "python": python_maker}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _brief(error: BaseException) -> str:
    """The error and the line of the environment's own code that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {_line(error)}{where}"
