"""Robots that were not made for us: what their files say stays with them, and what we add takes nothing from it."""

from __future__ import annotations

import logging
from pathlib import Path

import mujoco
import numpy as np
import pytest

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.robot import RobotError, load_robot
from embodied_rl.scene import Scene, build_scene
from embodied_rl.scene.build import SceneError

LEG = """
      <body name="{side}_leg" pos="0 {y} 0"><inertial pos="0 0 -0.1" mass="0.5" diaginertia="0.01 0.01 0.01"/>
        <joint name="{side}_hip" axis="0 1 0" range="-1 1"/>
        <geom name="{side}_foot" size="0.03" pos="0 0 -0.27" {foot}/><site name="{side}_foot" pos="0 0 -0.27"/>
      </body>"""
MJCF = """
<mujoco>
  <compiler angle="radian"/>
  <default>{default}</default>
  <worldbody>
    {world}
    <body name="trunk" pos="0 0 0.3"><freejoint/><inertial pos="0 0 0" mass="4" diaginertia="0.1 0.1 0.1"/>{legs}
    </body>
  </worldbody>
  {more}
</mujoco>
"""
PAGE = """
model: {model}
base: trunk
base_height: 0.3
joints:
  left_hip: {{default: 0.0, stiffness: 40.0, damping: 1.0, effort_limit: {effort}}}
  right_hip: {{default: 0.0, stiffness: 40.0, damping: 1.0, effort_limit: 30.0}}
feet:
  left: {{geoms: [left_foot], site: left_foot}}
  right: {{geoms: [right_foot], site: right_foot}}
"""


def mjcf(
    folder: Path, *, default: str = "", world: str = "", more: str = "", foot: str = "", effort: float = 30.0, full: bool = False
) -> Scene:
    legs = "".join(LEG.format(side=side, y=y, foot=foot) for side, y in (("left", 0.1), ("right", -0.1)))
    (folder / "robot.xml").write_text(MJCF.format(default=default, world=world, more=more, legs=legs))
    (folder / "robot.yaml").write_text(PAGE.format(model="robot.xml", effort=effort))
    return build_scene(load_robot(str(folder)), collisions="full" if full else "feet", physics=PhysicsSettings())


def test_what_is_added_takes_nothing_from_the_files_defaults(tmp_path: Path) -> None:
    default = (
        '<geom priority="3" euler="0 0.3 0" margin="0.1" gap="0.05" solref="0.5 1" surfacevel="1 0 0"/>'
        '<general gear="100" dyntype="integrator" actrange="0 1" actlimited="true" ctrlrange="0 1" ctrllimited="true"/>'
        '<light diffuse="1 0 0"/>'
    )
    (tmp_path / "plain").mkdir()
    plain, found = mjcf(tmp_path / "plain"), mjcf(tmp_path, default=default)
    ours = [(model, model.geom("ground").id) for model in (plain.model, found.model)]
    for name in (one for one in dir(plain.model) if one.startswith("geom_") and one not in ("geom_bodyid", "geom_rbound")):
        values = [getattr(model, name)[index] for model, index in ours]
        assert np.array_equal(*values), name
    for name in (one for one in dir(plain.model) if one.startswith("actuator_") and one != "actuator_length0"):
        assert np.array_equal(getattr(plain.model, name), getattr(found.model, name)), name
    assert np.array_equal(plain.render_model.light_diffuse, found.render_model.light_diffuse)


@pytest.mark.parametrize("masks", ['contype="1" conaffinity="0"', 'contype="0" conaffinity="2"', 'contype="0" conaffinity="0"'])
@pytest.mark.parametrize("full", [False, True])
def test_feet_stand_on_the_ground_whatever_the_files_masks(masks: str, full: bool, tmp_path: Path) -> None:
    model = mjcf(tmp_path, foot=masks, full=full).model
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 20)
    assert data.ncon == 2 and data.qpos[2] > 0.28
    pairs = {frozenset(model.geom(int(geom)).name for geom in contact.geom) for contact in data.contact}
    assert pairs == {frozenset(("ground", "left_foot")), frozenset(("ground", "right_foot"))}


def test_the_friction_of_feet_is_the_contacts(tmp_path: Path) -> None:
    model = mjcf(tmp_path).model
    model.geom("left_foot").friction[0] = 0.1
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 5)
    (left,) = [contact for contact in data.contact if model.geom("left_foot").id in contact.geom]
    assert left.friction[0] == pytest.approx(0.1)


def test_the_files_own_ground_and_pairs_with_it_give_way(tmp_path: Path) -> None:
    pairs = '<contact><pair geom1="floor" geom2="left_foot"/><pair geom1="floor" geom2="right_foot"/></contact>'
    world = '<geom name="floor" type="plane" size="1 1 1"/>'
    for full in (False, True):
        model = mjcf(tmp_path, world=world, more=pairs, foot='contype="0" conaffinity="0"', full=full).model
        data = mujoco.MjData(model)
        mujoco.mj_step(model, data, 20)
        assert model.npair == 0 and data.ncon == 2


def test_what_cannot_be_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"robot\.xml: a geom is named 'ground', as ours is; give it another name$"):
        mjcf(tmp_path, world='<geom name="ground" type="box" size="1 1 1" pos="0 0 -2"/>', full=True)
    with pytest.raises(SceneError, match=r"robot\.xml: cannot be compiled: Error: material 'black' not found"):
        mjcf(tmp_path, foot='material="black"')
    with pytest.raises(RobotError, match=r"joints\.left_hip\.effort_limit: 0\.0 is not allowed: more than 0"):
        mjcf(tmp_path, effort=0.0)


INERTIAL = '<inertial><mass value="{}"/><inertia ixx="{}" iyy="{}" izz="{}" ixy="0" ixz="0" iyz="0"/></inertial>'
URDF = f"""<robot name="dog">
  {{before}}
  <link name="trunk">{INERTIAL.format(4, 0.1, 0.1, 0.1)}{{visual}}</link>
  {{legs}}
</robot>"""
URDF_LEG = f"""
  <joint name="{{side}}_hip" type="revolute"><parent link="trunk"/><child link="{{side}}_foot"/><origin xyz="0 {{y}} 0"/>
    <axis xyz="0 1 0"/><limit lower="-1" upper="1" effort="10" velocity="10"/></joint>
  <link name="{{side}}_foot">{INERTIAL.format(0.5, 0.01, 0.01, 0.01)}
    <collision><origin xyz="0 0 -0.27"/><geometry>{{shape}}</geometry></collision></link>"""
FIXED = '<link name="{0}"/><joint name="hold" type="fixed"><parent link="{0}"/><child link="trunk"/><origin xyz="0 0 1"/></joint>'
VISUAL = '<visual><geometry><mesh filename="{}"/></geometry></visual>'
SPHERE = '<sphere radius="0.03"/>'


def urdf(folder: Path, *, before: str = "", visual: str = "", shape: str = SPHERE, place: str = "robot.urdf") -> Scene:
    legs = "".join(URDF_LEG.format(side=side, y=y, shape=shape) for side, y in (("left", 0.1), ("right", -0.1)))
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text(URDF.format(before=before, visual=visual, legs=legs))
    (folder / "robot.yaml").write_text(PAGE.format(model=place, effort=30.0))
    return build_scene(load_robot(str(folder)), collisions="feet", physics=PhysicsSettings())


def test_a_link_world_holds_the_robot_and_an_empty_root_does_not(tmp_path: Path) -> None:
    assert urdf(tmp_path).model.nq == 9
    held = urdf(tmp_path, before=FIXED.format("world"))
    assert held.model.nq == 2 and held.root is None
    free = urdf(tmp_path, before=FIXED.format("base_footprint"))
    assert free.model.nq == 9 and free.root is not None


def test_visuals_that_cannot_be_read_are_left_out_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "trunk.dae").write_text("<COLLADA/>")
    visuals = "".join(map(VISUAL.format, ("trunk.dae", "package://dog_description/meshes/gone.stl", "gone.stl")))
    with caplog.at_level(logging.WARNING):
        assert urdf(tmp_path, visual=visuals).model.nq == 9
    (line,) = [record.getMessage() for record in caplog.records]  # though what is shown reads the file again
    assert line.endswith("visuals are left out, whose meshes are missing or no STL, OBJ or MSH: trunk.dae, gone.stl")


@pytest.mark.parametrize("mesh", ["meshes/box.obj", "package://dog_description/meshes/box.obj", "../meshes/box.obj"])
def test_meshes_are_found_where_packages_have_them(mesh: str, tmp_path: Path) -> None:
    folder = tmp_path / "dog_description"
    (folder / "meshes").mkdir(parents=True)
    points = ["v 0 0 0", "v 0.1 0 0", "v 0 0.1 0", "v 0 0 0.1", "f 1 3 2", "f 1 4 3", "f 1 2 4", "f 2 3 4"]
    (folder / "meshes" / "box.obj").write_text("\n".join(points))
    assert urdf(folder, shape=f'<mesh filename="{mesh}"/>', place="urdf/dog.urdf").model.nmesh == 1


def test_collision_meshes_and_xacro_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        RobotError, match=r"link 'left_foot': its collision mesh gone\.stl is not there; bring it, or write a box"
    ):
        urdf(tmp_path, shape='<mesh filename="gone.stl"/>')
    with pytest.raises(RobotError, match=r"is xacro, which makes a URDF; expand it first: ros2 run xacro xacro .*robot\.urdf -o"):
        urdf(tmp_path, before='<xacro:include filename="legs.xacro"/>')
