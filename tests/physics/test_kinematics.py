"""Torch kinematics against MuJoCo's."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch

from embodied_rl.physics.kinematics import Kinematics
from embodied_rl.robot import load_robot

#: Everything that a tree may have: a floating base, turned bodies, joint anchors off the origin, slides, a body with two
#: hinges and one with a slide between hinges, a rigid link, a joint whose zero is not its rest, branches of unequal depth.
FLOATING = """
<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <default><geom type="sphere" size="0.05"/></default>
  <worldbody>
    <body name="base" pos="0.3 -0.2 1" quat="0.9 0.1 0.3 0.2">
      <freejoint/> <geom/> <site name="on_base" pos="0.1 0.2 -0.3"/>
      <body name="shoulder" pos="0.2 0.1 0" quat="0.7 0.7 0 0.1">
        <joint name="yaw" axis="0 0 1" pos="0.05 -0.02 0.1"/> <joint name="pitch" axis="0.2 1 0.3" pos="-0.1 0 0.03"/>
        <geom/>
        <body name="forearm" pos="0 0.1 -0.3" quat="0.5 0.5 -0.5 0.5">
          <joint name="reach" type="slide" axis="1 0.5 0" pos="0.1 0.1 0"/> <geom/>
          <body name="rigid" pos="0.1 0 0.1" quat="0.3 0.1 0.9 0.2">
            <geom/> <site name="on_rigid" pos="0 0.1 0.2"/>
            <body name="hand" pos="0 0 0.2"><joint name="wrist" axis="0 1 0" ref="0.4"/> <geom/>
              <site name="on_hand" pos="0.03 0 0.1"/> <site name="also_on_hand" pos="0 0.1 0"/>
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
SITES = ("on_hand", "on_base", "on_tail", "on_rigid", "also_on_hand")


def _model(name: str) -> tuple[mujoco.MjModel, list[str]]:
    if name in ("go1", "go2"):
        robot = load_robot(name)
        return robot.mjspec().compile(), [foot.site for foot in robot.feet]
    return mujoco.MjModel.from_xml_string({"floating": FLOATING, "fixed": FIXED}[name]), list(SITES)


def _random_states(model: mujoco.MjModel, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    qpos = rng.uniform(-1.5, 1.5, size=(count, model.nq))
    for joint in np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
        quat = qpos[:, model.jnt_qposadr[joint] + 3 :][:, :4]
        quat /= np.linalg.norm(quat, axis=1, keepdims=True)
    return qpos.astype(np.float32), rng.normal(size=(count, model.nv)).astype(np.float32)


@pytest.mark.parametrize("name", ["go2", "go1", "floating", "fixed"])
def test_positions_and_velocities_equal_mujocos(name):
    model, sites = _model(name)
    data = mujoco.MjData(model)
    qpos, qvel = _random_states(model, 100)
    expected = np.zeros((2, 100, len(sites), 3))
    for row in range(100):
        data.qpos[:], data.qvel[:] = qpos[row], qvel[row]
        mujoco.mj_forward(model, data)
        for k, site in enumerate(sites):
            velocity = np.zeros(6)  # angular, linear
            mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, model.site(site).id, velocity, 0)
            expected[:, row, k] = data.site(site).xpos, velocity[3:]
    points = [(int(model.site(site).bodyid[0]), np.array(model.site(site).pos)) for site in sites]
    position, velocity = Kinematics(model, points, torch.device("cpu"))(torch.tensor(qpos), torch.tensor(qvel))
    np.testing.assert_allclose(position, expected[0], atol=1e-5)
    np.testing.assert_allclose(velocity, expected[1], atol=1e-5)


def test_a_ball_joint_is_refused_by_name():
    model = mujoco.MjModel.from_xml_string(FIXED.replace('name="wrist" axis="0 1 0" ref="0.4"', 'type="ball"'))
    with pytest.raises(ValueError, match="body 'hand': ball joints have no torch kinematics"):
        Kinematics(model, [(model.body("hand").id, np.zeros(3))], torch.device("cpu"))
    # a point that does not hang on it is no concern of it
    Kinematics(model, [(model.body("tail").id, np.zeros(3))], torch.device("cpu"))
