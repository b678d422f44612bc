"""Environments that step one by one in Python: Gymnasium's, dm_control's, a user's own."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch

from embodied_rl.errors import UserError, install_hint
from embodied_rl.own import find_own, told
from embodied_rl.problems import did_you_mean
from embodied_rl.sources.batch import Outcome, SourceError
from embodied_rl.sources.spaces import ObservationMap, action_map, number

log = logging.getLogger("embodied_rl")

#: How ids of packages that Gymnasium does not know are written.
_OTHERS = "; an id of another package is gymnasium:PACKAGE:ID, which imports it first"


class Singles:
    """A `Batch` of environments that are each a `gymnasium.Env`.

    One that raises is thrown away and made anew.

    Args:
        make: makes one.
        num_envs: how many.
        groups: see `ObservationMap`.

    Raises:
        SourceError: one cannot be made, is made twice, or differs from the first in what it sees and does.
    """

    replayable = True

    def __init__(self, make: Callable[[], gymnasium.Env], num_envs: int, groups: dict[str, tuple[str, ...]]) -> None:
        self._make = make
        self.at: int | None = None
        first = make()
        self._space, self._groups = first.action_space, groups
        self._observe = ObservationMap(first.observation_space, groups)
        self.obs_sizes = self._observe.sizes
        self.action_space, self._own = action_map(self._space)
        self.episode_limit = _limit(first)
        self._envs = [first, *(self._another() for _ in range(num_envs - 1))]
        if len({id(env.unwrapped) for env in self._envs}) < num_envs:
            raise SourceError("env.source: what makes an environment returned the same one twice; return a new one at each call")

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        obs = {name: np.empty((len(rows), size), np.float32) for name, size in self.obs_sizes.items()}
        for position, (row, seed) in enumerate(zip(rows.tolist(), seeds.tolist(), strict=True)):
            self.at = row
            try:
                observed = self._observe(_first(self._envs[row].reset(seed=seed)))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # another's code: it may raise anything, and end the process, too
                self._replace(row)
                raise SourceError(f"row {row}: reset(seed={seed}) raised {told(error)}") from error
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
                observed, reward, *ends = _led_to(self._envs[row].step(action))
                rewards[position] = number(reward, "the reward")  # some return an array of one
                terminated[position], truncated[position] = map(_flag, ends, ("terminated", "truncated"))
                for name, value in self._observe(observed).items():
                    obs[name][position] = value
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                errors[position] = told(error)
                self._replace(row)
        self.at = None
        return Outcome(obs, rewards, terminated, truncated & ~terminated, errors)

    def close(self) -> None:
        for env in self._envs:
            _close(env)

    def _replace(self, row: int) -> None:
        _close(self._envs[row])
        self._envs[row] = self._another()

    def _another(self) -> gymnasium.Env:
        """Make one that is like the first."""
        env = self._make()
        with np.errstate(all="ignore"):  # bounds of half precision
            alike = env.action_space == self._space
        if not alike:
            raise SourceError(f"env.source: actions are {self._space} in one environment and {env.action_space} in another")
        if (sizes := ObservationMap(env.observation_space, self._groups).sizes) != self.obs_sizes:
            raise SourceError(f"env.source: observations have {self.obs_sizes} numbers in one environment and {sizes} in another")
        return env


def _first(answer: Any) -> Any:
    """Take the observation out of what `reset` returned."""
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], Mapping | None):
        raise TypeError(f"it returned {_kind(answer)}; a gymnasium.Env returns (observation, info), info a dict")
    return answer[0]


def _led_to(answer: Any) -> tuple:
    """Take observation, reward and ends out of what `step` returned."""
    if not isinstance(answer, tuple | list) or len(answer) != 5:
        old = ", those of Gym before 0.26 4" if isinstance(answer, tuple) and len(answer) == 4 else ""
        wanted = f"a gymnasium.Env returns 5 (observation, reward, terminated, truncated, info){old}"
        raise TypeError(f"step returned {_kind(answer)}; {wanted}")
    return tuple(answer[:4])


def _flag(value: Any, name: str) -> bool:
    """Read whether an episode ended."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if (flag := number(value, name)) not in (0.0, 1.0):
        raise TypeError(f"{name} is {flag:g}, and True or False is wanted")
    return flag == 1.0


def _kind(value: Any) -> str:
    """Say what a value is."""
    if isinstance(value, tuple | list):
        return f"{len(value)} values"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"a value of the kind {type(value).__name__}"


def _close(env: gymnasium.Env) -> None:
    """Close one; what it held goes with it, whatever it says."""
    try:
        env.close()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        log.debug("%s: closing it raised %s", env, told(error))


def _limit(env: gymnasium.Env) -> int | None:
    """The most steps of an episode, where it is told."""
    inner = getattr(env.unwrapped, "_env", None)  # dm_control counts by itself
    steps = getattr(inner, "_step_limit", None) or (env.spec.max_episode_steps if env.spec else None)
    return int(steps) if steps and steps < float("inf") else None


def maker(kind: str, name: str, options: dict[str, Any]) -> Callable[[], gymnasium.Env]:
    """Find what makes an environment of `KIND:NAME`; whatever it raises is a line that names the source.

    Raises:
        SourceError: there is no such environment; so does what is returned, where one cannot be made.
    """
    source = f"env.source: {kind}:{name}"
    told_of: set[str] = set()
    with _undisturbed(source, told_of):
        make = _MAKERS[kind](name, options)

    def careful() -> gymnasium.Env:
        try:
            with _undisturbed(source, told_of):
                env = make()
        except (KeyboardInterrupt, UserError):
            raise
        except BaseException as error:
            near = _near_option(make, options) if isinstance(error, TypeError) else ""
            raise SourceError(f"{source}: making one raised {told(error)}{near}") from None
        if isinstance(env, gymnasium.vector.VectorEnv):
            raise SourceError(f"{source}: gives a vector of environments ({type(env).__name__}), and single ones are wanted")
        if not isinstance(env, gymnasium.Env):
            raise SourceError(f"{source}: gives {_kind(env)}, and a gymnasium.Env is wanted")
        for what in ("observation_space", "action_space"):
            if not isinstance(space := getattr(env, what, None), gymnasium.Space):
                raise SourceError(f"{source}: its {what} is {_kind(space)}, and one of gymnasium.spaces is wanted")
        return env

    return careful


@contextmanager
def _undisturbed(source: str, told_of: set[str]) -> Iterator[None]:
    """Put back what of the whole process another's code changes within: the working directory, and how torch computes."""
    folder, kind, grad = os.getcwd(), torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        if torch.get_default_dtype() != kind:
            torch.set_default_dtype(kind)
        torch.set_grad_enabled(grad)
        if (other := os.getcwd()) != folder:
            os.chdir(folder)
            if other not in told_of:  # once, and not for each environment
                log.warning("%s: changes the working directory to %s; it is put back", source, other)
            told_of.add(other)


def _near_option(make: Callable, options: dict[str, Any]) -> str:
    """Name the nearest parameter for an option that is none, where the maker tells its parameters."""
    with suppress(Exception):
        known = inspect.signature(getattr(make, "func", make)).parameters
        for option in options:
            if option not in known and (near := did_you_mean(option, known)):
                return f"; env.source_options.{option}{near}"
    return ""


def gymnasium_maker(name: str, options: dict[str, Any]) -> Callable[[], gymnasium.Env]:
    """What makes `gymnasium:NAME`; a name with a module, `my_package:MyEnv-v0`, imports that first."""

    def make() -> gymnasium.Env:
        with warnings.catch_warnings(action="ignore"):  # they were told when the first was made
            return gymnasium.make(name, disable_env_checker=True, **options)

    source = f"env.source: gymnasium:{name}"
    try:
        with warnings.catch_warnings():
            # of older versions of an environment, which the page asked for
            warnings.filterwarnings("ignore", message=r"(?s).*(out of date|latest versioned|deprecated)")
            _close(gymnasium.make(name, disable_env_checker=True, **options))
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound):
        near = did_you_mean(name, gymnasium.registry)
        raise SourceError(f"{source}: Gymnasium knows no such environment{near}{_OTHERS}") from None
    except (gymnasium.error.Error, ImportError) as error:
        line = " ".join(str(error).split())
        lacks = isinstance(error, ImportError) or "not installed" in line
        extra = next((extra for module, extra in (("Box2D", "box2d"), ("mujoco", "gym")) if lacks and module in line), "")
        raise SourceError(f"{source}: {line}{extra and f'; {install_hint(extra)}'}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        near = _near_option(_creator(name), options) if isinstance(error, TypeError) else ""
        raise SourceError(f"{source}: making one raised {told(error)}{near}") from None
    return make


def _creator(name: str) -> Callable:
    """What Gymnasium calls for an id."""
    with suppress(Exception):
        creator = gymnasium.spec(name).entry_point
        return gymnasium.envs.registration.load_env_creator(creator) if isinstance(creator, str) else creator  # type: ignore
    return gymnasium.make


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
    function: Any = find_own(f"env.source: python:{name}", name, "write python:MODULE:FUNCTION")
    if not callable(function):
        raise SourceError(f"env.source: python:{name}: is {_kind(function)}, and a function that makes one is wanted")
    make: Any = partial(function, **options)
    return make


_MAKERS = {"gymnasium": gymnasium_maker, "dm_control": dm_control_maker, "python": python_maker}
