"""Groups of joints, and numbers per joint."""

from __future__ import annotations

import pytest

from embodied_rl.robot import RobotError, load_robot


def test_groups_hold_groups_in_the_order_of_joints(biped):
    assert biped.groups == {
        "all": biped.joint_names,
        "hips": ("left_hip", "right_hip"),
        "pitches": ("left_pitch", "right_pitch"),
        "upper": ("left_hip", "left_pitch", "right_hip", "right_pitch"),
    }
    assert biped.joints_of("hips") == biped.groups["hips"] and biped.joints_of("left_knee") == ("left_knee",)
    with pytest.raises(RobotError, match="no joint or group 'hip'; did you mean 'hips'"):
        biped.joints_of("hip")


WRONG = {
    "unknown": ("right_pitch, left_pitch", "right_pitch, left_pich", "17: groups.pitches[1]: no joint or group 'left_pich'; did"),
    "a joint's name": ("  upper:", "  left_hip:", "18: groups.left_hip: is the name of a joint; call the group otherwise"),
    "all": ("  upper:", "  all:", "18: groups.all: 'all' is always there and means every joint; call the group otherwise"),
    "a circle": ("left_hip, right_hip]", "upper]", "16: groups.hips: groups hold each other in a circle: hips -> upper -> hips"),
    "itself": ("left_hip, right_hip]", "hips]", "16: groups.hips: groups hold each other in a circle: hips -> hips"),
}


@pytest.mark.parametrize("old, new, expected", WRONG.values(), ids=WRONG)
def test_wrong_groups(mistakes, old, new, expected):
    (said,) = mistakes(old, new)
    assert said.startswith(expected)


def test_numbers_per_joint(biped):
    assert biped.per_joint(0.5) == (0.5,) * 6
    assert biped.per_joint({"upper": 1, "left_knee": 2.0, "right_knee": 3.0}) == (1.0, 1.0, 2.0, 1.0, 1.0, 3.0)
    assert biped.per_joint({"all": 0.1}, ["right_knee", "left_hip"]) == (0.1, 0.1)
    assert biped.per_joint({"left_hip": 1.0, "right_knee": 2.0}, ["right_knee", "left_hip"]) == (2.0, 1.0)


@pytest.mark.parametrize(
    "values, joints, message",
    [
        ({"upper": 1.0, "left_knee": 2.0}, None, "'right_knee' is missing; name every joint once"),
        ({"upper": 1.0}, None, "'left_knee', 'right_knee' are missing"),
        ({"all": 1.0, "hips": 2.0}, None, "'left_hip' is named twice, by 'all' and 'hips'; 'right_hip' is named twice, by"),
        ({"al": 1.0, "all": 2.0}, None, "no joint or group 'al'; did you mean 'all'?"),
        ({"hips": 1.0, "left_knee": 1.0}, ["left_hip"], r"'left_knee' is none of the joints that are asked for \(left_hip\)"),
        ({}, ["left_hip"], "'left_hip' is missing"),
    ],
)
def test_wrong_numbers_per_joint(biped, values, joints, message):
    with pytest.raises(ValueError, match=message) as caught:
        biped.per_joint(values, joints)
    assert "\n" not in str(caught.value)


def test_shipped_quadrupeds_have_groups_and_a_trot():
    for name in ("a1", "anymal_c", "go1", "go2"):
        robot = load_robot(name)
        assert robot.groups["hips"] == robot.joint_names[::3] and len(robot.groups["hips"]) == 4
        assert robot.per_joint({"hips": 1.0, "thighs": 2.0, "calves": 3.0}) == (1.0, 2.0, 3.0) * 4
        assert robot.per_joint({"front_legs": 1.0, "rear_legs": 2.0}) == (1.0,) * 6 + (2.0,) * 6
        assert [foot.gait_offset for foot in robot.feet] == [0.0, 0.5, 0.5, 0.0]
