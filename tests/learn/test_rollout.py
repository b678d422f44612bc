from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from embodied_rl import factory
from embodied_rl.env import Env
from embodied_rl.learn.models import build_actor, normalized
from embodied_rl.learn.rollout import LocalCollector, Rollout

STEPS, ENVS = 12, 32
SMALL = ["env.compile=false", "physics.num_threads=1", "env.episode_s=0.4", "ppo.actor_hidden_dims=[8]", "ppo.init_std=0.5"]


@pytest.fixture
def envs() -> Iterator[tuple[Env, Env]]:
    """Twice the same."""
    made = factory.make("go2_flat", SMALL, num_envs=ENVS), factory.make("go2_flat", SMALL, num_envs=ENVS)
    yield made
    for env in made:
        env.close()


def noise(rollout: Rollout) -> torch.Tensor:
    return (rollout.actions - rollout.mean) / rollout.std


def test_a_rollout_is_what_the_actor_lived_through(envs: tuple[Env, Env]) -> None:
    """Another environment that is told the same actions lives through the same."""
    env, replay = envs
    torch.manual_seed(0)
    actor = build_actor(env.obs, env.num_actions, env.page.ppo)
    collector = LocalCollector(env, STEPS, seed=1)
    ends = 0
    for iteration in range(2):
        rollout = collector.collect(actor, iteration)
        for step in range(STEPS):
            assert all(torch.equal(values[step], replay.obs[name]) for name, values in rollout.obs.items())
            with torch.inference_mode():
                torch.testing.assert_close(rollout.mean[step], actor.mlp(normalized(actor, replay.obs["actor"])))
            done = replay.step(rollout.actions[step])
            assert torch.equal(rollout.rewards[step], done.rewards) and torch.equal(rollout.valid[step], done.valid)
            assert torch.equal(rollout.terminated[step], done.terminated)
            assert torch.equal(rollout.truncated[step], done.truncated)
            ended = done.truncated
            assert torch.equal(rollout.final_obs["critic"][step][ended], done.final_obs["critic"][ended])
            ends += int(ended.sum())
        assert all(torch.equal(values, replay.obs[name]) for name, values in rollout.last_obs.items())
        assert rollout.totals["steps"] == STEPS * ENVS
        assert set(rollout.seconds) == {"physics", "env", "policy"} and min(rollout.seconds.values()) > 0.0
    assert ends


def test_the_policys_noise_is_new_in_every_step_and_iteration(envs: tuple[Env, Env]) -> None:
    env, _ = envs
    actor = build_actor(env.obs, env.num_actions, env.page.ppo)
    collector = LocalCollector(env, STEPS, seed=1)
    first = noise(collector.collect(actor, 0)).clone()
    second = noise(collector.collect(actor, 1))
    drawn = torch.cat((first, second)).flatten(1)
    assert (torch.corrcoef(drawn) - torch.eye(2 * STEPS)).abs().max() < 0.3  # of 384 numbers each: 5.9 standard errors
    assert abs(float(drawn.mean())) < 0.05 and float(drawn.std()) == pytest.approx(1.0, abs=0.05)
    assert (torch.corrcoef(first[0]) - torch.eye(ENVS)).abs().max() < 1.0 - 1e-3  # no robot hears another's
