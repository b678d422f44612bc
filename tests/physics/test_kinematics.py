"""Torch kinematics against MuJoCo's."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch

from embodied_rl.physics.kinematics import Frame, Kinematics
from embodied_rl.robot import load_robot, robot_names

#: Everything that a tree may have: a floating base, turned bodies, joint anchors off the origin, slides, a body with two
#: hinges and one with a slide between hinges, a rigid link, a joint whose zero is not its rest, branches of unequal depth.
FLOATING = """
<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <default><geom type="sphere" size="0.05"/></default>
  <worldbody>
    <body name="base" pos="0.3 -0.2 1" quat="0.9 0.1 0.3 0.2">
      <freejoint/> <geom/> <site name="on_base" pos="0.1 0.2 -0.3" quat="0.1 0.7 0.5 -0.5"/>
      <body name="shoulder" pos="0.2 0.1 0" quat="0.7 0.7 0 0.1">
        <joint name="yaw" axis="0 0 1" pos="0.05 -0.02 0.1"/> <joint name="pitch" axis="0.2 1 0.3" pos="-0.1 0 0.03"/>
        <geom/>
        <body name="forearm" pos="0 0.1 -0.3" quat="0.5 0.5 -0.5 0.5">
          <joint name="reach" type="slide" axis="1 0.5 0" pos="0.1 0.1 0"/> <geom/>
          <body name="rigid" pos="0.1 0 0.1" quat="0.3 0.1 0.9 0.2">
            <geom/> <site name="on_rigid" pos="0 0.1 0.2"/>
            <body name="hand" pos="0 0 0.2"><joint name="wrist" axis="0 1 0" ref="0.4"/> <geom/>
              <site name="on_hand" pos="0.03 0 0.1" quat="0.8 0 0.6 0"/> <site name="also_on_hand" pos="0 0.1 0"/>
            </body>
          </body>
        </body>
      </body>
      <body name="tail" pos="-0.3 0 0" quat="0.8 0 0.6 0">
        <joint name="turn" axis="1 0 0" pos="0 0.1 0"/> <joint name="push" type="slide" axis="0 0 1" ref="-0.2"/>
        <joint name="swing" axis="0 1 0" pos="0.1 0 0"/> <geom/> <site name="on_tail" pos="0.2 0.1 0.1"/>
      </body>
      <body name="idle" pos="0 0 0.4"><joint name="idle" axis="0 1 0"/> <geom/></body>
    </body>
  </worldbody>
</mujoco>
"""
FIXED = FLOATING.replace("<freejoint/>", "")
#: The robot stands behind a ball and a mast in the state, and all three have frames.
TWO_ROOTS = FLOATING.replace(
    "<worldbody>",
    """<worldbody>
    <body name="ball" pos="1 0 1"><freejoint/> <geom/> <site name="on_ball" pos="0.1 0 0" quat="0.5 0.5 0.5 0.5"/></body>
    <body name="mast" pos="2 0 0"><joint axis="0 0 1"/> <geom/> <site name="on_mast" pos="0 0.1 0"/></body>
    """,
)
SITES = ("on_hand", "on_base", "on_tail", "on_rigid", "also_on_hand")


def _model(name: str) -> tuple[mujoco.MjModel, list[str]]:
    if name in robot_names():
        robot = load_robot(name)
        return robot.mjspec().compile(), [foot.site for foot in robot.feet]
    xml = {"floating": FLOATING, "fixed": FIXED, "two roots": TWO_ROOTS}[name]
    return mujoco.MjModel.from_xml_string(xml), [*SITES, *(["on_ball", "on_mast"] if name == "two roots" else [])]


def _random_states(model: mujoco.MjModel, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    qpos = rng.uniform(-1.5, 1.5, size=(count, model.nq))
    for joint in np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
        quat = qpos[:, model.jnt_qposadr[joint] + 3 :][:, :4]
        quat /= np.linalg.norm(quat, axis=1, keepdims=True)
    return qpos.astype(np.float32), rng.normal(size=(count, model.nv)).astype(np.float32)


def _frames(model: mujoco.MjModel, sites: list[str]) -> list[Frame]:
    found = [model.site(name) for name in sites]
    return [Frame(site.name, int(site.bodyid[0]), np.array(site.pos), np.array(site.quat)) for site in found]


@pytest.mark.parametrize("name", ["go2", "go1", "a1", "anymal_c", "g1", "g1_legs", "floating", "fixed", "two roots"])
def test_positions_velocities_and_orientations_equal_mujocos(name):
    model, sites = _model(name)
    data = mujoco.MjData(model)
    qpos, qvel = _random_states(model, 100)
    expected, turned = np.zeros((2, 100, len(sites), 3)), np.zeros((100, len(sites), 3, 3))
    for row in range(100):
        data.qpos[:], data.qvel[:] = qpos[row], qvel[row]
        mujoco.mj_forward(model, data)
        for k, site in enumerate(sites):
            velocity = np.zeros(6)  # angular, linear
            mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, model.site(site).id, velocity, 0)
            expected[:, row, k] = data.site(site).xpos, velocity[3:]
            turned[row, k] = data.site(site).xmat.reshape(3, 3)
    state = torch.tensor(qpos), torch.tensor(qvel)
    frames = _frames(model, sites)
    position, velocity, quat = Kinematics(model, frames, torch.device("cpu"), orientation=True)(*state)
    np.testing.assert_allclose(position, expected[0], atol=1e-5)
    np.testing.assert_allclose(velocity, expected[1], atol=1e-5)
    assert quat is not None
    np.testing.assert_allclose(_rotations(quat), turned, atol=1e-5)
    # to ask for orientations moves no bit of the others, and who does not ask gets none
    alone = Kinematics(model, frames, torch.device("cpu"))(*state)
    assert torch.equal(alone[0], position) and torch.equal(alone[1], velocity) and alone[2] is None


def _rotations(quat: torch.Tensor) -> np.ndarray:
    """Rotation matrices, by MuJoCo."""
    matrices = np.zeros((*quat.shape[:-1], 9))
    for index in np.ndindex(*quat.shape[:-1]):
        mujoco.mju_quat2Mat(matrices[index], quat[index].double().numpy())
    return matrices.reshape(*quat.shape[:-1], 3, 3)


def test_orientations_are_exact_where_a_quaternions_components_vanish():
    """Half turns about every axis, and what is next to them: where a formula with one divisor loses its digits."""
    model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><body><freejoint/><geom size="1"/></body></worldbody></mujoco>')
    frame = Frame("frame", 1, np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0]))
    kinematics = Kinematics(model, [frame], torch.device("cpu"), orientation=True)
    axes = np.array([axis for axis in np.ndindex(3, 3, 3) if axis != (1, 1, 1)], dtype=float) - 1.0
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.pi + np.array([0.0, 1e-4, -1e-4, 1e-3, np.pi, np.pi - 1e-4, 0.5 * np.pi])
    quats = np.array([(np.cos(0.5 * a), *np.sin(0.5 * a) * axis) for axis in axes for a in angles])
    qpos = torch.tensor(np.hstack((np.zeros((len(quats), 3)), quats)), dtype=torch.float32)
    _, _, found = kinematics(qpos, torch.zeros(len(quats), 6))
    assert found is not None
    np.testing.assert_allclose(_rotations(found)[:, 0], _rotations(qpos[:, 3:]), atol=2e-6)
    np.testing.assert_allclose(found.norm(dim=-1), 1.0, atol=1e-6)
    assert (found[..., 0] >= 0).all()


def test_a_ball_joint_is_refused_by_name():
    model = mujoco.MjModel.from_xml_string(FIXED.replace('name="wrist" axis="0 1 0" ref="0.4"', 'type="ball"'))
    with pytest.raises(ValueError, match="body 'hand': ball joints have no torch kinematics"):
        Kinematics(model, _frames(model, ["on_hand"]), torch.device("cpu"))
    # a frame that does not hang on it is no concern of it
    Kinematics(model, _frames(model, ["on_tail"]), torch.device("cpu"))


def test_what_mocap_moves_is_refused_by_name():
    moved = '<mujoco><worldbody><body name="cart" mocap="true"><geom size="1"/><site name="on_cart"/></body></worldbody></mujoco>'
    model = mujoco.MjModel.from_xml_string(moved)
    with pytest.raises(ValueError, match="body 'cart': what mocap moves has no torch kinematics"):
        Kinematics(model, _frames(model, ["on_cart"]), torch.device("cpu"))
