"""Pools on a Ray cluster of two nodes on this machine: the same bits as in this process, whatever happens to the workers."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl.config import Page, load
from embodied_rl.learn import checkpoint
from embodied_rl.learn.copies import pack
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import LocalCollector, Rollout
from embodied_rl.learn.run import Run
from embodied_rl.learn.stale import compare
from embodied_rl.make_env import make_vector
from embodied_rl.mdp.bind import numbers

ray = pytest.importorskip("ray", reason="needs Ray: an extra, ray")

from embodied_rl.pools import dispatcher, make_collector  # noqa: E402
from embodied_rl.pools.central import CentralPool  # noqa: E402
from embodied_rl.pools.cluster import Connection  # noqa: E402
from embodied_rl.pools.crew import Worker  # noqa: E402
from embodied_rl.pools.errors import PoolError  # noqa: E402
from embodied_rl.pools.pool import SimPool  # noqa: E402
from embodied_rl.pools.status import read_status, shown  # noqa: E402

ENVS, SHARD, STEPS = 32, 8, 10
SMALL = [
    *("env.compile=false", f"env.num_envs={ENVS}", "env.episode_s=0.3", "physics.num_threads=1", f"pool.shard_size={SHARD}"),
    *(f"train.steps={STEPS}", "pool.timeout_s=60.0", "pool.workers=2", "pool.spares=0", "ppo.init_std=0.5"),
]


@functools.cache
def page(*overrides: str, name: str = "go2_flat") -> Page:
    return load(name, [*SMALL, *overrides])


def policy(task: Page, seed: int = 3) -> Policy:
    """A policy of the page's sizes in plain torch."""
    env = make_vector(task, torch.arange(1))
    torch.manual_seed(seed)
    size, space = env.obs["actor"].shape[1], env.action_space
    network = torch.nn.Sequential(torch.nn.Linear(size, 16), torch.nn.ELU(), torch.nn.Linear(16, space.size))
    std = torch.full((space.size,), 0.5)
    env.close()
    return Policy(torch.nn.Identity(), network.requires_grad_(False), None if space.discrete else lambda: std)


def local(task: Page) -> LocalCollector:
    """What collects the same in this process."""
    env = make_vector(task, torch.arange(task.env.num_envs))
    return LocalCollector(env, task.train.steps, task.env.seed, chunk=task.pool.shard_size)


def tensors(rollout: Rollout) -> dict[str, torch.Tensor]:
    """Copies of all that means something in a rollout, by name."""
    found = {name: value for name, value in vars(rollout).items() if isinstance(value, torch.Tensor)}
    for part in ("obs", "last_obs"):
        found |= {f"{part}.{name}": value for name, value in getattr(rollout, part).items()}
    found |= {f"final_obs.{name}": value[rollout.truncated] for name, value in rollout.final_obs.items()}
    return {name: value.clone() for name, value in found.items()}


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names under which two rollouts differ in any bit."""
    return sorted(name for name in {*one, *other} if not torch.equal(one.get(name, torch.empty(0)), other[name]))


@pytest.fixture(scope="module")
def pool(cluster: Any) -> Iterator[SimPool]:
    """Two workers, one on each node, with go2_flat's robots as they were built."""
    made = SimPool(page())
    yield made
    made.close()


@pytest.fixture(scope="module")
def beginning(pool: SimPool) -> dict[str, torch.Tensor]:
    return pool.snapshot()


@pytest.fixture
def again(pool: SimPool, beginning: dict[str, torch.Tensor]) -> Iterator[SimPool]:
    """The same pool at its beginning, with the page's settings."""
    pool.crew.settings = pool.page.pool
    for worker in pool.crew.workers:
        worker.starts.clear()
    pool.restore(beginning)
    yield pool
    pool.crew.settings = pool.page.pool


@pytest.fixture(scope="module")
def expected() -> list[dict[str, torch.Tensor]]:
    """Three rollouts in this process."""
    task = page()
    collector, acting = local(task), policy(task)
    return [tensors(collector.collect(acting, iteration)) for iteration in range(3)]


def test_mirrors_are_where_the_learner_is(pool: SimPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embodied_rl.pools.pool.Crew", SimpleNamespace(open=lambda *_: pool.crew))
    made = SimPool(pool.page, device="meta")
    made._end.detach()  # the crew is another's
    assert {part.device.type for pair in made.mirrors.values() for part in pair} == {"meta"}


def change(pool: SimPool, **settings: Any) -> None:
    pool.crew.settings = pool.page.pool.model_copy(update=settings)


def kill(worker: Worker, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(worker.pid, number)


def in_a_while(seconds: float, action: Callable[[], Any]) -> None:
    """Do something while a rollout is collected."""
    threading.Timer(seconds, action).start()


# ------------------------------------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("workers", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_number_of_workers_changes_no_bit(
    request: pytest.FixtureRequest, cluster: Any, expected: list[dict[str, torch.Tensor]], workers: int
) -> None:
    """Observations, rewards, actions and all else, of a policy and of a fixed tape of actions."""
    task = page(f"pool.workers={workers}")
    made: SimPool = request.getfixturevalue("again") if workers == 2 else SimPool(task)
    try:
        acting = policy(task)
        assert [worker.rows for worker in made.crew.workers][-1].stop == ENVS and len(made.crew.workers) == workers
        for iteration in range(2):
            assert differences(tensors(made.collect(acting, iteration)), expected[iteration]) == []
        assert expected[1]["truncated"].any()
        tape = policy(task)
        for parameter in tape.network.parameters():
            parameter.zero_()  # its actions are noise alone, a function of global id and age
        collector = local(task)
        for iteration in range(2):
            collector.collect(acting, iteration)
        assert differences(tensors(made.collect(tape, 2)), tensors(collector.collect(tape, 2))) == []
    finally:
        if workers != 2:
            made.close()


def test_what_a_rollout_says_beside_its_tensors(again: SimPool, tmp_path: Path) -> None:
    task = page()
    collector, acting = local(task), policy(task)
    again._status_file = tmp_path / "pool.json"
    for iteration in range(2):
        here, there = collector.collect(acting, iteration), again.collect(acting, iteration)
    for name, value in here.totals.items():
        assert there.totals[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert there.totals["pool/restarts"] == there.totals["pool/masked_steps"] == 0.0
    assert set(there.seconds) == {"physics", "env", "policy", "slowest", "transfer"} and min(there.seconds.values()) >= 0.0
    again.snapshot()  # with which a status is written, and not once more within a second
    (status,) = read_status(tmp_path)
    assert again.status() | {"time": status["time"]} == status
    assert [worker["shards"] for worker in status["workers"]] == [[0, 1], [2, 3]]
    assert len({worker["node"] for worker in status["workers"]}) == 2 and status["iteration"] == 1
    assert f"{ENVS} environments" in shown(status)
    again._status_file = None


def test_a_worker_knows_no_learner(again: SimPool) -> None:
    again.collect(policy(page()), 0)
    loaded = ray.get(again.crew.workers[0].actor.__ray_call__.remote(lambda self: sorted(sys.modules)))
    assert "embodied_rl.pools.worker" in loaded
    assert not {"rsl_rl", "tensordict", "tensorboard"}.intersection(loaded)


def test_snapshots_fit_any_number_of_workers(again: SimPool, expected: list[dict[str, torch.Tensor]]) -> None:
    acting = policy(page())
    again.collect(acting, 0)
    state = again.snapshot()
    collector = local(page())
    collector.collect(acting, 0)
    assert {name: value.shape for name, value in collector.snapshot().items()} == {n: v.shape for n, v in state.items()}
    here = local(page())
    here.restore(state)
    assert differences(tensors(here.collect(acting, 1)), expected[1]) == []
    with pytest.raises(ValueError, match="the snapshot is of another page"):
        again.restore({name: value for name, value in state.items() if name != "age"})


@pytest.mark.slow
def test_the_policy_may_be_elsewhere(cluster: Any, expected: list[dict[str, torch.Tensor]]) -> None:
    """Central inference gives the same bits, also where a worker is lost on the way."""
    task = page("pool.inference=central")
    collector = make_collector(task, torch.arange(ENVS))
    assert isinstance(collector, CentralPool)
    acting: Policy = policy(task)
    assert differences(tensors(collector.collect(acting, 0)), expected[0]) == []
    in_a_while(0.1, lambda: kill(collector.crew.workers[1]))
    second = collector.collect(acting, 1)
    restarts = second.totals["pool/restarts"]
    assert differences(tensors(second), expected[1]) == []
    third = collector.collect(acting, 2)
    assert restarts + third.totals["pool/restarts"] == 1.0
    assert differences(tensors(third), expected[2]) == []
    collector.close()


@pytest.mark.slow
def test_the_policy_may_be_elsewhere_and_nobody_wait_for_the_learner(cluster: Any) -> None:
    """Fragments that wait for a replacement come whole; those of the others go on."""
    task = page("pool.inference=central", "pool.mode=async", "pool.inference_wait_s=0.02")
    collector = make_collector(task, torch.arange(ENVS))
    assert isinstance(collector, CentralPool)
    acting, restarts, steps = policy(task), 0.0, 0.0
    for iteration in range(10):
        if iteration == 3:
            kill(collector.crew.workers[1])
        rollout = collector.collect(acting, iteration)
        assert rollout.valid.all() and rollout.rewards.shape == (STEPS, ENVS // 2)
        restarts, steps = restarts + rollout.totals["pool/restarts"], steps + rollout.totals["steps"]
    while not restarts:
        restarts += collector.collect(acting, 10).totals["pool/restarts"]
    assert restarts == 1.0 and steps >= 10 * STEPS * ENVS // 2
    assert collector.snapshot()["age"].shape == (ENVS,)
    collector.close()


# --------------------------------------------------------------------------------------------------- what curricula have moved


def moved(iteration: int) -> dict[str, torch.Tensor]:
    """Numbers of the page that every iteration has anew; none before the first."""
    weight, pushes = torch.tensor(-0.1 * iteration), torch.tensor([0.0, 0.2 * iteration])
    return {"rewards.action_rate.weight": weight, "commands.velocity.lin_vel_x": pushes} if iteration else {}


@pytest.fixture(scope="module")
def under_numbers() -> list[dict[str, torch.Tensor]]:
    """Three rollouts in this process, each under its own numbers."""
    task = page()
    collector, acting = local(task), policy(task)
    return [tensors(collector.collect(acting, iteration, moved(iteration))) for iteration in range(3)]


def test_numbers_go_where_the_policy_goes_and_a_replacement_has_them_again(
    again: SimPool, expected: list[dict[str, torch.Tensor]], under_numbers: list[dict[str, torch.Tensor]]
) -> None:
    assert "rewards" in differences(under_numbers[1], expected[1])
    change(again, snapshot_interval=4)  # so that a replacement repeats all iterations, each under its own
    acting = policy(page())
    assert differences(tensors(again.collect(acting, 0, moved(0))), under_numbers[0]) == []
    assert differences(tensors(again.collect(acting, 1, moved(1))), under_numbers[1]) == []
    in_a_while(0.05, lambda: kill(again.crew.workers[0]))
    third = again.collect(acting, 2, moved(2))
    assert differences(tensors(third), under_numbers[2]) == []
    assert third.totals["pool/restarts"] + again.dispatcher.counts["restarts"] == 1.0
    own = numbers(page())
    again.collect(acting, 3, {name: own[name] for name in moved(1)})  # for those who use the pool after this


@pytest.mark.slow
def test_numbers_go_to_the_workers_of_a_policy_that_is_elsewhere(
    cluster: Any, under_numbers: list[dict[str, torch.Tensor]]
) -> None:
    task = page("pool.inference=central")
    collector = make_collector(task, torch.arange(ENVS))
    assert isinstance(collector, CentralPool)
    acting = policy(task)
    assert differences(tensors(collector.collect(acting, 0, moved(0))), under_numbers[0]) == []
    in_a_while(0.1, lambda: kill(collector.crew.workers[1]))
    for iteration in (1, 2):
        assert differences(tensors(collector.collect(acting, iteration, moved(iteration))), under_numbers[iteration]) == []
    collector.close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["overlap", "async"])
def test_what_an_older_policy_collected_it_collected_under_the_numbers_of_its_time(cluster: Any, mode: str) -> None:
    """The only reward is 1 + the version, so that it says whose numbers a transition was collected under."""
    others = [f"rewards.{name}=null" for name in load("go2_flat").rewards]
    task = page(f"pool.mode={mode}", "env.reward_floor=null", *others, "rewards.alive={weight: 1.0}")
    made, acting = SimPool(task), policy(task)
    behind = []
    for iteration in range(4):
        rollout = made.collect(acting, iteration, {"rewards.alive.weight": torch.tensor(1.0 + iteration)})
        rewards = (rollout.rewards / task.control_dt)[rollout.valid & ~rollout.terminated]
        ages = iteration + 1 - rewards
        torch.testing.assert_close(ages, ages.round(), atol=1e-4, rtol=0.0)
        # one that fell was not paid
        assert rollout.staleness is not None
        unpaid = float((rollout.staleness * rollout.valid).sum() - ages.sum())
        assert 0 <= unpaid <= iteration * int(rollout.terminated.sum()) + 1e-2
        behind.append(float(ages.max()))
    assert behind[0] == 0.0 and round(max(behind)) >= 1
    made.close()


# -------------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.slow  # where numbers move, the same is not
def test_a_killed_worker_collects_its_part_again(again: SimPool, expected: list[dict[str, torch.Tensor]]) -> None:
    acting = policy(page())
    assert differences(tensors(again.collect(acting, 0)), expected[0]) == []
    in_a_while(0.05, lambda: kill(again.crew.workers[0]))
    second = again.collect(acting, 1)
    assert differences(tensors(second), expected[1]) == []
    assert second.totals["pool/restarts"] + again.dispatcher.counts["restarts"] == 1.0
    assert differences(tensors(again.collect(acting, 2)), expected[2]) == []


@pytest.mark.slow
def test_a_replay_begins_with_the_newest_snapshot(again: SimPool, expected: list[dict[str, torch.Tensor]]) -> None:
    change(again, snapshot_interval=4)
    acting = policy(page())
    again.collect(acting, 0)
    again.collect(acting, 1)
    kill(again.crew.workers[1])
    third = again.collect(acting, 2)
    assert differences(tensors(third), expected[2]) == []
    assert third.totals["pool/replayed_fragments"] == 2.0


@pytest.mark.slow
def test_a_worker_lost_between_rollouts_is_asked_again(again: SimPool) -> None:
    acting = policy(page())
    again.collect(acting, 0)
    state = again.snapshot()
    kill(again.crew.workers[0])
    assert all(torch.equal(value, state[name]) for name, value in again.snapshot().items())


@pytest.mark.slow
def test_a_lost_part_may_be_left_out(again: SimPool, expected: list[dict[str, torch.Tensor]]) -> None:
    change(again, on_crash="mask")
    acting = policy(page())
    again.collect(acting, 0)
    kill(again.crew.workers[0])
    second = again.collect(acting, 1)
    lost, kept = again.crew.workers[0].rows, again.crew.workers[1].rows
    assert not second.valid[:, lost].any() and second.terminated[:, lost].all()
    assert second.valid[:, kept].all() and torch.equal(second.obs["actor"][:, kept], expected[1]["obs.actor"][:, kept])
    assert second.totals["pool/masked_steps"] == STEPS * (lost.stop - lost.start) == second.totals["steps"]
    third = again.collect(acting, 2)
    assert third.valid.all()  # it is back, in new episodes
    assert torch.equal(third.obs["actor"][:, kept], expected[2]["obs.actor"][:, kept])
    assert not torch.equal(third.obs["actor"][0, lost], expected[0]["obs.actor"][0, lost])
    # both lost: what is left is too little, and the second is waited for
    for worker in again.crew.workers:
        kill(worker)
    fourth = again.collect(acting, 3)
    assert float(fourth.valid.float().mean()) == 0.5


@pytest.mark.slow
def test_a_lost_worker_may_be_the_end(again: SimPool) -> None:
    change(again, on_crash="raise")
    again.collect(policy(page()), 0)
    kill(again.crew.workers[1])
    with pytest.raises(PoolError) as caught:
        again.collect(policy(page()), 1)
    said = str(caught.value)
    assert "worker 1 (pid" in said and "environments 16 to 31" in said and "pool.on_crash: raise" in said and "\n" not in said
    with pytest.raises(PoolError, match=r"worker 1 .*; pool.on_crash: raise"):
        again.snapshot()
    change(again)
    again.dispatcher.requests[1].clear()
    again.dispatcher.requests[0].clear()
    again.crew.replace(again.crew.workers[1], "the test is over")


@pytest.mark.slow
def test_a_worker_that_is_lost_again_and_again_ends_the_run(again: SimPool) -> None:
    change(again, max_restarts=1)
    acting = policy(page())
    for iteration in range(2):
        again.collect(acting, iteration)
        kill(again.crew.workers[0])
        if iteration:
            with pytest.raises(PoolError, match=r"environments 0 to 15\), env.seed 1: lost 2 times within 300 s.*max_restarts"):
                again.collect(acting, 2)
    again.crew.workers[0].starts.clear()
    change(again)
    again.dispatcher.requests[1].clear()
    again.dispatcher.requests[0].clear()
    again.crew.replace(again.crew.workers[0], "the test is over")


def test_an_answer_to_another_question_is_thrown_away(again: SimPool) -> None:
    acting = policy(page())
    again.collect(acting, 0)
    dispatcher = again.dispatcher
    dispatcher.publish(pack(acting), 1, {})
    for worker in again.crew.workers:
        dispatcher.send(worker, 1)
    request = dispatcher.requests[0][0]
    older = ray.get(request.ref) | {"version": dispatcher.version - 1}
    request.ref = ray.put(older)
    rollout, fragments = again._mode.gather()  # pyright: ignore[reportAttributeAccessIssue]
    assert rollout.totals["pool/late_fragments"] == 1.0
    assert [fragment["version"] for fragment in fragments] == [dispatcher.version] * 2


def test_no_cluster_at_the_address() -> None:
    code = "from embodied_rl.pools.cluster import Connection\nConnection('127.0.0.1:1')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "PoolError: pool.address: 127.0.0.1:1: no Ray cluster answers" in done.stderr.splitlines()[-1]
    code, dead = code.replace("127.0.0.1:1", "auto"), os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dead)
    assert "PoolError: pool.address: auto: no Ray cluster answers" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("failures", [2, 3])
def test_a_busy_machine_starts_ray_later(
    failures: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = iter([Exception("The current node timed out during startup.")] * failures + [None] * 3)

    def init(**_: Any) -> None:
        if (outcome := next(outcomes)) is not None:
            raise outcome

    for name, value in {"init": init, "is_initialized": lambda: False, "shutdown": lambda: None}.items():
        monkeypatch.setattr(ray, name, value)
    if failures == 2:
        Connection()
    else:
        with pytest.raises(
            PoolError, match=r"^pool.address: local: Ray does not start here \(The current node timed out .*: none"
        ):
            Connection()
    assert [message.partition(":")[2].partition(":")[0] for message in caplog.messages] == [" Ray did not start, once more"] * 2


# --------------------------------------------------------------------------------------------------- environments of others


def test_an_environment_that_fails_is_left_out_alone_and_a_straggler_gives_what_it_has(trapped: Any, tmp_path: Path) -> None:
    """A straggler is cut by the clock alone; what it did counts, and the next rollout goes on where it stopped."""
    pool = trapped()
    acting = policy(pool.page)
    pool.collect(acting, 0)
    for iteration, (kind, said) in {1: ("raise", "RuntimeError: the gripper is stuck"), 3: ("nan", "not finite")}.items():
        (tmp_path / "trap").write_text(kind)
        rollout = pool.collect(acting, iteration)
        assert int((~rollout.valid).sum()) == 1 == rollout.totals["unstable"]
        step, row = (~rollout.valid).nonzero()[0].tolist()
        assert rollout.terminated[step, row] and rollout.rewards[step, row] == 0.0
        assert all(value.isfinite().all() for value in rollout.obs.values())
        (dump,) = pool.drain_unstable()
        assert dump["row"] == row and said in dump["error"] and dump["actions"].shape[1] == 2
        assert pool.collect(acting, iteration + 1).valid.all()
    slow = pool.crew.workers[1]
    change(pool, deadline_share=0.5, deadline_factor=1.5)
    ray.get(slow.actor.__ray_call__.remote(_slow_down))
    before = time.perf_counter()
    rollout = pool.collect(acting, 5)
    assert time.perf_counter() - before < 3.0  # 20 steps of 4 environments of 0.1 s would be 8
    done = int(rollout.valid[:, slow.rows].all(1).sum())
    assert 0 < done < 20 and rollout.valid[:, pool.crew.workers[0].rows].all()
    assert not rollout.valid[done:, slow.rows].any() and rollout.terminated[done:, slow.rows].all()
    assert torch.equal(rollout.obs["actor"][done, slow.rows], rollout.last_obs["actor"][slow.rows])
    assert rollout.totals["pool/cut_steps"] == (20 - done) * 4
    stopped_at = rollout.last_obs["actor"][slow.rows].clone()
    third = pool.collect(acting, 6)
    assert torch.equal(third.obs["actor"][0, slow.rows], stopped_at)


@pytest.mark.slow
def test_a_death_in_an_environment_is_replayed(trapped: Any, tmp_path: Path) -> None:
    """From seeds and actions alone: what it lives through afterwards is what it would have."""
    pool = trapped()
    acting = policy(pool.page)
    here = local(pool.page)
    for iteration in range(3):
        if iteration:
            (tmp_path / "trap").write_text("die")
        there = tensors(pool.collect(acting, iteration))
        (tmp_path / "trap").unlink(missing_ok=True)
        assert differences(there, tensors(here.collect(acting, iteration))) == []
    assert sum(worker.restarts for worker in pool.crew.workers) >= 1


def _slow_down(worker: Any) -> None:
    """Let every step of a worker's environments take 0.1 s each."""
    for env in worker._env._batch._envs:
        step = env.unwrapped.step
        env.unwrapped.step = lambda action, step=step: (time.sleep(0.1), step(action))[1]


@pytest.mark.slow
def test_one_that_hangs_is_given_up_and_named(
    trapped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatcher, "_SILENT_S", 2.0)
    pool = trapped()
    acting = policy(pool.page)
    pool.collect(acting, 0)  # in which a busy machine loads for longer than 4 s
    change(pool, timeout_s=4.0, max_restarts=0)
    for worker in pool.crew.workers:
        worker.busy_s = 0.1
    (tmp_path / "trap").write_text("hang")
    with pytest.raises(PoolError) as caught:
        pool.collect(acting, 1)
    said = str(caught.value)
    assert "no answer for 4." in said and "in python:trapped:make: environment " in said and "of the episode of seed " in said
    (early,) = [line for line in caplog.messages if "no answer for 2 s; it is collecting iteration 1" in line]
    assert "in python:trapped:make: environment " in early and "; lost in " in early


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "said"), [("raise", "gripper is stuck"), ("exit", "SystemExit: 0 ")])
def test_one_that_fails_at_every_step_ends_the_run_by_name(
    trapped: Any, tmp_path: Path, kind: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = trapped(always=True)
    acting = policy(pool.page)
    pool.collect(acting, 0)
    (tmp_path / "trap").write_text(kind)
    with pytest.raises(PoolError, match=rf"environment \d+, step 1 of the episode of seed \d+: failed 5 times .*{said}"):
        pool.collect(acting, 1)
    assert "Traceback" not in caplog.text  # the line says all


# --------------------------------------------------------------------------------------------------------------------- modes


def test_overlap_is_one_version_behind_and_says_so(cluster: Any, expected: list[dict[str, torch.Tensor]]) -> None:
    task = page("pool.mode=overlap")
    made, acting = SimPool(task), policy(task)
    first = tensors(made.collect(acting, 0))
    assert (first.pop("staleness") == 0.0).all()
    log_mu = policy(task).distribution(first["output"]).log_prob(first["actions"])
    torch.testing.assert_close(first.pop("log_prob"), log_mu)
    assert differences(first, expected[0]) == []
    # the next is under way, with the policy as it was
    for parameter in acting.network.parameters():
        parameter.add_(0.01)
    second = made.collect(acting, 1)
    old = policy(task)
    assert torch.equal(second.obs["actor"], expected[1]["obs.actor"]) and torch.equal(second.actions, expected[1]["actions"])
    assert second.staleness is not None and second.log_prob is not None and (second.staleness == 1.0).all()
    assert torch.equal(second.output, expected[1]["output"])
    log_mu = old.distribution(expected[1]["output"]).log_prob(second.actions)
    torch.testing.assert_close(second.log_prob, log_mu)
    now = acting(second.obs["actor"])[0].log_prob(second.actions)
    torch.testing.assert_close(compare(second, acting).log_ratio, now - log_mu, rtol=1e-4, atol=1e-4)
    # a worker is lost with a fragment in flight: the same again
    kill(made.crew.workers[0])
    third = made.collect(acting, 2)
    assert third.valid.all() and third.staleness is not None and (third.staleness == 1.0).all()
    made.close()


def test_async_waits_for_nobody(trapped: Any) -> None:
    pool = trapped("pool.mode=async", "pool.batch_share=0.5")
    acting = policy(pool.page)
    pool.collect(acting, 0)
    ray.get(pool.crew.workers[1].actor.__ray_call__.remote(_slow_down), timeout=60)
    before, seen = time.perf_counter(), []
    for iteration in range(1, 8):
        rollout = pool.collect(acting, iteration)
        assert rollout.rewards.shape == rollout.log_prob.shape == (20, 4)
        seen.append(float(rollout.staleness.max()))
    assert time.perf_counter() - before < 7.0  # the slow one alone would take 8 s for each
    assert 0.0 < max(seen) <= 4.0
    before = pool._handed_out
    pool.collect(acting, 8)
    # half of the environments made this rollout
    assert pool.steps_per_s * (pool._handed_out - before) == pytest.approx(20 * 4)
    kill(pool.crew.workers[0])
    assert pool.collect(acting, 9).valid.all()


# ------------------------------------------------------------------------------------------------------------ long and rough


@pytest.mark.slow
def test_a_stopped_process_is_given_up(again: SimPool, expected: list[dict[str, torch.Tensor]]) -> None:
    change(again, timeout_s=4.0)
    acting = policy(page())
    again.collect(acting, 0)
    kill(again.crew.workers[0], signal.SIGSTOP)
    second = again.collect(acting, 1)
    assert differences(tensors(second), expected[1]) == [] and second.totals["pool/restarts"] == 1.0


@pytest.mark.slow
def test_a_node_is_lost(again: SimPool, cluster: Any, expected: list[dict[str, torch.Tensor]]) -> None:
    """Before its result, and after it: its shards go on elsewhere, from the same state."""
    acting = policy(page())
    again.collect(acting, 0)
    homes = {node.node_id: node for node in cluster.worker_nodes}
    worker = next(worker for worker in again.crew.workers if worker.node in homes)  # the head holds Ray itself
    node = homes[worker.node]
    in_a_while(0.05, lambda: node.kill_raylet())
    second = again.collect(acting, 1)
    assert differences(tensors(second), expected[1]) == []
    third = again.collect(acting, 2)
    assert differences(tensors(third), expected[2]) == [] and worker.node != node.node_id
    cluster.remove_node(node)
    cluster.add_node(num_cpus=4, object_store_memory=120 << 20)


@pytest.mark.slow
def test_nothing_piles_up(again: SimPool) -> None:
    """The object store and the memory of driver and workers are flat over 200 iterations."""
    acting = policy(page())
    used = []
    for iteration in range(200):
        again.collect(acting, iteration)
        if iteration in (40, 199):
            pids = [os.getpid(), *(worker.pid for worker in again.crew.workers)]
            memory = sum(4096 * int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
            store = ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0.0)
            used.append((memory, store))
    assert used[1][0] - used[0][0] < 12 << 20 and used[1][1] - used[0][1] < 4 << 20


@pytest.mark.slow
def test_a_dead_driver_leaves_nobody_behind(cluster: Any) -> None:
    code = f"""
import time, torch
from embodied_rl.config import load
from embodied_rl.pools.pool import SimPool
pool = SimPool(load("go2_flat", {[*SMALL, f"pool.address={cluster.address}"]!r}))
print(*(worker.pid for worker in pool.crew.workers), flush=True)
time.sleep(100)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20.0
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "an actor outlived its driver"
        time.sleep(0.2)


@pytest.mark.slow
def test_one_command_starts_and_ends_its_own_ray(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "embodied_rl", "train", "pool_go2_flat", *SMALL, "--iterations", "2"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    folder = tmp_path / "run"
    done = subprocess.run(
        [*command, "--run-dir", str(folder)], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=180
    )
    assert done.returncode == 0, done.stderr
    (status,) = read_status(folder)
    assert [node["address"] for node in status["nodes"]] == ["127.0.0.1"] and status["iteration"] == 1
    assert not any(Path(f"/proc/{worker['pid']}").exists() for worker in status["workers"])
    assert np.isfinite(status["steps_per_s"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_one_command_ends_with_a_policy_that_is_elsewhere(tmp_path: Path, mode: str) -> None:
    """Its thread asks nothing of a Ray that is shut down, which would start another."""
    command = [sys.executable, "-m", "embodied_rl", "train", "pool_go2_flat", *SMALL, "--iterations", "3"]
    given = ["pool.inference=central", f"pool.mode={mode}", "--run-dir", str(tmp_path / "run")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([*command, *given], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "done: " in done.stdout and "SIGTERM" not in done.stderr + done.stdout


@pytest.mark.slow
def test_every_rank_has_workers_of_its_own(cluster: Any, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "embodied_rl", "train"]
    states = []
    for address in (cluster.address, "none"):
        folder = tmp_path / address.replace(":", "_")
        given = [*SMALL, f"pool.address={address}", "pool.workers=1", "--iterations", "3", "--run-dir", str(folder)]
        done = subprocess.run([*command, "pool_go2_flat", *given], capture_output=True, text=True, cwd=tmp_path, timeout=180)
        assert done.returncode == 0, done.stderr
        states.append(checkpoint.read(Run(folder).newest_checkpoints()[0]))
    statuses = read_status(tmp_path / cluster.address.replace(":", "_"))
    assert [(status["num_envs"], len(status["workers"])) for status in statuses] == [(ENVS // 2, 1)] * 2
    pooled, here = states
    assert pooled["infos"]["env_steps"] == here["infos"]["env_steps"] == 3 * ENVS * STEPS
    for name, value in pooled["actor_state_dict"].items():
        assert torch.equal(value, here["actor_state_dict"][name]), name


def test_a_pool_beside_this_process(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from embodied_rl.bench import pool

    monkeypatch.setattr(pool, "_SIZE", [])
    monkeypatch.setattr(pool, "_ROUNDS", 2)
    monkeypatch.setattr(pool, "_ROLLOUTS", 1)
    result = pool.bench_pool(page(f"pool.address={cluster.address}", "pool.workers=1"))
    assert set(result) == {
        *("num_envs", "workers", "local_steps_per_s", "pool_steps_per_s", "ratio", "put_ms", "return_ms", "wait_share"),
    }
    assert (result["num_envs"], result["workers"]) == (ENVS, 1)
    assert result["ratio"] > 0.0 and 0.0 <= result["wait_share"] < 1.0
