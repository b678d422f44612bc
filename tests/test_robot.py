"""Reading a robot's folder: what goes through, and the line for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest
import yaml

from embodied_rl import paths
from embodied_rl.robot import RobotError, RobotSpec, load_robot, robot_names

URDF = """
<robot name="twin">
  <link name="torso">
    <inertial><mass value="2"/><inertia ixx=".02" iyy=".02" izz=".02" ixy="0" ixz="0" iyz="0"/></inertial>
    <visual><geometry><cylinder radius=".1" length=".2"/></geometry></visual>
    <collision><geometry><box size=".2 .2 .2"/></geometry></collision>
    <collision><origin xyz="0 0 .1"/><geometry><sphere radius=".1"/></geometry></collision>
  </link>
  <link name="left_leg">
    <inertial><mass value="1"/><inertia ixx=".01" iyy=".01" izz=".01" ixy="0" ixz="0" iyz="0"/></inertial>
  </link>
  <link name="left_foot"><collision><geometry><sphere radius=".03"/></geometry></collision></link>
  <link name="right_leg">
    <inertial><mass value="1"/><inertia ixx=".01" iyy=".01" izz=".01" ixy="0" ixz="0" iyz="0"/></inertial>
  </link>
  <link name="right_foot"><collision><geometry><sphere radius=".03"/></geometry></collision></link>
  <joint name="right_hip" type="revolute">
    <parent link="torso"/><child link="right_leg"/><origin xyz="0 -.1 0"/><axis xyz="0 -1 0"/>
    <limit lower="-1" upper="1" effort="3" velocity="1"/>
  </joint>
  <joint name="left_hip" type="revolute">
    <parent link="torso"/><child link="left_leg"/><origin xyz="0 .1 0"/><axis xyz="0 1 0"/>
    <limit lower="-1" upper="1" effort="3" velocity="1"/>
  </joint>
  <joint name="left_ankle" type="fixed">
    <parent link="left_leg"/><child link="left_foot"/><origin xyz="0 0 -.4"/>
  </joint>
  <joint name="right_ankle" type="fixed">
    <parent link="right_leg"/><child link="right_foot"/><origin xyz="0 0 -.4"/>
  </joint>
</robot>
"""


def _page() -> dict:
    gains = {"default": 0.0, "stiffness": 20.0, "damping": 1, "effort_limit": 5.0}
    return {
        "name": "twin",
        "model": "twin.urdf",
        "base": "torso",
        "base_height": 0.43,
        "joints": {"left_hip": {**gains, "armature": 0.02}, "right_hip": {**gains, "friction_loss": 0.3}},
        "feet": {side: {"geoms": [f"{side}_foot"], "site": f"{side}_foot"} for side in ("left", "right")},
        "bodies": {"legs": ["left_leg", "right_leg"]},
        "mirror": {"left": "right"},
    }


def _write(folder: Path, page: object, urdf: str = URDF) -> Path:
    (folder / "twin.urdf").write_text(urdf)
    (folder / "robot.yaml").write_text(page if isinstance(page, str) else yaml.safe_dump(page, sort_keys=False))
    return folder


def test_shipped_robots_are_found_by_name():
    assert robot_names() == ["a1", "anymal_c", "g1", "g1_legs", "go1", "go2", "h1"]
    assert load_robot("go2") == load_robot(str(paths.shipped("robots") / "go2"))
    assert load_robot("go2") == load_robot(str(paths.shipped("robots") / "go2" / "robot.yaml"))


def test_reading_a_page_imports_no_simulator():
    code = "import sys, embodied_rl.robot as robot; robot.load_robot('go2'); print({'mujoco', 'torch'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_urdf_robot(tmp_path):
    robot = load_robot(str(_write(tmp_path, _page())))
    model = robot.mjspec().compile()
    assert (model.nq, model.nv, model.nu) == (9, 8, 0)
    assert model.body("torso").parentid[0] == 0
    assert model.body_mass.sum() == pytest.approx(4.0)  # links without <inertial> weigh nothing
    assert {model.geom(i).name for i in range(model.ngeom)} == {"", "torso", "torso_1", "left_foot", "right_foot"}
    assert model.body(model.site("left_foot").bodyid[0]).name == "left_foot"
    assert model.dof_armature[model.joint("left_hip").dofadr[0]] == 0.02
    assert model.dof_frictionloss[model.joint("right_hip").dofadr[0]] == 0.3
    assert not model.jnt_actfrclimited.any()
    visual = next(model.geom(i) for i in range(model.ngeom) if not model.geom(i).name)
    assert (visual.group[0], visual.contype[0], visual.conaffinity[0]) == (2, 0, 0)
    # The right hip turns about -y: the reflected rotation, about +y, is its negative.
    assert robot.joint_mirror() == ((1, 0), (-1.0, -1.0))
    assert robot.foot_mirror() == (1, 0)


def test_urdf_meshes_are_sought_in_the_robots_folder(tmp_path):
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "corner.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
    mesh = '<mesh filename="package://twin_description/meshes/corner.obj"/>'
    robot = load_robot(str(_write(tmp_path, _page(), URDF.replace('<cylinder radius=".1" length=".2"/>', mesh))))
    assert robot.mjspec().compile().nmesh == 1


def test_the_files_actuators_sensors_and_keyframes_go(tmp_path):
    (tmp_path / "twin.xml").write_text("""
    <mujoco>
      <worldbody><body name="cart"><joint name="slider" type="slide" axis="0 1 0" actuatorfrcrange="-1 1"/>
        <geom size=".1"/></body></worldbody>
      <actuator><motor name="push" joint="slider"/></actuator>
      <sensor><actuatorfrc actuator="push"/></sensor>
      <keyframe><key qpos="1" ctrl="1"/></keyframe>
    </mujoco>""")
    joint = {"default": 0.0, "stiffness": 1.0, "damping": 1.0, "effort_limit": 1.0}
    page = {"name": "cart", "model": "twin.xml", "base": "cart", "base_height": 0.0, "joints": {"slider": joint}}
    robot = load_robot(str(_write(tmp_path, page)))
    model = robot.mjspec().compile()
    assert (model.nu, model.nsensor, model.nkey, model.njnt) == (0, 0, 0, 1)
    with pytest.raises(RobotError, match="mirror: is missing"):
        robot.joint_mirror()


def test_the_inertia_and_damping_of_the_files_actuators_stay_at_the_joints(tmp_path):
    body = """<body><joint name="{0}_hip" axis="0 1 0" armature="0.01" damping="0.2"/>
      <geom name="{0}_foot" size=".1"/><site name="{0}_foot"/></body>"""
    model = f"""<mujoco><option gravity="0 0 0"/><worldbody><body name="torso"><freejoint/><geom size=".1"/>
      {body.format("left")}{body.format("right")}</body></worldbody>
      <actuator><motor joint="left_hip" gear="3" armature="0.05" damping="0.3 0.1"/></actuator></mujoco>"""
    (tmp_path / "twin.xml").write_text(model)
    page = {**_page(), "model": "twin.xml", "bodies": {}}
    del page["joints"]["left_hip"]["armature"], page["joints"]["right_hip"]["friction_loss"]
    motions = []
    for spec in (mujoco.MjSpec.from_string(model), load_robot(str(_write(tmp_path, page))).mjspec()):
        compiled = spec.compile()
        data = mujoco.MjData(compiled)
        data.qvel[:] = 2.0
        mujoco.mj_forward(compiled, data)
        motions.append((compiled.dof_M0, data.qfrc_passive, data.qacc))
    for stock, ours in zip(*motions, strict=True):
        np.testing.assert_allclose(ours[6:], stock[6:], rtol=1e-9)
    page["joints"]["left_hip"].update(armature=0.02, joint_damping=0.1)  # the page's number is all
    joint = load_robot(str(_write(tmp_path, page))).mjspec().joint("left_hip")
    assert joint.armature == 0.02 and joint.damping.tolist() == [0.1, 0.0, 0.0]


@pytest.mark.parametrize("axis, sign", [("1 0 0", 1.0), ("0 1 0", -1.0), ("0 0 1", 1.0)])
def test_mirror_of_slides(tmp_path, axis, sign):
    urdf = URDF.replace("revolute", "prismatic").replace('axis xyz="0 -1 0"', f'axis xyz="{axis}"')
    urdf = urdf.replace('axis xyz="0 1 0"', f'axis xyz="{axis}"')
    assert load_robot(str(_write(tmp_path, _page(), urdf))).joint_mirror() == ((1, 0), (sign, sign))


def test_partners_must_turn_about_reflected_axes(tmp_path):
    robot = load_robot(str(_write(tmp_path, _page(), URDF.replace('xyz="0 -1 0"', 'xyz="0 -1 1"'))))
    with pytest.raises(RobotError, match="axes of 'left_hip' and 'right_hip' are not reflections"):
        robot.joint_mirror()


@pytest.mark.parametrize(("place", "said"), [("0.3 -.1 0", "0.3"), ("0 .1 0", "0.2"), ("0.01 -.1 0", None)])
def test_partners_must_stand_where_the_other_is_reflected(tmp_path, place, said):
    robot = load_robot(str(_write(tmp_path, _page(), URDF.replace('xyz="0 -.1 0"', f'xyz="{place}"'))))
    if said is None:
        assert robot.joint_mirror() == ((1, 0), (-1.0, -1.0))
        return
    with pytest.raises(RobotError, match=rf"'left_hip' and 'right_hip' are {said} m from being reflections of each other"):
        robot.joint_mirror()


def _drop(key: str, *inner: str):
    def change(page: dict) -> None:
        for name in inner:
            page = page[name]
        del page[key]

    return change


def _set(value: object, *keys: str):
    def change(page: dict) -> None:
        *parents, last = keys
        for name in parents:
            page = page[name]
        page[last] = value

    return change


MISTAKES = {
    "unknown key": (_set(1, "base_heigth"), ":33: base_heigth: no such key; did you mean 'base_height'?"),
    "unknown joint key": (
        _set(1.0, "joints", "left_hip", "stifness"),
        ":12: joints.left_hip.stifness: no such key; did you mean 'stiffness'?",
    ),
    "unknown foot key": (_set("x", "feet", "left", "sites"), "feet.left.sites: no such key; did you mean 'site'?"),
    "missing key": (_drop("model"), ":1: model: is missing; it must be a string"),
    "missing joint key": (_drop("damping", "joints", "left_hip"), ":6: joints.left_hip.damping: is missing beside stiffness"),
    "text for a number": (_set("low", "base_height"), ':4: base_height: "low" is not a number'),
    "yes for a number": (_set(True, "joints", "left_hip", "default"), ":7: joints.left_hip.default: true is not a number"),
    "nan": (_set(float("nan"), "base_height"), "base_height: nan is not a finite number"),
    "negative gain": (_set(-1.0, "joints", "left_hip", "damping"), "damping: -1.0 is not allowed: at least 0"),
    "list for a mapping": (_set(["left_hip"], "joints"), ':5: joints: ["left_hip"] is not a mapping'),
    "list for a joint": (_set([], "joints", "left_hip"), "joints.left_hip: [] is not a mapping"),
    "no joints": (_set({}, "joints"), "joints: nothing is not allowed: at least 1 joint"),
    "joints left out": (_drop("joints"), ":1: joints: is missing; it must be a mapping"),
    "empty group": (_set([], "bodies", "legs"), "bodies.legs: [] is not allowed: at least 1 value"),
    "text for a group": (_set("left_leg", "bodies", "legs"), 'bodies.legs: "left_leg" is not a list of strings'),
    "no such model": (_set("twin.xml", "model"), ":2: model: no file 'twin.xml' in "),
    "no partner": (_drop("left", "feet"), "feet.right: 'right' has no mirror partner 'left'; allowed: right"),
    "pair written twice": (_set({"left": "right", "right": "left"}, "mirror"), ":33: mirror.right: 'right' stands twice"),
    "unknown side": (
        _set({"lift": "right"}, "mirror"),
        ":32: mirror.lift: 'lift' is no part of a joint's name; did you mean 'left'?",
    ),
    "unknown base": (_set("trunk", "base"), ":3: base: twin.urdf has no 'trunk'; allowed: torso"),
    "unknown body": (
        _set(["left_leg", "left_log"], "bodies", "legs"),
        ":30: bodies.legs[1]: twin.urdf has no 'left_log'; did you mean 'left_leg'?",
    ),
    "unknown geom": (_set(["left_fot"], "feet", "left", "geoms"), "feet.left.geoms[0]: twin.urdf has no 'left_fot'; did"),
    "unknown site": (_set("left_fot", "feet", "left", "site"), "feet.left.site: twin.urdf has no 'left_fot'; did"),
    "a geom of two feet": (
        _set(["left_foot", "right_foot"], "feet", "left", "geoms"),
        "feet.right.geoms[0]: 'right_foot' is already of foot 'left'",
    ),
    "a foot of two bodies": (
        _set(["left_foot", "torso"], "feet", "left", "geoms"),
        "feet.left.geoms[1]: 'torso' is of body 'torso', the site 'left_foot' of 'left_foot'; a foot is of one body",
    ),
    "a site elsewhere": (_set("torso", "feet", "left", "site"), "'left_foot' is of body 'left_foot', the site 'torso' of"),
    "half a gait": (_set(0.5, "feet", "left", "gait_offset"), "feet.right.gait_offset: is missing, and foot 'left' has one"),
    "a gait of more than a cycle": (_set(1.0, "feet", "left", "gait_offset"), "gait_offset: 1.0 is not allowed: less than 1"),
}


@pytest.mark.parametrize("change, message", MISTAKES.values(), ids=MISTAKES)
def test_each_mistake_has_its_line(tmp_path, change, message):
    page = _page()
    change(page)
    with pytest.raises(RobotError) as caught:
        load_robot(str(_write(tmp_path, page))).mjspec()
    lines = str(caught.value).splitlines()
    assert any(message in line for line in lines), lines
    assert all(line.startswith(f"{tmp_path / 'robot.yaml'}:") for line in lines)


def test_all_mistakes_at_once(tmp_path):
    page = _page()
    for change in (_set(1, "wheels"), _drop("damping", "joints", "left_hip"), _set("x", "joints", "right_hip", "default")):
        change(page)
    page |= {"base_height": "low", "model": "twin.xml", "mirror": {"lift": "right"}, "groups": {"hips": ["left_hop"]}}
    page |= {"weld": ["right_hap"], "motors": {"big": {"stiffness": "much"}}}
    with pytest.raises(RobotError) as caught:
        load_robot(str(_write(tmp_path, page)))
    paths = {line.split(": ")[1] for line in str(caught.value).splitlines()}
    assert paths == {
        *("wheels", "joints.left_hip.damping", "joints.right_hip.default", "base_height", "model", "mirror.lift"),
        *("joints.right_hip", "feet.right", "groups.hips[0]", "weld[0]", "motors.big.stiffness"),
    }
    assert len(caught.value.problems) == len(paths)
    page = _page()
    page |= {"base": "trunk", "bodies": {"legs": ["left_log", "right_log"]}}
    with pytest.raises(RobotError) as caught:
        load_robot(str(_write(tmp_path, page))).mjspec()
    assert [problem.path for problem in caught.value.problems] == ["base", "bodies.legs[0]", "bodies.legs[1]"]


def test_joints_of_page_and_model_are_the_same(tmp_path):
    page = _page()
    page["joints"] = {"left_hap": page["joints"]["left_hip"], "right_hap": page["joints"]["right_hip"]}
    with pytest.raises(RobotError, match=r"joints\.left_hap: twin\.urdf has no 'left_hap'; did you mean 'left_hip'"):
        load_robot(str(_write(tmp_path, page))).mjspec()
    page = _page()
    del page["mirror"], page["joints"]["right_hip"]
    with pytest.raises(RobotError, match=r"joints: 'right_hip' of twin\.urdf is not listed"):
        load_robot(str(_write(tmp_path, page))).mjspec()


def test_no_such_robot():
    with pytest.raises(RobotError, match=r"no 'go22', neither a shipped robot nor a folder .* did you mean 'go2'"):
        load_robot("go22")
    with pytest.raises(RobotError, match="allowed: a1, anymal_c, g1, g1_legs, go1, go2, h1"):
        load_robot("some/folder")
    with pytest.raises(RobotError, match=r'"some/dog.urdf" is a model file; name the folder .* `embodied-rl new robot dog.urdf`'):
        load_robot("some/dog.urdf")


@pytest.mark.parametrize("text", ["name: [", "", "- 1", "\x00"])
def test_broken_pages(tmp_path, text):
    with pytest.raises(RobotError) as caught:
        load_robot(str(_write(tmp_path, text)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["<robot", "<robot/>", "", "no model"])
def test_broken_models(tmp_path, text):
    robot = load_robot(str(_write(tmp_path, _page(), text)))
    with pytest.raises(RobotError) as caught:
        robot.mjspec()
    assert "\n" not in str(caught.value)


def test_names_without_a_side_stay(tmp_path):
    robot = load_robot("go2")
    assert isinstance(robot, RobotSpec)
    assert [robot.mirrored_name(name) for name in ("FL_hip_joint", "RR_foot", "base", "FLAT_top")] == [
        "FR_hip_joint",
        "RL_foot",
        "base",
        "FLAT_top",
    ]
    assert mujoco.mj_id2name(robot.mjspec().compile(), mujoco.mjtObj.mjOBJ_BODY, 1) == "base"
