from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from embodied_rl import machine, make_env
from embodied_rl.env import Env
from embodied_rl.learn.models import build_actor, normalized, policy_of
from embodied_rl.learn.rollout import LocalCollector, Rollout

STEPS, ENVS = 12, 32
SMALL = ["env.compile=false", "physics.num_threads=1", "env.episode_s=0.4", "ppo.actor_hidden_dims=[8]", "ppo.init_std=0.5"]


@pytest.fixture
def envs() -> Iterator[tuple[Env, Env]]:
    """Twice the same."""
    made = make_env.make("go2_flat", SMALL, num_envs=ENVS), make_env.make("go2_flat", SMALL, num_envs=ENVS)
    yield made
    for env in made:
        env.close()


def noise(rollout: Rollout) -> torch.Tensor:
    assert rollout.std is not None
    return (rollout.actions - rollout.output) / rollout.std


def test_a_rollout_is_what_the_actor_lived_through(envs: tuple[Env, Env]) -> None:
    """Another environment that is told the same actions lives through the same."""
    env, replay = envs
    torch.manual_seed(0)
    actor = build_actor(env.obs, env.action_space, env.page.ppo)
    collector, policy = LocalCollector(env, STEPS, seed=1), policy_of(actor)
    ends = 0
    for iteration in range(2):
        rollout = collector.collect(policy, iteration)
        for step in range(STEPS):
            assert all(torch.equal(values[step], replay.obs[name]) for name, values in rollout.obs.items())
            with torch.inference_mode():
                torch.testing.assert_close(rollout.output[step], actor.mlp(normalized(actor, replay.obs["actor"])))
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
    actor = build_actor(env.obs, env.action_space, env.page.ppo)
    collector, policy = LocalCollector(env, STEPS, seed=1), policy_of(actor)
    first = noise(collector.collect(policy, 0)).clone()
    second = noise(collector.collect(policy, 1))
    drawn = torch.cat((first, second)).flatten(1)
    assert (torch.corrcoef(drawn) - torch.eye(2 * STEPS)).abs().max() < 0.3  # of 384 numbers each: 5.9 standard errors
    assert abs(float(drawn.mean())) < 0.05 and float(drawn.std()) == pytest.approx(1.0, abs=0.05)
    assert (torch.corrcoef(first[0]) - torch.eye(ENVS)).abs().max() < 1.0 - 1e-3  # no robot hears another's


def test_a_rollout_shares_no_memory_with_the_environment(envs: tuple[Env, Env]) -> None:
    env, _ = envs
    policy = policy_of(build_actor(env.obs, env.action_space, env.page.ppo))
    rollout = LocalCollector(env, STEPS, seed=1).collect(policy, 0)
    kept = {name: value.clone() for name, value in tensors(rollout)}
    owned = [*env.buffers.values(), *env.obs.values(), *env.final_obs.values(), env.physics.qpos, env.physics.qvel]
    for tensor in (*owned, *env.physics.sensors.values()):
        tensor.fill_(7)
    assert all(torch.equal(value, kept[name]) for name, value in tensors(rollout))


def tensors(rollout: Rollout) -> list[tuple[str, torch.Tensor]]:
    parts = vars(rollout).items()
    groups = [(f"{name}.{key}", value) for name, group in parts if isinstance(group, dict) for key, value in group.items()]
    return [(name, value) for name, value in (*parts, *groups) if isinstance(value, torch.Tensor)]


def test_a_compiled_policy_does_the_same(envs: tuple[Env, Env]) -> None:
    if reason := machine.cpp_error():
        pytest.skip(reason)
    env, other = envs
    torch.manual_seed(0)
    policy = policy_of(build_actor(env.obs, env.action_space, env.page.ppo))
    compiler = lambda function: torch.compile(function, fullgraph=True, dynamic=False)  # noqa: E731
    eager, compiled = LocalCollector(env, STEPS, seed=1), LocalCollector(other, STEPS, seed=1, compiler=compiler)
    one, two = eager.collect(policy, 0), compiled.collect(policy, 0)
    torch.testing.assert_close(two.actions[0], one.actions[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(two.obs["actor"][:3], one.obs["actor"][:3], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
def test_a_snapshot_after_a_restore_is_what_was_restored(envs: tuple[Env, Env], rnn_type: str) -> None:
    """In a process that has not collected yet, and in one that has; a policy that follows another remembers nothing of it."""
    env, fresh = envs
    settings = env.page.ppo.model_copy(update={"rnn_type": rnn_type, "rnn_hidden_dim": 8})
    policy, other = (policy_of(build_actor(env.obs, env.action_space, settings)) for _ in range(2))
    collector = LocalCollector(env, 3, seed=1)
    collector.collect(policy, 0)
    before = collector.snapshot()
    collector.collect(policy, 1)
    for one in (collector, LocalCollector(fresh, 3, seed=1)):
        one.restore(before)
        found = one.snapshot()
        assert found.keys() == before.keys() and "policy.memory.0" in found
        assert all(torch.equal(value, before[name]) for name, value in found.items() if name.startswith(("policy.", "obs.")))
    remembered = collector.collect(policy, 1).memory[0]
    assert torch.equal(remembered, before["policy.memory.0"].transpose(0, 1)) and remembered.abs().max() > 0.0
    assert not collector.collect(other, 2).memory[0].any()


def test_a_graph_is_captured_anew_after_a_restore(envs: tuple[Env, Env], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps before the capture write into the rollout too, and find room there: a CPU that stands for a GPU."""
    monkeypatch.setattr(Env, "captured", True)
    monkeypatch.setattr("embodied_rl.cuda_graph.CudaGraph", lambda function, device, physics, *, what: function)
    env, other = envs
    policy = policy_of(build_actor(env.obs, env.action_space, env.page.ppo))
    collector, reference = LocalCollector(env, 2, seed=1), LocalCollector(other, 2, seed=1)
    collector.collect(policy, 0)
    collector.restore(collector.snapshot())
    reference.collect(policy, 0)
    again, expected = collector.collect(policy, 1), reference.collect(policy, 1)
    assert torch.equal(again.actions, expected.actions) and torch.equal(again.rewards, expected.rewards)
