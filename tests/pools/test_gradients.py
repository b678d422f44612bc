"""Mode `gradients`: what a worker sends, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("gymnasium")
pytest.importorskip("rsl_rl")

from embodied_rl.config import ConfigError, Page, load
from embodied_rl.learn.copies import checksum, pack_networks, unpack_networks
from embodied_rl.learn.normalizer import learn_statistics
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.rollout import LocalCollector, Rollout
from embodied_rl.make_env import make_vector
from embodied_rl.pools.errors import PoolError
from embodied_rl.pools.gradients import unpacked
from embodied_rl.pools.pool import SimPool
from embodied_rl.pools.worker import SimWorker

CPU = torch.device("cpu")
STEPS, ENVS = 8, 4
PPO_SETTINGS = {
    **{"num_learning_epochs": 1, "num_mini_batches": 1, "schedule": "constant", "learning_rate": 0.01, "max_grad_norm": 0.5},
    **{"actor_hidden_dims": [8], "critic_hidden_dims": [8], "activation": "tanh", "gamma": 0.9, "lam": 0.8},
}


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """Pendulums, whose episodes end by time in the middle of a fragment; two workers."""
    path = tmp_path / "page.yaml"
    source = {"source": "gymnasium:Pendulum-v1", "source_options": {"max_episode_steps": 5}, "num_envs": ENVS}
    pool = {"workers": 2, "shard_size": 2, "mode": "gradients", "spares": 0, "max_staleness": 2}
    path.write_text(json.dumps({"env": source, "train": {"steps": STEPS}, "ppo": PPO_SETTINGS, "pool": pool}))
    return load(path)


def local(page: Page, envs: int = ENVS) -> LocalCollector:
    return LocalCollector(make_vector(page, torch.arange(envs)), STEPS, page.env.seed, chunk=page.pool.shard_size)


def learner(page: Page, collector: Any = None) -> PPO:
    """With statistics that are not those of its beginning."""
    torch.manual_seed(3)
    made = PPO.make(page, collector or local(page), CPU, group=Group())
    for network in (made.actor, made.critic):
        learn_statistics(network.obs_normalizer, torch.randn(5, 7, 3) * 2.0 + 1.0, torch.ones(5, 7))  # pyright: ignore
    return made


def loss_by_hand(page: Page, made: PPO, rollout: Rollout) -> Tensor:
    """- A log pi(a|s) + c_V (V(s) - R)^2 - c_H H, summed, with advantages of a loop that are standardized and held."""
    ppo, steps = page.ppo, len(rollout.rewards)
    value = lambda obs: made.critic.mlp(made.critic.obs_normalizer(obs))[..., 0]  # noqa: E731
    values = value(rollout.obs["actor"])
    with torch.no_grad():
        known, advantages, following = values.clone(), torch.zeros_like(values), value(rollout.last_obs["actor"])
        for env in range(values.shape[1]):
            ahead, following_value = 0.0, float(following[env])
            for step in reversed(range(steps)):
                reward, goes_on = float(rollout.rewards[step, env]), 1.0
                if rollout.truncated[step, env]:
                    reward, goes_on = reward + ppo.gamma * float(value(rollout.final_obs["actor"][step, env])), 0.0
                delta = reward + ppo.gamma * goes_on * following_value - float(known[step, env])
                ahead = delta + ppo.gamma * ppo.lam * goes_on * ahead
                advantages[step, env], following_value = ahead, float(known[step, env])
        returns = advantages + known
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    distribution, _ = made.policy(rollout.obs["actor"])
    surrogate = -(advantages * distribution.log_prob(rollout.actions)).sum()
    value_loss, entropy = (values - returns).square().sum(), distribution.entropy().sum()
    return surrogate + ppo.value_loss_coef * value_loss - ppo.entropy_coef * entropy


def test_a_gradient_is_that_of_the_version_and_the_fragment_that_it_names(page: Page) -> None:
    """Recomputed by hand; meanwhile the learner's weights have moved, which the worker has a copy of."""
    made, here = learner(page), local(page)
    sent = pack_networks(made.networks)
    given = sent.copy()
    worker = SimWorker([])
    described = worker.build(page, np.arange(ENVS))
    with torch.no_grad():
        for parameter in made.actor.parameters():
            parameter.add_(1.0)
    assert np.array_equal(sent, given), "what was published moved with the learner"
    fragment = worker.collect({"version": 7, "weights": sent, "numbers": {}}, 0)
    assert fragment["version"] == 7 and fragment["checksum"] == checksum(given) and described["obs"] == {"actor": (3,)}
    unpack_networks(made.networks, given)
    rollout = here.collect(made.policy, 0)
    assert rollout.truncated.any()
    for parameter in made.steps.parameters:
        parameter.grad = None
    loss_by_hand(page, made, rollout).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in made.steps.parameters])  # pyright: ignore
    got = unpacked(fragment).gradient
    assert got is not None
    rows = float(got.bucket[len(expected)])
    assert rows == STEPS * ENVS
    torch.testing.assert_close(got.bucket[: len(expected)] / rows, expected / rows, rtol=1e-6, atol=1e-6)
    assert set(fragment["arrays"]) == {
        *("rewards", "terminated", "truncated", "valid"),
        *("gradient", "explained_variance", "moments:actor", "moments:critic"),
    }


def test_gradients_are_applied_by_one_optimizer_and_statistics_are_those_of_all_rows(page: Page) -> None:
    """Against torch's Adam by hand, and mean and variance of all observations in double precision."""
    made, here = learner(page), local(page)
    reference = learner(page)
    optimizer = torch.optim.Adam(reference.steps.parameters, lr=0.01)
    normalizer: Any = made.actor.obs_normalizer
    count, mean, var = int(normalizer.count), normalizer._mean.double(), normalizer._var.double()  # pyright: ignore
    old, seen = pack_networks(made.networks), []
    for iteration in range(3):
        # all of version 0: each is stale by as many versions as were applied before it
        worker = learner(page)
        unpack_networks(worker.networks, old)
        rollout = here.collect(worker.policy, iteration)
        seen.append(rollout.obs["actor"].flatten(0, 1).double().clone())
        gradient = worker.gradient(rollout, iteration)
        rows = float(gradient.bucket[-7])
        parts = (gradient.bucket[:-7] / rows).split([parameter.numel() for parameter in reference.steps.parameters])
        for parameter, part in zip(reference.steps.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        for network in (reference.actor, reference.critic):
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        empty = torch.zeros(STEPS, ENVS, 0)
        flags = {name: getattr(rollout, name) for name in ("rewards", "terminated", "truncated", "valid")}
        metrics = made.update(Rollout({}, empty, empty, None, **flags, final_obs={}, last_obs={}, gradient=gradient), iteration)
        assert metrics["Loss/skipped"] == 0.0 and metrics["Loss/grad_norm"] > 0.0
    for own, expected in zip(made.steps.parameters, reference.steps.parameters, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)
    assert len(made.steps.optimizer.state) == len(made.steps.parameters)
    rows = torch.cat(seen)
    whole = count + len(rows)
    means = (count * mean + rows.sum(0)) / whole
    squares = count * (var + (mean - means).square()) + (rows - means).square().sum(0)
    assert int(normalizer.count) == whole  # pyright: ignore
    torch.testing.assert_close(normalizer._mean.double(), means, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normalizer._var.double(), squares / whole, rtol=1e-6, atol=1e-6)


def collecting(page: Page, inline: Any) -> tuple[SimPool, PPO]:
    pool = SimPool(page, connection=inline)
    made = learner(page, pool)
    pool.serve(made)  # pyright: ignore[reportArgumentType]
    return pool, made


def test_what_is_sent_is_applied_or_refused_and_a_slow_worker_goes_on_with_the_newest(page: Page, inline: Any) -> None:
    pool, made = collecting(page, inline)
    slow = pool.crew.workers[1]
    sums: dict[str, float] = {}
    ages = []
    for iteration in range(9):
        slow.actor.slow = 0 < iteration < 6
        rollout = pool.collect(made.policy, iteration)
        made.update(rollout, iteration)
        assert rollout.rewards.shape == (STEPS, 2) and rollout.totals["steps"] == STEPS * 2
        for name in ("sent", "applied", "refused"):
            sums[name] = sums.get(name, 0.0) + rollout.totals[f"pool/{name}_gradients"]
        assert sums["sent"] == sums["applied"] + sums["refused"] + len(pool._mode.held())
        assert sums["applied"] == iteration + 1
        ages.append(rollout.totals["policy_mean/staleness"] / rollout.totals["steps"])
    # the first of the slow one came at once and was applied second; its next, of version 2, came at 6, and its turn at 7
    assert ages[:6] == [0.0, 1.0, 1.0, 0.0, 0.0, 0.0] and max(ages) <= 2.0 and sums["refused"] == 1.0
    assert slow.largest_staleness == 5 and pool.crew.workers[0].largest_staleness <= 1
    status = pool.status()
    assert [worker["largest_staleness"] for worker in status["workers"]] == [pool.crew.workers[0].largest_staleness, 5]
    for requests in pool.dispatcher.requests.values():
        assert all(request.version == pool.dispatcher.version for request in requests)


def test_other_weights_than_those_that_were_sent_are_refused(page: Page, inline: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose memory is faulty is given up; its replacement acts with the newest."""
    pool, made = collecting(page, inline)
    made.update(pool.collect(made.policy, 0), 0)
    faulty = pool.crew.workers[0]
    policy_of_it = faulty.actor.made._duty._learner.actor.mlp[0].weight
    collect = faulty.actor.made._collector.collect

    def with_a_flipped_bit(*given: Any) -> Rollout:
        with torch.no_grad():
            policy_of_it[0, 0] += 1e-3
        return collect(*given)

    faulty.actor.made._collector.collect = with_a_flipped_bit
    totals = []
    for iteration in range(1, 4):
        rollout = pool.collect(made.policy, iteration)
        made.update(rollout, iteration)
        totals.append(rollout.totals)
    assert sum(one["pool/mismatched_fragments"] for one in totals) == 1.0 == sum(one["pool/restarts"] for one in totals)
    assert sum(one["pool/lost_fragments"] for one in totals) == 1.0
    (line,) = [message for message in caplog.messages if "is lost" in message]
    assert "worker 0" in line and "it acted with other weights than those of version 1" in line
    assert faulty.actor.made._duty._learner.actor.obs_normalizer._mean.tolist() != [[0.0] * 3]


def test_recurrent_policies_and_mirrors_need_nothing_more(page: Page, inline: Any, tmp_path: Path) -> None:
    path = tmp_path / "recurrent.yaml"
    mapping = page.to_mapping() | {"ppo": PPO_SETTINGS | {"rnn_type": "gru", "rnn_hidden_dim": 4}}
    path.write_text(json.dumps({key: mapping[key] for key in ("env", "train", "ppo", "pool")}, default=list))
    pool = SimPool(load(path), connection=inline)
    made = PPO.make(pool.page, pool, CPU, group=Group())
    pool.serve(made)  # pyright: ignore[reportArgumentType]
    before = pack_networks(made.networks)
    for iteration in range(3):
        metrics = made.update(pool.collect(made.policy, iteration), iteration)
        assert metrics["Loss/skipped"] == 0.0
    assert not np.array_equal(before, pack_networks(made.networks))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["ppo.num_learning_epochs=2"], "ppo.num_learning_epochs: 2 is not allowed with pool.mode: gradients"),
        (["ppo.num_mini_batches=4"], "ppo.num_mini_batches: 4 is not allowed with pool.mode: gradients"),
        (
            ["ppo.schedule=adaptive"],
            'ppo.schedule: "adaptive" follows the KL to the policy that acted, which is 0 with',
        ),
        (["ppo.stop_kl=0.1"], "ppo.stop_kl: 0.1 is never reached with pool.mode: gradients"),
        (["train.learner=rsl_rl.algorithms:PPO"], '"gradients" needs train.learner: ppo, which learns in halves'),
        (["pool.inference=central"], '"central" is there with mode: sync or async'),
        (["pool.address=none"], '"gradients" needs simulators in processes of their own'),
        (["pool.lag=2"], "pool.lag: 2 is exact with mode: sync alone, and mode: gradients is behind by itself; take 0"),
        (["pool.mode=sync", "pool.lag=-1"], "pool.lag: -1 is not allowed: at least 0"),
        (
            ["pool.mode=sync", "pool.lag=2", "pool.address=none"],
            "2 needs policies in the workers, and address: none has",
        ),
        (["pool.mode=sync", "pool.lag=2", "pool.inference=central"], "and inference: central has none there; take 0"),
        (["train.importance_clip=3.0"], "train.importance_clip: 3.0 is only read with train.overlap: true, pool.mode: overlap"),
    ],
)
def test_what_cannot_be_is_said_when_the_page_is_checked(page: Page, tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "page.yaml", overrides)
    assert said in str(caught.value)


def test_an_entropy_coefficient_that_a_curriculum_moves_is_refused() -> None:
    entry = "curriculum.calm={term: linear, parameter: ppo.entropy_coef, start: [0.01], end: [0.0], iterations: [0, 9]}"
    mode = ["pool.mode=gradients", "ppo.num_learning_epochs=1", "ppo.num_mini_batches=1", "ppo.schedule=constant"]
    with pytest.raises(ConfigError, match=r'curriculum.calm.parameter: "ppo.entropy_coef" stays with pool.mode: gradients; take'):
        load("pool_go2_flat", [*mode, "ppo.final_entropy_coef=null", entry])


def test_several_ranks_are_refused(page: Page, inline: Any) -> None:
    with pytest.raises(PoolError, match=r"^pool.mode: gradients: it has one learner; leave torchrun out, or take another"):
        SimPool(page, connection=inline, world_size=2)
