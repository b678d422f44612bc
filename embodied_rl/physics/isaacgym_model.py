"""What Isaac Gym is told of a page's model, and what it has no place for: read here, without the simulator."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import mujoco
import numpy as np

from embodied_rl.errors import UserError
from embodied_rl.physics.urdf_writer import Linkage, collides
from embodied_rl.scene import Scene

#: Model fields that robots may have of their own, by what of a robot's properties is made of them.
FIELDS = {
    "mass": ("body_mass", "body_ipos", "body_inertia"),
    "drive": ("actuator_gainprm", "actuator_biasprm", "dof_damping", "dof_armature"),
    "friction": ("geom_friction",),
}
#: Heights of a field are whole numbers of 16 bits, from the lowest point to the highest.
_HIGHEST = 32767
#: Bits of a shape's collision filter; two shapes that share one do not collide.
_BITS = 31


def inspect_scene(scene: Scene, drawn: Mapping[str, Iterable[str]]) -> list[str]:
    """Tell what the simulator leaves out of a scene, a line each, without starting it.

    Args:
        scene: what it is to simulate.
        drawn: model fields that events draw, by mode.

    Raises:
        UserError: it cannot simulate that.
    """
    lines = ["of the page's physics it reads dt, decimation, device and num_threads: contacts and solver are PhysX's"]
    lines += lacking(scene.model)
    drive_modes(scene.model)
    collision_filters(scene.model, linkage_of(scene))
    ground_of(scene.model)
    known = [field for fields in FIELDS.values() for field in fields]
    for mode, fields in drawn.items():
        for field in fields:
            if field not in known:
                raise UserError(
                    f"physics.engine: isaacgym has no values of {field} per simulation, which an event draws; it has "
                    f"{', '.join(known)}: take the event off, or native"
                )
            if field in FIELDS["mass"] and mode != "startup":
                raise UserError(late(field))
    return lines


def late(field: str) -> str:
    """Say that masses do not change once robots are made."""
    return (
        f"physics.engine: isaacgym takes {field} before its first step alone: let the event that draws it have `when: startup`, "
        "or take native"
    )


def lacking(model: mujoco.MjModel) -> list[str]:
    """Tell what of a model the simulator leaves out, a line each.

    Raises:
        UserError: the model has what would be simulated wrongly without.
    """
    joints, robot, ground = slice(1, model.njnt), _of_robot(model), _stands(model)
    disabled = mujoco.mjtDisableBit
    masks = model.geom_contype[robot], model.geom_conaffinity[robot]
    world = {int(one) >> 16 == 0 or int(one) & 0xFFFF == 0 for one in model.exclude_signature}
    uneven = [model.actuator_forcerange[model.actuator_forcelimited > 0], model.jnt_actfrcrange[model.jnt_actfrclimited > 0]]
    refused = {
        "springs at joints (jnt_stiffness)": model.jnt_stiffness[joints].any(),
        "gravity compensation": model.body_gravcomp.any(),
        "a fluid around it": model.opt.density > 0.0 or model.opt.viscosity > 0.0,
        "contacts of named pairs alone": model.npair > 0,
        "mocap bodies": model.nmocap > 0,
        "delays of actuators and sensors": model.nhistory > 0,
        "gravity or limits switched off": model.opt.disableflags & int(disabled.mjDSBL_GRAVITY | disabled.mjDSBL_LIMIT),
        "damping that grows with speed (dof_dampingpoly)": model.dof_dampingpoly.any(),
        "damping or armature of the base's free joint": model.dof_damping[:6].any() or model.dof_armature[:6].any(),
        "drives that are stronger one way than the other": any((one[:, 0] != -one[:, 1]).any() for one in uneven),
        "contacts without friction (condim 1)": (model.geom_condim[robot] == 1).any(),
        "other ground than one plane or height field": len(ground) != 1,
        "parts that collide, and not with the ground": any(world)
        or any(
            not ((masks[0] & model.geom_conaffinity[one]) | (model.geom_contype[one] & masks[1])).all() for one in ground.tolist()
        ),
    }
    if given := [name for name, there in refused.items() if there]:
        raise UserError(f"physics.engine: isaacgym cannot run this model: it has {', '.join(given)}; take native")
    found = []
    if count := np.count_nonzero(model.dof_frictionloss):
        found.append(f"the dry friction of {count} joints is left out: its own is a share of the joint's force")
    if (model.geom_condim[robot] > 3).any():
        found.append("contacts resist no spinning and rolling (condim 4 and 6)")
    return found


def _of_robot(model: mujoco.MjModel) -> np.ndarray:
    """Say of each geom whether it collides and moves, (ngeom,)."""
    return (model.body_weldid[model.geom_bodyid] > 0) & collides(model)


def _stands(model: mujoco.MjModel) -> np.ndarray:
    """List the geoms that collide and never move."""
    return np.flatnonzero(collides(model) & (model.body_weldid[model.geom_bodyid] == 0))


def ground_friction(model: mujoco.MjModel, geoms: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Find the sliding friction of contacts with the ground, of geoms (S,) whose own is (..., S)."""
    ground = int(_stands(model)[0])
    theirs, first = model.geom_friction[ground, 0], model.geom_priority[geoms] - model.geom_priority[ground]
    return np.where(first > 0, own, np.where(first < 0, theirs, np.maximum(own, theirs)))


def linkage_of(scene: Scene) -> Linkage:
    """Make the links of a scene's robot, with the parts that its sensors tell apart.

    Raises:
        UserError: no URDF can say what it is.
    """
    try:
        return Linkage(scene.model, sensed_sets(scene))
    except UserError as error:
        raise UserError(f"physics.engine: isaacgym: {error}; take native") from None


def drive_modes(model: mujoco.MjModel) -> list[str]:
    """Say of each joint of the robot whether its drive has a position for its target, or a velocity.

    Raises:
        UserError: a joint is driven otherwise.
    """
    modes = ["position"] * (model.njnt - 1)
    driven: dict[int, str] = {}
    for actuator in range(model.nu):
        joint, name = int(model.actuator_trnid[actuator, 0]), model.actuator(actuator).name
        gain, bias = model.actuator_gainprm[actuator], model.actuator_biasprm[actuator]
        simple = (
            model.actuator_trntype[actuator] == mujoco.mjtTrn.mjTRN_JOINT
            and model.actuator_dyntype[actuator] == mujoco.mjtDyn.mjDYN_NONE
            and model.actuator_gaintype[actuator] == mujoco.mjtGain.mjGAIN_FIXED
            and model.actuator_biastype[actuator] == mujoco.mjtBias.mjBIAS_AFFINE
            and model.actuator_gear[actuator, 0] == 1.0
            and not model.actuator_ctrllimited[actuator]
            and bias[0] == 0.0
        )
        if simple and bias[1] == -gain[0]:
            mode = "position"
        elif simple and bias[1] == 0.0 and bias[2] == -gain[0]:
            mode = "velocity"
        else:
            raise UserError(
                f"physics.engine: isaacgym: actuator {name!r} drives neither a position nor a velocity, with gear 1 and no "
                "activation, as robot.yaml's do; take native"
            )
        if joint in driven:
            raise UserError(
                f"physics.engine: isaacgym: {driven[joint]!r} and {name!r} drive one joint; it takes one drive for each"
            )
        driven[joint], modes[joint - 1] = name, mode
    return modes


def ground_of(model: mujoco.MjModel) -> tuple[dict[str, Any], np.ndarray | None]:
    """Describe the ground, and give a field's heights, int16, a row along y."""
    ground, robot = int(_stands(model)[0]), np.flatnonzero(_of_robot(model))
    friction = ground_friction(model, robot, model.geom_friction[robot, 0])
    # A contact has the mean of two frictions: of the ground so little that a shape can have less than its model's, and not none.
    settings: dict[str, Any] = {"friction": 0.25 * float(friction.min()) if len(friction) else 0.0}
    place = model.geom_pos[ground]
    plane = model.geom_type[ground] == mujoco.mjtGeom.mjGEOM_PLANE
    if abs(model.geom_quat[ground, 0]) < 1.0 or model.geom_bodyid[ground] or (plane and place[2]):
        raise UserError("physics.engine: isaacgym: its ground is level, a plane at z = 0, and the model's is elsewhere")
    if plane:
        return settings, None
    number = int(model.geom_dataid[ground])
    rows, columns = int(model.hfield_nrow[number]), int(model.hfield_ncol[number])
    start, (x, y, rise, _) = int(model.hfield_adr[number]), model.hfield_size[number].tolist()
    cells = 2.0 * x / (columns - 1), 2.0 * y / (rows - 1)
    if abs(cells[0] - cells[1]) > 1e-9:
        raise UserError(f"physics.engine: isaacgym: the cells of its height fields are square, and these are {cells} m")
    shares = model.hfield_data[start : start + rows * columns]
    settings |= {"rows": rows, "columns": columns, "cell": cells[0], "rise": rise / _HIGHEST}
    settings["place"] = [float(place[0] - x), float(place[1] - y), float(place[2])]
    return settings, np.round(shares * _HIGHEST).astype(np.int16)


def contact_geoms(scene: Scene) -> dict[int, int]:
    """Find the geom that each column of sensor data asks for, of those that the scene's sensors are made of.

    Raises:
        UserError: one asks for something else than the contacts of a geom that moves and collides.
    """
    model, colliding = scene.model, _of_robot(scene.model)
    contacts = (model.sensor_type == mujoco.mjtSensor.mjSENS_CONTACT) & (model.sensor_objtype == mujoco.mjtObj.mjOBJ_GEOM)
    geom_of = dict(zip(model.sensor_adr[contacts].tolist(), model.sensor_objid[contacts].tolist(), strict=True))
    columns = [column for part, _ in scene.sensors.values() for column in range(part.start, part.stop)]
    if missing := [column for column in columns if column not in geom_of or not colliding[geom_of[column]]]:
        raise UserError(f"physics.engine: isaacgym: sensor {missing[0]} asks for no contact of a geom that moves and collides")
    return {column: geom_of[column] for column in columns}


def sensed_sets(scene: Scene) -> list[frozenset[int]]:
    """List the sets of geoms whose contacts the scene's sensors tell.

    Raises:
        UserError: as of `contact_geoms`.
    """
    geom_of, rows = contact_geoms(scene), []
    for columns, (count, width) in scene.sensors.values():
        geoms = [geom_of[column] for column in range(columns.start, columns.stop)]
        rows += [frozenset(geoms[row * width : (row + 1) * width]) for row in range(count)]
    return list(dict.fromkeys(rows))


def order_of(what: str, ours: list[str], theirs: list[str]) -> list[int]:
    """Find where ours are, in the simulator's order.

    Raises:
        UserError: it has others.
    """
    if sorted(ours) != sorted(theirs):
        odd = sorted({*ours} ^ {*theirs})
        raise UserError(f"physics.engine: isaacgym: its importer and the model have different {what}: {', '.join(odd)}")
    return [ours.index(name) for name in theirs]


def collision_filters(model: mujoco.MjModel, linkage: Linkage) -> dict[int, int]:
    """Give each geom the bits that keep it from colliding with what the model lets it pass through.

    Links that hang on each other never collide over there.

    Raises:
        UserError: that takes more bits than there are.
    """
    place = {geom: number for number, link in enumerate(linkage.links) for geom in link.geoms}
    excluded = {tuple(sorted((int(one) >> 16, int(one) & 0xFFFF))) for one in model.exclude_signature}
    bodies = [int(model.body_weldid[body]) for body in model.geom_bodyid]

    def meets(one: int, other: int) -> bool:
        masks = model.geom_contype[one] & model.geom_conaffinity[other] | model.geom_contype[other] & model.geom_conaffinity[one]
        related = bodies[one] == bodies[other]
        for low, high in itertools.permutations((bodies[one], bodies[other])):
            related = related or int(model.body_weldid[model.body_parentid[low]]) == high
        pair = tuple(sorted((int(model.geom_bodyid[one]), int(model.geom_bodyid[other]))))
        return bool(masks) and not related and pair not in excluded

    def apart(one: int, other: int) -> bool:
        """Whether a bit is needed."""
        first, second = place[one], place[other]
        adjacent = first == second or linkage.links[first].parent == second or linkage.links[second].parent == first
        return not adjacent and not meets(one, other)

    geoms = sorted(place)
    passing = {geom: {other for other in geoms if other != geom and not meets(geom, other)} for geom in geoms}
    left = {(one, other) for one, other in itertools.combinations(geoms, 2) if apart(one, other)}
    filters, bit = dict.fromkeys(geoms, 0), 0
    while left:
        if bit == _BITS:
            raise UserError(
                "physics.engine: isaacgym: too many of the robot's parts pass through each other, and not through others"
            )
        clique = list(min(left))
        for geom in geoms:
            if geom not in clique and passing[geom].issuperset(clique):
                clique.append(geom)
        for geom in clique:
            filters[geom] |= 1 << bit
        left -= {(one, other) for one, other in itertools.combinations(sorted(clique), 2)}
        bit += 1
    return filters
