"""What touches the ground is what the page says, whatever the robot's file says of masks, pairs, priorities and a floor."""

from __future__ import annotations

from typing import Any

import mujoco

from embodied_rl.errors import UserError
from embodied_rl.robot import RobotSpec

#: What is a ground; MuJoCo has them on bodies that do not move alone.
GROUNDS = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
#: What a spatial tendon runs over.
WRAPPED = (mujoco.mjtWrap.mjWRAP_SPHERE, mujoco.mjtWrap.mjWRAP_CYLINDER)
#: Masks are of 32 bits; the last is the sign of contype and conaffinity.
_BITS = 31
#: A contact has friction from three dimensions on.
_FRICTIONAL = 3


def clear(spec: mujoco.MjSpec, robot: RobotSpec) -> None:
    """Take the file's own ground away, for the page's takes its place, and let feet and what pairs name collide.

    What a pair says of the contact of a geom with that ground is written into the geom.

    Raises:
        UserError: a pair has what a geom cannot have, a geom is called `ground`, or no bit of the masks is free; one line.
    """
    own = [geom for geom in spec.geoms if geom.type in GROUNDS]
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
        free = [bit for bit in range(_BITS) if not any((geom.contype | geom.conaffinity) >> bit & 1 for geom in spec.geoms)]
        if not free:
            raise UserError(
                f"{robot.model_path}: geom {deaf[0].name!r} has no contype and no conaffinity, and those of others take every "
                "bit; give it some"
            )
        for geom in deaf:
            geom.conaffinity = 1 << free[0]  # nobody's but the ground's contype
    if any(geom.name == "ground" for geom in spec.geoms):
        raise UserError(f"{robot.model_path}: a geom is named 'ground', as ours is; give it another name")


def collides(geom: Any) -> bool:
    """Say whether a geom, of a model or of its description, collides with anything."""
    return bool(geom.contype or geom.conaffinity)


def meet(spec: mujoco.MjSpec) -> None:
    """Let the ground touch all that collides, and the friction of each contact with it be that of the other geom.

    What the robot's geoms are to each other stays as it is.
    """
    ground = spec.geom("ground")
    others = [geom for geom in spec.geoms if geom.name != "ground" and collides(geom)]
    for geom in others:
        ground.contype |= geom.conaffinity
        ground.conaffinity |= geom.contype
        geom.condim = max(geom.condim, _FRICTIONAL)
    # of two geoms of one priority the larger friction holds, which is not the one that is drawn and observed
    ground.priority = min([0, *(geom.priority for geom in others)]) - 1


def leave(spec: mujoco.MjSpec, names: tuple[str, ...]) -> None:
    """Let no other geoms of the robot collide than these; pairs go with theirs."""
    others = [geom for geom in spec.geoms if geom.name != "ground" and geom.name not in names]
    _unpair(spec, {geom.name for geom in others if geom.name})
    for geom in others:
        geom.contype = geom.conaffinity = 0


def strip(spec: mujoco.MjSpec) -> None:
    """Take away the geoms that collide with nothing, those that a tendon runs over aside."""
    wrapped = {wrap.target.name for tendon in spec.tendons for wrap in tendon.path if wrap.type in WRAPPED}
    _delete(spec, [geom for geom in spec.geoms if not collides(geom) and geom.name != "ground" and geom.name not in wrapped])


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
