"""Every mode on a Ray of this machine: what a lost worker costs, how the last one's end is told, who waits for the learner."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ray = pytest.importorskip("ray", reason="needs Ray: an extra, ray")
pytest.importorskip("gymnasium")
pytest.importorskip("rsl_rl")

from embodied_rl.learn.learner import make_learner  # noqa: E402
from embodied_rl.pools.errors import PoolError  # noqa: E402
from embodied_rl.pools.pool import SimPool  # noqa: E402

MODES = ("sync", "overlap", "async", "gradients", "apex")
OFF_POLICY = ("train.learner=sac", "env.final_obs_groups=[actor]", "sac.prioritized=true")
OFF_POLICY += ("sac.learning_starts=200", "sac.updates=0.1")
ONE_STEP = ("ppo.num_learning_epochs=1", "ppo.num_mini_batches=1", "ppo.schedule=constant")


@pytest.fixture
def made(trapped: Callable[..., SimPool]) -> Callable[..., SimPool]:
    """Makes pools of some workers that train."""

    def make(mode: str, *overrides: str) -> SimPool:
        own = OFF_POLICY if mode == "apex" else ONE_STEP
        pool = trapped(f"pool.mode={mode}", "pool.max_staleness=50", *own, *overrides)
        pool.serve(make_learner(pool.page, pool, torch.device("cpu")))
        return pool

    return make


class Training:
    """Iterations of a pool, counted."""

    def __init__(self, pool: SimPool) -> None:
        self.pool, self.iteration, self.totals = pool, 0, dict[str, float]()

    def iterate(self) -> int:
        """One iteration; the transitions that mean something."""
        learner = self.pool.learner
        assert learner is not None
        rollout = self.pool.collect(learner.policy, self.iteration)
        learner.update(rollout, self.iteration)
        self.iteration += 1
        for name, value in rollout.totals.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
        return int(rollout.valid.sum())

    def rate(self, seconds: float) -> float:
        """Transitions a second."""
        begun, steps = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            steps += self.iterate()
        return steps / (time.perf_counter() - begun)


def test_gradients_come_from_processes_that_learned(made: Callable[..., SimPool]) -> None:
    training = Training(made("gradients"))
    for _ in range(12):
        assert training.iterate() == 20 * 4
    totals, held = training.totals, len(training.pool._mode.held())
    assert totals["pool/sent_gradients"] == totals["pool/applied_gradients"] + totals["pool/refused_gradients"] + held
    assert totals["pool/applied_gradients"] == 12.0
    assert totals["pool/mismatched_fragments"] == totals["pool/late_fragments"] == 0.0
    (status,) = [training.pool.status()]
    assert status["gradient_steps_per_s"] > 0.0 and all(worker["bytes_per_sample"] > 0.0 for worker in status["workers"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("on_crash", ["replay", "mask"])
def test_one_of_four_is_lost_and_the_others_go_on(made: Callable[..., SimPool], mode: str, on_crash: str) -> None:
    """Within 10 s the rate is 0.7 of what it was, and what was lost is a fragment."""
    training = Training(made(mode, "pool.workers=4", "pool.shard_size=2", "pool.spares=1", f"pool.on_crash={on_crash}"))
    training.rate(3.0)
    before = training.rate(4.0)
    worker = training.pool.crew.workers[1]
    os.kill(worker.pid, signal.SIGKILL)
    begun, rates = time.monotonic(), []
    while time.monotonic() - begun < 10.0:
        rates.append(training.rate(1.0))
    assert max(rates) >= 0.7 * before, (before, rates)
    assert worker.restarts == 1 == training.totals["pool/restarts"]
    exact = on_crash == "replay" and mode in ("sync", "overlap")
    assert training.totals["pool/lost_fragments"] == (0.0 if exact else 1.0)
    assert training.totals["pool/masked_steps"] <= 2 * 2 * 20


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_end_of_all_workers_is_one_line(made: Callable[..., SimPool], mode: str) -> None:
    pool = made(mode, "pool.max_restarts=0")
    training = Training(pool)
    training.rate(1.0)
    for worker in pool.crew.workers:
        os.kill(worker.pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(PoolError, match=r"^pool: worker \d .*: lost 1 times within 300 s.*max_restarts$") as told:
        while True:
            training.iterate()
    assert time.monotonic() - begun < 30.0 and "\n" not in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_nothing_grows_while_the_learner_is_held(made: Callable[..., SimPool], mode: str) -> None:
    """Memory of all processes and of the object store, after 1 s and after 8 s; then it goes on, and says what waited."""
    pool = made(mode)
    training = Training(pool)
    training.rate(3.0)

    def used() -> tuple[int, float]:
        pids = [os.getpid(), *(worker.pid for worker in pool.crew.workers)]
        memory = sum(4096 * int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        store = ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0.0)
        return memory, store

    time.sleep(1.0)
    first = used()
    time.sleep(7.0)
    second = used()
    assert second[0] - first[0] < 2 << 20 and second[1] - first[1] < 1 << 20
    before = dict(training.totals)
    training.iterate()
    waited = training.totals["pool/queue_fragments"] - before["pool/queue_fragments"]
    bound: Any = pool.dispatcher.traffic.bound()
    assert (waited > 0.0) == (mode != "sync") and waited <= bound["most_fragments"]
