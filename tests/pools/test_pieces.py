"""The parts of a pool that need no Ray: fragments put together, and what is learned from them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from embodied_rl.config import ConfigError, load
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.inspection import Inspection
from embodied_rl.learn.advantages import gae, vtrace
from embodied_rl.learn.cpu.perceptron import FrozenPerceptron
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.stale import Present
from embodied_rl.pools.assembly import Assembly
from embodied_rl.pools.records import Records, pack_actions, unpack_actions
from embodied_rl.vector_env import ActionSpace, Step


def fragment(steps: int, envs: int, seed: int, done: int | None = None) -> dict[str, Any]:
    """A fragment of which `done` steps were taken."""
    draw = np.random.default_rng(seed)
    done = steps if done is None else done
    normal = lambda *shape: draw.normal(size=shape).astype(np.float32)  # noqa: E731
    truncated = draw.random((done, envs)) < 0.3
    where = np.argwhere(truncated)
    arrays = {
        "final_rows": where,
        "actions": normal(done, envs, 2),
        "output": normal(done, envs, 2),
        "rewards": normal(done, envs),
        "terminated": np.zeros((done, envs), bool),
        "truncated": truncated,
        "valid": np.ones((done, envs), bool),
        "obs:actor": normal(done, envs, 3),
        "last_obs:actor": normal(envs, 3),
        "final_obs:actor": normal(len(where), 3),
        "std": np.array([0.5, 0.5], np.float32),
    }
    return {"arrays": arrays, "steps": done}


def test_fragments_come_in_any_order_and_any_cut() -> None:
    parts = {(0, 2): fragment(4, 2, 1), (2, 5): fragment(4, 3, 2)}
    rollouts = []
    for order in (list(parts), list(parts)[::-1]):
        assembly = Assembly(4, 5, ["actor"], torch.device("cpu"))
        for rows in order:
            assembly.write(parts[rows], slice(*rows))
        rollouts.append(assembly.rollout)
    for name in ("actions", "rewards", "truncated"):
        expected = np.concatenate([part["arrays"][name] for part in parts.values()], axis=1)
        assert all(np.array_equal(getattr(rollout, name).numpy(), expected) for rollout in rollouts)
    first = parts[0, 2]["arrays"]
    for (step, env), value in zip(first["final_rows"].tolist(), first["final_obs:actor"], strict=True):
        assert np.array_equal(rollouts[0].final_obs["actor"][step, env].numpy(), value)
    taken = Assembly(4, 2, ["actor"], torch.device("cpu"))
    taken.write(parts[2, 5], slice(0, 2), slice(1, 3))
    assert torch.equal(taken.rollout.actions, rollouts[0].actions[:, 3:])
    mask = taken.rollout.truncated
    assert torch.equal(taken.rollout.final_obs["actor"][mask], rollouts[0].final_obs["actor"][:, 3:][mask])


def test_a_cut_is_bootstrapped_and_nothing_is_learned_beyond_it() -> None:
    """A fragment of 2 of 4 steps: the learner's returns are those of a rollout of 2 steps, by its own arithmetic."""
    page = PPOSettings.model_validate({"actor_hidden_dims": (4,), "critic_hidden_dims": (4,), "gamma": 0.9, "lam": 0.8})
    cut = fragment(4, 1, 5, done=2)
    cut["arrays"]["truncated"][:] = False
    cut["arrays"]["final_rows"], cut["arrays"]["final_obs:actor"] = np.zeros((0, 2), int), np.zeros((0, 3), np.float32)
    assembly = Assembly(4, 1, ["actor"], torch.device("cpu"))
    assembly.write(cut, slice(0, 1))
    rollout = assembly.rollout
    assert rollout.valid[:, 0].tolist() == [True, True, False, False] == [not end for end in rollout.terminated[:, 0].tolist()]
    torch.manual_seed(0)
    learner = PPO({"actor": torch.zeros(1, 3)}, ActionSpace(2), page, {}, seed=1)
    learner._prepare(rollout)
    found = learner._batch.columns(learner._batch.table)["return"][:2, 0]
    value = lambda obs: float(learner._values(torch.as_tensor(obs)[None]).detach())  # noqa: E731
    obs, rewards, last = cut["arrays"]["obs:actor"][:, 0], cut["arrays"]["rewards"][:, 0], cut["arrays"]["last_obs:actor"][0]
    # delta_1 = r_1 + 0.9 V(last) - V(s_1);  delta_0 = r_0 + 0.9 V(s_1) - V(s_0);  A_0 = delta_0 + 0.9 0.8 delta_1
    second = float(rewards[1]) + 0.9 * value(last) - value(obs[1])
    first = float(rewards[0]) + 0.9 * value(obs[1]) - value(obs[0]) + 0.72 * second
    assert found.tolist() == pytest.approx([first + value(obs[0]), second + value(obs[1])], abs=1e-5)


def test_vtrace_by_hand_and_without_staleness_gae() -> None:
    """r = 1, 2; V = 0.5, 1.0, last 2.0; gamma 0.9, lambda 0.8; pi / mu = 0.5 and 3."""
    column = lambda *values: torch.tensor(values)[:, None]  # noqa: E731
    rewards, values, last, ratio = column(1.0, 2.0), column(0.5, 1.0), torch.tensor([2.0]), column(0.5, 3.0)
    done = torch.zeros(2, 1, dtype=torch.bool)
    advantages, targets = vtrace(rewards, values, done, last, ratio, 0.9, 0.8)
    # A_1 = 2 + 0.9 2 - 1 = 2.8;  v_1 - V = min(1, 3) 2.8;  A_0 = 1 + 0.9 1 - 0.5 + 0.72 2.8 = 3.416;  v_0 - V = 0.5 3.416
    assert advantages[:, 0].tolist() == pytest.approx([3.416, 2.8])
    assert targets[:, 0].tolist() == pytest.approx([0.5 + 1.708, 3.8])
    draw = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(7, 5, generator=draw), torch.randn(7, 5, generator=draw)
    done, last = torch.rand(7, 5, generator=draw) < 0.2, torch.randn(5, generator=draw)
    advantages, targets = vtrace(rewards, values, done, last, torch.ones(7, 5), 0.97, 0.9)
    expected = gae(rewards, values, done, last, 0.97, 0.9)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(targets, expected + values)


def test_stale_actions_weigh_by_their_odds_in_the_update() -> None:
    """The advantages that the surrogate sees are those of V-trace, normalized, times the ratio."""
    page = PPOSettings.model_validate({"actor_hidden_dims": (4,), "critic_hidden_dims": (4,)})
    whole = fragment(4, 2, 3)
    assembly = Assembly(4, 2, ["actor"], torch.device("cpu"))
    assembly.write(whole, slice(0, 2))
    torch.manual_seed(0)
    learner = PPO({"actor": torch.zeros(1, 3)}, ActionSpace(2), page, {}, seed=1)
    seen = {}
    rollout = assembly.rollout
    for ratio in (None, torch.ones(4, 2), torch.full((4, 2), 0.5)):
        learner._prepare(rollout, None if ratio is None else Present(rollout.output, rollout.std, ratio.log()))
        columns = learner._batch.columns(learner._batch.table)
        seen[ratio is None, None if ratio is None else float(ratio[0, 0])] = columns["advantage"].clone()
    torch.testing.assert_close(seen[True, None], seen[False, 1.0])
    halved = seen[False, 0.5]
    assert float(halved.std()) == pytest.approx(0.5, abs=1e-3) and not torch.allclose(halved, 0.5 * seen[False, 1.0])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["pool.mode=async", "train.learner=rsl_rl.algorithms:PPO"], "needs train.learner: ppo or impala, which weigh stale"),
        (
            ["pool.mode=async", "ppo.normalize_advantage=minibatch"],
            "normalize_advantage: rollout or none; set it, or take mode: sync",
        ),
        (["train.correction=vtrace"], 'train.correction: "vtrace" is only read with train.overlap: true, pool.mode: overlap'),
        (["pool.mode=async", "train.correction=vtrace", "train.importance_clip=3.0"], "and correction: decoupled; leave it out"),
        (["ppo.normalize_advantage_per_mini_batch=true"], "is ppo.normalize_advantage (false: rollout, true: minibatch) now"),
        (["train.overlap=true"], "train.overlap: true: of a pool it is pool.mode: overlap; leave the key out"),
        (["pool.address=none", "pool.mode=async"], "of their own, and address: none has none; take mode: sync"),
        (["pool.address=none", "pool.mode=overlap"], "take mode: sync, or train.overlap: true with it"),
        (["pool.importance_clip=3.0"], "pool.importance_clip: is train.importance_clip now"),
        (["pool.inference=central", "pool.on_crash=mask"], "pool.on_crash: 'mask' is not there with inference: central"),
        (["pool.inference=central", "pool.mode=overlap"], '"central" is there with mode: sync or async; take one of them, or'),
        (["pool.inference_wait_s=0.1"], "pool.inference_wait_s: 0.1 is only read with inference: central; leave it out"),
        (["pool.inference=central", "pool.deadline_share=0.5"], "pool.deadline_share: 0.5 is only read with inference: local"),
        (["physics.engine=mjx"], "a pool needs engine: native"),
        (["env.source=gymnasium:Ant-v5"], "not allowed with env.source"),
        (["env.reward_scale=2.0"], "env.reward_scale: only allowed with env.source"),
        (["pool.workers=-1"], "pool.workers: -1 is not allowed: at least 0"),
        (["pool.mode=asink"], "did you mean 'async'?"),
    ],
)
def test_what_a_pool_cannot_do_is_said_when_the_page_is_checked(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("pool_go2_flat", overrides)
    assert said in str(caught.value)


def test_a_rollout_is_as_large_as_what_is_said_of_it_beforehand() -> None:
    """16 environments in shards of 4: all, half of the shards, one worker's of 2."""
    small, whole = ["env.num_envs=16", "pool.shard_size=4", "pool.workers=2", "train.iterations=10", "train.steps=5"], {}
    halves = ["ppo.num_learning_epochs=1", "ppo.num_mini_batches=1", "ppo.schedule=constant"]
    for mode, more in {"sync": [], "async": ["pool.batch_share=0.25"], "gradients": halves}.items():
        page = load("pool_ant", [*small, f"pool.mode={mode}", *more])
        whole[mode] = Inspection((), {}, None, None).summary(page).splitlines()[0]
    assert whole == {
        "sync": "16 x 5 x 10 = 800 steps",
        "async": "4 x 5 x 10 = 200 steps",
        "gradients": "8 x 5 x 10 = 400 steps",
    }


def test_what_stands_in_for_a_pool_overlaps_as_robots_without_one_do() -> None:
    page = load("pool_go2_flat", ["pool.address=none", "train.overlap=true", "train.learner=embodied_rl.learn.ppo:PPO"])
    assert page.train.overlap and not page.pool.has_processes and page.in_shards and page.train.learner == "ppo"


@pytest.mark.parametrize("final_obs", [["critic"], []])
def test_a_step_is_one_string_of_bytes(final_obs: list[str]) -> None:
    draw = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    obs, flags = {"actor": normal(5, 3), "critic": normal(5, 4)}, [normal(5) > 0 for _ in range(3)]
    finals = {name: normal(5, 4) for name in final_obs}
    step = Step(obs, normal(5), flags[0], flags[1], finals, flags[2])
    records = Records({"actor": (3,), "critic": (4,)}, final_obs)
    data = records.pack(step)
    rows, last = records.unpack(data, 5)
    assert len(data) == 5 * (4 * (3 + 4 + 1) + 3) + 16 * len(final_obs) * int(flags[1].sum()) and 0 < int(flags[1].sum()) < 5
    for name, value in obs.items():
        assert np.array_equal(rows[f"obs:{name}"], value)
    assert np.array_equal(rows["rewards"], step.rewards)
    for name, flag in zip(("terminated", "truncated", "valid"), flags, strict=True):
        assert np.array_equal(rows[name], flag)
    for name, value in finals.items():
        assert np.array_equal(last[name], value[flags[1]])


@pytest.mark.parametrize("space", [ActionSpace(3), ActionSpace(4, discrete=True)])
def test_actions_are_one_too(space: ActionSpace) -> None:
    actions = np.arange(6) if space.discrete else np.linspace(-1.0, 1.0, 18, dtype=np.float32).reshape(6, 3)
    there = unpack_actions(pack_actions(actions), space)
    assert torch.equal(there, torch.from_numpy(actions)) and there.dtype == torch.from_numpy(actions).dtype


@pytest.mark.parametrize("activation", [nn.ELU, nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("sizes", [(7, 5, 3), (47, 64, 33, 12), (105, 300, 300, 8)])
def test_a_product_of_more_rows_has_the_bits_of_fewer(sizes: tuple[int, ...], activation: Any) -> None:
    """What lets a batch be answered at once, however it is put together (`Inference`)."""
    torch.manual_seed(0)
    layers = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), activation())]
    network = FrozenPerceptron(nn.Sequential(*layers[:-1]).requires_grad_(False))
    if not network.fuses:
        pytest.skip("needs a C++ compiler")
    obs = torch.randn(203, sizes[0])
    whole = network(obs)
    for size in (1, 3, 8, 50):
        assert torch.equal(torch.cat([network(part) for part in obs.split(size)]), whole)
