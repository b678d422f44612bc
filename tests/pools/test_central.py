"""The policy where the learner is, and workers in this process: what is answered when, whose bits, on which device.

A crew of real workers without Ray stands for one: their answers come when the test lets them.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rsl_rl.modules import EmpiricalNormalization
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from embodied_rl.config import Page, load
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import LocalCollector, Rollout
from embodied_rl.learn.stale import compare
from embodied_rl.make_env import make_vector
from embodied_rl.pools import central, make_collector
from embodied_rl.pools.ahead import AsyncCentralPool
from embodied_rl.pools.central import CentralPool
from embodied_rl.pools.crew import Crew, Worker
from embodied_rl.pools.errors import PoolError
from embodied_rl.pools.inference import Inference
from embodied_rl.pools.worker import SimWorker
from embodied_rl.vector_env import ActionSpace

pytest.importorskip("gymnasium", reason="needs Gymnasium: an extra, gym")

ENVS, SHARD, STEPS = 12, 2, 9


class RayError(Exception):
    """A process is gone."""


class RayTaskError(RayError):
    """A process lives, and its code has raised."""


class Ref:
    """What an actor owes."""

    def __init__(self, actor: Actor, name: str, given: tuple) -> None:
        self.actor, self.name, self.given = actor, name, given
        self.value: Any = None


class Actor:
    """A worker whose answers come in their order, when asked for; or not, or never again."""

    def __init__(self) -> None:
        self.worker, self.queue, self.dead, self.held = SimWorker([]), deque[Ref](), False, False
        self.dies_before: Callable[[str], bool] = lambda name: False
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def remote(*given: Any) -> Ref:
            ref = Ref(self, name, given)
            self.queue.append(ref)
            return ref

        return SimpleNamespace(remote=remote)

    def work(self, until: Ref) -> None:
        """Do all up to this."""
        while not self.dead and until in self.queue:
            ref = self.queue.popleft()
            if self.dies_before(ref.name):
                self.dead = True
                break
            self.told.append(ref.name)
            try:
                ref.value = getattr(self.worker, ref.name)(*ref.given)
            except Exception as error:
                ref.value = RayTaskError(str(error))
                ref.value.cause = error  # pyright: ignore[reportAttributeAccessIssue]


class Ray:
    """As much of Ray as a crew's questions need."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def wait(self, refs: list[Ref], *, num_returns: int, timeout: float, fetch_local: bool) -> tuple[list[Ref], list[Ref]]:
        ready = [ref for ref in refs if not ref.actor.held or ref.actor.dead][:num_returns]
        if not ready:
            time.sleep(min(timeout, 0.002))
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref, timeout: float) -> Any:
        ref.actor.work(ref)
        if isinstance(ref.value, RayTaskError):
            raise ref.value
        if ref.actor.dead and ref.value is None:
            raise RayError("The actor died.")
        return ref.value


class Here:
    """A crew in this process."""

    def __init__(self, page: Page, env_ids: Tensor) -> None:
        self.page, self.settings, self.num_envs = page, page.pool, len(env_ids)
        self.connection = SimpleNamespace(ray=Ray(), nodes=lambda: [])
        self.workers, ids = [], env_ids.numpy()
        shards = np.array_split(np.arange(len(ids) // page.pool.shard_size), page.pool.workers or 1)
        for index, part in enumerate(shards):
            rows = slice(int(part[0]) * page.pool.shard_size, (int(part[-1]) + 1) * page.pool.shard_size)
            self.workers.append(Worker(index, range(part[0], part[-1] + 1), rows, ids[rows], 1, ""))
        for worker in self.workers:
            self.described = self._start(worker)
        self.action_space = ActionSpace(*self.described["action_space"])

    mirrors = Crew.mirrors

    @classmethod
    def open(cls, page: Page, env_ids: Tensor, connection: Any, world_size: int) -> Here:
        return cls(page, env_ids)

    def _start(self, worker: Worker) -> dict[str, Any]:
        worker.actor = Actor()
        return worker.actor.worker.build(self.page, worker.env_ids)

    def replace(self, worker: Worker, why: str) -> None:
        worker.restarts += 1
        self._start(worker)

    def blame(self, worker: Worker, error: BaseException) -> str:
        return f"{worker.name}: {error}"

    def is_its_own(self, error: BaseException) -> bool:
        return isinstance(error, RayTaskError)

    def where(self, worker: Worker) -> str:
        return "held by a test"

    def note_node(self, worker: Worker, error: BaseException) -> None:
        pass

    def keep_spares(self) -> None:
        pass

    def close(self) -> None:
        for worker in self.workers:
            worker.actor.worker._env.close()


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(central, "Crew", Here)


@pytest.fixture
def made() -> Iterator[list[CentralPool]]:
    """Closes what is put in it."""
    pools: list[CentralPool] = []
    yield pools
    for pool in pools:
        pool.close()


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    """Makes pages of short episodes, choices by default."""

    def make(*overrides: str, source: str = "gymnasium:CartPole-v1") -> Page:
        path = tmp_path / "page.yaml"
        env = {"source": source, "source_options": {"max_episode_steps": 7}, "num_envs": ENVS}
        pool = {"workers": 2, "shard_size": SHARD, "spares": 0, "inference": "central"}
        path.write_text(json.dumps({"env": env, "train": {"steps": STEPS}, "ppo": {"gamma": 0.9}, "pool": pool}))
        return load(path, overrides)

    return make


PENDULUM = "gymnasium:Pendulum-v1"


def policy(task: Page, activation: Callable[[], nn.Module] = nn.ELU, memory: Callable[..., nn.RNNBase] | None = None) -> Policy:
    """A policy of the page's sizes."""
    env = make_vector(task, torch.arange(1))
    torch.manual_seed(3)
    size, space = env.obs["actor"].shape[1], env.action_space
    remembers = None if memory is None else memory(size, 5).requires_grad_(False)
    network = nn.Sequential(nn.Linear(5 if memory else size, 16), activation(), nn.Linear(16, space.size))
    std = torch.full((space.size,), 0.5)
    env.close()
    normalizer = EmpiricalNormalization(size).eval()
    return Policy(normalizer, network.requires_grad_(False), None if space.discrete else lambda: std, remembers)


def local(task: Page) -> LocalCollector:
    env = make_vector(task, torch.arange(task.env.num_envs))
    return LocalCollector(env, task.train.steps, task.env.seed, chunk=task.pool.shard_size)


def tensors(rollout: Rollout) -> dict[str, Tensor]:
    """Copies of all that means something in a rollout, by name."""
    found = {name: value for name, value in vars(rollout).items() if isinstance(value, Tensor)}
    found |= {f"memory.{index}": value for index, value in enumerate(rollout.memory)}
    for part in ("obs", "last_obs"):
        found |= {f"{part}.{name}": value for name, value in getattr(rollout, part).items()}
    found |= {f"final_obs.{name}": value[rollout.truncated] for name, value in rollout.final_obs.items()}
    return {name: value.clone() for name, value in found.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def expected(task: Page, acting: Policy, count: int = 3) -> list[dict[str, Tensor]]:
    """Rollouts of a policy that is with the environments."""
    collector = local(task)
    return [tensors(collector.collect(acting, iteration)) for iteration in range(count)]


def actors(pool: CentralPool) -> list[Actor]:
    return [worker.actor for worker in pool.crew.workers]


# ------------------------------------------------------------------------------------------------------------------ the bits


@pytest.mark.parametrize(
    ("source", "activation", "memory"),
    [
        ("gymnasium:CartPole-v1", nn.ELU, None),
        (PENDULUM, nn.ELU, None),
        (PENDULUM, nn.SiLU, None),  # which perceptron.cpp does not know
        (PENDULUM, nn.ELU, nn.LSTM),
        ("gymnasium:CartPole-v1", nn.ELU, nn.GRU),
    ],
)
def test_the_bits_are_those_of_policies_in_the_workers(
    page: Any, made: list[CentralPool], source: str, activation: Any, memory: Any
) -> None:
    acting = policy(page(source=source), activation, memory)
    wanted = expected(page(source=source), acting, 2)
    assert wanted[0]["truncated"].any()
    for workers in (1, 2, 3):
        pool = CentralPool(page(f"pool.workers={workers}", source=source), torch.arange(ENVS))
        made.append(pool)
        assert len(pool._turns._groups) == min(workers, 2)
        for iteration in range(2):
            rollout = pool.collect(acting, iteration)
            assert same(tensors(rollout), wanted[iteration])
            assert rollout.totals["steps"] == ENVS * STEPS and set(rollout.seconds) == {"wait", "policy", "transfer"}


def test_the_policy_sees_rows_that_begin_where_memory_does(
    page: Any, made: list[CentralPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bits of products of few rows depend on it on some processors: an AMD EPYC's, not a Xeon's."""
    task = page(source=PENDULUM)
    acting, begins = policy(task, memory=nn.GRU), []
    answer = Policy.__call__

    def seen(self: Policy, obs: torch.Tensor, memory: Any = (), network: Any = None) -> Any:
        begins.extend(part.data_ptr() % 64 for part in (obs, *memory))
        return answer(self, obs, memory, network)

    monkeypatch.setattr(Policy, "__call__", seen)
    local(task).collect(acting, 0)
    made.append(CentralPool(task, torch.arange(ENVS)))
    made[-1].collect(acting, 0)
    assert len(begins) > 2 * 2 * STEPS and not any(begins)


def test_what_is_noted_of_the_odds_is_what_the_policy_says(page: Any, made: list[CentralPool]) -> None:
    for source in ("gymnasium:CartPole-v1", PENDULUM):
        task = page(source=source)
        acting = policy(task)
        made.append(CentralPool(task, torch.arange(ENVS)))
        rollout = made[-1].collect(acting, 0)
        noted = made[-1]._board.log_prob
        torch.testing.assert_close(noted, acting.distribution(rollout.output).log_prob(rollout.actions))


def test_snapshots_are_those_of_this_process_memory_and_all(page: Any, made: list[CentralPool]) -> None:
    task = page(source=PENDULUM)
    acting = policy(task, memory=nn.LSTM)
    wanted = expected(task, acting, 2)
    made.append(CentralPool(task, torch.arange(ENVS)))
    made[0].collect(acting, 0)
    state = made[0].snapshot()
    here, there = local(task), CentralPool(page("pool.workers=3", source=PENDULUM), torch.arange(ENVS))
    made.append(there)
    for collector in (here, there):
        collector.restore(state)
        again = collector.snapshot()
        assert again.keys() == state.keys() and all(torch.equal(value, again[name]) for name, value in state.items())
        assert same(tensors(collector.collect(acting, 1)), wanted[1])
    with pytest.raises(PoolError, match=r"^the snapshot is of another page: actions differ"):
        there.restore({name: value for name, value in state.items() if name != "actions"})


# ------------------------------------------------------------------------------------------------------------- turns and batches


def batches(pool: CentralPool, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int]]]:
    """Of each answer from now on: step and first environment of those that are answered."""
    seen: list[list[tuple[int, int]]] = []
    turns: Any = pool._turns
    answer = turns._answer

    def answered(seats: list[Any]) -> None:
        seen.append([(seat.step, seat.worker.rows.start) for seat in seats])
        answer(seats)

    monkeypatch.setattr(turns, "_answer", answered)
    return seen


def test_a_group_is_answered_whole_and_others_have_their_turns_meanwhile(
    page: Any, made: list[CentralPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = page("pool.workers=4", "pool.shard_size=3")
    acting = policy(task)
    pool = CentralPool(task, torch.arange(ENVS))
    made.append(pool)
    seen = batches(pool, monkeypatch)
    slow, turns = actors(pool)[3], pool._turns
    slow.held = True

    def once() -> None:
        type(turns).once(turns)
        if len(seen) == STEPS:  # all of the first group's
            slow.held = False

    monkeypatch.setattr(turns, "once", once)
    assert same(tensors(pool.collect(acting, 0)), expected(task, acting, 1)[0])
    whole = [[(step, first), (step, first + 3)] for first in (0, 6) for step in range(STEPS)]
    assert seen == whole


def test_a_batch_may_close_by_the_clock_and_no_bit_changes(
    page: Any, made: list[CentralPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = page("pool.workers=3", "pool.shard_size=4", "pool.inference_wait_s=0.01")
    acting = policy(task)
    pool = CentralPool(task, torch.arange(ENVS))
    made.append(pool)
    seen = batches(pool, monkeypatch)
    slow, turns = actors(pool)[1], pool._turns  # of the first group, with worker 0
    slow.held = True

    def once() -> None:
        type(turns).once(turns)
        if [(STEPS - 1, 0)] in seen:
            slow.held = False

    monkeypatch.setattr(turns, "once", once)
    assert same(tensors(pool.collect(acting, 0)), expected(task, acting, 1)[0])
    assert [(STEPS - 1, 0)] in seen and [(0, 4)] in seen  # worker 0 is done before worker 1 has begun


# ----------------------------------------------------------------------------------------------------------------- losing workers


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("what", ["begin", "act", "act_last", "snapshot", "retrace"])
def test_a_replacement_acts_out_again_what_the_lost_one_did(page: Any, made: list[CentralPool], what: str, interval: int) -> None:
    """Lost before it answers the fourth question of a kind."""
    task = page(f"pool.snapshot_interval={interval}", source=PENDULUM)
    acting = policy(task, memory=nn.GRU)
    wanted = expected(task, acting, 5)
    pool = CentralPool(task, torch.arange(ENVS))
    made.append(pool)
    count = itertools.count()
    kind = "begin" if what == "retrace" else what

    def dies(name: str) -> bool:
        return name == kind and next(count) == 3

    actors(pool)[1].dies_before = dies
    turns, restarts = pool._turns, 0.0
    replace = turns._crew.replace

    def replaced(worker: Worker, why: str) -> None:
        replace(worker, why)
        if what == "retrace" and worker.restarts == 1:
            worker.actor.dies_before = lambda name: name == "retrace"

    turns._crew.replace = replaced
    for iteration in range(5):
        rollout = pool.collect(acting, iteration)
        assert same(tensors(rollout), wanted[iteration])
        assert rollout.totals["steps"] == ENVS * STEPS  # what is acted out again is not counted again
        restarts += rollout.totals["pool/restarts"]
        pool.snapshot()
    assert restarts == (2.0 if what == "retrace" else 1.0)


@pytest.mark.parametrize("on_crash", ["raise", "replay"])
def test_a_worker_may_be_the_end(page: Any, made: list[CentralPool], on_crash: str) -> None:
    """Where the page says so; or where its code raises, which it would again."""
    task = page(f"pool.on_crash={on_crash}")
    pool = CentralPool(task, torch.arange(ENVS))
    made.append(pool)
    pool.collect(policy(task), 0)
    actor = actors(pool)[1]
    if on_crash == "raise":
        actor.dead = True
        said = r"environments 6 to 11\): The actor died.; iteration 1, step 0, env.seed 1; pool.on_crash: raise$"
    else:
        actor.worker._env.advance = lambda actions: 1 / 0  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        said = r"environments 6 to 11\): division by zero; iteration 1, step 0, env.seed 1$"
    with pytest.raises(PoolError, match=said):
        pool.collect(policy(task), 1)


def test_a_silent_worker_is_told_of_and_lost(
    page: Any, made: list[CentralPool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("embodied_rl.pools.turns._SILENT_S", 0.05)
    task = page("pool.timeout_s=0.5")
    acting = policy(task)
    pool = CentralPool(task, torch.arange(ENVS))
    made.append(pool)
    actors(pool)[0].held = True
    rollout = pool.collect(acting, 0)
    assert same(tensors(rollout), expected(task, acting, 1)[0]) and rollout.totals["pool/restarts"] >= 1.0
    assert "no answer for 0 s; it is held by a test; lost in 0 s" in caplog.text


# -------------------------------------------------------------------------------------------------------------------- devices


class There(Tensor):
    """A tensor on a device of its own, which calls itself `meta`: its numbers can be had by copies alone."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(cls, held.shape, held.stride(), 0, dtype=held.dtype, device="meta")  # pyright: ignore
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_two_devices(function, args, kwargs or {})


#: Copies, which read one device and write to another.
COPIES = (torch.ops.aten.copy_, torch.ops.aten._to_copy)


#: Of each copy, whether it is from the other device, and whether to it.
crossings: list[tuple[bool, bool]] = []


def on_two_devices(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation where its tensors are; it is an error if they are not in one place, but for single numbers."""
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.dim()]
    places = {type(one) is There or isinstance(getattr(one, "held", None), Tensor) for one in given}
    asked = kwargs.pop("device", None)
    device = None if asked is None else torch.device(asked).type
    copies = function.overloadpacket in COPIES
    if copies:
        target = device == "meta" if device is not None else isinstance(args[0], There)
        source = isinstance(args[1] if function.overloadpacket is torch.ops.aten.copy_ else args[0], There)
        crossings.append((source, target))
    assert copies or len(places) < 2, f"{function} reads tensors of both devices"
    there = any(isinstance(one, There) for one in tree_leaves((args, kwargs))) if device is None else device == "meta"
    bare = lambda one: one.held if isinstance(one, There) else one  # noqa: E731
    made = function(*tree_map(bare, args), **tree_map(bare, kwargs))
    if function.overloadpacket is torch.ops.aten.copy_ or (function._schema.is_mutable and given and made is bare(args[0])):
        return args[0]
    return tree_map(lambda one: There(one) if there and isinstance(one, Tensor) else one, made)


class TwoDevices(TorchDispatchMode):
    """Makes tensors on the device that is asked for."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_two_devices(function, args, kwargs or {})


def elsewhere(acting: Policy) -> Policy:
    """The same policy, with all of its numbers on the other device."""
    copied = copy.deepcopy(acting)
    std = None if copied.std is None else There(copied.std.clone())
    for part in (copied.normalizer, copied.network, copied.memory):
        for module in part.modules() if part is not None else ():
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                moved = There(value.detach().clone())
                setattr(module, name, nn.Parameter(moved, False) if name in module._parameters else moved)
    return Policy(copied.normalizer, copied.network, None if std is None else lambda: std, copied.memory)


@pytest.mark.parametrize("source", ["gymnasium:CartPole-v1", PENDULUM])
def test_no_tensor_of_the_host_meets_one_of_the_learners(
    page: Any, made: list[CentralPool], monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """On a device that refuses it: observations go there and actions come back by copies, one of each for a batch."""
    task = page("pool.workers=3", source=source)
    acting = policy(task)
    pool: Any = make_collector(task, torch.arange(ENVS), device="meta")
    made.append(pool)
    assert pool.observe()["actor"].device.type == "meta"
    wanted = expected(task, acting, 2)
    there = elsewhere(acting)
    asked = Inference.answer

    def answer(*given: Any) -> Any:
        crossings.clear()
        answers = asked(*given)
        counts.append((crossings.count((False, True)), crossings.count((True, False))))
        return answers

    monkeypatch.setattr(Inference, "answer", answer)
    counts: list[tuple[int, int]] = []
    for iteration in range(2):
        with TwoDevices():
            rollout = pool.collect(there, iteration)
            found = tensors(rollout)
        assert {value.device.type for value in found.values()} == {"meta"}
        for name, value in found.items():  # one product for a batch: other bits
            assert isinstance(value, There)
            torch.testing.assert_close(value.held, wanted[iteration][name], msg=name)
    assert set(counts) == {(1, 1)} and len(counts) == 2 * 2 * STEPS  # iterations, groups, steps


def test_it_would_be_noticed(page: Any, made: list[CentralPool], monkeypatch: pytest.MonkeyPatch) -> None:
    task = page(source=PENDULUM)
    pool = CentralPool(task, torch.arange(ENVS), device="meta")
    made.append(pool)
    there = elsewhere(policy(task))
    with TwoDevices():
        assert isinstance(There(torch.ones(2)).add(There(torch.ones(2))), There)
        with pytest.raises(AssertionError, match="tensors of both devices"):
            There(torch.ones(2)).add(torch.ones(2))
    monkeypatch.setattr(pool, "_device", torch.device("cpu"))  # as it was: nobody was told where the policy is
    with pytest.raises((AssertionError, RuntimeError, TypeError)), TwoDevices():
        pool.collect(there, 0)


# ------------------------------------------------------------------------------------------------------------------------ async


def stop_after(actor: Actor, count: int) -> None:
    """Let no answer of an actor come any more, once it has given so many."""

    class Holding(list[str]):
        def append(self, name: str) -> None:
            super().append(name)
            actor.held = len(self) >= count

    actor.told = Holding()


@pytest.fixture
def ahead_of(page: Any, made: list[CentralPool]) -> Callable[..., tuple[AsyncCentralPool, list[tuple[int, Any]]]]:
    """Makes a pool of mode `async`, and a list of each fragment that it ends, with the worker's index."""

    def make(*overrides: str) -> tuple[AsyncCentralPool, list[tuple[int, Any]]]:
        pool: Any = make_collector(page("pool.mode=async", *overrides, source=PENDULUM), torch.arange(ENVS))
        assert isinstance(pool, AsyncCentralPool)
        made.append(pool)
        fragments: list[tuple[int, Any]] = []
        write = pool._fragment

        def written(seat: Any, rest: Any) -> Any:
            fragments.append((seat.worker.index, write(seat, rest)))
            return fragments[-1][1]

        pool._fragment = written
        return pool, fragments

    return make


def test_fragments_go_on_meanwhile_and_are_what_they_would_have_been(ahead_of: Any) -> None:
    """The k-th fragment of each worker has the bits of the k-th rollout, where the policy stays; also of one that was lost."""
    pool, fragments = ahead_of()
    acting = policy(pool.page)
    count = itertools.count()
    actors(pool)[1].dies_before = lambda name: name == "act" and next(count) == 12
    restarts = 0.0
    for iteration in range(8):
        rollout = pool.collect(acting, iteration)
        restarts += rollout.totals["pool/restarts"]
        assert rollout.rewards.shape == (STEPS, ENVS // 2) and rollout.valid.all()
        torch.testing.assert_close(compare(rollout, acting).ratio, torch.ones(STEPS, ENVS // 2))
    pool.close()
    wanted = expected(pool.page, acting, 8)
    done = [0, 0]
    for index, fragment in fragments:
        rollout, rows = wanted[done[index]], pool.crew.workers[index].rows
        for name in ("actions", "output", "rewards", "terminated", "truncated", "valid"):
            assert np.array_equal(fragment["arrays"][name], rollout[name][:, rows])
        assert np.array_equal(fragment["arrays"]["obs:actor"], rollout["obs.actor"][:, rows])
        assert np.array_equal(fragment["arrays"]["last_obs:actor"], rollout["last_obs.actor"][rows])
        done[index] += 1
    assert min(done) >= 2 and restarts == 1.0


def test_each_step_says_which_policy_it_was_and_a_fragment_is_as_old_as_its_oldest(ahead_of: Any) -> None:
    pool, fragments = ahead_of()
    acting = policy(pool.page)
    slow, weights = actors(pool)[1], []
    stop_after(slow, 5)  # in the midst of its first fragment
    for iteration in range(4):
        weights.append(copy.deepcopy(acting))
        rollout = pool.collect(acting, iteration)
        while iteration == 0 and not slow.held:
            time.sleep(0.001)
        assert rollout.log_prob is not None
        now = acting(rollout.obs["actor"])[0].log_prob(rollout.actions)
        torch.testing.assert_close(compare(rollout, acting).log_ratio, now - rollout.log_prob)
        for parameter in acting.network.parameters():
            parameter.add_(0.05)
    slow.told, slow.held = [], False
    weights.append(copy.deepcopy(acting))
    while not (late := [fragment for index, fragment in fragments if index == 1]):
        rollout = pool.collect(acting, 4)
    first = late[0]
    assert first["version"] == 0 and set(first["versions"][:5]) == {0} and first["versions"][-1] >= 3
    assert (np.diff(first["versions"]) >= 0).all()
    for version in set(first["versions"][first["versions"] < len(weights)]):
        steps, arrays = first["versions"] == version, first["arrays"]
        mu = weights[version](torch.from_numpy(arrays["obs:actor"][steps]))[0]
        torch.testing.assert_close(mu.output, torch.from_numpy(arrays["output"][steps]))
        torch.testing.assert_close(
            mu.log_prob(torch.from_numpy(arrays["actions"][steps])), torch.from_numpy(arrays["log_prob"][steps])
        )
        assert np.array_equal(first["stds"][steps], np.full_like(first["stds"][steps], 0.5))


def test_what_is_too_old_is_dropped_and_counted(ahead_of: Any) -> None:
    pool, _ = ahead_of("pool.max_staleness=1")
    acting = policy(pool.page)
    slow = actors(pool)[1]
    stop_after(slow, 5)
    for iteration in range(4):
        pool.collect(acting, iteration)
    slow.told, slow.held = [], False
    late = 0.0
    while not late:
        rollout = pool.collect(acting, 4)
        late = rollout.totals["pool/late_fragments"]
        assert rollout.staleness is not None and (rollout.staleness <= 1.0).all()


def test_workers_that_are_far_ahead_wait_for_the_learner(ahead_of: Any) -> None:
    pool, fragments = ahead_of()
    acting = policy(pool.page)
    pool.collect(acting, 0)
    while len(pool._arrived) < 4:
        time.sleep(0.001)
    time.sleep(0.1)
    told = [len(actor.told) for actor in actors(pool)]
    time.sleep(0.1)
    assert [len(actor.told) for actor in actors(pool)] == told and len(fragments) == 5 and len(pool._arrived) == 4
    pool.collect(acting, 1)
    while len(fragments) < 6:
        time.sleep(0.001)


def test_one_that_hangs_is_given_up_while_others_go_on(ahead_of: Any) -> None:
    pool, _ = ahead_of("pool.timeout_s=0.5")
    acting = policy(pool.page)
    pool.collect(acting, 0)
    actors(pool)[1].held = True
    until = time.monotonic() + 20.0
    while not pool.collect(acting, 1).totals["pool/restarts"]:
        assert time.monotonic() < until


def test_what_goes_wrong_in_the_thread_is_raised_where_somebody_waits(ahead_of: Any) -> None:
    pool, _ = ahead_of()
    acting = policy(pool.page)
    pool.collect(acting, 0)
    pool.rest()
    for actor in actors(pool):
        actor.worker._env.advance = lambda actions: 1 / 0  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    with pytest.raises(PoolError, match=r"division by zero; iteration \d, step \d, env.seed 1$"):
        for iteration in range(1, 9):
            pool.collect(acting, iteration)
    with pytest.raises(PoolError, match="division by zero"):
        pool.snapshot()
    pool.close()
    assert not pool._thread.is_alive()


def test_a_snapshot_is_of_one_moment_and_what_was_under_way_is_dropped(ahead_of: Any) -> None:
    pool, fragments = ahead_of()
    acting = policy(pool.page)
    pool.collect(acting, 0)
    state = pool.snapshot()
    for _ in range(3):
        pool.collect(acting, 1)
    pool.restore(state)
    assert not pool._arrived and not pool._go.is_set()  # until the next rollout is asked for
    assert all(torch.equal(value, state[name]) for name, value in pool.snapshot().items())
    fragments.clear()
    pool.collect(acting, 2)
    here = local(pool.page)
    here.restore(state)
    wanted = tensors(here.collect(acting, 0))
    index, fragment = fragments[0]
    rows = pool.crew.workers[index].rows
    assert np.array_equal(fragment["arrays"]["obs:actor"], wanted["obs.actor"][:, rows])
    assert np.array_equal(fragment["arrays"]["actions"], wanted["actions"][:, rows])


def test_shards_must_be_equal(page: Any) -> None:
    with pytest.raises(PoolError, match=r"^pool.shard_size: 5: async wants env.num_envs \(12\) in equal shards$"):
        make_collector(page("pool.mode=async", "pool.shard_size=5"), torch.arange(ENVS))
