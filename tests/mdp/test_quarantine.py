"""Numbers that are not finite, from each kind of term: the robot is treated as one that blew up, and the term is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl import make_env
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.mdp.quarantine import Quarantine
from embodied_rl.vector_env import LARGEST

ENVS, STEP = 6, 5
#: What each of three robots meets, and how it is said.
VALUES = {1: "nan", 3: "-inf", 4: "2e+30"}
SMALL = ["env.compile=false", "physics.num_threads=1", f"env.num_envs={ENVS}", "env.random_episode_phase=false"]
#: Terms that are right but for VALUES in one step of the robots' lives, at STEP; always right unless they are `odd`.
TERMS = f"""
import torch
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import command, event, observation, reward


VALUES = torch.zeros({ENVS})
for robot, value in {VALUES}.items():
    VALUES[robot] = float(value)


def spoiled(env, right, odd, *, at_once=False):
    here = (VALUES != 0.0) & ((env.episode.age == {STEP}) | at_once)
    shape = (-1, *[1] * (right.dim() - 1))
    return torch.where(here.view(shape), VALUES.view(shape), right) if odd else right


@observation(mirror="scalar")
def odd_observation(env, *, odd: bool = False):
    "[0, 1] or [0, value]"
    right = torch.ones(env.num_envs, 1)
    return torch.cat((torch.zeros_like(right), spoiled(env, right, odd)), dim=-1)


@reward()
def odd_reward(env, *, odd: bool = False):
    "1, or the value"
    return spoiled(env, torch.ones(env.num_envs), odd)


@event(mode="reset")
def odd_reset(env, draft, *, odd: bool = False):
    "nothing, or the value"
    draft.qpos[:] = spoiled(env, draft.qpos, odd)


@event(mode="interval")
def odd_push(env, draft, *, odd: bool = False):
    "nothing, or the value"
    draft.qvel[:] = spoiled(env, draft.qvel, odd)
    return env.episode.age == {STEP}


@event(mode="reset", fields=("geom_friction",))
def odd_friction(env, draft, *, odd: bool = False):
    "nothing, or the value"
    draft.model["geom_friction"] = spoiled(env, draft.model["geom_friction"], odd)


@event(mode="startup", fields=("dof_damping",))
def odd_start(env, draft, *, odd: bool = False):
    "nothing, or the value"
    draft.model["dof_damping"] = spoiled(env, draft.model["dof_damping"], odd, at_once=True)


@command()
class odd_command:
    "1, or the value"

    size, names = 1, ("one",)

    def __init__(self, robot, *, odd: bool = False):
        self.odd = odd
        self.state = {{"command": State((1,), fresh="keep")}}

    def resample(self, env, done):
        self.command.copy_(spoiled(env, torch.ones(env.num_envs, 1), self.odd))

    def hold(self, values):
        pass

    def errors(self, env):
        return {{}}

    def contract(self):
        return {{}}


@command()
class odd_error(odd_command):
    "1, with an error that is 0, or the value"

    def __init__(self, robot, *, odd: bool = False):
        super().__init__(robot, odd=odd)

    def resample(self, env, done):
        self.command.fill_(1.0)

    def errors(self, env):
        return {{"odd": spoiled(env, torch.zeros(env.num_envs), self.odd)}}
"""
#: Override that brings the term in, what is named, and the step whose transition means nothing, counted from 1: an observation,
#: a command or a push is wrong after the step, a reward of the step itself.  An event at a reset needs one.
FAULTS = {
    "observation": ("observations.actor.odd_observation={{odd: {}}}", "observations.actor.odd_observation[1]"),
    "critic": ("observations.critic.odd_observation={{odd: {}}}", "observations.critic.odd_observation[1]"),
    "reward": ("rewards.odd_reward={{weight: 1.0, odd: {}}}", "rewards.odd_reward"),
    "reset": ("events.odd_reset={{odd: {}}}", "what events.odd_reset draws"),
    "friction": ("events.odd_friction={{odd: {}}}", "what events.odd_friction draws"),
    "push": ("events.odd_push={{odd: {}}}", "what events.odd_push draws"),
    "command": ("commands.odd_command={{odd: {}}}", "commands.odd_command"),
    "error": ("commands.odd_error={{odd: {}}}", "the command's error odd"),
}
#: Episodes that end with STEP, where an event must draw in it; else the clock would hide what the fault ends.
RESETS = ("reset", "friction")
Make = Callable[..., Env]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Environments of go2_flat with the terms above, small and eager."""
    (tmp_path / "odd.py").write_text(TERMS)
    (tmp_path / "odd.yaml").write_text("extends: go2_flat.yaml\nname: odd\nterms: [odd.py]\n")
    made: list[Env] = []

    def build(*overrides: str, **options: Any) -> Env:
        made.append(make_env.make(str(tmp_path / "odd.yaml"), [*SMALL, *overrides], **options))
        return made[-1]

    yield build
    for env in made:
        env.close()


def play(env: Env, steps: int) -> list[dict[str, Tensor]]:
    """What each step leaves behind, copied."""
    found = []
    for step in range(steps):
        actions = 0.5 * torch.randn(ENVS, env.num_actions, generator=torch.Generator().manual_seed(step))
        done = env.step(actions)
        named = {"rewards": done.rewards, "terminated": done.terminated, "truncated": done.truncated, "valid": done.valid}
        named |= {"qpos": env.physics.qpos, "qvel": env.physics.qvel}
        for kind, groups in (("obs", done.obs), ("final", done.final_obs), ("buffer", env.buffers), ("field", env.fields.values)):
            named |= {f"{kind}.{name}": value for name, value in groups.items()}
        found.append({name: value.clone() for name, value in named.items()})
    return found


@pytest.mark.parametrize("kind", FAULTS)
def test_the_robots_are_lost_and_the_term_named(make: Make, kind: str) -> None:
    given, name = FAULTS[kind]
    episode = "env.episode_s=" + ("0.1" if kind in RESETS else "1.0")  # 5 steps of 20 ms
    odd, right = (make(given.format(flag), episode) for flag in ("true", "false"))
    found, expected = play(odd, 12), play(right, 12)

    others = torch.tensor([row for row in range(ENVS) if row not in VALUES])
    for one, other in zip(found, expected, strict=True):
        assert all(value.isfinite().all() for name, value in one.items() if not name.startswith("buffer."))
        for key in one:
            assert torch.equal(one[key][others], other[key][others]), key
    # a reward, and how far from the command, are judged with the step; the others are seen after it, and the next is lost too.
    # What an event draws for the next episode takes nothing from the one before.
    lost = {"reward": [STEP], "error": [STEP], "reset": [STEP + 1], "friction": [STEP + 1]}.get(kind, [STEP, STEP + 1])
    for robot in VALUES:
        valid = torch.stack([one["valid"][robot] for one in found]).tolist()
        assert [step for step, good in enumerate(valid, 1) if not good] == lost
        for step in lost:
            one = found[step - 1]
            assert one["terminated"][robot] and not one["truncated"][robot]
        if kind in ("observation", "critic"):
            assert not found[STEP - 1]["obs.actor" if kind == "observation" else "obs.critic"][robot].any()
        last = found[lost[-1] - 1]  # the step that ends the episode
        assert last["rewards"][robot] == 0.0 and last["buffer.episode_length"][robot] == 0
        assert all(one["valid"][robot] for one in found[lost[-1] :])

    notes = odd.drain_unstable()
    assert [(note["place"], note["row"], note["step"]) for note in notes] == [(name, robot, STEP) for robot in VALUES]
    for note, value in zip(notes, VALUES.values(), strict=True):
        shown = "4e+28" if (kind, value) == ("reward", "2e+30") else value  # times weight and step
        assert note["error"] == f"{name} is {shown}" + (", beyond 1e+10" if value == "2e+30" else "")
    assert odd.drain_unstable() == [] == right.drain_unstable()
    totals, healthy = odd.drain_totals(), right.drain_totals()
    assert all(abs(total) < 1e6 for total in totals.values())
    assert (totals["unstable"], healthy["unstable"]) == (len(VALUES), 0.0)


def test_a_fault_at_the_start_is_said_at_once(make: Make) -> None:
    with pytest.raises(UserError, match=r"^what events.odd_start draws is nan, for robot 1$"):
        make("events.odd_start={odd: true}")


WRITERS = """
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import observation, reward, termination


@reward()
def writes_positions(env):
    "1"
    env.robot.base_pos_w[:, 2] = float("nan")
    return env.episode.reward + 1.0


@termination()
def writes_actions(env):
    "no end"
    env.actions.mul_(0.5)
    return env.episode.done & False


@observation(mirror="scalar")
def writes_lengths(env):
    "0"
    env.episode_length[:1] = 7
    return env.episode.reward[:, None] * 0.0


@observation(mirror="scalar")
class remembers:
    "calls"

    state = {"calls": State((1,))}

    def __call__(self, env):
        return self.calls.add_(1.0).clone()
"""


@pytest.mark.parametrize(
    ("override", "place", "written"),
    [
        ("rewards.writes_positions={weight: 1.0}", "rewards.writes_positions", "physics.qpos"),
        ("terminations.writes_actions={}", "terminations.writes_actions", "actions"),
        ("observations.critic.writes_lengths={}", "observations.critic.writes_lengths", "episode_length"),
    ],
)
def test_a_term_that_writes_into_what_it_is_given_is_refused(
    make: Make, tmp_path: Path, override: str, place: str, written: str
) -> None:
    (tmp_path / "writers.py").write_text(WRITERS)
    (tmp_path / "odd.yaml").write_text("extends: go2_flat.yaml\nname: odd\nterms: [writers.py]\n")
    make("observations.critic.remembers={}")
    with pytest.raises(UserError, match=rf"^{place}: the term writes into {written}; what it is given is not its own: change"):
        make(override)


def test_a_snapshot_knows_who_is_lost(make: Make) -> None:
    one, other = (make("observations.actor.odd_observation={odd: true}") for _ in range(2))
    play(one, STEP)
    rows = torch.arange(ENVS)
    other.restore(rows, one.snapshot(rows))
    for first, second in zip(play(one, 4), play(other, 4), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert other.drain_totals()["unstable"] == len(VALUES)


def test_the_policys_action_is_named(make: Make) -> None:
    env = make()
    wrong = torch.zeros(ENVS, env.num_actions)
    wrong[2, 7] = float("nan")
    env.step(wrong)
    notes = [note for note in env.drain_unstable() if "place" in note]
    assert [(note["row"], note["place"]) for note in notes] == [(2, "the policy's action[7]")]
    assert env.result.valid.tolist() == [True, True, False, True, True, True]
    assert all(value.isfinite().all() for value in env.obs.values())


def test_the_first_odd_number_of_each_robot_is_noted() -> None:
    age = torch.tensor([7, 8, 9])
    quarantine = Quarantine(age, {"few": ["a"], "many": ["b", "c", "d"], "none": []})
    nan = float("nan")
    fine = torch.tensor([[LARGEST], [-LARGEST], [0.0]])
    assert not quarantine.look("few", fine).any() and quarantine.drain() == []
    many = torch.tensor([[1.0, 2.0, 3.0], [1.0, nan, float("inf")], [-2 * LARGEST, 2.0, nan]])
    assert quarantine.look("many", many, torch.tensor([True, True, False])).tolist() == [False, True, False]
    assert quarantine.look("many", many).tolist() == [False, True, True]
    age.add_(1)
    assert quarantine.look("few", torch.tensor([[1.0], [nan], [nan]])).tolist() == [False, True, True]
    assert not quarantine.look("none", torch.zeros(3, 0)).any()
    assert [(n["row"], n["step"], n["error"]) for n in quarantine.drain()] == [
        (1, 8, "c is nan"),
        (2, 9, "b is -2e+10, beyond 1e+10"),
    ]
    assert quarantine.drain() == []
    into = torch.ones(3, 3)
    assert quarantine.take("many", many, into).tolist() == [False, True, True]
    assert into.tolist() == [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_what_is_drawn_for_an_iteration_takes_no_notes_of_others_away(make: Make) -> None:
    payload = "events.payload={term: randomize, quantity: mass, of: base, operation: add, range: [-1.0, 1.0], when: iteration}"
    env = make("observations.actor.odd_observation={odd: true}", payload)
    play(env, STEP)
    env.begin_iteration(1, {})
    assert {note["place"] for note in env.drain_unstable()} == {"observations.actor.odd_observation[1]"}
