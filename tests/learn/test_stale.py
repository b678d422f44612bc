"""What an older policy did beside what the present one would have done, and what PPO makes of the two."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from embodied_rl import training
from embodied_rl.config import load
from embodied_rl.config.page import TrainSettings
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.learn.advantages import gae, vtrace
from embodied_rl.learn.copies import pack, plain_copy
from embodied_rl.learn.models import build_actor, policy_of
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.rollout import LocalCollector, Rollout
from embodied_rl.learn.stale import compare, staleness_totals
from embodied_rl.make_env import make_vector
from embodied_rl.pools.assembly import Assembly
from embodied_rl.pools.worker import SimWorker
from embodied_rl.vector_env import ActionSpace


def gaussian_policy(weight: float, std: float) -> Policy:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return Policy(nn.Identity(), nn.Sequential(layer).requires_grad_(False), lambda: torch.tensor([std]))


def test_the_odds_of_what_another_policy_did() -> None:
    """mu = N(o, 1), pi = N(2 o, 0.5), o = 1, a = 1.5: log pi - log mu = -0.5 + log 2 + 0.125."""
    one = torch.ones(1, 3)
    given = {"obs": {"actor": one[..., None]}, "output": one[..., None].clone(), "actions": 1.5 * one[..., None]}
    flags = dict.fromkeys(("terminated", "truncated"), one < 0)
    log_mu = (-0.125 - 0.5 * math.log(2.0 * math.pi)) * one
    rollout = Rollout(
        **given, **flags, std=torch.ones(1), rewards=one, valid=torch.tensor([[True, False, True]]), final_obs={}, last_obs={}
    )
    # of the third robot nothing is behind: what was noted is not even looked at
    rollout.log_prob, rollout.staleness = log_mu + torch.tensor([0.0, 0.0, 5.0]), torch.tensor([1.0, 3.0, 0.0])
    present = compare(rollout, gaussian_policy(2.0, 0.5))
    expected = math.exp(-0.5 * (0.5 / 0.5) ** 2 + math.log(2.0) + 0.5 * 0.5**2)
    assert present.ratio[0].tolist() == pytest.approx([expected, 1.0, 1.0])
    assert present.output[0, :, 0].tolist() == [2.0, 2.0, 1.0] and present.std is not None and present.std.tolist() == [0.5]
    assert torch.equal(rollout.output, one[..., None])  # what acted stays what it was
    totals = staleness_totals(rollout, present, bound=2.0)
    assert totals == pytest.approx(
        {
            "policy_mean/staleness": 1.0,
            "policy_mean/importance": expected + 1.0,
            "policy_mean/clipped": 0.0,
            "policy_mean/kl": -math.log(expected),
        },
        rel=1e-5,
    )
    assert staleness_totals(rollout, present, bound=1.0)["policy_mean/clipped"] == 1.0


# ------------------------------------------------------------------------------------------------- policies that remember

GRU = [
    *("env.compile=false", "env.num_envs=6", "env.episode_s=0.16", "physics.num_threads=1", "train.steps=12", "curriculum=null"),
    *("ppo.actor_hidden_dims=[16]", "ppo.critic_hidden_dims=[16]", "ppo.symmetry=none", "ppo.rnn_hidden_dim=8"),
    *("ppo.num_learning_epochs=1", "ppo.num_mini_batches=2", "pool.shard_size=2"),
]


def recurrent(kind: str, *overrides: str) -> tuple[Any, Policy]:
    page = load("pool_go2_flat", [*GRU, f"ppo.rnn_type={kind}", *overrides])
    torch.manual_seed(0)
    return page, policy_of(build_actor({"actor": torch.zeros(1, 47)}, ActionSpace(12), page.ppo))


def change(policy: Policy) -> None:
    """As an update would."""
    for part in (policy.network, policy.memory):
        for parameter in part.parameters():  # pyright: ignore
            parameter.data += 0.05


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_fragment_carries_its_memory_and_its_log_probs(kind: str) -> None:
    """Two fragments of a worker: with its weights the log-probs are those that it noted, at every step, resets inside."""
    page, policy = recurrent(kind, "pool.mode=async")
    worker = SimWorker([])
    worker.build(page, np.arange(6))
    worker.meet(plain_copy(policy))
    assembly = Assembly(12, 4, ["critic"], torch.device("cpu"))
    for version in range(2):
        fragment = worker.collect({"version": version, "weights": pack(policy), "numbers": {}}, version)
        # the second of the fragment's shards and the third, in the other order
        assembly.write(fragment, slice(0, 2), slice(4, 6))
        assembly.write(fragment, slice(2, 4), slice(2, 4))
        rollout = assembly.done()
        rollout.staleness = torch.ones(4)
        done = rollout.terminated | rollout.truncated
        assert bool(done[:-1].any()) and (version == 0) == all(bool((part == 0.0).all()) for part in rollout.memory)
        log_ratio = compare(rollout, policy).log_ratio
        torch.testing.assert_close(log_ratio, torch.zeros(12, 4), rtol=0.0, atol=1e-5)
        # it matters: without memory, and without resets, they are others
        memory = rollout.memory
        if version:
            rollout.memory = tuple(torch.zeros_like(part) for part in memory)
            assert float(compare(rollout, policy).log_ratio.abs().max()) > 1e-3
            rollout.memory = memory
        rollout.terminated, rollout.truncated = torch.zeros_like(done), torch.zeros_like(done)
        assert float(compare(rollout, policy).log_ratio.abs().max()) > 1e-3
    rollout.staleness = torch.zeros(4)  # the policy that acted: 1 and not nearly so
    assert bool((compare(rollout, policy).ratio == 1.0).all())
    change(policy)
    rollout.staleness, (rollout.terminated, rollout.truncated) = torch.ones(4), (done, torch.zeros_like(done))
    assert float(compare(rollout, policy).log_ratio.abs().max()) > 1e-2
    worker._env.close()  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("learner", ["ppo", "impala"])
def test_a_policy_that_remembers_learns_while_the_next_rollout_is_collected(tmp_path: Path, learner: str) -> None:
    given = ["ppo.rnn_type=gru", "train.overlap=true", f"train.learner={learner}", *PLAIN]
    # what has been seen of observations changes a policy more than an update, in the beginning
    page = load("go2_flat", [*GRU[:-1], *given, "ppo.obs_normalization=false"])
    made = training.start(page, tmp_path / "run")
    history = list(made.train(3))
    assert [one["Policy/staleness"] for one in history] == [0.0, 1.0, 1.0] and history[0]["Policy/importance"] == 1.0
    assert 0.0 < abs(history[1]["Policy/kl"]) < 0.1 and all(math.isfinite(value) for value in history[-1].values())


#: Of go2_flat's settings those that IMPALA does not read, at their defaults.
PLAIN = ["ppo.use_clipped_value_loss=true", "ppo.num_learning_epochs=5", "ppo.learning_rate=1e-4"]


# ---------------------------------------------------------------------------------------------------- what PPO makes of it

PAGE = {"actor_hidden_dims": (8,), "critic_hidden_dims": (8,), "num_learning_epochs": 1, "num_mini_batches": 1, "gamma": 0.9}
STEPS, ENVS = 6, 4


def stale(seed: int = 0) -> Rollout:
    """What a policy did at random observations that is nobody's here any more; robot 1 ends in step 2."""
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    mean, std = 0.3 * normal(STEPS, ENVS, 2), torch.tensor([0.7, 0.9])
    actions = mean + std * normal(STEPS, ENVS, 2)
    ends = torch.zeros(STEPS, ENVS, dtype=torch.bool)
    ends[2, 1] = True
    return Rollout(
        obs={"actor": normal(STEPS, ENVS, 3)},
        actions=actions,
        output=mean,
        std=std,
        rewards=normal(STEPS, ENVS),
        terminated=ends,
        truncated=torch.zeros_like(ends),
        valid=torch.ones_like(ends),
        final_obs={"actor": normal(STEPS, ENVS, 3)},
        last_obs={"actor": normal(ENVS, 3)},
        log_prob=torch.distributions.Normal(mean, std).log_prob(actions).sum(-1),
        staleness=torch.full((ENVS,), 2.0),
    )


def learner(correction: str, **changes: Any) -> PPO:
    torch.manual_seed(1)
    page = PPOSettings.model_validate(PAGE | changes)
    train = TrainSettings.model_validate({"correction": correction, "importance_clip": 1.2})
    return PPO({"actor": torch.zeros(1, 3)}, ActionSpace(2), page, {}, seed=1, train=train)


@pytest.mark.parametrize("correction", ["decoupled", "vtrace", "none"])
def test_each_correction_has_its_old_policy_its_targets_and_its_weights(correction: str) -> None:
    made, rollout = learner(correction, normalize_advantage="none"), stale()
    present = compare(rollout, made.policy)
    assert rollout.log_prob is not None and float((present.ratio > 1.2).float().mean()) > 0.1
    made._prepare(rollout, present)
    b = made._batch.columns(made._batch.table)
    values = made._values(rollout.obs["actor"])
    given = rollout.rewards, values, rollout.terminated, made._values(rollout.last_obs["actor"])
    expected, targets = vtrace(*given, present.ratio, 0.9, 0.95)
    now = made.policy(rollout.obs["actor"].flatten(0, 1))[0].log_prob(rollout.actions.flatten(0, 1)).view(STEPS, ENVS)
    if correction == "none":
        expected = gae(*given, 0.9, 0.95)
        targets = expected + values
    if correction == "decoupled":
        expected = expected * (now - rollout.log_prob).exp().clamp(max=1.2)
    torch.testing.assert_close(b["advantage"], expected)
    torch.testing.assert_close(b["return"], targets)
    torch.testing.assert_close(b["log_prob"], now if correction == "decoupled" else rollout.log_prob)
    metrics = made.update(rollout, 0)
    # the first step's distance is none: it is that to the policy before the update, whoever acted
    assert abs(metrics["Loss/kl"]) < 1e-6 and (metrics["Loss/clip_fraction"] == 0.0) == (correction == "decoupled")
    share = {"decoupled": float((present.ratio > 1.2).sum()), "vtrace": float((present.ratio > 1.0).sum()), "none": 0.0}
    assert rollout.totals["policy_mean/clipped"] == share[correction] and rollout.totals["policy_mean/staleness"] == 48.0


def test_where_nothing_is_behind_all_corrections_are_the_same() -> None:
    ends = []
    for correction, staleness in (("none", None), ("decoupled", 0.0), ("vtrace", 0.0), ("none", 0.0)):
        made, rollout = learner(correction, schedule="constant", num_learning_epochs=3, num_mini_batches=2), stale()
        answer, _ = made.policy(rollout.obs["actor"].flatten(0, 1))
        rollout.output, rollout.std = answer.output.detach().view(STEPS, ENVS, 2), made.policy.std.detach().clone()  # pyright: ignore
        rollout.log_prob = made.policy.distribution(rollout.output, rollout.std).log_prob(rollout.actions)
        rollout.staleness = None if staleness is None else torch.full((ENVS,), staleness)
        made.update(rollout, 0)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in made.steps.parameters]))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("learner", ["ppo", "impala"])
def test_what_acted_is_handed_out_and_nothing_else(learner: str) -> None:
    """The collector's rollout is that of the policy that acted, whatever the learner's is by then."""
    page, policy = recurrent("gru", f"train.learner={learner}", *PLAIN)
    local = LocalCollector(make_vector(page, torch.arange(6)), 12, page.env.seed, chunk=2)
    local.notes_log_prob = True
    rollout = local.collect(policy, 0)
    assert rollout.log_prob is not None and rollout.staleness is None
    expected = policy.distribution(rollout.output, rollout.std).log_prob(rollout.actions)
    assert torch.equal(rollout.log_prob, expected.detach())
    local._env.close()
