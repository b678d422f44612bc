"""What a scene has otherwise than MuJoCo makes of the robot's file: all of it is told, with the reason that holds."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

import mujoco
import numpy as np
import pytest

from embodied_rl.cli import main
from embodied_rl.config.page import PhysicsSettings, SceneSettings
from embodied_rl.errors import UserError
from embodied_rl.robot import load_robot, robot_names
from embodied_rl.scene import Scene, build_scene
from embodied_rl.scene.compare import NOT_COMPARED, fields, why_not
from embodied_rl.scene.report import Report, report

LEG = """
<body name="{side}_leg" pos="0 {y} -0.1">
  <joint name="{side}_hip" axis="0 1 0" range="-60 60" {joint}/>
  <geom type="capsule" size="0.03" fromto="0 0 0 0 0 -0.2"/>
  <geom name="{side}_foot" size="0.04" pos="0 0 -0.3"/>
  <site name="{side}_sole" pos="0 0 -0.3"/>
</body>"""
PAGE = """
name: stranger
model: {file}
base: trunk
base_height: 0.44
joints:
  right_hip: {{default: 0.1, stiffness: 30.0, damping: 2.0, effort_limit: 40.0{right}}}
  left_hip: {{default: 0.1, stiffness: 20.0, damping: 1.0, effort_limit: 50.0}}
feet:
  right: {{geoms: [right_foot], site: right_{site}}}
  left: {{geoms: [left_foot], site: left_{site}}}
{more}
"""
URDF = """
<robot name="stranger">
  <link name="trunk"><inertial><mass value="5"/><inertia ixx="0.1" iyy="0.1" izz="0.1" ixy="0" ixz="0" iyz="0"/></inertial>
    <visual><geometry><box size="0.2 0.2 0.2"/></geometry></visual>
    <collision><geometry><box size="0.2 0.2 0.2"/></geometry></collision></link>
  {legs}
</robot>"""
URDF_LEG = """
  <link name="{side}_leg"><inertial><origin xyz="0 0 -0.1"/><mass value="1"/>
    <inertia ixx="0.01" iyy="0.01" izz="0.01" ixy="0" ixz="0" iyz="0"/></inertial></link>
  <joint name="{side}_hip" type="revolute"><parent link="trunk"/><child link="{side}_leg"/><origin xyz="0 {y} -0.1"/>
    <axis xyz="0 1 0"/><limit lower="-1" upper="1" effort="9" velocity="9"/><dynamics damping="0.1" friction="0.2"/></joint>
  <link name="{side}_foot"><inertial><mass value="0.1"/>
    <inertia ixx="0.001" iyy="0.001" izz="0.001" ixy="0" ixz="0" iyz="0"/></inertial>
    <collision><geometry><sphere radius="0.04"/></geometry></collision></link>
  <joint name="{side}_ankle" type="fixed"><parent link="{side}_leg"/><child link="{side}_foot"/>
    <origin xyz="0 0 -0.3"/></joint>"""


@pytest.fixture
def stranger(tmp_path) -> Callable[..., str]:
    def make(*, top="", world="", trunk="", joint="", bottom="", right="", more="", urdf=False) -> str:
        sides = (("left", 0.1), ("right", -0.1))
        if urdf:
            model = URDF.format(legs="".join(URDF_LEG.format(side=side, y=y) for side, y in sides))
        else:
            legs = "".join(LEG.format(side=side, y=y, joint=joint) for side, y in sides)
            body = f'<body name="trunk" pos="0 0 0.6"><freejoint/><geom type="box" size=".1 .1 .1"/>{trunk}{legs}</body>'
            model = f"<mujoco>{top}<worldbody>{world}{body}</worldbody>{bottom}</mujoco>"
        file, site = ("robot.urdf", "foot") if urdf else ("robot.xml", "sole")
        (tmp_path / file).write_text(model)
        (tmp_path / "robot.yaml").write_text(PAGE.format(file=file, site=site, right=right, more=more))
        return str(tmp_path)

    return make


def built(robot: str, needs: tuple[str, ...] = (), **settings) -> tuple[Scene, PhysicsSettings, SceneSettings]:
    physics, world = PhysicsSettings(iterations=7), SceneSettings(**settings)
    return build_scene(load_robot(robot), physics=physics, needs=needs, **world.model_dump()), physics, world


def told(found: Report) -> list[str]:
    return [str(one) for one in found.unexplained]


@pytest.mark.parametrize("dry_friction", [True, False])
@pytest.mark.parametrize("collisions", ["feet", "full"])
@pytest.mark.parametrize("name", robot_names())
def test_everything_about_the_shipped_robots_has_its_reason(name, collisions, dry_friction):
    needs = ("foot_contact", *(("contact:thighs",) if collisions == "full" else ()))
    found = report(*built(name, needs, collisions=collisions, dry_friction=dry_friction))
    assert told(found) == []
    text = str(found)
    assert f"{found.count} differences, all explained" in text
    assert "option iterations: 100 in the file, 7 here: physics.iterations" in text
    has_friction = any(joint.frictionloss for joint in load_robot(name).mjspec().joints)  # an H1 has none to switch off
    assert ("scene.dry_friction: false" in text) is (has_friction and not dry_friction)
    assert ("scene.collisions: feet; their bodies keep their mass" in text) is (collisions == "feet")


#: Strangers' files, and what is told of each.
STRANGERS = {
    "plain": ({}, "geom added, ground: our ground, an endless plane at z = 0"),
    "options": (
        {
            "top": '<option gravity="0 0 -3" wind="1 0 0" noslip_iterations="3" integrator="RK4">'
            '<flag multiccd="enable"/></option>'
        },
        "option integrator: rk4 in the file, implicitfast here: physics.integrator",
    ),
    "masses": ({"top": '<compiler boundmass="0.2" boundinertia="0.1" inertiafromgeom="true"/>'}, "geom added, ground"),
    "joints": (
        {"joint": 'stiffness="5" springref="0.3" ref="0.1" damping="0.5 0.1" armature="0.01" actuatorfrcrange="-3 3"'},
        "limit of the torque that a joint takes: 1 in the file, 0 here, of left_hip, right_hip: robot.yaml's effort_limit",
    ),
    "page": (
        {"joint": 'damping="0.5 0.1" frictionloss="0.3"', "right": ", armature: 0.02, joint_damping: 0.1, friction_loss: 0.2"},
        "armature of joints: 0 in the file, 0.02 here, of right_hip: robot.yaml says so (armature)",
    ),
    "actuators": (
        {
            "bottom": '<actuator><position joint="left_hip" kp="5" kv="1" armature="0.05" damping="0.3 0.2" gear="2"/></actuator>'
            '<sensor><jointpos joint="left_hip"/></sensor><keyframe><key name="home" time="1"/></keyframe>'
        },
        "armature of joints: 0 in the file, 0.2 here, of left_hip: the file's actuators, which are left out, lent it the joint",
    ),
    "constraints": (
        {
            "bottom": '<equality><joint joint1="left_hip" joint2="right_hip"/></equality><tendon><fixed stiffness="3">'
            '<joint joint="left_hip" coef="1"/></fixed></tendon><contact><exclude body1="left_leg" body2="right_leg"/></contact>'
        },
        "geom added, ground",
    ),
    "pulley": (
        {
            "trunk": '<geom name="pulley" type="cylinder" size=".02 .05" euler="90 0 0"/><site name="a" pos="0 .1 .1"/>',
            "bottom": '<tendon><spatial stiffness="9"><site site="a"/><geom geom="pulley"/>'
            '<site site="left_sole"/></spatial></tendon>',
        },
        "geom added, ground",
    ),
    "world": (
        {
            "world": '<geom name="floor" type="plane" size="0 0 1"/><light pos="0 0 3"/><camera name="c" pos="1 1 1"/>'
            '<body name="goal" mocap="true"><geom size=".1" contype="0" conaffinity="0"/></body>'
        },
        "light left out, light 0 of world: only what is shown has light",
    ),
    "hall": (
        {
            "world": '<body name="prop" pos="3 0 1"><freejoint align="true"/><geom size=".1" pos=".2 0 0"/></body>'
            '<body name="hall"><geom name="box" type="box" size=".1 .1 .1" pos="2 0 0"/></body>',
            "top": '<size nkey="1"/><option density="9"><flag sleep="enable"/></option>',
            "trunk": '<geom name="fin" type="ellipsoid" size=".1 .1 .01" fluidshape="ellipsoid" mass="0"/>',
        },
        "option enableflags: sleep in the file, none here: of each contact its geoms' own numbers hold, and states are whole",
    ),
    "lent": (
        {
            "top": '<extension><plugin plugin="mujoco.pid"/></extension>',
            "bottom": '<tendon><fixed name="t"><joint joint="left_hip" coef="1"/></fixed></tendon><actuator>'
            '<motor tendon="t" gear="2" armature="0.1" damping="1 1"/><plugin joint="right_hip" plugin="mujoco.pid" actdim="1">'
            '<config key="ki" value="4"/></plugin></actuator>',
        },
        "tendon_armature: 0 in the file, 0.4 here, of t: the file's actuators, which are left out, lent it the joint or tendon",
    ),
    "weld": (
        {"more": "weld: [left_hip]", "joint": 'springdamper="0.1 1" pos="0 0 0.02"', "top": '<compiler fusestatic="true"/>'},
        "joint left out, left_hip: robot.yaml's weld holds them at their default",
    ),
    "urdf": (
        {"urdf": True},
        "links without a joint, left_foot, right_foot, trunk: kept as bodies of their own; MuJoCo fuses them into their parents",
    ),
}


@pytest.mark.parametrize("collisions", ["feet", "full"])
@pytest.mark.parametrize("name", STRANGERS)
def test_everything_about_a_strangers_robot_has_its_reason(name, collisions, stranger):
    parts, line = STRANGERS[name]
    found = report(*built(stranger(**parts), collisions=collisions))
    assert told(found) == []
    assert line in str(found)
    assert ("of pulley: a tendon runs over it" in str(found)) is (name == "pulley" and collisions == "feet")


def test_a_file_that_mujoco_alone_refuses_is_one_line(stranger):
    robot = stranger(bottom='<actuator><motor joint="nowhere"/></actuator>')
    with pytest.raises(UserError, match=r"robot\.xml: MuJoCo alone cannot read it: Error: unknown transmission target 'nowhere'"):
        report(*built(robot))


# ------------------------------------------------------------------------------------------------------------ not explained


@pytest.mark.parametrize(
    ("field", "row", "value", "line"),
    [
        ("body_mass", 1, 9.0, "mass of bodies"),
        ("dof_armature", 6, 0.3, "armature of joints: 0 in the file, 0.3 here, of left_hip"),
        ("dof_frictionloss", 7, 0.3, "dry friction of joints: 0 in the file, 0.3 here, of right_hip"),
        ("jnt_range", 1, 0.2, "range of joints"),
        ("qpos0", 7, 0.3, "qpos0"),
        ("actuator_gear", 0, 100.0, "actuator_gear of our own"),
        ("actuator_forcerange", 1, 1.0, "actuator_forcerange of our own"),
        ("geom_friction", 0, 0.1, "geom_friction of our own"),
        ("geom_margin", 1, 0.1, "geom_margin: 0 in the file, 0.1 here"),
        ("body_gravcomp", 2, 1.0, "body_gravcomp: 0 in the file, 1 here, of left_leg"),
        ("opt.gravity", 2, -3.0, "option gravity: 0 0 -9.81 in the file, 0 0 -3 here"),
        ("opt.iterations", None, 8, "option iterations: 100 in the file, 8 here"),
        ("opt.enableflags", None, 2, "option enableflags: none in the file, energy here"),
    ],
)
def test_what_leaks_into_a_model_is_not_explained(field, row, value, line, stranger):
    scene, physics, world = built(stranger(), collisions="full")
    of, _, name = field.rpartition(".")
    owner = getattr(scene.model, of) if of else scene.model
    if row is None:
        setattr(owner, name, value)
    else:
        getattr(owner, name)[row] = value
    lines = told(report(scene, physics, world))
    assert len(lines) == 1 and lines[0].startswith(line)


def test_feet_that_pass_through_the_ground_are_told(stranger):
    scene, physics, world = built(stranger())
    scene.model.geom_contype[list(scene.foot_geoms)] = scene.model.geom_conaffinity[list(scene.foot_geoms)] = 1 << 20
    lines = told(report(scene, physics, world))
    assert lines[:1] == ["feet that pass through the ground, left_foot, right_foot: their masks never meet its own"]


def test_a_floor_on_a_body_of_its_own_is_no_geom_of_the_robot(stranger):
    floor = '<body name="scenery"><geom type="plane" size="1 1 1"/></body>'
    assert told(report(*built(stranger(world=floor), collisions="full"))) == []


def test_keyframes_that_a_file_only_counts_are_none(stranger):
    lines = str(found := report(*built(stranger(top='<size nkey="2"/>')))).splitlines()
    assert told(found) == []
    assert any("2 keyframes left out" in line for line in lines)


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("<collision><geometry><sphere", '<collision name="rubber"><geometry><sphere'),  # MuJoCo takes the name for the geom's
        ('<mass value="0.1"/>', '<mass value="0.0"/>'),  # an inertia without mass, which MuJoCo does not fuse
        (
            "</robot>",
            '<link name="odom"/><joint name="a" type="floating"><parent link="odom"/><child link="trunk"/></joint></robot>',
        ),
    ],
)
def test_what_urdfs_have_has_its_reason(given, instead, stranger, tmp_path):
    folder, file = stranger(urdf=True), tmp_path / "robot.urdf"
    text = file.read_text()
    assert given in text
    file.write_text(text.replace(given, instead, 1))
    assert told(report(*built(folder))) == []


def test_a_link_of_a_urdf_that_is_fixed_to_another_is_no_free_base(stranger, tmp_path):
    folder = stranger(urdf=True)
    anchor = (
        '<link name="world"/><joint name="a" type="fixed"><parent link="world"/><child link="trunk"/></joint><link name="trunk">'
    )
    file = tmp_path / "robot.urdf"
    scene, physics, world = built(folder)
    file.write_text(file.read_text().replace('<link name="trunk">', anchor, 1))
    assert "joint added, trunk" in told(report(scene, physics, world))


# ------------------------------------------------------------------------------------------------------------------ fields


def test_every_field_of_mujoco_is_compared_or_said_not_to_be():
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    names = list(fields(model))
    assert {name for name in dir(model) if not name.startswith("_") and isinstance(getattr(model, name), np.ndarray)} <= {*names}
    assert {f"opt.{name}" for name in ("gravity", "timestep", "disableflags", "o_margin")} <= {*names}
    found = report(*built("go2"))
    assert set(found.compared) == {name for name in names if not why_not(name)}
    unused = [pattern for pattern in NOT_COMPARED if not any(fnmatchcase(name, pattern) for name in names)]
    assert unused == []


def test_a_new_field_of_mujoco_is_not_missed(monkeypatch):
    monkeypatch.delitem(NOT_COMPARED, "efm*")
    lines = told(report(*built("go2")))
    assert "efm0_L: a field of mjModel that is not known here and was not compared" in lines


# --------------------------------------------------------------------------------------------------------------------- verb


def test_the_verb_prints_it_and_opens_no_window(stranger, capsys, monkeypatch):
    monkeypatch.setattr("embodied_rl.view.viewer._check_display", lambda: pytest.fail("a window"))
    assert main(["view", "go2_flat", "--report"]) == 0
    text = capsys.readouterr().out
    assert "go2: what is simulated (collisions: feet, self_collision: file, dry_friction: false)" in text
    assert "option iterations: 100 in the file, 6 here: physics.iterations" in text  # the page's
    assert "4 sensors added" in text
    folder = stranger()
    assert main(["view", folder, "--report"]) == 0
    assert "option iterations: 100 in the file, 10 here" in capsys.readouterr().out  # a robot's: the defaults
    monkeypatch.setattr("embodied_rl.scene.reasons._REASONS", ())
    assert main(["view", folder, "--report"]) == 1
    assert "NOT EXPLAINED" in capsys.readouterr().out
