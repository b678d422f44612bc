from __future__ import annotations

import pickle
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
from embodied_rl.errors import UserError  # noqa: E402

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
    assert lengths == [20, 20, 20]  # each begins at its beginning, whatever training does


BAD_ACTIONS = {
    "nan at [3, 5]": lambda actions: np.where(np.arange(actions.size).reshape(actions.shape) == 3 * 12 + 5, np.nan, actions),
    "-inf at [0, 0]": lambda actions: actions - np.inf,
    "(12,)": lambda actions: actions[0],
    "(7, 12)": lambda actions: actions[1:],
    "ndarray of complex64": lambda actions: actions.astype(np.complex64),
    "ndarray of <U32": lambda actions: actions.astype(str),
    "NoneType of object": lambda actions: None,
    "list of object": lambda actions: [[0.0], [0.0, 1.0]],
}


@pytest.mark.parametrize("said", BAD_ACTIONS)
def test_actions_that_are_none_are_a_line(envs: GymnasiumVectorEnv, said: str) -> None:
    before = envs.reset(seed=1)[0]
    with pytest.raises(UserError) as caught:
        envs.step(BAD_ACTIONS[said](zeros(envs)))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    np.testing.assert_array_equal(envs._obs(), before)


def test_actions_in_any_layout_and_type_of_numbers(envs: GymnasiumVectorEnv) -> None:
    wanted = zeros(envs) + np.linspace(-1, 1, 12, dtype=np.float32) * np.arange(ENVS, dtype=np.float32)[:, None]
    many: list[Any] = [wanted.astype(np.float64), wanted.tolist(), np.asfortranarray(wanted), wanted[::-1].copy()[::-1]]
    many += [torch.tensor(wanted, requires_grad=True)]
    envs.reset(seed=1)
    first = envs.step(wanted)[0]
    for given in many:
        envs.reset(seed=1)
        np.testing.assert_array_equal(envs.step(given)[0], first)


def test_a_reset_of_some_leaves_the_others_untouched(envs: GymnasiumVectorEnv) -> None:
    mask = np.arange(ENVS) % 3 == 0

    def go_on(masked: bool) -> list[np.ndarray]:
        envs.reset(seed=4)
        for _ in range(5):
            envs.step(zeros(envs) + 0.2)
        seen = [envs.reset(options={"reset_mask": mask}, seed=9)[0]] if masked else [envs._obs()]
        lengths = envs.env.buffers["episode_length"].numpy()
        assert lengths.tolist() == np.where(mask & masked, 0, 5).tolist()
        return [*seen, *(envs.step(zeros(envs))[0] for _ in range(3))]

    for reset, whole in zip(go_on(True), go_on(False), strict=True):
        np.testing.assert_array_equal(reset[~mask], whole[~mask])
        assert (np.abs(reset - whole).max(1) > 1e-3)[mask].all()


def test_each_row_may_have_a_seed_of_its_own(envs: GymnasiumVectorEnv) -> None:
    seeds = list(range(ENVS))
    first, again, one = (envs.reset(seed=seed)[0] for seed in (seeds, seeds, [7, *seeds[1:]]))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[1:], one[1:])
    assert not np.allclose(first[0], one[0])
    np.testing.assert_array_equal(envs.reset(seed=[5] * ENVS)[0], envs.reset(seed=np.int64(5))[0])  # pyright: ignore
    assert (envs.env.buffers["episode_length"] == 0).all()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"seed": -1}, "seed: -1 is none; a whole number from 0 up is wanted, or None"),
        ({"seed": 1.5}, "seed: 1.5 is none"),
        ({"seed": [1, 2]}, "seed: 2 of them are given, and there are 8 environments"),
        ({"seed": [*range(7), "x"]}, "seed: 'x' is none"),
        ({"options": {"reset_masks": 1}}, "options: 'reset_masks' is none; did you mean 'reset_mask'?"),
        ({"options": [1]}, "options: list is given, and a dict or None is wanted"),
        ({"options": {"reset_mask": [True]}}, "reset_mask is bool (1,); bool (8,) with a True is wanted"),
        ({"options": {"reset_mask": list(range(8))}}, "reset_mask is int64 (8,); bool (8,)"),
        ({"options": {"reset_mask": [False] * 8}}, "reset_mask is nowhere true; bool (8,)"),
    ],
)
def test_a_reset_that_nobody_means_is_a_line(envs: GymnasiumVectorEnv, asked: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        envs.reset(**asked)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_after_its_end_an_environment_says_so() -> None:
    envs, env = GymnasiumVectorEnv(make(2)), GymnasiumEnv(make(1))
    for one in (envs, env):
        one.reset(seed=1)
        one.close()
        one.close()
        for call in (one.reset, lambda one=one: one.step(one.action_space.sample())):
            with pytest.raises(UserError, match=r"^the environment is closed; make another one$"):
                call()


def test_a_copy_is_made_of_the_page(envs: GymnasiumVectorEnv) -> None:
    copied = pickle.loads(pickle.dumps(envs))
    for mine, theirs in zip(rollout(envs, 3), rollout(copied, 3), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    copied.close()
    one = pickle.loads(pickle.dumps(GymnasiumEnv(make(1))))
    assert one.reset(seed=1)[0] in one.observation_space


def test_one_robot_has_no_options() -> None:
    with pytest.raises(UserError, match="options: 'reset_mask': nothing reads them; leave them out"):
        GymnasiumEnv(make(1)).reset(options={"reset_mask": [True]})


@pytest.mark.parametrize("kind", [GymnasiumVectorEnv, GymnasiumEnv])
def test_what_is_no_environment_of_ours(kind: Any) -> None:
    with pytest.raises(UserError, match=r"env: str is given, and what embodied_rl.make gives is wanted"):
        kind("go2_flat")


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
