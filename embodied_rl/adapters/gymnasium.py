"""Gymnasium's interfaces, for learners that speak them: many robots at once, or one.

    envs = GymnasiumVectorEnv(embodied_rl.make("go2_flat", ["env.final_obs_groups=[actor]"], num_envs=64))
    env = GymnasiumEnv(embodied_rl.make("go2_flat", ["env.final_obs_groups=[actor]"], num_envs=1))

Observations are those of one group, as NumPy arrays of their own.  This is the only module that imports gymnasium.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from embodied_rl.adapters import check_is_ours
from embodied_rl.config import Page, override
from embodied_rl.env import Env
from embodied_rl.errors import UserError, install_hint
from embodied_rl.make_env import make
from embodied_rl.problems import did_you_mean

try:
    import gymnasium
    from gymnasium.spaces import Box
    from gymnasium.utils import seeding
    from gymnasium.vector.utils import batch_space
except ImportError:
    raise ImportError(f"gymnasium is not installed; {install_hint('gym')}") from None


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv):
    """N robots as one `gymnasium.vector.VectorEnv`.

    An episode that ends is reset in the same step (`AutoresetMode.SAME_STEP`): the observation returned is the first of
    the next episode, and `infos["final_obs"]`, an object array with the mask `infos["_final_obs"]`, holds the last of the
    old one, without noise.  `reset(seed=...)` makes what follows reproducible; what start-up events drew stays.  Curricula are
    our trainer's: under another learner the page's own numbers hold, and `random_episode_phase` does not: a reset begins an
    episode.  A copy, by pickle or `copy`, is made of the page and begins with a reset.

    Args:
        env: the environment; its page names the group under `env.final_obs_groups`.
        group: the observations to give.

    Raises:
        UserError: it is no environment of ours, the page has no such group, or gives no last observations of it.
    """

    metadata = {"render_modes": [], "autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, env: Env, group: str = "actor") -> None:
        check_is_ours(env)
        if group not in env.obs:
            raise UserError(f"group {group!r}: the page has the observation groups {', '.join(env.obs)}")
        if group not in env.final_obs:
            raise UserError(
                f"env.final_obs_groups: {group!r} is missing, and Gymnasium wants the last observation of an episode; "
                f'make the environment with the override "env.final_obs_groups=[{group}]"'
            )
        env.page = override(env.page, ["env.random_episode_phase=false"])
        self.env, self.group, self.num_envs = env, group, env.num_envs
        clip = env.terms.actions.bounds().cpu().numpy()
        self.single_observation_space = Box(-np.inf, np.inf, (env.obs[group].shape[1],), np.float32)
        self.single_action_space = Box(-clip, clip, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._np_random, self._np_random_seed = seeding.np_random(env.page.env.seed)

    def __reduce__(self) -> tuple:
        """Another process gets the page, and makes its own: an engine's memory cannot be sent."""
        return _made_of, (type(self), self.env.page, self.env.env_ids.cpu(), self.group)

    @torch.no_grad()
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new episode in every environment, or some; the observations of all, float32 (N, O), and no infos.

        Without a seed, each reset goes on in the random numbers of the last one, the first in those of the page's seed.

        Args:
            seed: one for all, or one for each, None where there is none; what a seed leads to is another thing in each row.
            options: `reset_mask`, bool (N,): where to begin one; the others go on untouched.

        Raises:
            UserError: they are others, or it is closed.
        """
        _check_open(self.closed)
        mask = self._mask(options)
        if isinstance(seed, np.ndarray | list | tuple):
            if len(seed) != self.num_envs:
                raise UserError(f"seed: {len(seed)} of them are given, and there are {self.num_envs} environments")
            seeds = [_seed(one) for one in seed]
        else:
            seeds = [None] * self.num_envs
            if (one := _seed(seed)) is not None:
                self._np_random, self._np_random_seed = seeding.np_random(one)
        # random numbers are a function of the steps that an environment has lived: a random age is a random stream
        common = int(self.np_random.integers(2**31))
        ages = [common if one is None else int(seeding.np_random(one)[0].integers(2**31)) for one in seeds]
        going = torch.as_tensor(np.flatnonzero(~mask), device=self.env.device)
        before = self.env.snapshot(going) if len(going) else {}
        self.env.buffers["age"].copy_(torch.tensor(ages))
        self.env.reset()
        if before:
            self.env.restore(going, before)
        return self._obs(), {}

    def _mask(self, options: dict | None) -> np.ndarray:
        """Which environments begin anew."""
        if options is not None and not isinstance(options, dict):
            raise UserError(f"options: {type(options).__name__} is given, and a dict or None is wanted")
        for name in options or {}:
            if name != "reset_mask":
                raise UserError(f"options: {name!r} is none{did_you_mean(name, ['reset_mask'])} (there is 'reset_mask')")
        mask = np.ones(self.num_envs, bool) if (given := (options or {}).get("reset_mask")) is None else np.asarray(given)
        if mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            what = f"{mask.dtype} {mask.shape}" if mask.dtype != bool or mask.shape != (self.num_envs,) else "nowhere true"
            raise UserError(f"options: reset_mask is {what}; bool ({self.num_envs},) with a True is wanted")
        return mask

    @torch.no_grad()
    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance all environments by one control step.

        Args:
            actions: (N, A), finite.

        Returns:
            Observations, float32 (N, O); rewards, float64 (N,); terminated and truncated, bool (N,); infos.

        Raises:
            UserError: the actions are others, or it is closed.
        """
        _check_open(self.closed)
        given = torch.as_tensor(_numbers(actions), device=self.env.device)
        result = self.env.step(given)
        terminated, truncated = _array(result.terminated), _array(result.truncated)
        ended, infos = terminated | truncated, {}
        if ended.any():
            final = np.full(self.num_envs, None, dtype=object)
            last = _array(result.final_obs[self.group])
            for row in np.flatnonzero(ended):
                final[row] = last[row].copy()
            infos = {"final_obs": final, "_final_obs": ended}
        return self._obs(), _array(result.rewards).astype(np.float64), terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Free the engine."""
        self.env.close()

    def _obs(self) -> np.ndarray:
        return _array(self.env.obs[self.group])


class GymnasiumEnv(gymnasium.Env):
    """One robot as a `gymnasium.Env`.

    Args:
        env: the environment, of one robot; its page names the group under `env.final_obs_groups`.
        group: the observations to give.

    Raises:
        UserError: the environment has more robots, or see `GymnasiumVectorEnv`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, env: Env, group: str = "actor") -> None:
        check_is_ours(env)
        if env.num_envs != 1:
            raise UserError(f"env.num_envs: {env.num_envs}, and a gymnasium.Env has 1; use GymnasiumVectorEnv for more")
        self._vector = GymnasiumVectorEnv(env, group)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        self._next: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; its first observation, float32 (O,), and no info.

        Raises:
            UserError: the seed is none, there are options, which nothing reads, or it is closed.
        """
        _check_open(self._vector.closed)
        if options:
            raise UserError(f"options: {', '.join(map(repr, options))}: nothing reads them; leave them out")
        super().reset(seed=_seed(seed))
        if seed is None and self._next is not None:
            # the step that ended an episode began the next one
            begun, self._next = self._next, None
            return begun, {}
        self._next = None
        obs, infos = self._vector.reset(seed=seed)
        return obs[0], infos

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one control step with action (A,): observation (O,), reward, terminated, truncated, info."""
        obs, rewards, terminated, truncated, infos = self._vector.step(_numbers(action)[None])
        self._next = obs[0] if infos else None
        last = infos["final_obs"][0] if infos else obs[0]
        return last, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def close(self) -> None:
        """Free the engine."""
        self._vector.close()

    def __reduce__(self) -> tuple:
        """See `GymnasiumVectorEnv.__reduce__`."""
        return _made_of, (type(self), self._vector.env.page, self._vector.env.env_ids.cpu(), self._vector.group)


def _made_of(kind: Any, page: Page, env_ids: torch.Tensor, group: str) -> Any:
    """Make another adapter of a page."""
    return kind(make(page, env_ids=env_ids), group)


def _check_open(closed: bool) -> None:
    if closed:
        raise UserError("the environment is closed; make another one")


def _seed(seed: Any) -> int | None:
    """Take a seed as Gymnasium wants it."""
    if seed is None:
        return None
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"seed: {seed!r} is none; a whole number from 0 up is wanted, or None")
    return int(seed)


def _numbers(actions: Any) -> np.ndarray:
    """Take actions, finite ones, as an array of one's own."""
    try:
        given = np.asarray(actions.detach().cpu() if isinstance(actions, torch.Tensor) else actions)
    except ValueError:  # rows of unequal length
        given = np.empty((), object)
    if given.dtype.kind not in "biuf":
        raise UserError(f"actions: {type(actions).__name__} of {given.dtype} are given, and an array of numbers is wanted")
    given = given.astype(np.float32)
    if not np.isfinite(given).all():
        at = tuple(np.argwhere(~np.isfinite(given))[0].tolist())
        raise UserError(f"actions: {given[at]} at {list(at)}; finite numbers are wanted")
    return given


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Copy to the host."""
    return tensor.detach().cpu().numpy().copy()
