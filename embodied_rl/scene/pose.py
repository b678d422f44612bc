"""The default pose that a robot's page gives it, and whether the robot can be in it."""

from __future__ import annotations

import mujoco
import numpy as np
import torch

from embodied_rl.errors import UserError
from embodied_rl.robot import RobotError, RobotSpec
from embodied_rl.scene.feet import Feet
from embodied_rl.strict_yaml import Keys, display, problem_at

#: How far a default may be beyond a limit, or off what another joint asks of it: rounding [rad, or m].
_ROUNDING = 1e-4
#: How far the lowest foot may be from the ground [m], and as a share of the base's height.
_GAP, _SHARE = 0.05, 0.2


def default_qpos(model: mujoco.MjModel, robot: RobotSpec, root: int | None) -> np.ndarray:
    """Give the default pose, (nq,): joints at their defaults, the base where the file has it, at its height above the ground.

    Args:
        model: any that holds the robot.
        robot: its page.
        root: where a floating base's pose stands in qpos.
    """
    pose = model.qpos0.copy()
    if root is not None:
        pose[root + 2] = robot.base_height
    for name, position in zip(robot.joint_names, robot.default_joint_pos, strict=True):
        pose[model.joint(name).qposadr[0]] = position
    return pose


def check_pose(model: mujoco.MjModel, robot: RobotSpec, root: int | None) -> None:
    """Compare the default pose with the model.

    Args:
        model: the scene's.
        robot: its page.
        root: where a floating base's pose stands in qpos.

    Raises:
        RobotError: joints beyond their limits or off the joints that they follow, or a base so high or low that the feet are
            far from the ground; a line each, with the number that is right.
    """
    wrong: list[tuple[Keys, str]] = []
    pose = default_qpos(model, robot, root)
    for name, position in zip(robot.joint_names, robot.default_joint_pos, strict=True):
        joint = model.joint(name)
        low, high = joint.range
        if joint.limited[0] and not low - _ROUNDING <= position <= high + _ROUNDING:
            message = f"{position:g} is outside the joint's range in {robot.model_path.name}, [{low:g}, {high:g}]"
            wrong.append((("joints", name, "default"), message))
    if not wrong:
        wrong = [*_held(model, robot, root), *_off_others(model, robot, pose), *_off_ground(model, robot, pose, root)]
    if wrong:
        places = robot.places or {(): display(robot.folder / "robot.yaml")}
        raise RobotError([problem_at(places, *one) for one in wrong])


def _held(model: mujoco.MjModel, robot: RobotSpec, root: int | None) -> list[tuple[Keys, str]]:
    """Find what holds a floating base to the world."""
    bodies, kinds = int(mujoco.mjtObj.mjOBJ_BODY), (int(mujoco.mjtEq.mjEQ_WELD), int(mujoco.mjtEq.mjEQ_CONNECT))
    for index in range(model.neq):
        ends = [int(model.eq_obj1id[index]), int(model.eq_obj2id[index])]
        between = model.eq_type[index] in kinds and model.eq_objtype[index] == bodies and model.eq_active0[index]
        if root is not None and between and model.body(robot.base).id in ends and 0 in ends:
            held = f"an equality constraint of {robot.model_path.name} holds it to the world"
            return [(("base",), f"{robot.base!r} floats, and {held}; take the one or the other out")]
    return []


def _off_others(model: mujoco.MjModel, robot: RobotSpec, pose: np.ndarray) -> list[tuple[Keys, str]]:
    """Find joints that an equality constraint (a URDF's mimic) wants elsewhere."""
    wrong: list[tuple[Keys, str]] = []
    for index in range(model.neq):
        first, second = int(model.eq_obj1id[index]), int(model.eq_obj2id[index])
        if model.eq_type[index] != mujoco.mjtEq.mjEQ_JOINT or not model.eq_active0[index]:
            continue
        moved = [pose[model.jnt_qposadr[joint]] - model.qpos0[model.jnt_qposadr[joint]] for joint in (first, second)]
        other = moved[1] if second >= 0 else 0.0
        want = model.qpos0[model.jnt_qposadr[first]] + np.polynomial.polynomial.polyval(other, model.eq_data[index, :5])
        name, got = model.joint(first).name, pose[model.jnt_qposadr[first]]
        if abs(got - want) > _ROUNDING:
            by = f"the equality constraint with {model.joint(second).name!r}" if second >= 0 else "its equality constraint"
            wrong.append((("joints", name, "default"), f"{got:g}, and {by} in {robot.model_path.name} wants {want:.4g}"))
    return wrong


def _off_ground(model: mujoco.MjModel, robot: RobotSpec, pose: np.ndarray, root: int | None) -> list[tuple[Keys, str]]:
    """Find a base height at which the lowest foot is far from the ground."""
    if root is None or not robot.feet:
        return []
    data = mujoco.MjData(model)
    data.qpos[:] = pose
    mujoco.mj_kinematics(model, data)
    sites = [data.site(foot.site) for foot in robot.feet]
    quats = np.zeros((len(sites), 4))
    for quat, site in zip(quats, sites, strict=True):
        mujoco.mju_mat2Quat(quat, site.xmat)
    places = torch.tensor(np.array([site.xpos for site in sites]), dtype=torch.float32)
    try:
        feet = Feet(model, robot, torch.device("cpu"))
    except UserError:  # said where a term asks for them
        return []
    gap = float(feet.undersides(places[None], torch.tensor(quats[None], dtype=torch.float32)).min())
    right = robot.base_height - gap
    if abs(gap) <= min(_GAP, _SHARE * abs(right)):
        return []
    where = f"{gap:.3g} m above" if gap > 0.0 else f"{-gap:.3g} m in"
    message = f"{robot.base_height:g} has the lowest foot {where} the ground in the default pose; feet just touch at {right:.4g}"
    return [(("base_height",), message)]
