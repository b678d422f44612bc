"""Puppets that step by the clock: what the scripts say of feet and base, of three robots and one foot at each corner."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl.config import load
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.puppet import Motion, Script
from embodied_rl.tasks.velocity.audit import PUPPETS, asked, counts, marches, one_leg, walks

CYCLE = 25  # steps of 20 ms at 2 Hz
STANCE = 0.55
#: Four feet of one point each: front left, front right, rear left, rear right.
FEET = torch.tensor([[0.2, 0.1, -0.3], [0.2, -0.1, -0.3], [-0.2, 0.1, -0.3], [-0.2, -0.1, -0.3]])[:, None]


@pytest.fixture
def env() -> Any:
    term = lambda **facts: SimpleNamespace(name=facts.pop("name"), function=SimpleNamespace(**facts))  # noqa: E731
    params = {"rewards.height.target": 0.3, "rewards.clearance.target": 0.1, "rewards.clock.stance": STANCE}
    rewards = [term(name="height"), term(name="clearance", needs=("foot_frames",)), term(name="clock", needs=("foot_contact",))]
    terms = SimpleNamespace(rewards=rewards, params={name: torch.tensor(value) for name, value in params.items()})
    return SimpleNamespace(page=load("go2_flat"), terms=terms)


def at(moment: Moment, step: float) -> Moment:
    """The moment so many steps after its episode began; times between two steps, too."""
    episode = copy.copy(moment.episode)
    episode.episode_length = torch.full((3,), float(step))
    return Moment(**{**vars(moment), "episode": episode})


def cycle(script: Script, env: Any, moment: Moment) -> Motion:
    """A cycle's motions, (steps, N, ...)."""
    made = [script(env, at(moment, step), FEET) for step in range(CYCLE)]
    return Motion(*(torch.stack(part) for part in zip(*made, strict=True)))


def stances() -> Tensor:
    """Which feet stand, by step of a cycle, (steps, F)."""
    phase = torch.arange(CYCLE)[:, None] / CYCLE + torch.tensor([0.0, 0.5, 0.5, 0.0])
    return phase % 1.0 < STANCE


def test_who_marches_steps_by_the_offsets_and_stays(env: Any, moment: Moment) -> None:
    made = cycle(marches, env, moment)
    assert not made.velocity.any() and not made.feet_velocity[..., :2].any()
    assert torch.allclose(made.feet[..., :2], FEET[..., :2].expand_as(made.feet[..., :2]), atol=1e-6)
    up = made.feet[..., 0, 2] > FEET[:, 0, 2]
    assert torch.equal(up[:, 0], ~stances()) and torch.equal(up[:, 1], up[:, 0])
    assert not up[:, 2].any()  # who is asked to stand
    assert 0.1 < float((made.feet[..., 2] - FEET[..., 2]).max()) < 0.103  # the target of the term that looks at feet


def test_one_leg_is_always_in_the_air(env: Any, moment: Moment) -> None:
    made = cycle(one_leg, env, moment)
    assert not made.velocity.any() and not made.feet_velocity.any()
    lifted = made.feet - FEET
    assert not lifted[:, :, :-1].any() and not lifted[:, :, -1, :, :2].any()
    assert torch.allclose(lifted[:, :, -1, :, 2], torch.tensor(0.102))


def test_who_walks_does_what_the_command_says(env: Any, moment: Moment) -> None:
    made = cycle(walks, env, moment)
    command = moment.command("velocity")
    assert torch.equal(made.velocity[:, :2], command[:2].expand(CYCLE, 2, 3)) and not made.velocity[:, 2].any()
    assert torch.equal(made.feet[:, 2], FEET.expand(CYCLE, 4, 1, 3)) and not made.feet_velocity[:, 2].any()
    speed = made.feet_velocity[:, 0, :, 0].norm(dim=-1)
    assert torch.equal(speed == 0.0, stances())  # over the ground
    # each foot's place is that of mid-stance
    middle = walks(env, at(moment, CYCLE * STANCE / 2), FEET).feet[0]
    assert torch.allclose(middle[[0, 3]], FEET[[0, 3]], atol=1e-5)


def test_feet_move_as_their_places_do(env: Any, moment: Moment) -> None:
    """Against the base, which goes and turns; and nothing jumps where a stride begins or ends."""
    command, tiny = moment.command("velocity")[:2], 0.02
    for step in (0.5, 3.0, 6.3, 10.0, 13.9, 15.0, 19.0, 24.5):
        before, now, after = (walks(env, at(moment, step + one * tiny), FEET) for one in (-1, 0, 1))
        moved = ((after.feet - before.feet) / (2 * tiny * 0.02))[:2]
        turned = torch.stack((-now.feet[..., 1], now.feet[..., 0], torch.zeros_like(now.feet[..., 0])), dim=-1)[:2]
        base = torch.nn.functional.pad(command[:, :2], (0, 1))[:, None, None] + command[:, None, None, 2:] * turned
        assert torch.allclose(moved + base, now.feet_velocity[:2], atol=0.02)
    edge = CYCLE * STANCE
    for step in (edge, CYCLE, edge - CYCLE / 2, CYCLE / 2):
        before, after = (walks(env, at(moment, step + one), FEET).feet for one in (-1e-3, 1e-3))
        assert float((after - before).abs().max()) < 3e-3  # a foot is free at once


def test_only_who_is_asked_to_move_counts(env: Any, moment: Moment) -> None:
    assert counts(env, moment).tolist() == [True, True, False]


def test_slow_commands_are_those_of_the_page_that_are_slow() -> None:
    changes = asked(load("go2_flat"))
    assert list(changes) == ["moving commands", "slow commands"]
    assert "commands.velocity.standing=0.0" in changes["moving commands"]
    slow = load("go2_flat", changes["slow commands"]).commands["velocity"].params
    assert slow["lin_vel_x"] == slow["lin_vel_y"] == slow["ang_vel_z"] == (-0.3, 0.3) and slow["standing"] == 0.0
    ranges = "commands.velocity={lin_vel_x: %s, lin_vel_y: [0.0, 0.0], ang_vel_z: [0.0, 0.0]}"
    assert list(asked(load("go2_flat", [ranges % "[0.5, 1.0]"]))) == ["moving commands"]  # none is
    assert list(asked(load("go2_flat", [ranges % "[-0.2, 0.2]"]))) == ["moving commands"]  # all are


def test_a_page_that_says_nothing_of_feet_is_tried_all_the_same(env: Any, moment: Moment) -> None:
    env.terms.rewards = []
    made = [one_leg(env, moment, FEET), *(walks(env, at(moment, step), FEET) for step in range(CYCLE))]
    assert max(float((one.feet - FEET)[..., 2].max()) for one in made) == pytest.approx(0.082, abs=1e-4)


def test_the_walker_stands_last() -> None:
    assert list(PUPPETS) == ["marches", "one leg", "walks"] and math.isclose(CYCLE * 0.02, 0.5)
