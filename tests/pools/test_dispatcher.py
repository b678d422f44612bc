"""The protocol with the workers, in one process: seeds, replacements, versions, what waits."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
pytest.importorskip("rsl_rl")

from embodied_rl.config import load
from embodied_rl.learn.learner import make_learner
from embodied_rl.learn.rollout import Rollout
from embodied_rl.pools.pool import SimPool
from embodied_rl.pools.status import shown

MODES = ("sync", "overlap", "async", "gradients")
STEPS, ENVS = 5, 8


@pytest.fixture
def made(tmp_path: Path, inline: Any) -> Callable[..., SimPool]:
    """Makes pools of four workers with two pendulums each, and a learner that is `pool.learner`."""

    def make(mode: str, *overrides: str) -> SimPool:
        path = tmp_path / "page.yaml"
        sections = {
            "env": {"source": "gymnasium:Pendulum-v1", "source_options": {"max_episode_steps": 7}, "num_envs": ENVS},
            "train": {"steps": STEPS},
            "ppo": {"num_learning_epochs": 1, "num_mini_batches": 1, "schedule": "constant", "actor_hidden_dims": [8]},
            "pool": {"workers": 4, "shard_size": 2, "mode": mode, "spares": 0, "on_crash": "mask", "max_staleness": 9},
        }
        path.write_text(json.dumps(sections))
        pool = SimPool(load(path, overrides), connection=inline)
        pool.serve(make_learner(pool.page, pool, torch.device("cpu")))
        return pool

    return make


def iterate(pool: SimPool, iteration: int) -> Rollout:
    """One iteration of a training."""
    learner = pool.learner
    assert learner is not None
    rollout = pool.collect(learner.policy, iteration)
    kept = {name: value.clone() for name, value in rollout.obs.items()}
    learner.update(rollout, iteration)
    rollout.obs = kept
    return rollout


def actors(pool: SimPool) -> list[Any]:
    """The workers' own objects."""
    return [worker.actor.made for worker in pool.crew.workers]


def seen_by(actor: Any) -> np.ndarray:
    """What a worker's environments see now."""
    return actor._env.obs["actor"].numpy().copy()


def ages_of(actor: Any) -> np.ndarray:
    """The steps that a worker's environments have lived."""
    return actor._env.buffers["age"].numpy().copy()


def first_obs(pool: SimPool) -> np.ndarray:
    return np.concatenate([seen_by(actor) for actor in actors(pool)])


def distinct(rows: np.ndarray) -> bool:
    return all(not np.array_equal(one, other) for one, other in itertools.combinations(rows, 2))


@pytest.mark.parametrize("mode", MODES)
def test_workers_begin_differently_and_the_same_on_a_second_run(made: Callable[..., SimPool], mode: str) -> None:
    """First observations and the noise of all steps, of every environment of every worker."""
    begun, noises = [], []
    for _ in range(2):
        pool = made(mode)
        begun.append(first_obs(pool))
        iterate(pool, 0)
        noises.append(np.concatenate([actor._collector._drawn.transpose(0, 1).flatten(1).numpy() for actor in actors(pool)]))
    assert np.array_equal(*begun) and distinct(begun[0])
    assert np.array_equal(*noises) and noises[0].shape == (ENVS, STEPS) and distinct(noises[0])


@pytest.mark.parametrize("mode", MODES)
def test_a_replacement_has_a_new_seed_and_the_learners_normalizer(made: Callable[..., SimPool], mode: str) -> None:
    """What is lost is its fragment, counted, and nothing that it lived through is lived again."""
    pool = made(mode)
    worker = pool.crew.workers[1]
    seen = [seen_by(actors(pool)[1])]
    for iteration in range(12):
        iterate(pool, iteration)
        seen.append(seen_by(actors(pool)[1]))
    lived = int(ages_of(actors(pool)[1]).max())
    normalizer = pool.learner.actor.obs_normalizer  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    worker.actor.dead = True
    sums = dict.fromkeys(("restarts", "lost_fragments", "masked_steps"), 0.0)
    for iteration in range(12, 18):
        known = normalizer._mean.clone()
        rollout = iterate(pool, iteration)
        for name in sums:
            sums[name] += rollout.totals[f"pool/{name}"]
        if iteration == 12 and mode in ("sync", "overlap"):
            assert not rollout.valid[:, worker.rows].any()
    assert sums["restarts"] == sums["lost_fragments"] == 1.0
    assert sums["masked_steps"] == (2 * STEPS if mode in ("sync", "overlap") else 0.0)
    replacement = actors(pool)[1]
    begins = replacement._env.buffers["episode_begin"]
    assert int(ages_of(replacement).min()) > lived and int(begins.min()) >= lived
    before = np.concatenate(seen)
    assert not any(np.array_equal(row, other) for row in seen_by(replacement) for other in before)
    assert rollout.totals["pool/mismatched_fragments"] == 0.0  # pyright: ignore[reportPossiblyUnboundVariable]
    if mode == "sync":
        held = replacement._duty.policy.normalizer.mean
        assert torch.equal(held, known)  # pyright: ignore[reportPossiblyUnboundVariable]


def test_one_that_lived_longer_than_the_trainer_counts_is_not_repeated(made: Callable[..., SimPool]) -> None:
    """In `async` a fast worker has made more fragments than there were rollouts."""
    pool = made("async", "pool.batch_share=1.0")
    fast, *slow = pool.crew.workers
    iterate(pool, 0)
    for worker in slow:
        worker.actor.slow = True
    for iteration in range(1, 6):
        iterate(pool, iteration)
    lived = int(ages_of(actors(pool)[0]).max())
    for worker in pool.crew.workers:
        worker.actor.slow, worker.actor.dead = False, worker is fast
    for iteration in itertools.takewhile(lambda _: not fast.restarts, range(6, 20)):
        iterate(pool, iteration)
    assert lived > 2 * 6 * STEPS and int(actors(pool)[0]._env.buffers["episode_begin"].min()) >= lived


@pytest.mark.parametrize("mode", ["async", "gradients"])
def test_a_slow_worker_goes_on_with_the_newest_version(made: Callable[..., SimPool], mode: str) -> None:
    """Four workers, one of which is asleep most of the time: what it begins next is of the newest; its lag is the largest."""
    pool = made(mode, "pool.batch_share=0.75")
    slow, seen = pool.crew.workers[2], []
    collect = actors(pool)[2].collect

    def noted(weights: dict[str, Any], *given: Any) -> dict[str, Any]:
        fragment = collect(weights, *given)
        seen.append((fragment["version"], pool.dispatcher.version))
        return fragment

    slow.actor.made.collect = noted
    for iteration in range(24):
        slow.actor.slow = iteration % 6 != 0
        iterate(pool, iteration)
    # in `async` newer weights overtake a request that is not begun; a gradient is of those that came with the request
    assert len(seen) >= 4 and max(newest - version for version, newest in seen) <= (0 if mode == "async" else 5)
    assert all(later > before for (before, _), (later, _) in itertools.pairwise(seen) if mode == "gradients")
    for iteration in range(24, 31):
        slow.actor.slow, slow.actor.late = False, iteration < 30
        iterate(pool, iteration)
    before = len(seen)
    for iteration in range(31, 36):
        iterate(pool, iteration)
    behind = [worker["largest_staleness"] for worker in pool.status()["workers"]]
    assert behind[2] == max(behind) >= 5
    assert seen[-1][0] >= 30 and len(seen) > before


def test_a_learner_that_was_away_finds_nobody_silent(made: Callable[..., SimPool]) -> None:
    """In `async` two answers wait for it, and neither came late."""
    pool = made("async", "pool.timeout_s=0.3", "pool.on_crash=raise")
    for iteration in range(3):
        iterate(pool, iteration)
        time.sleep(0.4)
    assert [worker.restarts for worker in pool.crew.workers] == [0] * 4


@pytest.mark.parametrize(("mode", "most"), [("sync", 0), ("overlap", 4), ("async", 12), ("gradients", 4)])
def test_what_waits_is_bounded_and_said(made: Callable[..., SimPool], mode: str, most: int) -> None:
    """However long the learner is away, a worker has answered what it was asked, and does no more."""
    pool = made(mode, "pool.batch_share=0.25")
    for iteration in range(3):
        iterate(pool, iteration)
    waiting = []
    for _ in range(3):
        pool.dispatcher.look_at_the_queue(pool._mode)
        waiting.append(dict(pool.dispatcher.traffic.queue))
    assert waiting[0] == waiting[1] == waiting[2]
    bound = pool.dispatcher.traffic.bound()
    assert waiting[0]["fragments"] <= most <= bound["most_fragments"] and waiting[0]["bytes"] <= bound["most_bytes"]
    rollout = iterate(pool, 3)
    assert rollout.totals["pool/queue_fragments"] == waiting[0]["fragments"]
    text = shown(pool.status())
    said = f"waiting for the learner: {waiting[0]['fragments']} fragments of at most {bound['most_fragments']}"
    assert said in text and "gradient steps/s" in text and "B/sample" in text
