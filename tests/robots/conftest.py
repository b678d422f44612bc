"""What the tests of shipped robots share: poses and where feet are in them."""

from __future__ import annotations

import mujoco
import numpy as np

from embodied_rl.robot import RobotSpec

REFLECT = np.array([1.0, -1.0, 1.0])


def posed(robot: RobotSpec, model: mujoco.MjModel, joint_pos, height: float = 0.0) -> mujoco.MjData:
    """The robot with its base upright at a height, and its joints there."""
    data = mujoco.MjData(model)
    data.qpos[:7] = (0.0, 0.0, height, 1.0, 0.0, 0.0, 0.0)
    for name, value in zip(robot.joint_names, joint_pos, strict=True):
        data.joint(name).qpos[0] = value
    mujoco.mj_forward(model, data)
    return data


def sites(robot: RobotSpec, data: mujoco.MjData) -> np.ndarray:
    """Where the feet are, (F, 3)."""
    return np.array([data.site(foot.site).xpos for foot in robot.feet])


def with_motors(robot: RobotSpec, spec: mujoco.MjSpec) -> mujoco.MjModel:
    """The robot on a plane, 5 ms a step, with servos of its own gains and limits."""
    spec.option.timestep = 0.005
    ground = spec.worldbody.add_geom(name="ground", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1])
    ground.contype, ground.conaffinity = 1, 0
    motors = zip(robot.joint_names, robot.stiffness, robot.damping, robot.effort_limit, strict=True)
    for name, stiffness, damping, limit in motors:
        actuator = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.set_to_position(kp=stiffness, kv=damping)
        actuator.forcerange = [-limit, limit]
    return spec.compile()
