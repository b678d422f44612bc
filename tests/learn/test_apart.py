"""Robots apart from their learner: who touches what, and a rollout that is collected while the last one is learned from."""

from __future__ import annotations

import functools
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from embodied_rl import make_env, training
from embodied_rl.config import ConfigError, Page, load
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn import apart
from embodied_rl.learn.apart import ApartCollector, OverlapCollector
from embodied_rl.learn.copies import plain_copy
from embodied_rl.learn.guards import UnstableError
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import LocalCollector, Rollout
from embodied_rl.learn.run import Run
from embodied_rl.learn.train import Trainer
from embodied_rl.learn.transfer import Transfer

ENVS, STEPS = 16, 8
SMALL = [
    *("env.compile=false", f"env.num_envs={ENVS}", "env.episode_s=0.5", "physics.num_threads=1"),
    *(f"train.steps={STEPS}", "ppo.actor_hidden_dims=[16]", "ppo.critic_hidden_dims=[16]", "train.save_every=2"),
    *("ppo.num_learning_epochs=2", "ppo.num_mini_batches=2"),
]
CPU = torch.device("cpu")


@functools.cache
def page(*overrides: str) -> Page:
    return load("go2_flat", [*SMALL, "curriculum=null", *overrides])


def robots(settings: Page) -> LocalCollector:
    return LocalCollector(make_env.make(settings), STEPS, settings.env.seed, symmetry=True)


def trainer(folder: Path, *overrides: str) -> Any:
    return training.start(page("train.overlap=true", *overrides), folder)


def env_of(made: Trainer) -> Env:
    return made.collector._robots._env  # pyright: ignore[reportAttributeAccessIssue]


def tensors(rollout: Rollout) -> dict[str, Tensor]:
    """All of a rollout's, by name, copied."""
    found = {name: value.clone() for name, value in vars(rollout).items() if isinstance(value, Tensor)}
    groups = {name: value for name, value in vars(rollout).items() if name in ("obs", "final_obs", "last_obs")}
    return found | {f"{name}.{key}": value.clone() for name, group in groups.items() for key, value in group.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def learned(learner: Any) -> dict[str, Tensor]:
    return {f"{part}.{name}": v.clone() for part, net in learner.networks.items() for name, v in net.state_dict().items()}


def change(policy: Policy) -> None:
    """As an update would."""
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.add_(0.01)
        policy.normalizer._mean.add_(0.1)  # pyright: ignore


# ------------------------------------------------------------------------------------------------------------- who touches what


class TwoDevices(TorchDispatchMode):
    """Two halves of the CPU as two devices: what reads tensors of both fails, as it would of two real ones, but for copies.

    What an operation makes belongs to the side of what it reads.  Numbers, which have no dimensions, mix.
    """

    _FREE = (torch.ops.aten.copy_, torch.ops.aten._to_copy, torch.ops.aten.empty_like, torch.ops.aten.new_empty)

    def __init__(self) -> None:
        super().__init__()
        self._sides: dict[int, tuple[str, Any]] = {}
        self.reads: dict[str, int] = {"robots": 0, "learner": 0}

    def put(self, side: str, *values: Any) -> None:
        """Say whose these are; it is an error if they are the other's."""
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                self._assign(side, tensor)
                assert self.side(tensor) in (side, None), f"the {side}' and the {self.side(tensor)}'s tensor at once"

    def _assign(self, side: str, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()  # kept: its number would be given again
        self._sides.setdefault(storage._cdata, (side, storage))

    def side(self, tensor: Tensor) -> str | None:
        return self._sides.get(tensor.untyped_storage()._cdata, (None,))[0] if tensor.dim() else None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        sides = {side for one in given if (side := self.side(one))}
        free = function.overloadpacket in self._FREE
        assert free or len(sides) < 2, f"{function} reads tensors of both devices"
        made = function(*args, **kwargs or {})
        for side in sides if not free else ():
            self.reads[side] += 1
            for one in tree_leaves(made):
                if isinstance(one, Tensor):
                    self._assign(side, one)
        return made


def train_on_two_devices(collector: Any, settings: Page, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Three iterations; how many operations each side did in this thread."""
    copied = apart.plain_copy

    def plain_copy(policy: Policy) -> Policy:
        with _disable_current_modes():  # it ends on the CPU, wherever it began
            return copied(policy)

    monkeypatch.setattr(apart, "plain_copy", plain_copy)
    learner: Any = training.make_learner(settings, collector, CPU)
    sides, local = TwoDevices(), collector._robots
    networks = [[*net.parameters(), *net.buffers()] for net in learner.networks.values()]
    sides.put("learner", networks, learner.steps.bucket, learner.steps.totals)
    env = local._env
    sides.put("robots", env.buffers, env.obs, env.final_obs, env.physics.qpos, env.physics.qvel)
    meet = local._meet

    def met(policy: Policy) -> None:
        meet(policy)
        sides.put("robots", pack_of(policy), tensors_of(local._rollout))

    local._meet = met
    for iteration in range(3):
        with sides:
            rollout = collector.collect(learner.policy, iteration)
            sides.put("learner", tensors_of(rollout))
            learner.update(rollout, iteration)
    collector.rest()
    return sides.reads


def pack_of(policy: Policy) -> list[Tensor]:
    parts = [policy.network, policy.normalizer]
    return [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]


def tensors_of(rollout: Rollout) -> list[Tensor]:
    return [one for one in tree_leaves(vars(rollout)) if isinstance(one, Tensor)]


@pytest.fixture(params=["apart", "overlap"])
def collector(request: pytest.FixtureRequest) -> Iterator[ApartCollector]:
    local = robots(page())
    made = ApartCollector(local, CPU) if request.param == "apart" else OverlapCollector(local, CPU)
    yield made
    made.rest(at_once=True)
    local._env.close()


def test_neither_side_reads_what_is_the_others(collector: ApartCollector, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = train_on_two_devices(collector, page(), monkeypatch)
    assert min(reads.values()) > 100


@pytest.mark.parametrize("broken", ["the robots' own rollout is handed out", "the learner's own policy acts"])
def test_it_would_be_noticed(collector: ApartCollector, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    if broken.startswith("the robots"):
        monkeypatch.setattr(Transfer, "__call__", lambda self, rollout: rollout)
    else:
        monkeypatch.setattr(apart, "plain_copy", lambda policy: policy)
    with pytest.raises(AssertionError, match=r"tensors? (of both devices|at once)"):
        train_on_two_devices(collector, page(), monkeypatch)


def test_all_that_is_handed_out_lies_where_the_learner_is() -> None:
    local = robots(page())
    policy = training.make_learner(page(), local, CPU).policy
    made = ApartCollector(local, torch.device("meta"))  # a device that computes nothing
    handed = [made.observe(), made.mirrors, tensors_of(made.collect(policy, 0))]
    addresses = [id(tensor) for tensor in handed[2]]
    assert {one.device.type for one in tree_leaves(handed) if isinstance(one, Tensor)} == {"meta"} and len(made.mirrors) == 3
    again = made.collect(policy, 1)
    assert [id(tensor) for tensor in tensors_of(again)] == addresses  # buffers that stay
    assert again.totals["steps"] == ENVS * STEPS and "transfer" in again.seconds
    local._env.close()


def test_apart_is_what_robots_and_learner_do_together(tmp_path: Path) -> None:
    """Also with a policy that remembers, whose memory goes into the snapshot."""
    given = ["ppo.rnn_type=gru", "ppo.rnn_hidden_dim=8", "ppo.symmetry=none"]
    settings, ends = page(*given), []
    for wrap in (lambda local: local, lambda local: ApartCollector(local, CPU)):
        local = robots(settings)
        made: Any = wrap(local)
        learner = training.make_learner(settings, made, CPU)
        for iteration in range(3):
            learner.update(made.collect(learner.policy, iteration), iteration)
            made.restore(made.snapshot())
        ends.append(learned(learner) | made.snapshot())
        local._env.close()
    assert same(*ends) and "policy.memory.0" in ends[0]


# --------------------------------------------------------------------------------------------------------------------- overlap


def test_an_overlapped_rollout_is_that_of_the_policy_one_update_ago() -> None:
    settings = page()
    one, other = robots(settings), robots(settings)
    policy = training.make_learner(settings, one, CPU).policy
    made = OverlapCollector(one, CPU)
    other.notes_log_prob = True
    weight = "rewards.action_rate.weight"
    # whose policy and numbers made each rollout: what was there when the one before it was handed out
    acting, under, ages = [plain_copy(policy)], [0.0], (0.0, 1.0, 1.0)
    for iteration, age in enumerate(ages):
        numbers = {weight: torch.tensor(-0.1 * iteration)}
        found = made.collect(policy, iteration, numbers)
        acting.append(plain_copy(policy))
        under.append(-0.1 * iteration)
        numbers[weight].fill_(9.0)  # whoever gave them may change them
        handed = tensors(found)
        expected = other.collect(acting[iteration], iteration, {weight: torch.tensor(under[iteration])})
        expected.staleness = torch.full((ENVS,), age)
        assert [name for name, value in tensors(expected).items() if not torch.equal(value, handed[name])] == []
        assert found.totals == expected.totals and set(found.seconds) == {"robots", "transfer"}
        change(policy)
    made.rest()
    one._env.close()
    other._env.close()


def emulated(settings: Page, iterations: int) -> dict[str, Tensor]:
    """What overlap comes to, one thing after the other."""
    local, hand_out = robots(settings), Transfer(CPU)
    local.notes_log_prob = True
    learner = training.make_learner(settings, local, CPU)
    ahead = hand_out(local.collect(acting := plain_copy(learner.policy), 0))
    for iteration in range(iterations):
        rollout = ahead
        acted, acting = acting, plain_copy(learner.policy)
        ahead = Transfer(CPU)(local.collect(acting, iteration + 1))
        rollout.staleness = torch.full((ENVS,), float(iteration > 0))
        learner.update(rollout, iteration)
        assert acted is not acting
    state = learned(learner) | local.snapshot()
    local._env.close()
    return state


def test_learning_is_the_same_whoever_is_slow_and_however_many_threads(tmp_path: Path) -> None:
    settings = page("train.overlap=true")
    expected = emulated(settings, 4)

    def run(name: str, robots_s: float, update_s: float) -> None:
        made: Any = trainer(tmp_path / name)
        advance, update = env_of(made).advance, made.learner.update
        env_of(made).advance = lambda actions: (time.sleep(robots_s), advance(actions))[1]  # pyright: ignore
        made.learner.update = lambda *given: (time.sleep(update_s), update(*given))[1]
        history = list(made.train(4))
        assert same(learned(made.learner) | made.collector.snapshot(), expected)
        assert [one["Policy/staleness"] for one in history] == [0.0, 1.0, 1.0, 1.0]
        last = history[-1]
        shares = {name: last[f"Perf/share_{name}"] for name in ("robots", "transfer", "update")}
        assert sum(shares.values()) == pytest.approx(1.0, abs=0.1)
        if robots_s or update_s:  # what the line of a report says
            assert max(shares, key=lambda name: shares[name]) == ("robots" if robots_s else "update")

    threads = torch.get_num_threads()
    try:
        run("as it is", 0.0, 0.0)
        torch.set_num_threads(3)
        run("robots", 0.02, 0.0)
        run("update", 0.0, 0.3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_the_robots_thread_has_one_of_torchs_and_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    local = robots(page())
    policy = training.make_learner(page(), local, CPU).policy
    made, seen = OverlapCollector(local, CPU), []
    advance = local._env.advance

    def watched(actions: Tensor) -> None:
        seen.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads(), torch.is_grad_enabled()))
        advance(actions)

    monkeypatch.setattr(local._env, "advance", watched)
    made.collect(policy, 0)
    made.rest()
    assert seen == [(True, 1, False)] * STEPS + [(False, 1, False)] * STEPS
    local._env.close()


def blow_up(env: Any, rows: list[int]) -> None:
    mask = torch.zeros(ENVS, dtype=torch.bool)
    mask[rows] = True
    env.physics.write(mask, qvel=torch.full_like(env.physics.qvel, float("nan")))


def test_robots_that_blow_up_are_told_of_with_their_rollout(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", "physics.max_unstable=0.2")
    history = []
    for metrics in made.train(4):
        history.append(metrics["Physics/unstable"])
        made.collector.rest()  # the second rollout is there, the third begins with the next iteration
        if made.iteration == 1:
            blow_up(env_of(made), [2, 5])
    assert history == [0.0, 0.0, 2.0, 0.0]
    dumps = sorted(path.name for path in (tmp_path / "run" / "unstable").iterdir())
    assert dumps == ["iteration_000003_row_2.npz", "iteration_000003_row_5.npz"]
    with pytest.raises(UnstableError, match=r"^4 of 16 robots blew up in iteration 7"):
        for _ in made.train(8):
            made.collector.rest()
            if made.iteration == 5:
                blow_up(env_of(made), [0, 1, 2, 3])


def test_what_goes_wrong_in_the_thread_is_raised_by_the_next_collect(monkeypatch: pytest.MonkeyPatch) -> None:
    local = robots(page())
    policy = training.make_learner(page(), local, CPU).policy
    made, error = OverlapCollector(local, CPU), UserError("environment 3: the gripper is stuck")
    made.collect(policy, 0)

    def fail(actions: Tensor) -> None:
        raise error

    made.rest()
    with monkeypatch.context() as patch:
        patch.setattr(local._env, "advance", fail)
        made.collect(policy, 1)
        for ask in (made.snapshot, lambda: made.collect(policy, 2)):
            with pytest.raises(UserError) as caught:
                ask()
            assert caught.value is error
    assert (made.collect(policy, 3).staleness == 0.0).all()  # anew
    made.rest()
    local._env.close()


def test_a_run_whose_robots_are_lost_in_the_end_says_so_and_keeps_what_was_learned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(tmp_path / "run")
    collect, error = made.collector._robots.collect, UserError("environment 3: the gripper is stuck")

    def fail(policy: Policy, iteration: int, *given: Any) -> Rollout:
        if iteration == 3:  # which no update waits for
            raise error
        return collect(policy, iteration, *given)

    made.collector._robots.collect = fail
    with pytest.raises(UserError) as caught:
        list(made.train(3))
    assert caught.value is error
    again: Any = training.resume(str(tmp_path / "run"), "go2_flat")
    assert again.iteration == 3 and same(learned(again.learner), learned(made.learner))
    assert caplog.messages[1:] == [f"{again.run.checkpoint(3)}: holds no state of 16 of 16 robots; they start fresh"]
    assert len(list(again.train(4))) == 1


def test_an_error_ends_the_rollout_under_way_and_a_consumer_that_stops_waits_for_it(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run")
    env, update = env_of(made), made.learner.update
    advance, steps = env.advance, []

    def slowly(actions: Tensor) -> None:
        time.sleep(0.05)
        advance(actions)
        steps.append(threading.current_thread())

    for _ in made.train(10):
        env.advance = slowly  # pyright: ignore[reportAttributeAccessIssue]
        if made.iteration == 2:
            break
    count = len(steps)
    time.sleep(0.15)
    assert len(steps) == count >= STEPS

    def fail(*_: Any) -> None:
        while len(steps) == count:  # the next rollout is under way
            time.sleep(0.01)
        raise KeyboardInterrupt

    made.learner.update = fail
    with pytest.raises(KeyboardInterrupt):
        list(made.train(10))
    assert count < len(steps) < count + STEPS
    count = len(steps)
    time.sleep(0.15)
    assert len(steps) == count
    made.learner.update, env.advance = update, advance
    (metrics,) = made.train(3)
    assert metrics["Policy/staleness"] == 0.0 and made.iteration == 3


def test_a_resumed_run_collects_its_first_rollout_anew(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run")
    list(made.train(3))
    ends = []
    for name in ("one", "other"):
        shutil.copytree(tmp_path / "run", tmp_path / name)
        again: Any = training.resume(str(tmp_path / name), "go2_flat")
        assert again.iteration == 3 and same(again.collector.snapshot(), made.collector.snapshot())
        assert [one["Policy/staleness"] for one in again.train(5)] == [0.0, 1.0]
        ends.append(learned(again.learner) | again.collector.snapshot())
    assert same(*ends)
    made.collector.restore(made.collector.snapshot())  # with a rollout under way, which is dropped
    assert made.collector.collect(made.learner.policy, 3).staleness.eq(0.0).all()
    made.collector.rest()


def test_a_run_without_it_is_a_local_collectors(tmp_path: Path) -> None:
    made = training.make_trainer(page(), Run.create(page(), tmp_path / "run"))
    assert type(made.collector) is LocalCollector


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["train.learner=rsl_rl.algorithms:PPO"],
            "true needs train.learner: ppo or impala, which weigh stale actions; take overlap: false",
        ),
        (
            ["ppo.normalize_advantage=minibatch"],
            "true needs ppo.normalize_advantage: rollout or none; set it, or take overlap: false",
        ),
    ],
)
def test_what_overlap_needs_is_said_when_the_page_is_checked(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        page("train.overlap=true", *overrides)
    (line,) = str(caught.value).splitlines()
    assert f"train.overlap: {said}" in line
