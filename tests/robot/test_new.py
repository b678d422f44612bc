"""`embodied-rl new robot`: folders from model files of others."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np
import pytest

import embodied_rl
from embodied_rl import cli
from embodied_rl.config import load
from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.inspection import report_of
from embodied_rl.machine import gl_backend
from embodied_rl.new.robot import new_robot, stand
from embodied_rl.paths import shipped
from embodied_rl.robot import RobotSpec, load_robot
from embodied_rl.scene import build_scene

#: A leg of two links of 0.2 m and a foot of 0.02 m, whose knee bends from 0.9 rad on; {s} is its name.
LEG = """
  <joint name="{s}_hip" type="revolute"><parent link="trunk"/><child link="{s}_hip_link"/><origin xyz="{x} {y} 0"/>
    <axis xyz="1 0 0"/><limit lower="-0.8" upper="0.8" effort="20" velocity="30"/></joint>
  <link name="{s}_hip_link"><inertial><mass value="0.5"/><inertia ixx="1e-3" iyy="1e-3" izz="1e-3" ixy="0" ixz="0" iyz="0"/>
    </inertial></link>
  <joint name="{s}_thigh" type="revolute"><parent link="{s}_hip_link"/><child link="{s}_thigh_link"/>
    <origin xyz="0 {out} 0"/><axis xyz="0 {axis} 0"/><limit lower="-4" upper="4" effort="25"/></joint>
  <link name="{s}_thigh_link"><inertial><origin xyz="0 0 -0.1"/><mass value="0.7"/>
    <inertia ixx="3e-3" iyy="3e-3" izz="1e-3" ixy="0" ixz="0" iyz="0"/></inertial></link>
  <joint name="{s}_calf" type="revolute"><parent link="{s}_thigh_link"/><child link="{s}_calf_link"/><origin xyz="0 0 -0.2"/>
    <axis xyz="0 1 0"/><limit lower="-2.6" upper="-0.9"/></joint>
  <link name="{s}_calf_link">
    <visual><geometry><mesh filename="package://dog/meshes/calf.dae"/></geometry></visual>
    <collision><origin xyz="0 0 -0.1"/><geometry><box size="0.02 0.02 0.2"/></geometry></collision>
    <inertial><origin xyz="0 0 -0.1"/><mass value="0.2"/><inertia ixx="1e-3" iyy="1e-3" izz="5e-3" ixy="0" ixz="0" iyz="0"/>
    </inertial></link>
  <joint name="{s}_fixed" type="fixed"><parent link="{s}_calf_link"/><child link="{s}_foot"/><origin xyz="0 0 -0.2"/></joint>
  <link name="{s}_foot"><collision><geometry><sphere radius="0.02"/></geometry></collision></link>"""
TRUNK = """
  <link name="trunk"><collision><geometry><box size="0.4 0.2 0.1"/></geometry></collision><inertial><mass value="6"/>
    <inertia ixx="0.02" iyy="0.06" izz="0.07" ixy="0" ixz="0" iyz="0"/></inertial></link>"""
FOUR = {"RR": (-0.2, -1), "FL": (0.2, 1), "RL": (-0.2, 1), "FR": (0.2, -1)}

BIPED_LEG = """
  <body name="{s}_thigh" pos="0 {y} 0"><joint name="{s}_hip_roll" axis="1 0 0" range="-.5 .5"/>
    <joint name="{s}_hip_pitch" axis="0 1 0" range="-1.5 1.5"/>
    <geom type="capsule" fromto="0 0 0 0 0 -.3" size=".04" mass="3" contype="0" conaffinity="0"/>
    <body name="{s}_shin" pos="0 0 -.3"><joint name="{s}_knee" axis="0 1 0" range="0 2"/>
      <geom type="capsule" fromto="0 0 0 0 0 -.3" size=".03" mass="2" contype="0" conaffinity="0"/>
      <body name="{s}_ankle" pos="0 0 -.3"><joint name="{s}_ankle_pitch" axis="0 1 0" range="-1 1"/>
        <geom type="box" size=".1 .04 .01" pos=".03 0 -.04" mass=".5"/></body></body></body>"""
BIPED = f"""
<mujoco model="biped"><compiler angle="radian"/>
  <worldbody><light pos="0 0 3"/><geom name="floor" type="plane" size="5 5 1"/>
    <body name="ball" pos="1 0 .1"><freejoint/><geom size=".1"/></body>
    <body name="pelvis" pos="0 0 1"><freejoint/><geom type="box" size=".1 .15 .1" pos="0 0 .1" mass="10"/>
      {BIPED_LEG.format(s="left", y=0.1)}{BIPED_LEG.format(s="right", y=-0.1)}
      <body name="tail" pos="-.1 0 0"><joint name="tail" axis="0 0 1" range="-1 1"/><geom size=".02" mass=".1"/></body></body>
  </worldbody>
  <actuator>{
    "".join(
        f'<motor joint="{side}_{joint}" gear="50" ctrlrange="-1 1"/>'
        for side in ("left", "right")
        for joint in ("hip_roll", "hip_pitch", "knee", "ankle_pitch")
    )
}</actuator>
  <sensor><gyro site="nowhere"/></sensor>
</mujoco>""".replace('<sensor><gyro site="nowhere"/></sensor>', "")


def dog(rename: Callable[[str], str] = lambda leg: f"{leg}_") -> str:
    """A quadruped's URDF whose right thighs turn about -y; its legs are called as `rename` says."""
    legs = (LEG.format(s=s, x=x, y=0.05 * side, out=0.08 * side, axis=side) for s, (x, side) in FOUR.items())
    text = "".join(legs)
    for name in FOUR:
        text = text.replace(f'"{name}_', f'"{rename(name)}')
    return f'<robot name="dog">{TRUNK}{text}</robot>'


SPIDER_LEG = """
  <body name="{s}" pos="{x} {y} 0"><joint name="yaw_{s}" axis="0 0 1" range="-40 40"/>
    <joint name="pitch_{s}" axis="0 1 0" range="-40 40"/>
    <geom type="capsule" fromto="0 0 0 {x} {y} .1" size=".02" mass=".3"/>
    <body name="shin_{s}" pos="{x} {y} .1"><joint name="knee_{s}" axis="0 1 0" range="-60 60"/>
      <geom name="shin_{s}" type="capsule" fromto="0 0 0 0 0 -.29" size=".02" mass=".2"/></body></body>"""
SPIDER = f"""
<mujoco model="spider"><default><geom condim="1"/><joint armature="{{armature}}" damping="{{damping}}"/></default>
  <worldbody><body name="trunk" pos="0 0 .21"><freejoint/><geom size=".1" mass="4"/>
    {
    "".join(
        SPIDER_LEG.format(s=s, x=x, y=y)
        for s, (x, y) in {"FL": (0.25, 0.25), "FR": (0.25, -0.25), "RL": (-0.25, 0.25), "RR": (-0.25, -0.25)}.items()
    )
}</body></worldbody>
</mujoco>"""


def off_centre(robot: RobotSpec) -> float:
    """How far the centre of mass is from the middle of the feet's sites, in the plane [m]."""
    model = robot.mjspec().compile()
    data = mujoco.MjData(model)
    for name, position in zip(robot.joint_names, robot.default_joint_pos, strict=True):
        data.joint(name).qpos[:] = position
    mujoco.mj_forward(model, data)
    feet = np.mean([data.site(foot.site).xpos for foot in robot.feet], axis=0)
    return float(np.linalg.norm((data.subtree_com[0] - feet)[:2]))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(file: str, content: str) -> tuple[RobotSpec, str]:
    """The robot of a file, and what was said."""
    Path(file).write_text(content)
    lines = new_robot(Path(file))
    return load_robot(Path(file).stem), "\n".join(lines)


def test_a_quadruped(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dog.urdf").write_text(dog())
    assert cli.main(["new", "robot", "dog.urdf"]) == 0
    said, robot = capsys.readouterr().out, load_robot("dog")
    assert [foot.name for foot in robot.feet] == ["FL", "FR", "RL", "RR"]
    assert [foot.gait_offset for foot in robot.feet] == [0.0, 0.5, 0.5, 0.0]
    assert [foot.geoms for foot in robot.feet] == [("FL_foot",), ("FR_foot",), ("RL_foot",), ("RR_foot",)]
    assert robot.joint_names[:4] == ("FL_hip", "FL_thigh", "FL_calf", "FR_hip")
    # two equal links with the knee at 0.9 rad reach 2 0.2 cos(0.45) + 0.02 down; the trunk stands at 0.78 of it
    reach = 0.4 * math.cos(0.45) + 0.02
    assert robot.base_height == pytest.approx(0.78 * reach, abs=1e-3)
    assert robot.mirror == {"FL": "FR", "RL": "RR"}
    permutation, signs = robot.joint_mirror()
    assert permutation[:3] == (3, 4, 5)
    assert signs[:3] == (-1.0, -1.0, 1.0)  # the right thighs turn about -y
    assert robot.default_joint_pos[1] == pytest.approx(-robot.default_joint_pos[4])
    pose = dict(zip(robot.joint_names, robot.default_joint_pos, strict=True))
    assert pose["FL_calf"] == pose["RR_calf"] < -0.9
    assert off_centre(robot) < 1e-3
    assert (robot.effort_limit[0], robot.velocity_limit[0], robot.velocity_limit[1]) == (20.0, 30.0, None)
    # the calf has no limit in the file: what a radian asks for
    assert robot.effort_limit[2] == pytest.approx(robot.stiffness[2])
    weight = 9.81 * (6.0 + 4 * 1.4)
    assert robot.stiffness[2] >= 0.5 * weight * reach * 0.99
    lean, height = stand(robot)
    assert lean < 0.2 and height > 0.85
    assert robot.bodies["base"] == ("trunk",)
    for told in ("left out: 1 visual meshes", "feet: FL, FR, RL, RR", "mended: the inertias of RR_calf_link", "effort 20 from"):
        assert told in said
    assert said.splitlines()[-2] == "next: embodied-rl train dog/dog_flat.yaml"
    page, length = load("dog/dog_flat.yaml"), reach / 0.412
    assert page.task and page.task.endswith("velocity")
    assert page.commands["velocity"].params["gait_frequency"] == pytest.approx(2.0 / math.sqrt(length), rel=5e-3)
    assert page.rewards["foot_clearance"].params["target"] == pytest.approx(0.08 * length, rel=5e-3)
    env = embodied_rl.make("dog/dog_flat.yaml", ["env.num_envs=4", "env.compile=false"])
    env.reset()
    env.close()


@pytest.mark.parametrize(
    ("rename", "mirror", "feet"),
    [
        (lambda leg: f"{leg.lower()}_", {"fl": "fr", "rl": "rr"}, "fl"),
        (lambda leg: f"{leg[1]}{leg[0]}_".replace("R_", "H_"), None, "LF"),
        (
            lambda leg: f"{ {'F': 'front', 'R': 'hind'}[leg[0]] }_{ {'L': 'left', 'R': 'right'}[leg[1]] }_",
            {"left": "right"},
            "front_left",
        ),
        (lambda leg: f"leg{['FL', 'FR', 'RL', 'RR'].index(leg)}", None, "leg0calf"),  # geometry alone pairs them
    ],
    ids=["lower case", "side first", "words", "numbers"],
)
def test_names_of_legs(rename: Callable[[str], str], mirror: dict[str, str] | None, feet: str) -> None:
    robot, _ = made("dog.urdf", dog(rename))
    assert robot.feet[0].name == feet
    assert robot.foot_mirror() == (1, 0, 3, 2)
    assert robot.joint_mirror()[0][:3] == (3, 4, 5)
    assert mirror is None or robot.mirror == mirror


def test_a_biped() -> None:
    robot, said = made("biped.xml", BIPED)
    assert [foot.name for foot in robot.feet] == ["left", "right"]
    assert [foot.gait_offset for foot in robot.feet] == [0.0, 0.5]
    assert robot.mirror == {"left": "right"}
    assert set(robot.effort_limit) == {50.0}  # the range of the motors' control times their gear
    assert robot.welded == {"tail": 0.0}  # nothing drives it
    pose = dict(zip(robot.joint_names, robot.default_joint_pos, strict=True))
    assert pose["left_knee"] > 0.3  # forward
    # the soles lie flat: the angles of a leg that pitches cancel out
    assert pose["left_hip_pitch"] + pose["left_knee"] + pose["left_ankle_pitch"] == pytest.approx(0.0, abs=0.02)
    lean, height = stand(robot)
    assert lean < 0.2 and height > 0.85
    assert "ball" in said
    bodies = [body.name for body in robot.mjspec().bodies]
    assert "ball" not in bodies and "floor" not in [geom.name for geom in robot.mjspec().geoms]


def test_a_keyframe_that_stands_is_the_pose() -> None:
    legs = "0.05 -.5 1 -.5 -.05 -.5 1 -.5"
    key = f'<keyframe><key name="home" qpos="1 0 .1 1 0 0 0  0 0 1 1 0 0 0 {legs} 0"/></keyframe></mujoco>'
    robot, said = made("biped.xml", BIPED.replace("</mujoco>", key))
    assert "the file's keyframe 'home'" in said
    assert robot.default_joint_pos[:4] == (0.05, -0.5, 1.0, -0.5)


def test_a_spider() -> None:
    robot, _ = made("spider.xml", SPIDER.format(armature=0, damping=0))
    assert [foot.name for foot in robot.feet] == ["FL", "FR", "RL", "RR"]
    # the hips are 0.21 m over the soles: so stand legs of 0.21 / 0.78 m, of which the page's lengths are
    page, reach = load("spider/spider_flat.yaml"), 0.21 / 0.78
    assert page.rewards["foot_clearance"].params["target"] == pytest.approx(0.08 * reach / 0.412, rel=5e-3)
    assert page.physics.dt == pytest.approx(0.005 * math.sqrt(reach / 0.412), abs=1e-4)
    assert page.control_dt == pytest.approx(0.02 * math.sqrt(reach / 0.412), abs=4e-4)
    # a Go2's page asks for 6 and 10, and a foot deep in the ground can throw what they do not solve for
    assert (page.physics.iterations, page.physics.ls_iterations) == (10, 20)
    model = robot.mjspec().compile()
    data, heights = mujoco.MjData(model), []
    for turned in (None, *robot.joint_names):
        for name, position in zip(robot.joint_names, robot.default_joint_pos, strict=True):
            data.joint(name).qpos[:] = position + 1e-6 * (name == turned)
        mujoco.mj_kinematics(model, data)
        heights.append([data.site(foot.site).xpos[2] for foot in robot.feet])
    lift = float(np.abs(np.array(heights[1:]) - heights[0]).sum() / 4e-6)  # the mean of four feet
    assert lift > 0.2
    assert page.events["reset_joints"].params["position"] == pytest.approx(0.13 * reach / lift, rel=1e-2)
    assert page.actions["joint_position"].params["scale"] == pytest.approx(0.5 * 0.13 * reach / lift / 0.2, rel=1e-2)
    assert page.score and page.score["start_joint_pos"] == page.events["reset_joints"].params["position"]
    for foot in robot.feet:
        assert model.geom(foot.geoms[0]).condim == 3  # our ground leaves the contact to the feet
        np.testing.assert_allclose(model.site(foot.site).pos, [0.0, 0.0, -0.31], atol=5e-3)  # at the end of the shin
    # what the joint has by itself is not asked of the motor, and a heavy rotor has to be turned
    light, heavy = robot, made("heavy.xml", SPIDER.format(armature=1, damping=0.1))[0]
    assert heavy.stiffness[0] == pytest.approx((4.0 / math.sqrt(reach / 9.81)) ** 2, rel=5e-3)
    damped = made("damped.xml", SPIDER.format(armature=0, damping=0.3))[0]
    assert light.damping[0] > 0.2
    assert damped.damping[0] == pytest.approx(1.2 * light.damping[0] - 0.3, rel=1e-2)  # a Go2's joint has 0.1 beside 0.5
    assert set(made("slow.xml", SPIDER.format(armature=0, damping=9))[0].damping) == {0.0}


def test_what_touches_the_ground_beside_a_soft_foot_is_of_the_foot() -> None:
    """A ball that gives way by more than the 20 mm by which the shin's end is over its underside."""
    soft = SPIDER.format(armature=0, damping=0).replace(
        '-.29" size=".02" mass=".2"/>',
        '-.29" size=".02" mass=".2"/><geom name="ball_{s}" pos="0 0 -.3" size=".03" mass=".01"'
        ' solref=".1 1" solimp=".01 .5 .2"/>',
    )
    for leg in ("FL", "FR", "RL", "RR"):
        soft = soft.replace("ball_{s}", f"ball_{leg}", 1)
    robot, _ = made("spider.xml", soft)
    assert [foot.geoms for foot in robot.feet] == [(f"ball_{leg}", f"shin_{leg}") for leg in ("FL", "FR", "RL", "RR")]


def test_a_urdf_of_a_robot_that_lies_on_its_belly() -> None:
    """Its joints' zeros fold the legs up to the trunk, and a shin has no link for a foot."""
    folded = (
        dog()
        .replace('<origin xyz="0 0.08 0"/>', '<origin xyz="0 0.08 0" rpy="0 1.5 0"/>')
        .replace('<origin xyz="0 -0.08 0"/>', '<origin xyz="0 -0.08 0" rpy="0 1.5 0"/>')
    )
    robot, _ = made("dog.urdf", folded)
    assert [foot.geoms for foot in robot.feet] == [("FL_foot",), ("FR_foot",), ("RL_foot",), ("RR_foot",)]
    assert robot.base_height == pytest.approx(0.78 * (0.4 * math.cos(0.45) + 0.02), abs=2e-3)
    ball = '<collision><origin xyz="0 0 -0.2"/><geometry><sphere radius="0.02"/></geometry></collision>'
    shins = dog().replace('<collision><origin xyz="0 0 -0.1"/>', f'{ball}<collision><origin xyz="0 0 -0.1"/>')
    robot, _ = made("shins.urdf", shins.replace('<collision><geometry><sphere radius="0.02"/></geometry></collision>', ""))
    assert robot.feet[0].geoms == ("FL_calf_link",)
    place = robot.mjspec().compile().body(robot.feet[0].site).pos
    np.testing.assert_allclose(place, [0.0, 0.0, -0.2], atol=1e-6)


@pytest.mark.parametrize("none", ["0", "-5e-20", "4e-18"])
def test_what_a_urdf_gives_no_size_is_mended(none: str) -> None:
    nothing = '<collision><geometry><sphere radius="0.0"/></geometry></collision>'
    text = dog().replace('<link name="FL_foot">', f'<link name="FL_foot">{nothing}')
    text = text.replace('<inertia ixx="0.02" iyy="0.06" izz="0.07"', f'<inertia ixx="{none}" iyy="{none}" izz="0"')
    robot, said = made("dog.urdf", text)
    assert robot.feet[0].geoms == ("FL_foot",)
    assert "shapes of no size of FL_foot" in said and "the inertias of trunk" in said
    # a ball of water of 6 kg
    inertia = 0.4 * 6.0 * (6.0 / (1000.0 * 4.0 / 3.0 * math.pi)) ** (2.0 / 3.0)
    np.testing.assert_allclose(robot.mjspec().compile().body("trunk").inertia, inertia, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "gains"),
    [("go1", 0.15), ("go2", 0.15), ("a1", 0.21), ("anymal_c", 0.35)],  # a Go2 is what guesses are scaled from
)
def test_the_shipped_robots_are_found_again(name: str, gains: float) -> None:
    lines = new_robot(shipped("robots") / name / f"{name}.xml")
    assert lines[-1].endswith(f"view ./{name}")  # the folder, not the shipped robot of this name
    ours, guessed = load_robot(str(shipped("robots") / name)), load_robot(str(Path.cwd() / name))
    assert guessed.joint_names == ours.joint_names
    assert [(foot.name, foot.geoms, foot.gait_offset) for foot in guessed.feet] == [
        (foot.name, foot.geoms, foot.gait_offset) for foot in ours.feet
    ]
    assert (guessed.mirror, guessed.base) == (ours.mirror, ours.base)
    assert guessed.joint_mirror() == ours.joint_mirror()
    np.testing.assert_allclose(guessed.stiffness, ours.stiffness, rtol=gains)
    np.testing.assert_allclose(guessed.damping, ours.damping, rtol=gains)
    if name == "go2":  # a Go1 ships more bent
        assert guessed.base_height == pytest.approx(ours.base_height, rel=0.02)
        np.testing.assert_allclose(guessed.default_joint_pos, ours.default_joint_pos, atol=0.11)


#: A joint from one link to another.
HUNG = '<joint name="hung" type="{2}"><parent link="{0}"/><child link="{1}"/><limit lower="-1" upper="1"/></joint>'


@pytest.mark.parametrize(
    ("root", "kind"), [("base_footprint", "fixed"), ("world", "fixed"), ("odom", "floating"), ("world", "floating")]
)
def test_what_a_urdf_hangs_its_robot_on_is_no_part_of_it(root: str, kind: str) -> None:
    visual = "<visual><geometry><sphere radius='.01'/></geometry></visual>" if root == "odom" else ""
    hung = f'<link name="{root}">{visual}</link>{HUNG.format(root, "trunk", kind)}</robot>'
    robot, said = made("dog.urdf", dog().replace("</robot>", hung))
    assert robot.base == "trunk"
    assert "stands 2 s" in said
    assert not report_of("dog").unexplained


def test_xml_as_mujoco_reads_it() -> None:
    """Blank lines before the declaration, and what follows a zero byte, as C programs write it."""
    robot, _ = made("dog.urdf", f"\n\n<?xml version='1.0' encoding='latin-1'?>{dog()}\n\0\n")
    assert len(robot.feet) == 4


def test_what_lies_lowest_of_a_tail_is_no_foot() -> None:
    tail = BIPED.replace('<geom size=".02" mass=".1"/>', '<geom type="capsule" fromto="0 0 0 -.2 0 -.9" size=".02" mass=".1"/>')
    assert tail != BIPED
    robot, said = made("biped.xml", tail)
    assert [foot.name for foot in robot.feet] == ["left", "right"]
    assert "stands 2 s" in said


def test_a_foot_with_toes_is_the_foot() -> None:
    sole = '<geom type="box" size=".1 .04 .01" pos=".03 0 -.04" mass=".5"/>'
    toes = '<body name="{}_toes" pos=".13 0 -.04"><joint name="{}_toes" axis="0 1 0" range="-1 1"/>'
    toes += '<geom type="box" size=".03 .04 .011" pos=".03 0 0" mass=".1"/></body>'
    one, two, rest = BIPED.split(sole)
    robot, said = made("biped.xml", f"{one}{sole}{toes.format('left', 'left')}{two}{sole}{toes.format('right', 'right')}{rest}")
    model = robot.mjspec().compile()
    assert [model.body(model.geom(foot.geoms[0]).bodyid[0]).name for foot in robot.feet] == ["left_ankle", "right_ankle"]
    assert "stands 2 s" in said


def test_a_foot_that_the_file_poses_higher_than_its_partner_is_one() -> None:
    bent = BIPED.replace('name="right_shin" pos="0 0 -.3"', 'name="right_shin" pos="0 0 -.3" euler="0 1.5 0"')
    bent = bent.replace('name="right_knee"', 'name="right_knee" ref="1.5"')
    robot, _ = made("biped.xml", bent)
    assert [foot.name for foot in robot.feet] == ["left", "right"]


def test_a_robot_on_its_knees_is_stretched_first() -> None:
    """Its joints' zeros have the shins point up, so that the knees are the lowest."""
    knee = '<origin xyz="0 0 -0.2"/>\n    <axis xyz="0 1 0"/><limit lower="-2.6" upper="-0.9"/>'
    up = '<origin xyz="0 0 -0.2" rpy="0 3.1415927 0"/><axis xyz="0 1 0"/><limit lower="-3.1" upper="3.1"/>'
    assert dog().count(knee) == 4
    robot, said = made("dog.urdf", dog().replace(knee, up))
    assert all(f"{foot.name}_foot" in foot.geoms for foot in robot.feet)
    assert robot.base_height == pytest.approx(0.33, abs=0.02)
    assert "stands 2 s" in said


def test_a_default_is_within_a_range_that_begins_between_two_thousandths() -> None:
    tail = 'name="tail" axis="0 1 0" range=".0001745 .0517"'
    robot, _ = made("biped.xml", BIPED.replace('name="tail" axis="0 0 1" range="-1 1"', tail))
    assert robot.welded["tail"] == pytest.approx(0.0002, abs=1e-9)


def test_a_joint_that_cannot_be_its_own_mirror_image() -> None:
    robot, said = made(
        "biped.xml", BIPED.replace('name="tail" axis="0 0 1" range="-1 1"', 'name="tail" axis="0 0 1" range=".1 1"')
    )
    assert not robot.mirror
    assert "mirror: none: the ranges of 'tail' and its partner share no position" in said
    assert "symmetry: none" in Path("biped/biped_flat.yaml").read_text()


def test_what_no_actuator_drives_and_a_constraint_does_is_passive() -> None:
    robot, said = made("biped.xml", BIPED.replace("<actuator>", '<equality><joint joint1="tail"/></equality><actuator>'))
    index = robot.joint_names.index("tail")
    assert (robot.stiffness[index], robot.damping[index]) == (0.0, 0.0)
    assert "passive: tail" in said


PLAIN = "<mujoco><worldbody><body name='trunk'><freejoint/><geom size='.1'/>{}</body></worldbody></mujoco>"


def test_a_mjcf_as_people_have_it(here: Path) -> None:
    """Bodies without names, a base that the file has turned, meshes beside a model that is attached, paths to strip."""
    for place in ("parts/shells", "."):
        (here / place).mkdir(parents=True, exist_ok=True)
        (here / place / "head.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
    head = '<geom type="mesh" mesh="head" mass="0.1" contype="0" conaffinity="0"/>'
    (here / "parts/head.xml").write_text(
        '<mujoco><compiler meshdir="shells"/><asset><mesh name="head" file="head.obj" scale=".05 .05 .05"/></asset>'
        f'<worldbody><body name="head" pos="0 0 .2">{head}</body></worldbody></mujoco>'
    )
    asset = (
        '<asset><model name="h" file="parts/head.xml"/><mesh file="far/away/head.obj" scale=".05 .05 .05"/></asset><worldbody>'
    )
    text = BIPED.replace('angle="radian"', 'angle="radian" strippath="true"').replace("<worldbody>", asset)
    text = text.replace('<body name="ball"', "<body").replace('<body name="pelvis"', '<body euler="0 0 1.5708"')
    text = text.replace('<body name="tail"', f'<attach model="h" body="head" prefix="h/"/>{head}<body name="tail"')
    (here / "biped.xml").write_text(text)
    told = new_robot(Path("biped.xml"), here / "made")
    assert told[0] == "left out: a body without a name, which is not the robot"
    robot = load_robot(str(here / "made"))
    assert robot.base == "base" and stand(robot)[0] < 0.2
    stock, made = (
        mujoco.MjModel.from_xml_path("biped.xml"),
        build_scene(robot, collisions="feet", physics=PhysicsSettings()).model,
    )
    assert made.body_subtreemass[made.body("base").id] == pytest.approx(stock.body_subtreemass[2])


def test_joints_that_follow_others_are_where_those_have_them(here: Path) -> None:
    ties = "".join(
        f'<joint joint1="{s}_ankle_pitch" joint2="{s}_knee" polycoef=".0123 -.4567 0 0 0"/>' for s in ("left", "right")
    )
    text = BIPED.replace("</mujoco>", f"<equality>{ties}</equality></mujoco>")
    robot, _ = made("biped.xml", text.replace('name="ball"', 'name="ground"'))
    pose = dict(zip(robot.joint_names, robot.default_joint_pos, strict=True))
    for side in ("left", "right"):
        assert pose[f"{side}_ankle_pitch"] == pytest.approx(0.0123 - 0.4567 * pose[f"{side}_knee"], abs=1e-5)
    (here / "named.xml").write_text(BIPED.replace('<geom size=".02" mass=".1"/>', '<geom name="ground" size=".02" mass=".1"/>'))
    with pytest.raises(UserError, match=r"^named\.xml: cannot become a robot: a geom is named 'ground'"):
        new_robot(Path("named.xml"))


def test_what_an_equality_asks_is_told_of_the_file_that_is_there(here: Path) -> None:
    tail = '<equality><weld body1="pelvis"/></equality></mujoco>'
    (here / "biped.xml").write_text(BIPED.replace("</mujoco>", tail))
    with pytest.raises(UserError, match=r"^biped\.xml: cannot become a robot: robot\.yaml:4: base: 'pelvis' floats"):
        new_robot(Path("biped.xml"))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a.xml", PLAIN.format(""), "no actuated joints"),
        (
            "a.xml",
            PLAIN.format("<body><joint name='j'/><inertial pos='0 0 0' mass='1' diaginertia='1 1 1'/></body>"),
            "no feet found",
        ),
        ("a.xml", PLAIN.format("<body><joint name='j' type='ball'/><geom size='.1'/></body>"), "'j' is a ball joint"),
        ("a.xml", PLAIN.replace("freejoint", "joint name='rootx'").format(""), "held to the world by 'rootx'"),
        ("a.xml", BIPED.replace('type="box" size=".1 .04', 'type="mesh" mesh="sole" size=".1 .04'), "cannot be read"),
        ("dog.urdf.xacro", "<robot/>", "xacro dog.urdf.xacro -o dog.urdf"),
        ("dog.urdf", '<robot xmlns:xacro="x"><xacro:leg/></robot>', "expand it first"),
        ("dog.urdf", "<robot>", "is no XML"),
        ("dog.urdf", "<sdf/>", "its root is <sdf>"),
        ("dog.urdf", f'<robot name="dog">{TRUNK}<link name="other"/></robot>', "2 links are no joint's child (trunk, other)"),
        (
            "dog.urdf",
            dog().replace('<sphere radius="0.02"/>', '<mesh filename="foot.stl"/>'),
            "no feet found: the collision mesh of",
        ),
        (
            "a.xml",
            PLAIN.format("<body><joint name='j'/><geom type='capsule' fromto='.1 -.2 0 .1 -.9 -.1' size='.02'/></body>"),
            "its legs point along -y",
        ),
        (
            "a.xml",
            BIPED.replace('type="box" size=".1 .15', 'name="ground" type="box" size=".1 .15'),
            "a.xml: cannot become a robot",
        ),
        (
            "car.xml",
            PLAIN.format(
                "".join(
                    f"<body pos='{x} {y} -.1'><joint name='{n}' axis='0 1 0'/>"
                    "<geom type='cylinder' size='.1 .02' zaxis='0 1 0'/></body>"
                    for n, x, y in (("a", 0.2, 0.1), ("b", 0.2, -0.1), ("c", -0.2, 0.1), ("d", -0.2, -0.1))
                )
            ),
            "'a', 'b', 'c', 'd' lift nothing off the ground, as wheels do",
        ),
        (
            "y_up.xml",
            BIPED.replace('<freejoint/><geom type="box"', '<freejoint/><geom pos="-3 0 0" size=".1" mass="90"/><geom type="box"'),
            "the centre of mass is",
        ),
        (
            "dog.urdf",
            dog().replace("</robot>", '<link name="world"/>' + HUNG.format("world", "trunk", "prismatic") + "</robot>"),
            "'world' holds 'hung'; a robot that walks",
        ),
        ("there.xml", BIPED, "is there already"),
        ("", "", "no such file"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(file: str, content: str, said: str, here: Path) -> None:
    Path("there").mkdir()
    if file:
        Path(file).write_text(content)
    with pytest.raises(UserError) as error:
        new_robot(Path(file or "nothing.urdf"))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in here.iterdir()) == sorted(filter(None, ("there", file)))  # nothing is left behind


@pytest.mark.skipif(gl_backend()[0] is None, reason="nothing renders here")
def test_the_picture_shows_both_sides(here: Path) -> None:
    from PIL import Image

    Path("dog.urdf").write_text(dog())
    new_robot(Path("dog.urdf"), here / "robots" / "dog", here / "pictures" / "dog.png")
    picture = np.asarray(Image.open("pictures/dog.png")).astype(int)
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    assert ((blue - red > 80) & (blue > 120)).sum() > 100  # arrows of the left
    assert ((red - blue > 80) & (red > 120)).sum() > 100  # of the right
    assert ((green - red > 50) & (green - blue > 30)).sum() > 100  # feet
