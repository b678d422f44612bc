"""What touches the ground is what the page says, whatever the robot's file says of masks, pairs, priorities and a floor."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from embodied_rl.errors import UserError
from embodied_rl.robot import RobotSpec

#: What is a ground; MuJoCo has them on bodies that do not move alone.
GROUNDS = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
#: What a spatial tendon runs over.
WRAPPED = (mujoco.mjtWrap.mjWRAP_SPHERE, mujoco.mjtWrap.mjWRAP_CYLINDER)
#: Masks are of 32 bits; the last is the sign of contype and conaffinity.
_BITS = 31
_NO_BIT = "scene.self_collision: the masks of the robot's geoms take every bit; take self_collision: file"
#: A contact has friction from three dimensions on.
_FRICTIONAL = 3
#: How far a floor may be from z = 0 and be there [m].
_ROUNDING = 1e-4


def clear(spec: mujoco.MjSpec, robot: RobotSpec) -> None:
    """Take the file's own ground away, for the page's takes its place, and let feet and what pairs name collide.

    What a pair says of the contact of a geom with that ground is written into the geom.

    Raises:
        UserError: a pair has what a geom cannot have, a geom is called `ground`, or no bit of the masks is free; one line.
    """
    own = [geom for geom in spec.geoms if geom.type in GROUNDS]
    for name in [geom.name for geom in own if geom.name in robot.foot_geoms]:
        kind = spec.geom(name).type.name.removeprefix("mjGEOM_").lower()
        raise UserError(f"{robot.model_path}: geom {name!r} is of a foot, and no {kind} moves; make it a box")
    _check_mount(spec, own, robot)
    grounds = {geom.name for geom in own if geom.name}
    paired = {name for pair in spec.pairs for name in (pair.geomname1, pair.geomname2)} - grounds
    with_ground = [pair for pair in spec.pairs if grounds & {pair.geomname1, pair.geomname2}]
    if with_ground:
        _take_over(spec, with_ground, grounds, robot)
    _delete(spec, own)
    for exclude in list(spec.excludes):
        if "world" in (exclude.bodyname1, exclude.bodyname2):
            spec.delete(exclude)
    deaf = [geom for geom in spec.geoms if geom.name in paired.union(robot.foot_geoms) and not collides(geom)]
    if deaf:
        bit = _free_bit(
            spec,
            f"{robot.model_path}: geom {deaf[0].name!r} has no contype and no conaffinity, and those of others take every bit; "
            "give it some",
        )
        for geom in deaf:
            geom.conaffinity = bit  # nobody's but the ground's contype
    if any(geom.name == "ground" for geom in spec.geoms):
        raise UserError(f"{robot.model_path}: a geom is named 'ground', as ours is; give it another name (in a URDF, its link)")


def _check_mount(spec: mujoco.MjSpec, own: list[mujoco.MjsGeom], robot: RobotSpec) -> None:
    """Refuse a robot that is mounted over a floor elsewhere than ours, which would come nearer or go away."""
    body = spec.body(robot.base)
    while body is not None:
        if any(joint.type == mujoco.mjtJoint.mjJNT_FREE for joint in body.joints):
            return
        body = body.parent
    planes = [geom for geom in own if geom.type == mujoco.mjtGeom.mjGEOM_PLANE]
    if not planes:
        return
    model = robot.compile(spec)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    heights = [float(data.geom_xpos[geom.id, 2]) for geom in planes if data.geom_xmat[geom.id, 8] > 1.0 - _ROUNDING]
    if not any(abs(height) < _ROUNDING for height in heights):
        where = f"at z = {heights[0]:g}" if heights else "not level"
        raise UserError(
            f"{robot.model_path}: the robot is mounted over a plane that is {where}, and our ground is at z = 0; move both there"
        )


def collides(geom: Any) -> bool:
    """Say whether a geom, of a model or of its description, collides with anything."""
    return bool(geom.contype or geom.conaffinity)


def meet(spec: mujoco.MjSpec) -> None:
    """Let the ground touch all that collides, and the friction of each contact with it be that of the other geom.

    So it is with what else of the file's stands in the world, as a floor made of a box. What the robot's geoms are to each
    other stays as it is.
    """
    ground = spec.geom("ground")
    others = [geom for geom in spec.geoms if geom.name != "ground" and collides(geom)]
    for geom in others:
        ground.contype |= geom.conaffinity
        ground.conaffinity |= geom.contype
        geom.condim = max(geom.condim, _FRICTIONAL)
    # of two geoms of one priority the larger friction holds, which is not the one that is drawn and observed
    around = [geom for geom in others if _stands(geom)]
    ground.priority = min([0, *(geom.priority for geom in others if geom not in around)]) - 1
    for geom in around:
        geom.priority = min(geom.priority, ground.priority)


def _stands(geom: mujoco.MjsGeom) -> bool:
    """Say whether a geom is of something in which nothing moves."""
    body = geom.parent
    while body.name != "world" and body.parent.name != "world":
        body = body.parent
    return body.name == "world" or not any(one.joints or one.mocap for one in (body, *body.find_all("body")))


def leave(spec: mujoco.MjSpec, names: tuple[str, ...], *, pairs: bool = False) -> None:
    """Let no other geoms of the robot collide than these; with `pairs`, what pairs name goes on meeting each other."""
    others = [geom for geom in spec.geoms if geom.name != "ground" and geom.name not in names]
    if not pairs:
        _unpair(spec, {geom.name for geom in others if geom.name})
    for geom in others:
        geom.contype = geom.conaffinity = 0


def movable(spec: mujoco.MjSpec) -> list[mujoco.MjsGeom]:
    """List the geoms that collide and move."""
    return [geom for geom in spec.geoms if geom.name != "ground" and collides(geom) and not _stands(geom)]


def part(spec: mujoco.MjSpec, *, pairs: bool) -> None:
    """Let what moves meet what stands alone, and, with `pairs`, what pairs name."""
    moves, bit = movable(spec), _free_bit(spec)
    for geom in spec.geoms:
        if geom.name == "ground" or (collides(geom) and _stands(geom)):
            geom.contype |= bit
    for geom in moves:
        geom.contype, geom.conaffinity = 0, bit
    if not pairs:
        _unpair(spec, {geom.name for geom in spec.geoms if geom.name and not _stands(geom)})


def meet_itself(spec: mujoco.MjSpec, geoms: list[mujoco.MjsGeom]) -> None:
    """Let these geoms meet each other, but for those of one body, and of a body and the one it hangs on."""
    bit = _free_bit(spec)
    for geom in geoms:
        geom.contype, geom.conaffinity = geom.contype | bit, geom.conaffinity | bit


def exclude_touching(spec: mujoco.MjSpec, model: mujoco.MjModel, qpos: np.ndarray) -> None:
    """Let bodies that touch each other in a pose do so for ever: shapes that stand for links overlap beside their joints."""
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    touching = {tuple(sorted(int(model.geom_bodyid[geom]) for geom in pair)) for pair in data.contact.geom}
    for one, other in sorted(touching):
        if one:  # not of the world
            spec.add_exclude(bodyname1=model.body(one).name, bodyname2=model.body(other).name)


def _free_bit(spec: mujoco.MjSpec, otherwise: str = _NO_BIT) -> int:
    """Find a bit that no mask has.

    Raises:
        UserError: every bit is taken; `otherwise`.
    """
    for bit in range(_BITS):
        if not any((geom.contype | geom.conaffinity) >> bit & 1 for geom in spec.geoms):
            return 1 << bit
    raise UserError(otherwise)


def strip(spec: mujoco.MjSpec) -> None:
    """Take away the geoms that do nothing: they touch nothing, no tendon runs over them, and no fluid flows around them."""
    wrapped = {wrap.target.name for tendon in spec.tendons for wrap in tendon.path if wrap.type in WRAPPED}
    fluid = spec.option.density > 0.0 or spec.option.viscosity > 0.0
    paired = {name for pair in spec.pairs for name in (pair.geomname1, pair.geomname2)}
    kept = [geom for geom in spec.geoms if geom.name in {"ground", *wrapped, *paired} or (fluid and geom.fluid_ellipsoid > 0.0)]
    _delete(spec, [geom for geom in spec.geoms if not collides(geom) and geom not in kept])


def _take_over(spec: mujoco.MjSpec, pairs: list[mujoco.MjsPair], grounds: set[str], robot: RobotSpec) -> None:
    """Write what pairs say of contacts with the file's ground into the geoms that they name."""
    model = robot.compile(spec)
    for pair in pairs:
        ends = [pair.geomname1, pair.geomname2]
        friction, own = model.pair_friction[pair.id], [name for name in ends if name not in grounds]
        if friction[0] != friction[1] or friction[3] != friction[4]:
            numbers = " ".join(f"{number:g}" for number in friction)
            raise UserError(
                f"{robot.model_path}: the pair of {ends[0]!r} and {ends[1]!r} has friction {numbers}; the ground's contacts have "
                "one number each for sliding and rolling: write the first two alike, and the last two"
            )
        for geom in map(spec.geom, own):
            geom.condim, geom.friction = int(model.pair_dim[pair.id]), friction[[0, 2, 3]]
            geom.solref, geom.solimp = model.pair_solref[pair.id], model.pair_solimp[pair.id]
            geom.margin, geom.gap = float(model.pair_margin[pair.id]), float(model.pair_gap[pair.id])


def _delete(spec: mujoco.MjSpec, geoms: list[mujoco.MjsGeom]) -> None:
    """Take geoms out, and the pairs that name them."""
    _unpair(spec, {geom.name for geom in geoms if geom.name})
    for geom in geoms:
        spec.delete(geom)


def _unpair(spec: mujoco.MjSpec, names: set[str]) -> None:
    for pair in list(spec.pairs):
        if names & {pair.geomname1, pair.geomname2}:
            spec.delete(pair)
