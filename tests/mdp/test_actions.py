"""Action terms: targets in the robot's own numbers, their latency, and several side by side."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from embodied_rl.config import ConfigError, load
from embodied_rl.config.terms import find_terms
from embodied_rl.errors import UserError
from embodied_rl.mdp.actions import joint_position, joint_velocity, mirrored_joints
from embodied_rl.mdp.group import ActionGroup
from embodied_rl.mdp.moment import Draw, Moment
from embodied_rl.mdp.state import Memory

DEFAULT = torch.tensor([0.1, -0.8, 0.4])
GROUPS = {"all": (0, 1, 2), "legs": (2, 0), "arm": (1,)}
#: Joints a, b and c; a and c are partners.
ROBOT: Any = cast(
    Any,
    SimpleNamespace(
        default_joint_pos=DEFAULT,
        joint_names=("a", "b", "c"),
        joint_indices=lambda group: range(3) if group == "all" else GROUPS[group],
        joint_limits=torch.tensor([[-1.0, -2.0, -1e6], [0.5, 1.0, 1e6]]),
        spec=SimpleNamespace(joint_mirror=lambda: ((2, 1, 0), (1.0, -1.0, 1.0)), velocity_limit=(20.0, None, 10.0)),
    ),
)


def _env(actions: torch.Tensor, previous: torch.Tensor, block: torch.Tensor | None = None) -> Moment:
    return cast(Moment, SimpleNamespace(actions=actions, previous_actions=previous, decimation=4, draw=Draw(block)))


def _actions(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.arange(float(count * size)).view(count, size)
    return values, -values - 1.0


def _group(*terms: Any) -> ActionGroup:
    return ActionGroup([(str(index), term) for index, term in enumerate(terms)], ROBOT)


def _remembering(term: Any, count: int) -> Any:
    Memory(count, torch.device("cpu")).add("actions.term", term)
    return term


def test_targets_count_from_the_default_pose():
    term, (actions, previous) = joint_position(ROBOT, scale=cast(Any, torch.tensor(0.25))), _actions(2, 3)
    assert list(term.joints) == [0, 1, 2] and term.state == {}
    torch.testing.assert_close(term.controls(_env(actions, previous), actions, previous), DEFAULT + 0.25 * actions)


def test_a_scale_may_have_a_number_for_each_joint():
    term = joint_position(ROBOT, joints="legs", scale=cast(Any, torch.tensor([0.5, 2.0])))
    actions = torch.tensor([[1.0, 1.0]])
    torch.testing.assert_close(term.controls(_env(actions, actions), actions, actions), torch.tensor([[0.4 + 0.5, 0.1 + 2.0]]))


def test_a_latency_holds_the_targets_of_the_step_before():
    term = _remembering(joint_position(ROBOT, scale=0.25, latency=(0, 3)), 3)
    term.latency.copy_(torch.tensor([0.0, 1.0, 3.0]))
    actions, previous = _actions(3, 3)
    controls = term.controls(_env(actions, previous), actions, previous)
    new, old = DEFAULT + 0.25 * actions, DEFAULT + 0.25 * previous
    for row, late in enumerate((0, 1, 3)):
        expected = torch.stack([old[row] if substep < late else new[row] for substep in range(4)])
        torch.testing.assert_close(controls[row], expected)


def test_a_latency_is_drawn_for_the_episodes_that_begin():
    term = _remembering(joint_position(ROBOT, latency=(1, 3)), 3000)
    term.latency.fill_(7.0)
    block = torch.rand(3000, 4, generator=torch.Generator().manual_seed(0))
    done = torch.arange(3000) % 2 == 0
    term.resample(_env(*_actions(3000, 3), block), done)
    assert (term.latency[~done] == 7.0).all()
    values, counts = term.latency[done].unique(return_counts=True)
    assert values.tolist() == [1.0, 2.0, 3.0] and counts.min() > 430


def test_the_greatest_random_number_is_the_greatest_latency():
    term = _remembering(joint_position(ROBOT, latency=(1, 2)), 1)
    term.resample(_env(*_actions(1, 3), torch.full((1, 4), 1.0 - 2.0**-24)), torch.ones(1, dtype=torch.bool))
    assert term.latency.tolist() == [2.0]


def test_terms_stand_side_by_side_and_what_none_drives_holds_the_default_pose():
    legs = joint_position(ROBOT, joints="legs", scale=0.5, clip=cast(Any, torch.tensor(2.0)))
    group = _group(legs)
    actions = torch.tensor([[1.0, -9.0]])
    assert group.size == 2 and group.bounds().tolist() == [2.0, 2.0]
    clipped = group.clip(actions)
    assert clipped.tolist() == [[1.0, -2.0]]
    torch.testing.assert_close(group.controls(_env(clipped, clipped)), torch.tensor([[0.1 - 1.0, -0.8, 0.4 + 0.5]]))
    arm = joint_velocity(ROBOT, joints="arm", scale=3.0, clip=cast(Any, torch.tensor(1.0)))
    both = _group(arm, legs)
    clipped = both.clip(torch.tensor([[7.0, 1.0, -9.0]]))
    assert clipped.tolist() == [[1.0, 1.0, -2.0]] and both.size == 3
    torch.testing.assert_close(both.controls(_env(clipped, clipped)), torch.tensor([[0.1 - 1.0, 3.0, 0.4 + 0.5]]))


def test_one_term_with_a_latency_gives_all_a_row_for_each_substep():
    legs = _remembering(joint_position(ROBOT, joints="legs", scale=1.0, latency=(0, 3)), 1)
    legs.latency.fill_(2.0)
    arm = joint_velocity(ROBOT, joints="arm", scale=1.0)
    group = _group(legs, arm)
    controls = group.controls(_env(torch.tensor([[1.0, 1.0, 5.0]]), torch.zeros(1, 3)))
    assert controls.shape == (1, 4, 3) and controls[0, :, 1].tolist() == [5.0] * 4
    torch.testing.assert_close(controls[0, :, 0], torch.tensor([0.1, 0.1, 1.1, 1.1]))


def test_the_mirror_of_a_group_of_joints_is_among_themselves():
    assert mirrored_joints(ROBOT, joints="legs") == ((1, 0), (1.0, 1.0))
    assert mirrored_joints(ROBOT, joints="arm") == ((0,), (-1.0,))
    legs, arm = joint_position(ROBOT, joints="legs"), joint_velocity(ROBOT, joints="arm")
    index, sign = _group(arm, legs).reflection({"0": {"joints": "arm"}, "1": {"joints": "legs"}})
    assert (list(index), list(sign)) == ([0, 2, 1], [-1.0, 1.0, 1.0])


def test_a_group_of_one_side_has_no_mirror(monkeypatch):
    monkeypatch.setitem(GROUPS, "left", (0,))
    with pytest.raises(UserError, match="joints: 'left' holds 'a' without its mirror partner 'c'"):
        mirrored_joints(ROBOT, joints="left")


def test_every_action_is_tested_here():
    assert set(find_terms()[0]["action"]) == {"joint_position", "joint_velocity"}


@pytest.mark.parametrize(
    ("latency", "message"),
    [
        ("[6, 6]", "[6, 6] is not allowed: at most 2, physics.decimation: targets hold for one control step"),
        ("[3, 1]", "[3, 1] is not allowed: low must be at most high"),
        ("[-2, 3]", "-2 is not allowed: at least 0"),
    ],
)
def test_a_latency_that_no_control_step_has_is_refused(latency: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("go2_flat", [f"actions.joint_position.latency={latency}"])
    assert str(caught.value).endswith(message)


def test_how_far_an_output_reaches_is_said_of_each_joint() -> None:
    """To the farther limit from the default pose over the scale, at most to the clip; a joint without a limit has no end."""
    scale, clip = cast(Any, torch.tensor(0.5)), cast(Any, torch.tensor(10.0))
    found = joint_position(ROBOT, scale=scale, clip=clip).reach()
    assert found[:2].tolist() == pytest.approx([1.1 / 0.5, 1.8 / 0.5]) and bool(found[2].isinf())
    assert joint_position(ROBOT, joints="arm", scale=scale, clip=cast(Any, torch.tensor(3.0))).reach().tolist() == [3.0]
    speeds = joint_velocity(ROBOT, scale=cast(Any, torch.tensor(5.0)), clip=clip)
    assert speeds.reach().tolist() == [4.0, float("inf"), 2.0]
    silent = SimpleNamespace(joints=(1,))  # a term of one's own that does not say
    assert _group(joint_position(ROBOT, joints="legs", scale=scale, clip=clip), silent).reach().tolist()[1:] == pytest.approx(
        [2.2, float("inf")]
    )
