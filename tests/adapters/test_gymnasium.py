from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")

from embodied_rl import make_env  # noqa: E402
from embodied_rl.adapters.gymnasium import GymnasiumEnv, GymnasiumVectorEnv  # noqa: E402
from embodied_rl.env import Env  # noqa: E402

ENVS = 8


def make(num_envs: int, *overrides: str) -> Env:
    settings = ("env.compile=false", "env.final_obs_groups=[actor]", "env.episode_s=0.4", *overrides)
    return make_env.make("go2_flat", settings, num_envs=num_envs)


@pytest.fixture
def envs() -> Iterator[GymnasiumVectorEnv]:
    envs = GymnasiumVectorEnv(make(ENVS))
    yield envs
    envs.close()


def zeros(envs: GymnasiumVectorEnv) -> np.ndarray:
    return np.zeros(envs.action_space.shape or (), np.float32)


def rollout(envs: GymnasiumVectorEnv, seed: int | None) -> list[np.ndarray]:
    results = [envs.reset(seed=seed)[0]]
    for _ in range(3):
        obs, rewards, *_ = envs.step(zeros(envs) + 0.1)
        results += [obs, rewards]
    return results


def test_gymnasiums_own_checker() -> None:
    from gymnasium.envs.registration import EnvSpec
    from gymnasium.utils.env_checker import check_env

    env = GymnasiumEnv(make(1))
    # with a spec the checker compares seeded resets and closes an environment twice
    env.spec = EnvSpec("embodied_rl/go2_flat-v0", entry_point=lambda **_: GymnasiumEnv(make(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # an unbounded observation, and actions that are no shares of their bounds, are what they are
        warnings.filterwarnings("ignore", message=r".*(Box observation space (min|max)imum value is|normalized space).*")
        check_env(env)
    env.close()


def test_what_a_vector_env_gives(envs: GymnasiumVectorEnv) -> None:
    obs, infos = envs.reset(seed=1)
    assert infos == {}
    assert obs in envs.observation_space
    assert obs[0] in envs.single_observation_space
    envs.action_space.seed(1)
    obs, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
    assert obs in envs.observation_space
    assert (rewards.dtype, rewards.shape) == (np.dtype(np.float64), (ENVS,))
    assert terminated.dtype == truncated.dtype == np.bool_
    assert terminated.shape == truncated.shape == (ENVS,)


def test_a_seed_makes_it_reproducible(envs: GymnasiumVectorEnv) -> None:
    first, second, other, onward = (rollout(envs, seed) for seed in (5, 5, 6, None))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(first[0], other[0])
    assert not np.allclose(other[0], onward[0])


def test_the_pages_seed_is_the_first_one() -> None:
    first, second, other = (rollout(GymnasiumVectorEnv(make(2, f"env.seed={seed}")), None) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[-1], second[-1])
    assert not np.allclose(first[0], other[0])


def test_the_last_observation_of_an_episode_is_in_the_infos(envs: GymnasiumVectorEnv) -> None:
    # without noise and resets at random, the same robots in a longer episode show what the last observation must be
    quiet = [f"observations.actor.{term}.noise=0.0" for term in ("base_ang_vel", "projected_gravity", "joint_pos", "joint_vel")]
    phase = "env.random_episode_phase=false"
    short, long = (GymnasiumVectorEnv(make(ENVS, phase, f"env.episode_s={s}", *quiet)) for s in (0.1, 20.0))
    short.reset(seed=3)
    long.reset(seed=3)
    for _ in range(4):
        _, _, terminated, truncated, infos = short.step(zeros(short))
        long.step(zeros(long))
        assert not (terminated | truncated).any()
        assert infos == {}
    obs, _, terminated, truncated, infos = short.step(zeros(short))
    longer, *_ = long.step(zeros(long))
    assert truncated.all() and not terminated.any()
    assert infos["final_obs"].shape == (ENVS,)
    assert infos["_final_obs"].all()
    np.testing.assert_allclose(np.stack(infos["final_obs"]), longer, atol=1e-6)
    assert np.abs(obs - longer).max() > 0.1


def test_only_rows_that_ended_have_a_last_observation(envs: GymnasiumVectorEnv) -> None:
    envs.reset(seed=1)
    envs.env.buffers["episode_length"].copy_(torch.tensor([19] + [0] * (ENVS - 1)))
    _, _, _, truncated, infos = envs.step(zeros(envs))
    assert truncated.tolist() == infos["_final_obs"].tolist() == [True] + [False] * (ENVS - 1)
    assert infos["final_obs"][0] in envs.single_observation_space
    assert all(value is None for value in infos["final_obs"][1:])


def test_gymnasiums_vector_wrappers_work(envs: GymnasiumVectorEnv) -> None:
    from gymnasium.wrappers.vector import RecordEpisodeStatistics

    # those that transform observations refuse every env with SAME_STEP
    wrapped = RecordEpisodeStatistics(envs)
    wrapped.reset(seed=1)
    envs.env.buffers["episode_length"].copy_(torch.tensor([10] + [0] * (ENVS - 1)))
    for _ in range(10):
        *_, infos = wrapped.step(zeros(envs))
    assert infos["episode"]["l"].tolist() == [10] + [0] * (ENVS - 1)


def test_arrays_are_not_overwritten(envs: GymnasiumVectorEnv) -> None:
    envs.reset(seed=1)
    results = envs.step(zeros(envs))[:4]
    kept = [result.copy() for result in results]
    envs.step(zeros(envs) + 1.0)
    for now, then in zip(results, kept, strict=True):
        np.testing.assert_array_equal(now, then)


def test_one_robot_goes_on_from_episode_to_episode() -> None:
    env = GymnasiumEnv(make(1))
    env.reset(seed=1)
    lengths, length = [], 0
    while len(lengths) < 3:
        _, reward, terminated, truncated, _ = env.step(np.zeros(12, np.float32))
        assert isinstance(reward, float)
        length += 1
        if terminated or truncated:
            obs, _ = env.reset()
            np.testing.assert_array_equal(obs, env._vector.env.obs["actor"][0])
            lengths.append(length)
            length = 0
    # the first one begins at a random time of its length, as in training; those that follow are whole
    assert lengths[0] < 20
    assert lengths[1:] == [20, 20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(group="policy"), r"group 'policy': the page has the observation groups actor, critic"),
        (dict(group="critic"), r"env\.final_obs_groups: 'critic' is missing.*env\.final_obs_groups=\[critic\]"),
    ],
)
def test_a_group_that_will_not_do(change: dict[str, Any], message: str, envs: GymnasiumVectorEnv) -> None:
    with pytest.raises(ValueError, match=message):
        GymnasiumVectorEnv(envs.env, **change)


def test_one_robot_is_one_robot(envs: GymnasiumVectorEnv) -> None:
    with pytest.raises(ValueError, match=r"env\.num_envs: 8, .* use GymnasiumVectorEnv for more"):
        GymnasiumEnv(envs.env)


def test_stable_baselines_trains_one_robot() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = GymnasiumEnv(make(1))
    model = sb3.PPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=1, device="cpu", seed=1)
    model.learn(64)
    assert model.num_timesteps == 64
    assert env.reset()[0] in env.observation_space
    env.close()


def test_stable_baselines_trains_many(envs: GymnasiumVectorEnv) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    model = sb3.PPO("MlpPolicy", _as_sb3(envs), n_steps=32, batch_size=64, n_epochs=1, device="cpu")
    model.learn(2 * 32 * ENVS)
    assert model.num_timesteps == 2 * 32 * ENVS
    assert np.isfinite(model.policy.predict(envs.reset()[0])[0]).all()


def _as_sb3(envs: GymnasiumVectorEnv) -> Any:
    """Stable-Baselines3 has a vector interface of its own."""
    from stable_baselines3.common.vec_env.base_vec_env import VecEnv  # pyright: ignore[reportMissingImports]

    class Adapter(VecEnv):
        def reset(self) -> np.ndarray:
            return envs.reset(seed=self._seeds[0])[0]

        def step_async(self, actions: np.ndarray) -> None:
            self.actions = actions

        def step_wait(self) -> tuple:
            obs, rewards, terminated, truncated, infos = envs.step(self.actions)
            rows: list[dict] = [{"TimeLimit.truncated": bool(t)} for t in truncated & ~terminated]
            for row in np.flatnonzero(terminated | truncated):
                rows[row]["terminal_observation"] = infos["final_obs"][row]
            return obs, rewards, terminated | truncated, rows

        def close(self) -> None:
            envs.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list:
            return [getattr(envs, attr_name)] * envs.num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
            return [False] * envs.num_envs

    return Adapter(envs.num_envs, envs.single_observation_space, envs.single_action_space)
