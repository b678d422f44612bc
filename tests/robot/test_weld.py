"""Welded joints: MuJoCo's own kinematics of the whole model, at the pose of the weld, is the oracle."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from embodied_rl.robot import RobotError, load_robot

#: Anchors, two joints on a body in either order, a slide, a reference angle in degrees, frames, euler angles.
ARM = """
<mujoco>
  <compiler angle="degree"/>
  <worldbody>
    <body name="cart" pos=".1 .2 .3">
      <freejoint/>
      <geom size=".1" mass="1"/>
      <site name="hook"/>
      <frame pos=".1 0 0" euler="0 0 30">
        <body name="upper" pos="0 .1 .2" euler="10 20 30">
          <frame pos="0 0 .05" euler="40 0 0">
            <joint name="first" axis="1 2 3" pos=".1 .2 -.1" ref="15"/>
          </frame>
          <joint name="second" axis="0 1 1" pos="-.1 0 .3"/>
          <joint name="third" type="slide" axis="1 0 1"/>
          <geom type="box" size=".1 .05 .02" mass="2" pos=".05 0 0"/>
          <body name="lower" pos=".3 0 0" quat=".5 .5 -.5 .5">
            <joint name="elbow" axis="0 0 -1" pos=".05 .02 0"/>
            <geom type="capsule" size=".02 .1" mass=".5" pos="0 .1 0"/>
            <body name="hand" pos="0 .2 0">
              <joint name="grip" type="slide" axis="0 1 .5" ref=".05"/>
              <geom size=".03" mass=".1"/>
              <site name="tip" pos="0 .05 0"/>
            </body>
          </body>
        </body>
      </frame>
    </body>
  </worldbody>
  {extra}
</mujoco>"""
POSE = {"first": 0.7, "second": -1.1, "third": 0.13, "elbow": 0.9, "grip": -0.04}
PAGE = """\
model: biped.xml
base: cart
base_height: 0.3
groups: {{shoulder: [first, second, third], rest: [elbow, grip]}}
weld: {weld}
joints:
"""


def _page(weld: str) -> str:
    gains = "stiffness: 1.0, damping: 1.0, effort_limit: 1.0"
    return PAGE.format(weld=weld) + "".join(f"  {name}: {{default: {value}, {gains}}}\n" for name, value in POSE.items())


def _poses(model: mujoco.MjModel, pose: dict[str, float]) -> tuple[np.ndarray, ...]:
    data = mujoco.MjData(model)
    data.qpos[:7] = (0.3, -0.2, 0.5, 0.8, 0.0, 0.6, 0.0)
    for name, value in pose.items():
        data.joint(name).qpos[0] = value
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    return data.xpos, data.xmat, data.xipos, data.ximat, data.site_xpos, data.subtree_com, model.body_subtreemass


@pytest.mark.parametrize(
    "weld",
    [
        *("[first]", "[second]", "[third]", "[elbow]", "[grip]", "[first, second]", "[second, third]", "[first, third]"),
        *("[shoulder]", "[rest]", "[shoulder, grip]", "[first, second, elbow, grip]"),
    ],
)
def test_a_welded_model_is_the_whole_one_at_that_pose(write, weld):
    xml = ARM.format(extra="")
    robot = load_robot(str(write(_page(weld), xml=xml)))
    assert robot.joint_names == tuple(name for name in POSE if name not in robot.welded) and len(robot.welded) >= 1
    model, whole = robot.mjspec().compile(), mujoco.MjModel.from_xml_string(xml)
    assert model.njnt == 1 + len(robot.joint_names)
    generator = np.random.default_rng(1)
    for _ in range(5):
        moving = {name: generator.uniform(-1.0, 1.0) for name in robot.joint_names}
        for got, expected in zip(_poses(model, moving), _poses(whole, moving | robot.welded), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-12)


def test_what_is_left_is_left_in_every_list(write, page):
    robot = load_robot(str(write(page + "weld: [hips, left_knee, right_knee]\n")))
    assert robot.joint_names == ("left_pitch", "right_pitch") and robot.effort_limit == (5.0, 6.0)
    assert robot.groups == {"all": robot.joint_names, "pitches": robot.joint_names, "upper": robot.joint_names}
    assert robot.welded == {"left_hip": 0.1, "left_knee": 0.4, "right_hip": -0.1, "right_knee": 0.4}
    assert robot.joint_mirror() == ((1, 0), (1.0, 1.0))
    with pytest.raises(RobotError, match="'left_knee' is welded: it is no joint any more"):
        robot.joints_of("left_knee")
    with pytest.raises(ValueError, match="'left_hip' is welded"):
        robot.per_joint({"all": 1.0, "left_hip": 2.0})


def test_the_default_pose_of_welded_joints_is_mirrored_too(write, page):
    folder = write(page.replace("right_hip: {default: -0.1", "right_hip: {default: 0.3") + "weld: [hips]\n")
    with pytest.raises(RobotError, match=r"robot\.yaml:12: joints\.right_hip\.default: the default pose is not symmetric"):
        load_robot(str(folder)).joint_mirror()


def test_a_child_welds_what_its_base_moves(write, biped):
    child = load_robot(str(write("extends: ../biped\nweld: [hips]\n", name="flat", xml=None)))
    assert child.joint_names == ("left_pitch", "left_knee", "right_pitch", "right_knee")
    assert child.mjspec().compile().nv == biped.mjspec().compile().nv - 2


@pytest.mark.parametrize(
    "weld, message",
    [
        ("[hops]", r"24: weld\[0\]: no joint or group 'hops'; did you mean 'hips'"),
        ("[left_hip]", "24: weld: 'left_hip' is welded, its mirror partner 'right_hip' is not; weld both or none"),
        ("[all]", "24: weld: takes every joint; a robot needs one that moves"),
        ("hips", '24: weld: "hips" is not a list of strings'),
    ],
)
def test_wrong_welds(write, page, weld, message):
    with pytest.raises(RobotError, match=message) as caught:
        load_robot(str(write(f"{page}weld: {weld}\n")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "extra, message",
    [
        (
            '<equality><joint name="gear" joint1="elbow" joint2="grip"/></equality>',
            "'grip' cannot be welded: the equality constraint 'gear' of 'elbow' and 'grip' needs it; leave it out of weld, or",
        ),
        (
            '<tendon><fixed name="cable"><joint joint="grip" coef="1"/></fixed></tendon>',
            "'grip' cannot be welded: the tendon 'cable' pulls it",
        ),
        (
            '<equality><connect body1="hand" body2="cart" anchor="0 0 0"/></equality>',
            "constraint '' of 'hand' and 'cart' needs it",
        ),
        ('<equality><weld name="bolt" body1="hand"/></equality>', "the equality constraint 'bolt' of 'hand' needs it"),
        (
            '<tendon><spatial name="spring" stiffness="5"><site site="tip"/><site site="hook"/></spatial></tendon>',
            "'grip' cannot be welded: the tendon 'spring' pulls it",
        ),
        ('<worldbody><frame scale="2 2 2"/></worldbody>', "'grip' cannot be welded: the model has a <frame> with a scale"),
    ],
)
def test_what_else_needs_a_joint(write, extra, message):
    with pytest.raises(RobotError, match=message) as caught:
        load_robot(str(write(_page("[grip]"), xml=ARM.format(extra=extra)))).mjspec()
    assert "robot.yaml:5: weld: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "extra",
    [
        '<equality><joint joint1="elbow" joint2="grip"/></equality>',
        '<equality><connect body1="hand" body2="lower" anchor="0 0 0"/></equality>',
        '<equality><weld site1="tip" site2="hook"/></equality>',
        '<tendon><fixed><joint joint="grip" coef="1"/></fixed></tendon>',
        '<tendon><spatial><site site="tip"/><site site="hook"/></spatial></tendon>',
        '<tendon><spatial stiffness="5" springlength=".1"><site site="tip"/><site site="hook"/></spatial></tendon>',
    ],
)
def test_what_does_without_a_joint(write, extra):
    robot = load_robot(str(write(_page("[first]"), xml=ARM.format(extra=extra))))
    model = robot.mjspec().compile()
    assert model.neq + model.ntendon == 1 and model.njnt == 5
