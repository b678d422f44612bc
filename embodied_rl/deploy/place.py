"""A robot's state by names, the same for every model of it: where its base is, how it moves, and its joints.

`qpos` is the base's position [m] and orientation (wxyz), then the joints' positions; `qvel` the base's linear velocity in the
world [m/s] and its angular one in its own frame [rad/s], then the joints' velocities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from embodied_rl.physics.kinematics import free_body, free_joint

_BODY = mujoco.mjtObj.mjOBJ_XBODY


def fresh(model: mujoco.MjModel) -> mujoco.MjData:
    """Make data in the model's keyframe, if it has one: with the joints that no policy drives where they are held."""
    data = mujoco.MjData(model)
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    return data


def place(
    model: mujoco.MjModel, data: mujoco.MjData, base: int, joints: Sequence[str], qpos: np.ndarray, qvel: np.ndarray
) -> None:
    """Put the robot into a state, wherever its model has the free joint: on the base, or on a body that carries it."""
    for index, name in enumerate(joints):
        found = model.joint(name)
        data.qpos[found.qposadr[0]], data.qvel[found.dofadr[0]] = qpos[7 + index], qvel[6 + index]
    root = free_body(model, base)
    if root is None:
        return
    address = free_joint(model, root)
    assert address is not None
    (at, to), quat = address, np.zeros(4)
    # of a carrier that stands still in the origin, what the base does by the joints between them
    data.qpos[at : at + 7], data.qvel[to : to + 6] = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0), 0.0
    position, turned, linear, angular = base_state(model, data, base)
    mujoco.mju_negQuat(quat, turned)
    mujoco.mju_mulQuat(quat, qpos[3:7], quat)
    offset = _rotated(quat, position)
    spin = _rotated(qpos[3:7], qvel[3:6]) - _rotated(quat, _rotated(turned, angular))
    data.qpos[at : at + 3], data.qpos[at + 3 : at + 7] = qpos[:3] - offset, quat
    data.qvel[to : to + 3] = qvel[:3] - _rotated(quat, linear) - np.cross(spin, offset)
    mujoco.mju_negQuat(turned, quat)
    data.qvel[to + 3 : to + 6] = _rotated(turned, spin)


def base_state(model: mujoco.MjModel, data: mujoco.MjData, base: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Measure a body: position, orientation, velocity of its origin in the world, angular velocity in its own frame."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_comVel(model, data)
    world, own = np.zeros(6), np.zeros(6)
    mujoco.mj_objectVelocity(model, data, _BODY, base, world, 0)
    mujoco.mj_objectVelocity(model, data, _BODY, base, own, 1)
    return data.xpos[base].copy(), data.xquat[base].copy(), world[3:], own[:3]


def state_of(model: mujoco.MjModel, data: mujoco.MjData, base: int, joints: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Measure a state as `place` takes it: qpos and qvel."""
    position, quat, linear, angular = base_state(model, data, base)
    found = [model.joint(name) for name in joints]
    positions, rates = [data.qpos[joint.qposadr[0]] for joint in found], [data.qvel[joint.dofadr[0]] for joint in found]
    return np.concatenate((position, quat, positions)), np.concatenate((linear, angular, rates))


def default_pose(contract: Mapping[str, Any], height: float) -> tuple[np.ndarray, np.ndarray]:
    """Give the default pose, upright and at rest with the base so high [m], as `place` takes it: qpos and qvel."""
    joints = [joint["default"] for joint in contract["joints"]]
    return np.array([0.0, 0.0, height, 1.0, 0.0, 0.0, 0.0, *joints]), np.zeros(6 + len(joints))


def _rotated(quat: np.ndarray, vector: np.ndarray) -> np.ndarray:
    turned = np.zeros(3)
    mujoco.mju_rotVecQuat(turned, np.asarray(vector, dtype=float), np.asarray(quat, dtype=float))
    return turned
