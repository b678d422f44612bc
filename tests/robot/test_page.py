"""Feet of any shape, robots that extend others, default poses that are mirrored."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from embodied_rl import paths
from embodied_rl.config import load
from embodied_rl.problems import ConfigError
from embodied_rl.robot import Foot, RobotError, load_robot


def test_feet_of_two_geoms(biped):
    assert biped.feet == (
        Foot("left", ("left_sole", "left_toe"), "left_foot", 0.0),
        Foot("right", ("right_sole", "right_toe"), "right_foot", 0.5),
    )
    assert biped.foot_mirror() == (1, 0)


def test_a_gait_is_optional(write, page):
    robot = load_robot(str(write(page.replace(", gait_offset: 0.0", "").replace(", gait_offset: 0.5", ""))))
    assert [foot.gait_offset for foot in robot.feet] == [None, None]


def test_feet_are_optional(write):
    write()
    assert load_robot(str(write("extends: ../biped\nfeet: null\n", name="legs", xml=None))).feet == ()


def test_a_robot_extends_another(write, biped):
    folder = write(
        "extends: ../biped\nbase_height: 0.4\njoints: {left_hip: {default: 0.2}, right_hip: {default: -0.2}}\n"
        "groups: {pitches: null, upper: null}\nbodies: {trunk: [trunk]}\nmotors: {knee: {effort_limit: 9.0}}\n",
        name="crouched",
        xml=None,
    )
    robot = load_robot(str(folder))
    assert robot == dataclasses.replace(
        biped,
        name="crouched",
        folder=folder,
        base_height=0.4,
        default_joint_pos=(0.2, -0.2, 0.4, -0.2, -0.2, 0.4),
        effort_limit=(5.0, 5.0, 9.0, 5.0, 6.0, 9.0),
        groups={"all": biped.joint_names, "hips": ("left_hip", "right_hip")},
        bodies={**biped.bodies, "trunk": ("trunk",)},
    )
    assert robot.mjspec().compile().njnt == 7


def test_a_robot_extends_a_shipped_one(write):
    robot = load_robot(str(write("extends: go2\nmirror: {FL: null, RL: null}\n", name="mine", xml=None)))
    go2 = load_robot("go2")
    assert (robot.model_path, robot.mirror) == (paths.shipped("robots") / "go2" / "go2.xml", {})
    assert robot.joint_names == go2.joint_names and robot.mjspec().compile().nbody == 14


def test_mistakes_of_a_chain_are_told_where_they_stand(write, page):
    write(page.replace("base_height: 0.41", "base_height: low"))
    child = write("extends: ../biped\nwheels: 4\ngroups: {hops: null}\n", name="child", xml=None)
    with pytest.raises(RobotError) as caught:
        load_robot(str(child))
    base = child.parent / "biped"
    assert str(caught.value).splitlines() == [
        f"{child}/robot.yaml:3: groups.hops: null, but there is no inherited entry to remove; did you mean 'hips'?",
        f"{child}/robot.yaml:2: wheels: no such key; did you mean 'weld'?",
        f'{base}/robot.yaml:4: base_height: "low" is not a number',
    ]


@pytest.mark.parametrize(
    "extends, message",
    [
        ("../bipod", r"2: extends: no '\.\./bipod', neither a shipped robot nor a folder with robot.yaml; allowed: a1"),
        ("go22", "2: extends: no 'go22', .*; did you mean 'go2'"),
        ("[go2]", r"2: extends: \[\"go2\"\] is not a string"),
        ("../child", "2: extends: robots extend each other in a circle: .*child/robot.yaml -> .*child/robot.yaml"),
    ],
)
def test_extends_goes_wrong_in_one_line(write, extends, message):
    child = write(f"name: child\nextends: {extends}\n", name="child", xml=None)
    with pytest.raises(RobotError, match=message) as caught:
        load_robot(str(child))
    assert "\n" not in str(caught.value)


def test_a_robots_mistakes_are_the_pages_lines(write, page, tmp_path):
    write(page.replace("base_height: 0.41", "base_height: low").replace("mirror: {left: right}", "mirror: {lift: right}"))
    (tmp_path / "page.yaml").write_text("extends: go2_flat\nrobot: biped\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "page.yaml")
    lines = [problem.message for problem in caught.value.problems if problem.path == "robot"]
    assert len(lines) == len(caught.value.problems) > 1
    assert lines[0] == f'{tmp_path}/biped/robot.yaml:4: base_height: "low" is not a number'


def test_an_error_travels_between_processes(mistakes, write, page):
    with pytest.raises(RobotError) as caught:
        load_robot(str(write(page.replace("base_height: 0.41", "base_height: low"))))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.problems) == (str(caught.value), caught.value.problems)


def test_the_default_pose_is_its_own_reflection(write, page, biped):
    assert biped.joint_mirror() == ((3, 4, 5, 0, 1, 2), (-1.0, 1.0, 1.0) * 2)
    folder = write(page.replace("right_hip: {default: -0.1", "right_hip: {default: 0.1"))
    with pytest.raises(RobotError) as caught:
        load_robot(str(folder)).joint_mirror()
    assert str(caught.value) == (
        f"{folder}/robot.yaml:12: joints.right_hip.default: the default pose is not symmetric: 'left_hip' at 0.1 wants -0.1 here"
    )
