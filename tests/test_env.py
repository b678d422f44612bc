from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl import env as module
from embodied_rl import make_env
from embodied_rl.env import Env
from embodied_rl.errors import UserError

ENVS = 16
SMALL = ["env.compile=false", "physics.num_threads=1", f"env.num_envs={ENVS}", "env.episode_s=0.6"]
Make = Callable[..., Env]


@pytest.fixture
def make() -> Iterator[Make]:
    """Environments of go2_flat, small and eager, closed when the test is over."""
    made: list[Env] = []

    def build(*overrides: str, **options: Any) -> Env:
        made.append(make_env.make("go2_flat", [*SMALL, *overrides], **options))
        return made[-1]

    yield build
    for env in made:
        env.close()


def actions(step: int, rows: int = ENVS) -> Tensor:
    """Some actions, the same for a row whatever stands beside it."""
    generator = torch.Generator().manual_seed(step)
    return 0.8 * torch.randn(64, 12, generator=generator)[:rows]


def results(env: Env, step: int) -> dict[str, Tensor]:
    """What a step leaves behind, copied."""
    done = env.step(actions(step, env.num_envs))
    groups = {f"obs.{name}": value for name, value in done.obs.items()} | {f"final.{n}": v for n, v in done.final_obs.items()}
    flags = {"terminated": done.terminated, "truncated": done.truncated, "valid": done.valid}
    tensors = {**groups, **flags, "rewards": done.rewards, "qpos": env.physics.qpos, "qvel": env.physics.qvel}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def play(env: Env, steps: int, start: int = 0) -> list[dict[str, Tensor]]:
    return [results(env, step) for step in range(start, start + steps)]


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]], rows: slice | Tensor = slice(None)) -> bool:
    """Bit for bit, in these rows."""
    return all(torch.equal(a[name][rows], b[name][rows]) for a, b in zip(one, other, strict=True) for name in a)


def test_a_step_is_one_screen_and_speaks_of_no_task() -> None:
    assert len(inspect.getsourcelines(Env.advance)[0]) < 60
    source = inspect.getsource(module).lower()
    assert [word for word in ("air_time", "friction", "velocity", "latency", "heading") if word in source] == []


def test_the_contract_of_a_step(make: Make) -> None:
    env = make()
    sizes = {name: value.shape[1] for name, value in env.obs.items()}
    assert set(sizes) == {"actor", "critic"} and env.num_actions == 12 and env.num_envs == ENVS
    assert (env.step_dt, env.max_episode_length) == (pytest.approx(0.02), 30)
    for step in range(3):
        done = env.step(actions(step))
        assert done.obs is env.obs
        assert {name: value.shape for name, value in done.obs.items()} == {n: (ENVS, size) for n, size in sizes.items()}
        assert done.final_obs["critic"].shape == (ENVS, sizes["critic"])
        assert done.rewards.shape == (ENVS,) and done.rewards.dtype == torch.float32
        for flag in (done.terminated, done.truncated, done.valid):
            assert flag.shape == (ENVS,) and flag.dtype == torch.bool
        assert all(value.isfinite().all() and value.dtype == torch.float32 for value in done.obs.values())
        assert not (done.terminated & done.truncated).any()


def test_actions_of_another_shape_are_refused(make: Make) -> None:
    env = make(num_envs=3)
    for shape in ((12,), (1, 12), (3, 11)):
        said = rf"^actions of shape {re.escape(str(shape))} are given; a step takes \(num_envs, num_actions\) = \(3, 12\)$"
        with pytest.raises(UserError, match=said):
            env.step(torch.zeros(shape))


def test_buffers_keep_their_address(make: Make) -> None:
    """So that a graph of the step, or a policy's, can be captured once."""

    def addresses(done: Any) -> list[int]:
        tensors = [*done.obs.values(), *done.final_obs.values(), done.rewards, done.terminated, done.truncated, done.valid]
        tensors += [*env.buffers.values(), env.physics.qpos, env.physics.qvel]
        return [tensor.data_ptr() for tensor in tensors]

    env = make()
    before = addresses(env.step(actions(0)))
    env.reset()
    for step in range(40):
        assert addresses(env.step(actions(step))) == before


def test_a_seed_makes_an_episode(make: Make) -> None:
    one, again, other = make(), make(), make(seed=2)
    assert torch.equal(one.obs["actor"], again.obs["actor"])
    assert not torch.equal(one.obs["actor"], other.obs["actor"])
    assert same(play(one, 32), play(again, 32))
    assert not torch.equal(results(one, 32)["obs.actor"], results(other, 32)["obs.actor"])


def test_a_row_does_not_depend_on_the_others(make: Make) -> None:
    """Nor on how many there are: rows 0 to 3 of 16 are the 4 rows of a smaller batch."""
    many, few = play(make(), 62), play(make(num_envs=4), 62)
    assert same(many, few, slice(0, 4))
    assert any(step["terminated"][:4].any() for step in many) and any(step["truncated"][:4].any() for step in many)
    assert len({tuple(row.tolist()) for row in many[-1]["obs.actor"]}) == ENVS


def test_a_snapshot_is_exact(make: Make) -> None:
    env, everyone = make(), torch.arange(ENVS)
    play(env, 20)
    state = env.snapshot(everyone)
    assert all(len(tensor) == ENVS for tensor in state.values())
    future = play(env, 32, start=20)
    env.restore(everyone, state)
    assert same(play(env, 32, start=20), future)
    # in another process it is another environment that goes on
    other = make()
    other.restore(everyone, state)
    assert torch.equal(other.obs["critic"], state["obs.critic"])
    assert same(play(other, 32, start=20), future)


def test_a_snapshot_of_some_rows(make: Make) -> None:
    env, rows = make(), torch.tensor([9, 2, 5])
    play(env, 20)
    state = env.snapshot(rows)
    assert all(len(tensor) == 3 for tensor in state.values())
    reference = make()
    play(reference, 20)
    play(env, 7, start=40)  # the rows stray, and come back
    everyone = env.snapshot(torch.arange(ENVS))
    env.restore(rows, state)
    others = torch.tensor([row for row in range(ENVS) if row not in rows])
    untouched = env.snapshot(others)
    assert all(torch.equal(untouched[name], tensor[others]) for name, tensor in everyone.items())
    assert same(play(env, 20, start=20), play(reference, 20, start=20), rows)


def test_a_snapshot_of_another_page(make: Make) -> None:
    rows = torch.arange(ENVS)
    state = make("observations.actor.joint_pos={history: 3}").snapshot(rows)
    with pytest.raises(ValueError, match="the snapshot is of another page"):
        make().restore(rows, state)
    # the same names, another size
    longer = make("observations.actor.joint_pos={history: 4}")
    with pytest.raises(ValueError, match=r"the snapshot is of another page: the sizes of .*actor\.joint_pos\.past"):
        longer.restore(rows, state)


def test_an_episode_ends_by_the_clock_or_by_a_fall(make: Make) -> None:
    env = make("env.random_episode_phase=false", "terminations.tilt=null", "terminations.height={minimum: 0.2}")
    on_their_backs = torch.arange(ENVS) < 3
    for step in range(30):
        if step == 10:
            low = env.physics.qpos.clone()
            low[:, 2] = 0.1
            env.physics.write(on_their_backs, qpos=low)
        done = env.step(torch.zeros(ENVS, 12))
        if step == 10:
            assert done.terminated.tolist() == on_their_backs.tolist() and not done.truncated.any()
            assert env.buffers["episode_length"].tolist() == [0] * 3 + [11] * 13
            assert (env.physics.qpos[:3, 2] > 0.25).all()
    still_going = env.buffers["episode_length"] > 0
    assert done.truncated[3:].sum() >= 10 and not done.truncated[:3].any() and still_going[:3].all()


def test_falling_in_the_last_step_is_falling(make: Make) -> None:
    env = make("env.random_episode_phase=false")
    for _ in range(29):
        env.step(torch.zeros(ENVS, 12))
    env.buffers["episode_length"].fill_(29)
    low = env.physics.qpos.clone()
    low[:, 2] = 0.05
    env.physics.write(torch.arange(ENVS) == 4, qpos=low)
    done = env.step(torch.zeros(ENVS, 12))
    assert done.terminated[4] and not done.truncated[4]
    assert (done.terminated ^ done.truncated).all()


def test_the_final_observation_is_that_before_the_reset(make: Make) -> None:
    """A longer episode, which the clock does not end, shows what the state was."""
    short = make("env.random_episode_phase=false", "events.push=null")
    long = make("env.random_episode_phase=false", "events.push=null", "env.episode_s=10.0")
    for step in range(30):
        done, going = short.step(actions(step)), long.step(actions(step))
    ended = done.truncated & ~going.terminated
    assert ended.sum() >= 3
    # the command of the next episode is not this one's, and the phase starts anew
    assert not torch.equal(done.obs["critic"][ended], going.obs["critic"][ended])
    torch.testing.assert_close(done.final_obs["critic"][ended], going.final_obs["critic"][ended], rtol=0, atol=0)
    torch.testing.assert_close(done.final_obs["critic"][ended], going.obs["critic"][ended], rtol=0, atol=0)


def test_first_episodes_begin_at_any_time(make: Make) -> None:
    begun = make("env.episode_s=20.0").buffers["episode_length"]
    assert begun.min() >= 0 and begun.max() < 1000 and len(begun.unique()) > ENVS // 2
    assert not make("env.random_episode_phase=false").buffers["episode_length"].any()


def test_reset_begins_an_episode_everywhere(make: Make) -> None:
    env = make("env.random_episode_phase=false")
    play(env, 10)
    obs = env.reset()
    assert obs is env.obs and not env.buffers["episode_length"].any() and not env.buffers["actions"].any()
    assert (env.physics.qpos[:, 2] > 0.25).all()
    assert same(play(env, 5), play(env, 5)) is False


def test_a_weight_changed_in_place_counts_from_the_next_step(make: Make) -> None:
    env = make("env.reward_floor=null")
    column = [term.name for term in env.terms.rewards].index("track_linear_velocity")
    env.step(actions(0))
    assert (env.buffers["reward_terms"][:, column] > 0).all()
    env.params["rewards.track_linear_velocity.weight"].zero_()
    done = env.step(actions(1))
    terms = env.buffers["reward_terms"]
    assert not terms[:, column].any()
    torch.testing.assert_close(terms[:, :-1].sum(1), done.rewards)


def test_numbers_are_set_in_place_and_count_from_the_next_step(make: Make) -> None:
    """So that a captured step reads them; and nobody else moves them, whatever curricula the page has."""
    ramp = "{term: linear, parameter: rewards.pose.weight, start: [0.5], end: [1.0], iterations: [0, 9]}"
    env = make("env.reward_floor=null", f"curriculum.ramp={ramp}")
    own, path = env.page.rewards["pose"].weight, "rewards.pose.weight"
    before, column = env.params[path].data_ptr(), [term.name for term in env.terms.rewards].index("pose")
    env.step(actions(0))
    assert env.params[path].item() == pytest.approx(own) and env.buffers["reward_terms"][:, column].any()
    env.begin_iteration(0, {path: torch.tensor(0.0)})
    env.step(actions(1))
    assert env.params[path].data_ptr() == before and not env.buffers["reward_terms"][:, column].any()
    for odd in ({"rewards.waltz.weight": torch.tensor(0.0)}, {path: torch.zeros(2)}):
        with pytest.raises(ValueError, match=f"^the numbers are of another page: {next(iter(odd))} differ$"):
            env.begin_iteration(0, {"commands.velocity.standing": torch.tensor(1.0), **odd})
    assert env.params["commands.velocity.standing"] != 1.0  # all or nothing


def test_rewards_have_a_floor(make: Make) -> None:
    page = "rewards={orientation: {weight: -5.0}, termination: {weight: -1.0}, alive: {weight: 0.001}}"
    env, free = make(page), make(page, "env.reward_floor=null")
    low, deep = [], []
    for step in range(40):
        done = env.step(actions(step))
        fell = done.terminated
        low.append(done.rewards.clone())
        deep.append(free.step(actions(step)).rewards.clone())
        assert (done.rewards[~fell] >= 0).all()
        assert torch.equal(done.rewards[fell] < 0, torch.ones(int(fell.sum())).bool())  # no floor hides a fall
    assert torch.stack(deep).min() < torch.stack(low).min() <= -0.02 + 1e-3


def test_a_robot_that_blows_up_leaves_the_others_alone(make: Make) -> None:
    env, reference = make(), make()
    play(env, 5)
    play(reference, 5)
    broken = torch.arange(ENVS) == 6
    env.physics.write(broken, qvel=torch.full_like(env.physics.qvel, float("nan")))
    hit, whole = results(env, 5), results(reference, 5)
    assert hit["terminated"][6] and not hit["truncated"][6]
    assert hit["valid"].tolist() == (~broken).tolist() and whole["valid"].all()
    assert hit["rewards"][6] == 0.0 and not env.buffers["reward_terms"][6].any()
    assert all(value.isfinite().all() for value in hit.values())
    assert same([hit], [whole], ~broken)
    assert same(play(env, 32, start=6), play(reference, 32, start=6), ~broken)
    totals = env.drain_totals()
    assert totals["unstable"] == 1.0 and all(value == value for value in totals.values())


def test_an_action_that_is_not_finite_is_that_robots_alone(make: Make) -> None:
    env, reference = make(), make()
    broken = torch.arange(ENVS) == 3
    wrong = actions(0)
    wrong[3] = float("nan")
    env.step(wrong)
    reference.step(actions(0))
    assert same(play(env, 3), play(reference, 3), ~broken)


def test_totals_are_those_of_the_steps_since_they_were_read(make: Make) -> None:
    env = make()
    env.drain_totals()
    steps = [results(env, step) for step in range(40)]
    totals = env.drain_totals()
    ended = sum(int((step["terminated"] | step["truncated"]).sum()) for step in steps)
    assert totals["steps"] == 40 * ENVS and totals["episodes"] == ended
    assert totals["terminated"] == sum(int(step["terminated"].sum()) for step in steps)
    assert totals["episodes"] - totals["terminated"] == sum(int(step["truncated"].sum()) for step in steps) > 0
    assert set(env.drain_totals().values()) == {0.0}


def test_the_episodes_reward_is_the_sum_of_its_steps(make: Make) -> None:
    env = make("env.random_episode_phase=false")
    earned, expected = torch.zeros(ENVS), 0.0
    for step in range(30):
        done = env.step(actions(step))
        earned += done.rewards
        ended = done.terminated | done.truncated
        expected += float(earned[ended].sum())
        earned[ended] = 0.0
    assert env.drain_totals()["reward/total"] == pytest.approx(expected, rel=1e-4)


def test_a_page_without_a_critic(make: Make) -> None:
    """The actor's observations then serve both."""
    env = make("observations.critic=null", "env.final_obs_groups=[actor]")
    done = env.step(actions(0))
    assert set(done.obs) == set(done.final_obs) == {"actor"}


@pytest.mark.slow
def test_the_compiled_step_is_the_eager_one(make: Make) -> None:
    eager, compiled = make("env.compile=false"), make("env.compile=true")
    for step in range(40):
        one, other = results(eager, step), results(compiled, step)
        for name in ("terminated", "truncated", "valid"):
            assert torch.equal(one[name], other[name])
        # robots are chaotic: rounding differs, so the compiled ones go on from where the eager ones are
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-4, msg=f"{step} {name}")
        everyone = torch.arange(ENVS)
        compiled.restore(everyone, eager.snapshot(everyone))
