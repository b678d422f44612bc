"""Feet, legs and mirror partners of a robot, found in its geometry; names only break ties and name things."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from embodied_rl.errors import UserError
from embodied_rl.new.source import Source
from embodied_rl.robot.spec import mirrored_name
from embodied_rl.scene.contacts import collides
from embodied_rl.scene.feet import supports

#: Words of sides, in lower case; they are no part of what a joint does.
_SIDES = (
    {"left", "right", "front", "rear", "back", "hind", "middle", "mid", "l", "r", "f", "b", "h", "m"}
    | {row + side for row in ("f", "r", "h", "b", "m") for side in ("l", "r")}
    | {side + row for row in ("f", "h", "b", "m") for side in ("l", "r")}
)
#: As shares of the robot's height: what lies as low as the feet, and what of a last link touches the ground.
_LOW, _SOLE = 0.15, 0.02
#: How wide what touches the ground is at least, as a share of that height, for it to lie flat.
_FLAT = 0.08
#: How near its last joint a limb touches the ground, as a share of its last link, for it to be on its knee.
_KNEE = 0.25
#: Height of the base in the file's pose, as a share of the legs' length, below which its legs are folded.
_FOLDED = 0.3


@dataclass
class Leg:
    """A chain of joints from the base to a foot."""

    foot: str
    joints: list[str]
    """Its own: those that carry no other leg, from the base on."""
    geoms: list[int]
    """Collision geoms that touch the ground."""
    body: int
    """The body that they belong to."""
    flat: bool
    """Whether they touch it with an area."""
    place: np.ndarray
    """Where, in the body's frame (3,): the middle of a sphere or of a sole, the end of a shin."""


@dataclass
class Anatomy:
    """What of a robot is what."""

    model: mujoco.MjModel
    base: int
    height: float
    """Of the base above the lowest geom, as the file poses it [m]."""
    legs: list[Leg]
    """Front to rear, left before right."""
    joints: list[str]
    """Legs first, then the others as the file has them."""
    partners: dict[str, str]
    """The joint on the other side of each; empty: the robot has no mirror image."""
    signs: dict[str, float]
    """Of a joint's position as its partner has it."""
    mirror: dict[str, str]
    no_mirror: str
    """Why there is no mirror."""
    unfolded: dict[str, float]
    """Positions of limbs that the file's pose folds up, stretched down; empty: it stands [rad]."""

    @property
    def moving(self) -> list[str]:
        """Joints of the legs."""
        return [name for leg in self.legs for name in leg.joints]


def study(source: Source) -> Anatomy:
    """Find feet, legs and mirror.

    Raises:
        UserError: nothing that could be a foot touches the ground; one line.
    """
    model = source.spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    base = model.body(source.base).id
    low = {geom: lowest(model, data, geom) for geom in range(model.ngeom) if collides(model.geom(geom))}
    groups: dict[int, list[int]] = {}
    for geom in low:
        if (group := int(model.body_weldid[model.geom_bodyid[geom]])) not in (0, base):
            groups.setdefault(group, []).append(geom)
    if not groups:
        missing = f", and those of {', '.join(sorted(source.lost))} are missing" if source.lost else ""
        raise UserError(
            f"{source.path.name}: no feet found: no link that moves has a collision geom{missing}; give the last ones some"
        )
    last = {group: _chain(model, group)[-1] for group in groups}
    across, _ = _partners(model, base, source, max(_length(model, base, group) for group in groups))
    if any(across.get(name, name) != name for name in last.values()):  # where limbs have a left and a right, a tail is no leg
        groups = {group: geoms for group, geoms in groups.items() if across.get(last[group]) != last[group]}
    ends = [group for group in groups if not any(group in _ancestors(model, other) for other in groups)]
    unfolded: dict[str, float] = {}
    _upright(source, [data.geom_xpos[groups[group]].mean(axis=0) - data.xpos[base] for group in ends])
    ground = min(low[geom] for geoms in groups.values() for geom in geoms)
    folded = float(data.xpos[base, 2]) - ground < _FOLDED * max(_length(model, base, group) for group in ends)
    if folded or any(_kneels(model, data, groups[group], last[group], ground, float(data.xpos[base, 2])) for group in ends):
        unfolded = _unfold(model, data, {group: groups[group] for group in ends})
        low = {geom: lowest(model, data, geom) for geom in low}
        ground = min(low[geom] for geoms in groups.values() for geom in geoms)
    height = float(data.xpos[base, 2] - ground)
    if height <= 0.0:
        raise UserError(f"{source.path.name}: no feet found: nothing lies below the base {source.base!r}; z must point up")
    low_ones = [name for name in source.lost if data.body(name).xpos[2] < ground + _LOW * height]
    if low_ones:
        name = min(low_ones, key=lambda one: float(data.body(one).xpos[2]))
        raise UserError(
            f"{source.path.name}: no feet found: the collision mesh of {name!r}, the lowest body, is missing; bring it"
        )
    near = {group for group, geoms in groups.items() if min(low[geom] for geom in geoms) < ground + _LOW * height}
    # the file may pose one side a little higher
    near |= {group for group in ends for foot in near if across.get(last[foot], last[foot]) == last[group] != last[foot]}
    feet = [group for group in near if not any(group in _ancestors(model, other) for other in near)]
    soles = {group for group in near if min(low[geom] for geom in groups[group]) < ground + _SOLE * height}
    feet = list(dict.fromkeys(_heel(model, foot, soles, ends) for foot in feet))
    chains = {foot: _chain(model, foot) for foot in feet}
    legs = []
    for foot, chain in chains.items():
        others = {name for other, joints in chains.items() if other != foot for name in joints}
        bottom = min(low[geom] for geom in groups[foot])
        geoms = [geom for geom in groups[foot] if low[geom] < bottom + _SOLE * height]
        own = [name for name in chain if name not in others]
        lowest_geom = min(geoms, key=lambda geom: low[geom])
        flat = _spread(model, data, geoms, bottom + _SOLE * height) > _FLAT * height
        place = model.geom_pos[lowest_geom]
        if not flat and model.geom_type[lowest_geom] != mujoco.mjtGeom.mjGEOM_SPHERE:
            place = _touched(model, data, lowest_geom, bottom + _SOLE * height)
        legs.append(Leg("", own, geoms, int(model.geom_bodyid[lowest_geom]), flat, place))
    if not all(leg.joints for leg in legs):
        raise UserError(f"{source.path.name}: no feet found: what lies lowest hangs on no joint of its own")
    partners, signs = _partners(model, base, source, height)
    names = [name for name in _joints(model) if name in source.driven]
    alone = [one for one, other in partners.items() if one in source.driven and other not in source.driven]
    mirror, why = {}, ""
    if missing := [name for name in _joints(model) if name not in partners]:
        partners, signs, why = {}, {}, f"{missing[0]!r} has no partner on the other side"
    elif alone:
        partners, signs, why = {}, {}, f"an actuator drives {alone[0]!r}, and none its partner {partners[alone[0]]!r}"
    elif apart := [name for name, (low, high) in limits(model, partners, signs).items() if low > high]:
        partners, signs, why = {}, {}, f"the ranges of {apart[0]!r} and its partner share no position"
    else:
        mirror = _mirror(partners, {name: float(data.joint(name).xanchor[1]) for name in partners})
    legs = _ordered(model, data, legs, partners, height)
    for leg, name in zip(legs, _foot_names(legs, mirror), strict=True):
        leg.foot = name
    first = [name for leg in legs for name in leg.joints]
    joints = first + [name for name in names if name not in first]
    joints += [name for name in _joints(model) if name not in joints]
    return Anatomy(model, base, height, legs, joints, partners, signs, mirror, why, unfolded)


def lowest(model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> float:
    """Give the height of a geom's lowest point [m]; infinite where it has none."""
    points, ellipsoids = _hangs_on(model, data, geom)
    spheres = points[:, 2] - points[:, 3]
    others = ellipsoids[:, 0, 2] - np.linalg.norm(ellipsoids[:, 1:, 2], axis=-1)
    return float(min([*spheres, *others], default=np.inf))


def touching(model: mujoco.MjModel, data: mujoco.MjData, geom: int, below: float) -> np.ndarray:
    """Give the points of a geom under a height [m], (P, 3)."""
    points, ellipsoids = _hangs_on(model, data, geom)
    down = points[:, :3] - np.array([0.0, 0.0, 1.0]) * points[:, 3:]
    # a disc on the ground is its rim
    rims = [
        ellipsoid[0] + sign * axis for ellipsoid in ellipsoids for axis in ellipsoid[1:] if axis.any() for sign in (-1.0, 1.0)
    ]
    everything = np.concatenate((down, np.reshape(rims, (-1, 3))))
    return everything[everything[:, 2] < below]


def limits(model: mujoco.MjModel, partners: Mapping[str, str], signs: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Give each joint's range as far as its mirror partner can follow [rad; m of a slide]."""
    own = {name: _range(model, name) for name in _joints(model)}
    both = {}
    for name, (low, high) in own.items():
        ends = sorted(signs[name] * end for end in own[partners[name]]) if name in partners else (low, high)
        both[name] = (max(low, ends[0]), min(high, ends[1]))
    return both


def _range(model: mujoco.MjModel, name: str) -> tuple[float, float]:
    """Give a joint's range, or what a joint without one can be asked for."""
    joint = model.joint(name)
    if model.jnt_limited[joint.id]:
        return float(joint.range[0]), float(joint.range[1])
    return -math.pi, math.pi


def role(name: str) -> str:
    """Give what a joint or body does, without its side: `FL_hip_joint` is a `hip`."""
    parts = [part for part in name.split("_") if part.lower() not in _SIDES]
    return "_".join(part for part in parts if part.lower() not in ("joint", "link")) or "_".join(parts) or name


def _hangs_on(model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        points, ellipsoids = supports(model, geom, "")
    except UserError:  # a plane or a height field
        return np.zeros((0, 4)), np.zeros((0, 4, 3))
    turn = data.geom_xmat[geom].reshape(3, 3)
    ellipsoids = ellipsoids.reshape(-1, 4, 3) @ turn.T
    ellipsoids[:, 0] += data.geom_xpos[geom]
    return np.hstack((data.geom_xpos[geom] + points[:, :3] @ turn.T, points[:, 3:])), ellipsoids


def _spread(model: mujoco.MjModel, data: mujoco.MjData, geoms: list[int], below: float) -> float:
    """Give how far apart the points are that touch the ground [m]."""
    points = np.concatenate([touching(model, data, geom, below)[:, :2] for geom in geoms])
    return float(np.ptp(points, axis=0).max()) if len(points) else 0.0


def _upright(source: Source, ends: list[np.ndarray]) -> None:
    """Refuse a robot whose limbs, given by their ends from the base on (3,), all point to one side, as no mirror image does."""
    aside, far = float(np.mean(ends, axis=0)[1]), float(np.mean([np.linalg.norm(end) for end in ends]))
    if abs(aside) > 0.5 * far:
        raise UserError(
            f"{source.path.name}: no feet found: its legs point along {'-' if aside < 0.0 else '+'}y; z must point up and x "
            f"forward: hang {source.base!r} on a root that is turned so"
        )


def _kneels(model: mujoco.MjModel, data: mujoco.MjData, geoms: list[int], joint: str, ground: float, base: float) -> bool:
    """Say whether what a limb's last link touches the ground with is its knee: next to its joint, and its far end is not."""
    below = ground + _SOLE * (base - ground)
    points, every = (np.concatenate([touching(model, data, geom, limit) for geom in geoms]) for limit in (below, np.inf))
    if not len(points):
        return False
    anchor = data.joint(joint).xanchor
    near = _KNEE * float(np.linalg.norm(every - anchor, axis=1).max())
    return float(np.linalg.norm(points.mean(axis=0) - anchor)) < near and float(np.ptp(points[:, :2], axis=0).max()) < near


def _heel(model: mujoco.MjModel, toe: int, soles: set[int], ends: list[int]) -> int:
    """Give the link of a limb that touches the ground before the last one does, as a foot with toes; the last where none does."""
    above = [one for one in _ancestors(model, toe) if one in soles and sum(one in _ancestors(model, end) for end in ends) == 1]
    return above[-1] if above else toe


def _length(model: mujoco.MjModel, base: int, body: int) -> float:
    """Give how far it is from the base to a body along its links [m]."""
    chain = [one for one in (body, *_ancestors(model, body)) if base in _ancestors(model, one)]
    return sum(float(np.linalg.norm(model.body_pos[one])) for one in chain)


def _unfold(model: mujoco.MjModel, data: mujoco.MjData, ends: dict[int, list[int]]) -> dict[str, float]:
    """Bring the end of each limb as low as its joints let it, by a search that narrows on the best; positions by joint."""
    draw, pose = np.random.default_rng(0), {}
    for body, geoms in ends.items():
        joints = [model.joint(name) for name in _chain(model, body)]
        bounds = np.array([joint.range if model.jnt_limited[joint.id] else (-np.pi, np.pi) for joint in joints])
        address = [int(joint.qposadr[0]) for joint in joints]
        best, least = data.qpos[address], np.inf
        for width in np.repeat([0.0, 1.0, 0.3, 0.1, 0.03], 60):
            values = np.clip(best + width * draw.standard_normal(len(best)), *bounds.T)
            data.qpos[address] = values
            mujoco.mj_kinematics(model, data)
            if (low := min(lowest(model, data, geom) for geom in geoms)) < least:
                best, least = values, low
        data.qpos[address] = best
        pose |= {joint.name: float(position) for joint, position in zip(joints, best, strict=True)}
    mujoco.mj_kinematics(model, data)
    return pose


def _touched(model: mujoco.MjModel, data: mujoco.MjData, geom: int, below: float) -> np.ndarray:
    """Give the middle of what a geom touches the ground with, in its body's frame (3,)."""
    body, points = model.geom_bodyid[geom], touching(model, data, geom, below)
    return (points.mean(axis=0) - data.xpos[body]) @ data.xmat[body].reshape(3, 3)


def _ancestors(model: mujoco.MjModel, body: int) -> list[int]:
    found = []
    while body := int(model.body_parentid[body]):
        found.append(body)
    return found


def _joints(model: mujoco.MjModel) -> list[str]:
    """List what moves, the free joint aside, in the file's order."""
    return [model.joint(index).name for index in range(model.njnt) if model.jnt_type[index] != mujoco.mjtJoint.mjJNT_FREE]


def _chain(model: mujoco.MjModel, body: int) -> list[str]:
    """List the joints from the base to a body."""
    bodies = [*reversed(_ancestors(model, body)), body]
    every = _joints(model)
    return [name for one in bodies for name in every if model.joint(name).bodyid[0] == one]


def _partners(model: mujoco.MjModel, base: int, source: Source, height: float) -> tuple[dict[str, str], dict[str, float]]:
    """Pair the joints whose anchors and axes are reflections of each other through the base's xz plane, at the zero pose."""
    data = mujoco.MjData(model)
    for name in (names := _joints(model)):
        data.joint(name).qpos[:] = 0.0
    mujoco.mj_kinematics(model, data)
    to_base, origin = data.xmat[base].reshape(3, 3).T, data.xpos[base].copy()
    place = {name: to_base @ (data.joint(name).xanchor - origin) for name in names}
    axis = {name: to_base @ data.joint(name).xaxis for name in names}
    partners: dict[str, str] = {}
    signs: dict[str, float] = {}
    for name in names:
        kind = model.joint(name).type[0]
        flip = np.array((-1.0, 1.0, -1.0) if kind == mujoco.mjtJoint.mjJNT_HINGE else (1.0, -1.0, 1.0))
        there = place[name] * (1.0, -1.0, 1.0)
        found = [
            other
            for other in names
            if model.joint(other).type[0] == kind
            and np.linalg.norm(place[other] - there) < 0.03 * height
            and abs(axis[other] @ (flip * axis[name])) > 1.0 - 1e-3
        ]
        if not found:
            continue
        sided = any(part.lower() in _SIDES for part in name.split("_"))

        def alike(other: str, name: str = name, sided: bool = sided) -> tuple[bool, bool, float]:
            ratio = difflib.SequenceMatcher(None, name, other).ratio()
            return role(other) == role(name), (other != name) == sided, ratio

        partner = max(found, key=alike)
        partners[name], signs[name] = partner, float(np.sign(axis[partner] @ (flip * axis[name])))
    return {name: one for name, one in partners.items() if partners.get(one) == name}, signs


def _mirror(partners: dict[str, str], across: dict[str, float]) -> dict[str, str]:
    """Say the pairs in parts of names where these swap all of them, else name by name."""
    pairs = {name: other for name, other in partners.items() if name != other and (across[name], other) > (across[other], name)}
    parts: dict[str, str] = {}
    for name, other in pairs.items():
        own, its = name.split("_"), other.split("_")
        if len(own) == len(its):
            parts |= {one: two for one, two in zip(own, its, strict=True) if one != two and one not in parts.values()}
    for mirror in (parts, pairs):
        if len({*mirror, *mirror.values()}) == 2 * len(mirror) and all(
            mirrored_name(mirror, name) == other for name, other in partners.items()
        ):
            return mirror
    return {}


def _ordered(model: mujoco.MjModel, data: mujoco.MjData, legs: list[Leg], partners: dict[str, str], height: float) -> list[Leg]:
    """Sort legs from front to rear, left before right."""
    place = {id(leg): data.geom_xpos[leg.geoms].mean(axis=0) for leg in legs}
    rows: list[list[Leg]] = []
    for leg in sorted(legs, key=lambda leg: -place[id(leg)][0]):
        for row in rows:
            paired = partners.get(row[0].joints[-1]) == leg.joints[-1]
            if paired or (not partners and abs(place[id(row[0])][0] - place[id(leg)][0]) < 0.1 * height):
                row.append(leg)
                break
        else:
            rows.append([leg])
    return [leg for row in rows for leg in sorted(row, key=lambda leg: -place[id(leg)][1])]


def _foot_names(legs: list[Leg], mirror: dict[str, str]) -> list[str]:
    """Name each foot by what the names of its leg's joints share, else by its last joint."""
    shared = []
    for leg in legs:
        first, *others = ([*name.split("_")] for name in leg.joints)
        shared.append([part for part in first if part.lower() in _SIDES and all(part in other for other in others)])
    names = ["_".join(parts) for parts in shared]
    for candidate in (names, [leg.joints[-1] for leg in legs]):
        if (
            all(candidate)
            and len({*candidate}) == len(legs)
            and all(mirrored_name(mirror, one) in candidate for one in candidate)
        ):
            return candidate
    return [f"foot_{index}" for index in range(len(legs))]
