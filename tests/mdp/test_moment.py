"""A robot that is no quadruped, as terms see it: unlimited joints, no mirror, feet of two geoms."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.mdp.fields import Values
from embodied_rl.mdp.moment import Draw
from embodied_rl.mdp.part import Part, PartState
from embodied_rl.mdp.trackers import Trackers
from embodied_rl.physics.protocol import Physics
from embodied_rl.robot import load_robot
from embodied_rl.scene import Scene, build_scene

CART = """
<mujoco>
  <worldbody>
    <body name="trunk" pos="0 0 0.6" quat="0.6 0 0 0.8">
      {root}
      <geom type="box" size="0.1 0.1 0.1"/>
      <body name="arm"> <joint name="swing" axis="0 1 0" range="-60 60"/> <geom type="sphere" size="0.05" pos="0 0 1"/> </body>
      <body name="wheel" pos="0 0 -0.4"> <joint name="spin" axis="0 1 0"/> <geom type="sphere" size="0.05"/> </body>
    </body>
  </worldbody>
</mujoco>
"""
PAGE = """
name: cart
model: cart.xml
base: trunk
base_height: 0.45
joints:
  spin: {default: 0.5, stiffness: 0.0, damping: 1.0, effort_limit: 5.0}
  swing: {default: 0.25, stiffness: 20.0, damping: 1.0, effort_limit: 50.0}
"""
MIRROR = "mirror: {spin: swing}\n"


def _scene(folder, root: str = "<freejoint/>", more: str = MIRROR) -> Scene:
    (folder / "cart.xml").write_text(CART.format(root=root))
    (folder / "robot.yaml").write_text(PAGE + more)
    return build_scene(load_robot(str(folder)), collisions="full", physics=PhysicsSettings())


def test_the_default_pose(tmp_path):
    robot = Part(_scene(tmp_path), torch.device("cpu"))
    torch.testing.assert_close(robot.default_qpos, torch.tensor([0.0, 0.0, 0.45, 0.6, 0.0, 0.0, 0.8, 0.25, 0.5]))
    assert robot.floating and robot.default_joint_pos.tolist() == [0.5, 0.25]


def test_a_fixed_base_has_no_place_in_the_default_pose(tmp_path):
    robot = Part(_scene(tmp_path, root=""), torch.device("cpu"))
    assert not robot.floating and robot.default_qpos.tolist() == [0.25, 0.5]
    torch.testing.assert_close(robot.fixed_base_quat, torch.tensor([0.6, 0.0, 0.0, 0.8]))
    torch.testing.assert_close(robot.fixed_base_pos, torch.tensor([0.0, 0.0, 0.6]))


def test_limits_are_in_the_pages_order(tmp_path):
    limits = Part(_scene(tmp_path), torch.device("cpu")).joint_limits
    torch.testing.assert_close(limits[:, 1], torch.tensor([-math.pi / 3, math.pi / 3]))


def test_a_joint_without_limits_has_none(tmp_path):
    limits = Part(_scene(tmp_path), torch.device("cpu")).joint_limits
    assert limits[0, 0] < -1e3 and limits[1, 0] > 1e3


def test_a_robot_without_a_mirror_can_be_built(tmp_path):
    Part(_scene(tmp_path, more=""), torch.device("cpu"))


def test_a_term_sees_the_constants_of_the_robot_and_is_told_of_its_typing_errors(tmp_path):
    robot = Part(_scene(tmp_path), torch.device("cpu"))
    state = PartState(robot, cast("Physics", None))  # constants ask no engine
    names = ("joint_names", "joint_limits", "default_joint_pos", "qpos_index", "qvel_index", "mass", "floating", "foot_geoms")
    assert all(getattr(state, name) is getattr(robot, name) for name in (*names, "root_qpos", "foot_names"))
    with pytest.raises(AttributeError, match="'PartState' object has no attribute 'joint_limit'"):
        state.joint_limit  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_a_command_that_the_page_has_not_is_one_line(moment):
    moment = dataclasses.replace(moment, commands={"velocity": SimpleNamespace(command=torch.ones(3, 2))})
    assert moment.command("velocity") is moment.command_term("velocity").command
    for commands, said in (
        (moment.commands, "did you mean 'velocity'?"),
        ({"pose": None}, "it has pose"),
        ({}, "it has none: name one under commands"),
    ):
        with pytest.raises(UserError) as error:
            dataclasses.replace(moment, commands=commands).command("velocty")
        assert str(error.value) == f"a term reads the command 'velocty', which the page has not; {said}"


UNSAID = {
    "foot_contact": lambda env: env.robot.foot_contact,
    "contact:thighs": lambda env: env.robot.contact("thighs"),
    "joint_torque": lambda env: env.robot.joint_torque,
    "foot_frames": lambda env: env.robot.foot_pos_w,
    "foot_orientation": lambda env: env.robot.foot_quat_w,
    "air_time": lambda env: env.tracker("air_time"),
    "model:geom_friction": lambda env: env.model["geom_friction"],
}


@pytest.mark.parametrize("need", UNSAID)
def test_what_a_term_reads_without_saying_so_is_one_line(moment, need):
    """And not zeros, which is what an engine has where it measures nothing."""
    robot = SimpleNamespace(**vars(moment.robot._part) | {"measured": frozenset()})
    unsaid = dataclasses.replace(
        moment, robot=PartState(cast("Part", robot), moment.robot._physics), trackers=Trackers(), model=Values()
    )
    with pytest.raises(UserError) as error:
        UNSAID[need](unsaid)
    assert str(error.value).startswith("a term reads ") and "\n" not in str(error.value)
    assert str(error.value).endswith(f"without saying so: give its decorator needs=({need!r},)")


def test_velocities_and_undersides_of_feet_are_asked_for_as_their_places_are(moment):
    robot = SimpleNamespace(**vars(moment.robot._part) | {"measured": frozenset()})
    for name in ("foot_lin_vel_w", "foot_underside_w"):
        with pytest.raises(UserError, match=r"needs=\('foot_frames',\)$"):
            getattr(PartState(cast("Part", robot), moment.robot._physics), name)


def test_what_a_scene_measures_is_what_its_terms_asked_for(tmp_path):
    assert Part(_scene(tmp_path), torch.device("cpu")).measured == frozenset()
    needs = {"foot_contact", "foot_frames", "foot_orientation", "joint_torque", "contact:thighs"}
    scene = build_scene(load_robot("go2"), collisions="full", physics=PhysicsSettings(), needs=needs)
    assert Part(scene, torch.device("cpu")).measured == needs


def test_a_draw_beyond_its_block_is_an_error():
    draw = Draw(torch.rand(3, 4))
    draw(3)
    with pytest.raises((AssertionError, ValueError, IndexError)):
        draw(2)
