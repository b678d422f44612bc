"""Gymnasium's interfaces, for learners that speak them: many robots at once, or one.

    envs = GymnasiumVectorEnv(embodied_rl.make("go2_flat", ["env.final_obs_groups=[actor]"], num_envs=64))
    env = GymnasiumEnv(embodied_rl.make("go2_flat", ["env.final_obs_groups=[actor]"], num_envs=1))

Observations are those of one group, as NumPy arrays of their own.  This is the only module that imports gymnasium.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from embodied_rl.env import Env
from embodied_rl.errors import install_hint

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
    our trainer's: under another learner the page's own numbers hold.

    Args:
        env: the environment; its page names the group under `env.final_obs_groups`.
        group: the observations to give.

    Raises:
        ValueError: the page has no such group, or gives no last observations of it.
    """

    metadata = {"render_modes": [], "autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, env: Env, group: str = "actor") -> None:
        if group not in env.obs:
            raise ValueError(f"group {group!r}: the page has the observation groups {', '.join(env.obs)}")
        if group not in env.final_obs:
            raise ValueError(
                f"env.final_obs_groups: {group!r} is missing, and Gymnasium wants the last observation of an episode; "
                f'make the environment with the override "env.final_obs_groups=[{group}]"'
            )
        self.env, self.group, self.num_envs = env, group, env.num_envs
        clip = env.terms.actions.bounds().cpu().numpy()
        self.single_observation_space = Box(-np.inf, np.inf, (env.obs[group].shape[1],), np.float32)
        self.single_action_space = Box(-clip, clip, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._np_random, self._np_random_seed = seeding.np_random(env.page.env.seed)

    @torch.no_grad()
    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new episode in every environment; the first observations, float32 (N, O), and no infos.

        Without a seed, each reset goes on in the random numbers of the last one, the first in those of the page's seed.
        """
        super().reset(seed=seed, options=options)
        # random numbers are a function of the steps that an environment has lived: a random age is a random stream
        self.env.buffers["age"].fill_(int(self.np_random.integers(2**31)))
        self.env.reset()
        return self._obs(), {}

    @torch.no_grad()
    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance all environments by one control step.

        Args:
            actions: (N, A).

        Returns:
            Observations, float32 (N, O); rewards, float64 (N,); terminated and truncated, bool (N,); infos.
        """
        given = torch.as_tensor(np.asarray(actions, dtype=np.float32), device=self.env.device)
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
        ValueError: the environment has more robots, or see `GymnasiumVectorEnv`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, env: Env, group: str = "actor") -> None:
        if env.num_envs != 1:
            raise ValueError(f"env.num_envs: {env.num_envs}, and a gymnasium.Env has 1; use GymnasiumVectorEnv for more")
        self._vector = GymnasiumVectorEnv(env, group)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        self._next: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; its first observation, float32 (O,), and no info."""
        super().reset(seed=seed)
        if seed is None and self._next is not None:
            # the step that ended an episode began the next one
            begun, self._next = self._next, None
            return begun, {}
        self._next = None
        obs, infos = self._vector.reset(seed=seed)
        return obs[0], infos

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one control step with action (A,): observation (O,), reward, terminated, truncated, info."""
        obs, rewards, terminated, truncated, infos = self._vector.step(np.asarray(action)[None])
        self._next = obs[0] if infos else None
        last = infos["final_obs"][0] if infos else obs[0]
        return last, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def close(self) -> None:
        """Free the engine."""
        self._vector.close()


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Copy to the host."""
    return tensor.detach().cpu().numpy().copy()
