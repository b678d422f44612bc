"""Mode `apex`: a ladder of exploration, priorities from the workers, and a learner that waits for nobody but its limiter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gymnasium")
pytest.importorskip("rsl_rl")

from embodied_rl.config import ConfigError, load
from embodied_rl.learn.copies import plain_copy
from embodied_rl.learn.learner import make_learner
from embodied_rl.learn.sac import SAC
from embodied_rl.pools.errors import PoolError
from embodied_rl.pools.pool import SimPool

STEPS, ENVS, WORKERS = 5, 8, 4
SAC_SETTINGS = {"actor_hidden_dims": [8], "critic_hidden_dims": [8], "batch_size": 16, "learning_starts": 40, "n_steps": 2}


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Any]:
    path = tmp_path / "page.yaml"
    sections = {
        "env": {
            "source": "gymnasium:Pendulum-v1",
            "source_options": {"max_episode_steps": 7},
            "num_envs": ENVS,
            "final_obs_groups": ["actor"],
        },
        "train": {"steps": STEPS, "learner": "sac"},
        "sac": SAC_SETTINGS | {"prioritized": True, "replay_size": 800},
        "pool": {"workers": WORKERS, "shard_size": 2, "mode": "apex", "spares": 0, "on_crash": "mask"},
    }
    path.write_text(json.dumps(sections))
    return lambda *overrides: load(path, overrides)


def made(page: Any, inline: Any) -> tuple[SimPool, SAC]:
    pool = SimPool(page, connection=inline)
    learner = make_learner(page, pool, torch.device("cpu"))
    assert isinstance(learner, SAC)
    pool.serve(learner)
    return pool, learner


def test_workers_stand_on_the_ladder_of_the_paper_and_a_replacement_in_its_place(page: Callable[..., Any], inline: Any) -> None:
    pool, learner = made(page(), inline)
    pool.collect(learner.policy, 0)
    wanted = [0.4 ** (1.0 + index / 3 * 7.0) for index in range(WORKERS)]
    held = lambda: [worker.actor.made._duty.policy.squash.ladder for worker in pool.crew.workers]  # noqa: E731
    assert held() == pytest.approx(wanted) and len(set(held())) == WORKERS
    assert [one["exploration"] for one in pool.status()["workers"]] == pytest.approx(wanted)
    pool.crew.workers[2].actor.dead = True
    for iteration in range(1, 4):
        learner.update(pool.collect(learner.policy, iteration), iteration)
    assert pool.crew.workers[2].restarts == 1 and held() == pytest.approx(wanted)


def test_what_has_come_fills_the_lanes_of_its_robots_with_the_priorities_of_its_worker(
    page: Callable[..., Any], inline: Any
) -> None:
    pool, learner = made(page("sac.learning_starts=100000"), inline)
    for iteration in range(3):
        policy, appraiser = plain_copy(learner.policy), learner.appraiser()
        rollout = pool.collect(learner.policy, iteration)
        assert rollout.lanes is not None and rollout.lanes.tolist() == list(range(ENVS)) and rollout.priorities is not None
        if not iteration:  # later ones were made with weights of the request before
            assert torch.allclose(appraiser.priorities(policy, rollout), rollout.priorities, atol=1e-5)
        learner.update(rollout, iteration)
    pool.crew.workers[1].actor.slow = True  # its robots, 2 and 3, stand still
    for iteration in range(3, 6):
        rollout = pool.collect(learner.policy, iteration)
        learner.update(rollout, iteration)
    assert learner.replay.written.tolist() == [30, 30, *([learner.replay.written[2].item()] * 2), 30, 30, 30, 30]
    assert learner.replay.written[2] < 30
    leaves = learner.replay.tree.leaves if learner.replay.tree is not None else torch.zeros(0)
    assert int((leaves > 0).sum()) == int(learner.replay.filled.sum())


def test_the_learner_goes_on_when_nothing_has_come(page: Callable[..., Any], inline: Any) -> None:
    pool, learner = made(page("sac.updates=0.4"), inline)
    for iteration in range(2):
        learner.update(pool.collect(learner.policy, iteration), iteration)
    for worker in pool.crew.workers:
        worker.actor.slow = True
    before = learner.pace.updates
    for iteration in range(2, 7):
        rollout = pool.collect(learner.policy, iteration)
        metrics = learner.update(rollout, iteration)
    while rollout.rewards.numel():  # what was in flight
        rollout = pool.collect(learner.policy, iteration)
        metrics = learner.update(rollout, iteration)
    assert rollout.rewards.shape == (STEPS, 0) and rollout.totals["steps"] == 0.0 and metrics["Replay/rows"] > 0
    assert learner.pace.updates - before >= 10  # two an iteration, whatever comes


def test_a_limiter_keeps_workers_from_running_ahead_and_the_learner_too(page: Callable[..., Any], inline: Any) -> None:
    pool, learner = made(page("sac.samples_per_insert=2.0", "sac.updates=0.2"), inline)  # one update an iteration: 16 of 80 rows
    limiter = learner.pace.limiter
    assert limiter is not None
    for iteration in range(60):
        learner.update(pool.collect(learner.policy, iteration), iteration)
        assert limiter.lead <= limiter.tolerance + 1e-9
    assert limiter.inserted < 60 * STEPS * ENVS / 3  # they were held back
    fast_pool, fast = made(page("sac.samples_per_insert=2.0", "sac.updates=100"), inline)
    for iteration in range(20):
        fast.update(fast_pool.collect(fast.policy, iteration), iteration)
        limiter = fast.pace.limiter
        assert limiter is not None and limiter.lead >= -limiter.tolerance
    assert fast.pace.updates == pytest.approx(2.0 * limiter.inserted / 16, abs=15)


def test_returns_are_those_of_the_worker_that_explores_least(page: Callable[..., Any], inline: Any) -> None:
    pool, learner = made(page(), inline)
    episodes = 0.0
    for iteration in range(6):
        rollout = pool.collect(learner.policy, iteration)
        learner.update(rollout, iteration)
        episodes += rollout.totals["episodes"]
    assert episodes == 2 * (6 * STEPS // 7)  # of two of eight robots


def test_a_dead_worker_costs_its_fragments_and_its_robots_begin_anew(page: Callable[..., Any], inline: Any) -> None:
    pool, learner = made(page(), inline)
    for iteration in range(2):
        learner.update(pool.collect(learner.policy, iteration), iteration)
    pool.crew.workers[0].actor.dead = True
    lost = 0.0
    for iteration in range(2, 6):
        rollout = pool.collect(learner.policy, iteration)
        learner.update(rollout, iteration)
        lost += rollout.totals["pool/lost_fragments"]
    assert lost == 1.0 and pool.crew.workers[0].restarts == 1
    assert learner.replay.written[0] > 10  # it goes on; where the lost robot stood its lane was cut, and no row leads across


def test_what_cannot_be_is_refused(page: Callable[..., Any], inline: Any) -> None:
    refused = {
        "train.learner=ppo": r"fills the replay of train.learner: sac",
        "pool.mode=async": r"\"async\" hands out shards of any robots, and a replay has a lane of each; take apex",
        "pool.mode=sync sac.ladder_noise=0.3": r"sac.ladder_noise: 0.3 is only read with pool.mode: apex; leave it out",
    }
    for overrides, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            page(*overrides.split())
    with pytest.raises(PoolError, match=r"pool.mode: apex: it has one learner; leave torchrun out"):
        SimPool(page(), connection=inline, world_size=2)
