from __future__ import annotations

import mujoco
import numpy as np
import pytest

from embodied_rl.deploy import run_policy
from embodied_rl.deploy.place import base_state, place
from embodied_rl.physics.kinematics import free_body

# the free joint is the torso's; the pelvis, the base, hangs on it by a waist
TORSO = """
<mujoco>
  <worldbody>
    <body name="torso" pos="0 0 1">
      <freejoint/> <geom size="0.1" mass="5"/>
      <body name="pelvis" pos="0.02 0 -0.3" euler="0 10 0">
        <joint name="waist" axis="0 0 1" pos="0 0 0.1"/> <geom size="0.1" mass="4"/>
        <body name="leg" pos="0 0.1 -0.1"> <joint name="hip" axis="0 1 0"/> <geom size="0.05" mass="1"/> </body>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
JOINTS = ["hip", "waist"]


@pytest.mark.parametrize("base", ["torso", "pelvis", "leg"])
def test_the_base_is_where_it_is_put_wherever_the_free_joint_is(base: str) -> None:
    model = mujoco.MjModel.from_xml_string(TORSO)
    data, number = mujoco.MjData(model), model.body(base).id
    quat = np.array([0.8, 0.1, -0.3, 0.5])
    quat /= np.linalg.norm(quat)
    qpos = np.array([0.3, -0.2, 0.9, *quat, 0.4, 0.5])  # the waist at 0.5 rad
    qvel = np.array([0.5, -0.4, 0.2, 1.0, -2.0, 0.7, 1.5, -1.2])
    place(model, data, number, JOINTS, qpos, qvel)
    position, turned, linear, angular = base_state(model, data, number)
    np.testing.assert_allclose(position, qpos[:3], atol=1e-12)
    np.testing.assert_allclose(turned * np.sign(turned @ quat), quat, atol=1e-12)
    np.testing.assert_allclose(linear, qvel[:3], atol=1e-12)
    np.testing.assert_allclose(angular, qvel[3:6], atol=1e-12)
    assert (data.joint("hip").qpos[0], data.joint("waist").qpos[0]) == (0.4, 0.5)
    # against finite differences of MuJoCo's own kinematics
    before = data.body(base).xpos.copy()
    ahead = np.array(data.qpos)
    mujoco.mj_integratePos(model, ahead, data.qvel, 1e-6)
    data.qpos[:] = ahead
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose((data.body(base).xpos - before) / 1e-6, qvel[:3], atol=1e-5)
    assert free_body(model, number) == model.body("torso").id


def test_the_runner_measures_the_base_and_not_the_free_joint() -> None:
    """With the free joint on the torso and the waist at 0.5 rad it is the pelvis' gravity and rate that the policy sees."""
    spec = mujoco.MjSpec.from_string(TORSO)
    for name in JOINTS:
        spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    spec.add_key(name="default")
    model = spec.compile()

    class Policy:
        joints = JOINTS
        contract = {"base": "pelvis", "control_dt": 0.02}  # noqa: RUF012

    robot = run_policy.Simulation(Policy(), model)
    quat = np.array([0.9, 0.2, 0.1, -0.3])
    quat /= np.linalg.norm(quat)
    place(model, robot.data, model.body("pelvis").id, JOINTS, np.array([0, 0, 1, *quat, 0.1, 0.5]), np.arange(8.0))
    state = robot.read()
    np.testing.assert_allclose(state["ang_vel"], [3.0, 4.0, 5.0], atol=1e-12)
    down, conjugate = np.zeros(3), quat * (1, -1, -1, -1)
    mujoco.mju_rotVecQuat(down, np.array([0.0, 0.0, -1.0]), conjugate)
    np.testing.assert_allclose(run_policy.gravity(*state["quat"]), down, atol=1e-12)
    np.testing.assert_allclose(state["joint_pos"], [0.1, 0.5])
    assert np.abs(robot.data.qpos[3:7] - quat).max() > 0.1  # the torso looks elsewhere
