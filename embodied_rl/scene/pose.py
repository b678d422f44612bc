"""The default pose that a robot's page gives it, and whether the robot can be in it."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np
import torch

from embodied_rl.errors import UserError
from embodied_rl.robot import RobotError, RobotSpec
from embodied_rl.robot.spec import ROUNDING
from embodied_rl.scene.contacts import collides
from embodied_rl.scene.feet import Feet
from embodied_rl.strict_yaml import Keys, display, problem_at

#: How far the lowest foot may be from the ground [m], as a share of the base's height, and of whatever height [m].
_GAP, _SHARE, _ROUGH = 0.05, 0.2, 0.01
#: How far what an equality constraint or a tendon's range holds may be off in it [m, or rad].
_APART = 0.01
#: Cosine of how far the base's z axis may be off the vertical.
_UPRIGHT = 0.9


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
        RobotError: joints beyond their limits or off the joints that they follow, a base that is held or so high or low that
            the feet are far from the ground, or what would throw the robot out of the pose; a line each.
    """
    wrong: list[tuple[Keys, str]] = []
    pose = default_qpos(model, robot, root)
    for name, position in zip(robot.joint_names, robot.default_joint_pos, strict=True):
        if message := robot.beyond(model, name, position):
            wrong.append((("joints", name, "default"), message))
    wrong = wrong or _lying(model, robot, pose, root)
    if not wrong:
        wrong = [*_held(model, robot, root), *_off_others(model, robot, pose), *_off_ground(model, robot, pose, root)]
    wrong = wrong or _thrown(model, robot, pose)
    if wrong:
        places = robot.places or {(): display(robot.folder / "robot.yaml")}
        raise RobotError([problem_at(places, *one) for one in wrong])


def _held(model: mujoco.MjModel, robot: RobotSpec, root: int | None) -> list[tuple[Keys, str]]:
    """Find what holds a floating base to what does not move, and a base that only mocap moves."""
    base, file = model.body(robot.base).id, robot.model_path.name
    if model.body_mocapid[model.body_weldid[base]] >= 0:
        return [(("base",), f"{robot.base!r} is a mocap body in {file}; give it a freejoint, or take mocap away")]
    kinds = (int(mujoco.mjtEq.mjEQ_WELD), int(mujoco.mjtEq.mjEQ_CONNECT))
    for index in range(model.neq if root is not None else 0):
        if int(model.eq_type[index]) not in kinds or not model.eq_active0[index]:
            continue
        ends = [int(model.eq_obj1id[index]), int(model.eq_obj2id[index])]
        if int(model.eq_objtype[index]) == int(mujoco.mjtObj.mjOBJ_SITE):
            ends = [int(model.site_bodyid[end]) for end in ends]
        links = [int(model.body_weldid[end]) for end in ends]
        still = [link == 0 or model.body_mocapid[link] >= 0 for link in links]
        if model.body_weldid[base] in links and any(still):
            held = model.body(ends[still.index(True)]).name
            by = f"an equality constraint of {file} holds it to {'the world' if held == 'world' else repr(held)}"
            return [(("base",), f"{robot.base!r} floats, and {by}; take the one or the other out")]
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
        if abs(got - want) > ROUNDING:
            by = f"the equality constraint with {model.joint(second).name!r}" if second >= 0 else "its equality constraint"
            wrong.append((("joints", name, "default"), f"{got:g}, and {by} in {robot.model_path.name} wants {want:.4g}"))
    return wrong


def _lying(model: mujoco.MjModel, robot: RobotSpec, pose: np.ndarray, root: int | None) -> list[tuple[Keys, str]]:
    """Find a floating base whose own z axis does not point up."""
    if root is None:
        return []
    up = np.zeros(3)
    mujoco.mju_rotVecQuat(up, np.array((0.0, 0.0, 1.0)), pose[root + 3 : root + 7])
    if up[2] >= _UPRIGHT:
        return []
    off = f"the z axis of {robot.base!r} in {robot.model_path.name} is {np.arccos(up[2]):.2g} rad off the vertical"
    return [(("base",), f"{off}; z points up here: turn the body upright, and what hangs on it")]


def _thrown(model: mujoco.MjModel, robot: RobotSpec, pose: np.ndarray) -> list[tuple[Keys, str]]:
    """Find what throws the robot out of its default pose: constraints that pull, and geoms in the ground."""
    data = mujoco.MjData(model)
    data.qpos[:] = pose
    mujoco.mj_fwdPosition(model, data)
    return [*_strained(model, data, robot.model_path.name), *_sunk(model, data, robot), *_lower(model, data, robot)]


def _strained(model: mujoco.MjModel, data: mujoco.MjData, file: str) -> Iterator[tuple[Keys, str]]:
    """Find equality constraints that pull, and tendons out of their range."""
    rows = zip(data.efc_type.tolist(), data.efc_id.tolist(), data.efc_pos.tolist(), strict=True)
    pulls = {int(mujoco.mjtConstraint.mjCNSTR_EQUALITY): "equality", int(mujoco.mjtConstraint.mjCNSTR_LIMIT_TENDON): "tendon"}
    off: dict[tuple[str, int], float] = {}
    for kind, index, apart in rows:
        if kind in pulls:
            off[pulls[kind], index] = max(off.get((pulls[kind], index), 0.0), abs(apart))
    for (kind, index), apart in off.items():
        if apart > _APART:
            what = model.equality(index).name if kind == "equality" else model.tendon(index).name
            word = "equality constraint" if kind == "equality" else "range of the tendon"
            named = f"the {word} {what!r}" if what else f"{word} {index}"
            yield ("joints",), f"the default pose is {apart:.2g} off what {named} in {file} wants [m or rad]; change the defaults"


def _sunk(model: mujoco.MjModel, data: mujoco.MjData, robot: RobotSpec) -> Iterator[tuple[Keys, str]]:
    """Find geoms of the robot that are deep in what stands in the world."""
    tree = int(model.body_rootid[model.body(robot.base).id])
    found: dict[tuple[str, str], float] = {}
    for contact in data.contact:
        bodies = model.geom_bodyid[list(contact.geom)]
        still = [int(model.body_weldid[body]) == 0 for body in bodies]
        own = still.index(False) if any(still) and not all(still) else None
        deep = -float(contact.dist)
        if own is not None and model.body_rootid[bodies[own]] == tree and deep > _most(robot.base_height + deep):
            names = [
                model.geom(geom).name or f"a geom of {model.body(body).name!r}"
                for geom, body in zip(contact.geom, bodies, strict=True)
            ]
            pair = names[own], names[1 - own]
            found[pair] = max(found.get(pair, 0.0), deep)
    for (geom, other), depth in found.items():
        place = (
            f"{geom!r} of {robot.model_path.name} is {depth:.2g} m in {other!r} in the default pose, which throws the robot up"
        )
        yield ("base_height",), f"{place}; raise it, name the lowest geoms as feet, or move what it is in"


def _lower(model: mujoco.MjModel, data: mujoco.MjData, robot: RobotSpec) -> Iterator[tuple[Keys, str]]:
    """Find geoms that reach the ground before the foot's own, of its link: what they touch is no contact of the foot."""
    ground = model.geom("ground").id
    for foot in robot.feet:
        own = [model.geom(name).id for name in foot.geoms]
        link = model.body_weldid[model.geom_bodyid[own[0]]]
        others = [geom for geom in range(model.ngeom) if model.body_weldid[model.geom_bodyid[geom]] == link and geom not in own]
        height = {geom: mujoco.mj_geomDistance(model, data, ground, geom, 1.0, None) for geom in own + others}
        for geom in others:
            below = min(height[one] for one in own) - height[geom]
            if below > _ROUGH and collides(model.geom(geom)):
                name = model.geom(geom).name or f"a geom of {model.body(model.geom_bodyid[geom]).name!r}"
                lower = f"{name!r} of {robot.model_path.name} is {below:.2g} m lower in the default pose"
                yield ("feet", foot.name, "geoms"), f"{lower}; name it as well"


def _most(height: float) -> float:
    """Say how far a foot of a robot whose base should be this high may be from the ground [m]."""
    return min(_GAP, max(_ROUGH, _SHARE * abs(height)))


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
    gaps = feet.undersides(places[None], torch.tensor(quats[None], dtype=torch.float32))[0]
    gap, lowest = float(gaps.min()), robot.feet[int(gaps.argmin())]
    right = robot.base_height - gap
    if abs(gap) <= _most(right):
        return []
    where = f"{gap:.3g} m above" if gap > 0.0 else f"{-gap:.3g} m in"
    below = model.body(int(model.body_parentid[model.site(lowest.site).bodyid[0]])).name
    foot = f"the lowest foot, {lowest.name!r} (site {lowest.site!r} below {below!r} of {robot.model_path.name}),"
    message = f"{robot.base_height:g} has {foot} {where} the ground in the default pose; feet just touch at {right:.4g}"
    return [(("base_height",), message)]
