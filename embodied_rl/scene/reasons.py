"""Why a scene has something otherwise than MuJoCo makes of the robot's file: what is known to be so, and whether it is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Any

import mujoco
import numpy as np

from embodied_rl.config.page import PhysicsSettings, SceneSettings
from embodied_rl.errors import UserError
from embodied_rl.scene.build import ENABLED, NOT_KEPT, Scene
from embodied_rl.scene.compare import Difference, same
from embodied_rl.scene.contacts import GROUNDS, WRAPPED, collides
from embodied_rl.scene.terrain import HeightField
from embodied_rl.urdf import as_mujoco_reads, first_link, is_urdf

_CHOICES: dict[str, tuple[Any, str]] = {
    "integrator": (mujoco.mjtIntegrator, "mjINT_"),
    "solver": (mujoco.mjtSolver, "mjSOL_"),
    "cone": (mujoco.mjtCone, "mjCONE_"),
}
_FLAGS: dict[str, tuple[Any, str]] = {
    "disableflags": (mujoco.mjtDisableBit, "mjDSBL_"),
    "enableflags": (mujoco.mjtEnableBit, "mjENBL_"),
}
#: The group of what nobody knows a reason for.
UNKNOWN = "NOT EXPLAINED"


@dataclass
class Case:
    """A scene and the file that it came of."""

    scene: Scene
    physics: PhysicsSettings
    world: SceneSettings
    stock: mujoco.MjModel = field(init=False)
    """The file, as MuJoCo reads it."""
    file: mujoco.MjModel = field(init=False)
    """The same with every link that the file has: what ours is compared with."""

    def __post_init__(self) -> None:
        robot = self.scene.robot
        self.urdf, self.sprung = is_urdf(robot.model_path), set()
        path = str(robot.model_path)
        if self.urdf:
            try:
                self.stock = mujoco.MjModel.from_xml_path(path)
            except ValueError:  # meshes that it does not find: ours are found
                self.stock = as_mujoco_reads(robot.model_path, robot.base, whole=False).compile()
            self.file = as_mujoco_reads(robot.model_path, robot.base, whole=True).compile()
        else:
            try:
                self.stock = self.file = mujoco.MjModel.from_xml_path(path)
            except ValueError as error:  # of what is left out here, or the scene would not be
                raise UserError(f"{path}: MuJoCo alone cannot read it: {' '.join(str(error).split())}") from None
            spec = mujoco.MjSpec.from_file(path)
            self.sprung = {joint.name for joint in spec.joints if np.any(joint.springdamper)}
            aligned = [joint for joint in spec.joints if joint.type == mujoco.mjtJoint.mjJNT_FREE]
            if spec.compiler.fusestatic or spec.compiler.discardvisual or aligned:
                spec.compiler.fusestatic = spec.compiler.discardvisual = False
                for joint in aligned:  # to the inertia, which is the same motion
                    joint.align = mujoco.mjtAlignFree.mjALIGNFREE_FALSE
                self.file = spec.compile()
        self.feet = robot.foot_geoms
        self.welded = self._poses() if robot.welded else set()

    def same_inertia(self, massless: bool = True) -> bool:
        """Say whether the joints, which have one order, feel the same inertia in both readings of the file.

        Args:
            massless: with that of links that have no mass, which MuJoCo does not fuse.
        """
        felt, whole = [], copy(self.file)
        if not massless:
            whole.body_inertia[whole.body_mass == 0.0] = 0.0
        for model in (self.stock, whole):
            data, matrix = mujoco.MjData(model), np.zeros((model.nv, model.nv))
            mujoco.mj_forward(model, data)
            mujoco.mj_fullM(model, data, matrix)
            turning = np.flatnonzero(model.jnt_type[model.dof_jntid] != mujoco.mjtJoint.mjJNT_FREE)
            felt.append(matrix[np.ix_(turning, turning)])
        return same(*felt)

    def _poses(self) -> set[str]:
        """Find the bodies and joints that stand, in the file with its welded joints at their positions, where ours do."""
        model, robot = self.scene.model, self.scene.robot
        data = mujoco.MjData(self.file), mujoco.MjData(model)
        for name, position in robot.welded.items():
            data[0].qpos[self.file.joint(name).qposadr[0]] = position
        for one, other in zip((self.file, model), data, strict=True):
            mujoco.mj_kinematics(one, other)
        found = set()
        for index in range(1, model.nbody):
            name = model.body(index).name
            there, here = data[0].body(name), data[1].body(name)
            if np.allclose(there.xpos, here.xpos, atol=1e-9) and np.allclose(there.xmat, here.xmat, atol=1e-9):
                found.add(f"body {name}")
        for name in robot.joint_names:
            there, here = data[0].joint(name), data[1].joint(name)
            if np.allclose(there.xanchor, here.xanchor, atol=1e-9) and np.allclose(there.xaxis, here.xaxis, atol=1e-9):
                found.add(f"joint {name}")
        return found


def _gone(_: Case, one: Difference) -> bool:
    return one.ours is None


def _added(_: Case, one: Difference) -> bool:
    return one.theirs is None


def _visual(case: Case, one: Difference) -> bool:
    geom = one.ids[0]
    paired = geom in (*case.file.pair_geom1, *case.file.pair_geom2)
    return one.ours is None and not paired and not collides(case.file.geom(geom))


def _not_a_foot(case: Case, one: Difference) -> bool:
    return one.ours is None and case.world.collisions == "feet"


def _of_page(values: str) -> Callable[[Case, Difference], bool]:
    """Make the test whether a joint's number is the page's."""

    def holds(case: Case, one: Difference) -> bool:
        robot = case.scene.robot
        given = dict(zip(robot.joint_names, getattr(robot, values), strict=True)).get(one.element)
        if given is None:
            return False
        return not np.any(one.ours) if one.field.endswith("poly") else bool(np.all(np.isclose(one.ours, given)))

    return holds


def _rotor(of: str) -> Callable[[Case, Difference], bool]:
    """Make the test whether a joint's or tendon's number has grown by what the file's actuators lend it, through gear^2."""

    def holds(case: Case, one: Difference) -> bool:
        file, lent = case.file, np.zeros_like(one.theirs)
        driven = _OF_TENDONS if one.field.startswith("tendon") else _OF_JOINTS
        for index in range(len(file.actuator_trntype)):
            if file.actuator_trntype[index] in driven and file.actuator_trnid[index, 0] == one.ids[0]:
                lent = lent + file.actuator_gear[index, 0] ** 2 * getattr(file, f"actuator_{of}")[index]
        return bool(np.any(lent)) and np.allclose(one.ours, one.theirs + lent)

    return holds


def _sprung(case: Case, one: Difference) -> bool:
    return one.element in case.sprung


def _run_over(case: Case, one: Difference) -> bool:
    model = case.file
    return not one.ours and any(
        int(kind) in WRAPPED and geom == one.ids[0] for kind, geom in zip(model.wrap_type, model.wrap_objid, strict=True)
    )


def _in_fluid(case: Case, one: Difference) -> bool:
    return not one.ours and bool(np.any(case.file.geom_fluid[one.ids[0]]))


def _no_dry_friction(case: Case, one: Difference) -> bool:
    return not case.world.dry_friction and one.element in case.scene.robot.joint_names and not np.any(one.ours)


def _option(case: Case, one: Difference) -> bool:
    name = one.field.removeprefix("opt.")
    given = getattr(case.physics, {"timestep": "dt"}.get(name, name))
    return written(one.ours, one.field) == given if name in _CHOICES else float(one.ours) == given


def _flags(_: Case, one: Difference) -> bool:
    kept = ~sum(int(bit) for bit in ENABLED)
    return int(one.ours) == (int(one.theirs) | int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)) & kept


def _not_kept(_: Case, one: Difference) -> bool:
    return int(one.ours) == int(one.theirs) & ~sum(int(bit) for bit in NOT_KEPT)


def _in_urdf(case: Case, one: Difference) -> bool:
    return case.urdf and _contact(case, one)


def _contact(case: Case, one: Difference) -> bool:
    return one.ids[1] is not None and on_ground(case.scene.model, one.ids[1])


def _frictional(_: Case, one: Difference) -> bool:
    return bool(one.theirs < one.ours == 3)


def _as_paired(case: Case, one: Difference) -> bool:
    """Whether a geom's number is that of the file's pair of it and the file's own ground."""
    file, number = case.file, _OF_PAIRS[one.field]
    for index in range(file.npair):
        ends = int(file.pair_geom1[index]), int(file.pair_geom2[index])
        if one.ids[0] in ends and any(int(file.geom_type[geom]) in GROUNDS for geom in ends):
            said = getattr(file, number)[index]
            return np.array_equal(one.ours, said[[0, 2, 3]] if one.field == "geom_friction" else said)
    return False


def _of_the_met(case: Case, one: Difference) -> bool:
    """Whether our ground's masks are bits that something of the robot's has, or had before it was left out."""
    file, model = case.file, case.scene.model
    other = "geom_conaffinity" if one.field.startswith("geom_contype") else "geom_contype"
    bits = np.bitwise_or.reduce(np.concatenate((getattr(file, other), getattr(model, other))))
    return not int(one.ours) & ~int(bits)


def _below_all(case: Case, one: Difference) -> bool:
    """Whether what is not fixed to the world outranks our ground, where it collides with anything."""
    model = case.scene.model
    others = [geom for geom in range(model.ngeom) if model.body_weldid[model.geom_bodyid[geom]] and collides(model.geom(geom))]
    return all(model.geom_priority[geom] > one.ours for geom in others)


def _around(case: Case, one: Difference) -> bool:
    model = case.scene.model
    still = not int(case.file.body_weldid[case.file.geom_bodyid[one.ids[0]]])
    return still and int(one.ours) == int(model.geom_priority[model.geom("ground").id])


def _of_left_out(case: Case, _: Difference) -> bool:
    file, kept = case.file, case.scene.model.nplugin
    return not kept and not any(np.any(one >= 0) for one in (file.body_plugin, file.geom_plugin))


def _of_the_world(case: Case, one: Difference) -> bool:
    return one.ours is None and one.ids[0] is not None and not int(case.file.exclude_signature[one.ids[0]]) >> 16


def _massless(case: Case, one: Difference) -> bool:
    return case.urdf and case.scene.model.body_mass[one.ids[1]] == 0.0


def _base(case: Case, one: Difference) -> bool:
    robot = case.scene.robot
    body = case.scene.model.jnt_bodyid[one.ids[1]] if one.theirs is None and case.urdf else 0
    free = case.scene.model.body(body).name == robot.base
    return free and first_link(robot.model_path, robot.base) == robot.base  # what hangs on another link is not free


def _welded(case: Case, one: Difference) -> bool:
    return one.element in case.scene.robot.welded if one.ours is None else False


def _held(kind: str) -> Callable[[Case, Difference], bool]:
    return lambda case, one: f"{kind} {one.element}" in case.welded


def _theirs(case: Case, one: Difference) -> bool:
    return one.ours is None and one.ids[0] is not None and int(case.file.geom_type[one.ids[0]]) in GROUNDS


def _stands_in(case: Case, one: Difference) -> bool:
    """Whether a number is our ground's, which has the name of the file's own; what leaks into ours is compared apart."""
    if one.element != "ground" or one.field.endswith("of our own") or one.ids[0] is None:
        return False
    return int(case.file.geom_type[one.ids[0]]) in GROUNDS


def _unpaired(case: Case, one: Difference) -> bool:
    if one.ours is not None or one.ids[0] is None:
        return False
    names = [case.file.geom(int(geom[one.ids[0]])).name for geom in (case.file.pair_geom1, case.file.pair_geom2)]
    return any(mujoco.mj_name2id(case.scene.model, mujoco.mjtObj.mjOBJ_GEOM, name) < 0 for name in names)


def _ground(case: Case, one: Difference) -> bool:
    return one.theirs is None and one.element == "ground" and case.scene.model.geom_bodyid[one.ids[1]] == 0


def _ours(case: Case, one: Difference) -> bool:
    return one.theirs is None and one.element in case.scene.robot.joint_names


def _asked(case: Case, one: Difference) -> bool:
    return one.theirs is None and case.scene.model.sensor_type[one.ids[1]] == mujoco.mjtSensor.mjSENS_CONTACT


def _link(case: Case, one: Difference) -> bool:
    return case.urdf and one.theirs is None


#: What a pair says, by the field of geoms that has the same.
_OF_PAIRS = {"geom_condim": "pair_dim"}
_OF_PAIRS |= {f"geom_{one}": f"pair_{one}" for one in ("friction", "solref", "solimp", "margin", "gap")}
_MASKS = ("pair", "exclude", "geom_con[ta]*", "geom_con[ta]* of our own")
_OF_JOINTS = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))
_OF_TENDONS = (int(mujoco.mjtTrn.mjTRN_TENDON),)
_LENT = "the file's actuators, which are left out, lent it the joint or tendon"
_PAGE = "robot.yaml says so"
#: Of which fields, in which group, why, and whether it is so. What none of them knows is not explained.
_REASONS: tuple[tuple[str, str, str, Callable[[Case, Difference], bool]], ...] = (
    ("jnt", "Joints", "a URDF has no words for a base that is free to move", _base),
    ("jnt", "Joints", "robot.yaml's weld holds them at their default", _welded),
    ("body_pos", "Bodies", "where robot.yaml's weld holds them", _held("body")),
    ("body_quat", "Bodies", "where robot.yaml's weld holds them", _held("body")),
    ("jnt_pos", "Joints", "the same axis, of a body that robot.yaml's weld moved", _held("joint")),
    ("jnt_axis", "Joints", "the same axis, of a body that robot.yaml's weld moved", _held("joint")),
    ("body_mass", "Bodies", "a link of a URDF without <inertial> has no mass", _massless),
    ("body_inertia", "Bodies", "a link of a URDF without <inertial> has no mass", _massless),
    ("body_ipos", "Bodies", "a link of a URDF without <inertial> has no mass", _massless),
    ("body_iquat", "Bodies", "a link of a URDF without <inertial> has no mass", _massless),
    ("dof_armature", "Motors", f"{_PAGE} (armature)", _of_page("armature")),
    ("dof_damping*", "Motors", f"{_PAGE} (joint_damping); the motor's own is its gain", _of_page("joint_damping")),
    ("dof_armature", "Motors", _LENT, _rotor("armature")),
    ("dof_damping", "Motors", _LENT, _rotor("damping")),
    ("dof_dampingpoly", "Motors", _LENT, _rotor("dampingpoly")),
    ("tendon_armature", "Motors", _LENT, _rotor("armature")),
    ("tendon_damping", "Motors", _LENT, _rotor("damping")),
    ("tendon_dampingpoly", "Motors", _LENT, _rotor("dampingpoly")),
    ("dof_damping", "Joints", "the file's springdamper, at the inertia that the joint feels here", _sprung),
    ("jnt_stiffness", "Joints", "the file's springdamper, at the inertia that the joint feels here", _sprung),
    ("dof_frictionloss", "Motors", "scene.dry_friction: false", _no_dry_friction),
    ("dof_frictionloss", "Motors", f"{_PAGE} (friction_loss)", _of_page("friction_loss")),
    ("jnt_actfrclimited", "Motors", "robot.yaml's effort_limit is the only one", lambda _, one: not one.ours),
    ("actuator", "Motors", "robot.yaml's motors take their place", _gone),
    ("actuator", "Motors", "servos with robot.yaml's stiffness, damping and effort_limit", _ours),
    ("geom", "Contacts", "our ground, an endless plane at z = 0, or the page's patches", _ground),
    ("hfield*", "Contacts", "the page's patches (docs/ground.md)", lambda case, _: isinstance(case.scene.terrain, HeightField)),
    ("geom", "Contacts", "the file's own ground; ours stands in for it", _theirs),
    ("geom_*", "Contacts", "our ground's; it stands in for the file's own, of its name", _stands_in),
    ("pair", "Contacts", "of a geom that is left out; masks let what the page says touch the ground", _unpaired),
    ("geom", "Contacts", "visual: they touch nothing, and their bodies keep their mass", _visual),
    ("geom", "Contacts", "scene.collisions: feet; their bodies keep their mass", _not_a_foot),
    ("geom_con[ta]*", "Contacts", "a tendon runs over it; scene.collisions: feet", _run_over),
    ("geom_con[ta]*", "Contacts", "a fluid flows around it; scene.collisions: feet", _in_fluid),
    ("geom_con[ta]*", "Contacts", "geoms of a URDF touch the ground and are deaf to each other", _in_urdf),
    ("geom_con[ta]*", "Contacts", "what the page says collides touches the ground", _contact),
    *((one, "Contacts", "scene.self_collision", lambda case, _: case.world.self_collision != "file") for one in _MASKS),
    *((one, "Contacts", "as the file's pair of it and its own ground says", _as_paired) for one in _OF_PAIRS),
    ("geom_condim", "Contacts", "a contact of fewer than three dimensions has no friction", _frictional),
    ("geom_con[ta]* of our own", "Contacts", "the bits of what the page says collides", _of_the_met),
    ("geom_priority", "Contacts", "of what stands in the world: below the robot's, whose friction is the contact's", _around),
    ("plugin", "Measured and shown", "of actuators or sensors that are left out", _of_left_out),
    ("plugin_*", "Measured and shown", "of actuators or sensors that are left out", _of_left_out),
    ("geom_priority of our own", "Contacts", "below the robot's geoms, whose friction is the contact's", _below_all),
    ("exclude", "Contacts", "of the world, where our ground is", _of_the_world),
    ("opt.disableflags", "Options", "a state that blew up must be seen; contacts, constraints, motors and sensors act", _flags),
    ("opt.enableflags", "Options", "of each contact its geoms' own numbers hold, and states are whole", _not_kept),
    ("opt.disableactuator", "Options", "the motors act", lambda _, one: not one.ours),
    *(
        (f"opt.{name}", "Options", f"physics.{key}", _option)
        for name, key in {"timestep": "dt"}.items()
        | {(one, one) for one in ("integrator", "solver", "cone", "iterations", "ls_iterations", "impratio", "tolerance")}
    ),
    ("sensor", "Measured and shown", "terms ask for their own", _gone),
    ("sensor", "Measured and shown", "the page's terms ask for them", _asked),
    ("key", "Measured and shown", "the default pose is robot.yaml's", _gone),
    ("light", "Measured and shown", "only what is shown has light", _gone),
    ("site", "Measured and shown", "each link of a URDF gets one", _link),
)
_TREE = ("jnt", "body_pos", "body_quat", "body_mass", "body_inertia", "body_ipos", "body_iquat")
#: What MuJoCo derives from other fields: from which, and what it is for.
FOLLOWS = {
    **dict.fromkeys(
        ("body_invweight0", "dof_invweight0", "tendon_invweight0", "dof_M0"),
        ((*_TREE, "dof_armature", "tendon_armature"), "from inertias, armatures and what moves freely"),
    ),
    "stat.meaninertia": (
        (*_TREE, "dof_armature", "tendon_armature"),
        "from the inertias; the solver's tolerance is a share of it",
    ),
    "body_subtreemass": (("body_mass",), "from the masses"),
    "tendon_length0": (("jnt",), "from the pose at which joints are welded"),
    "dof_length": (("geom", *_TREE), "from the sizes of the geoms; only sleeping reads it"),
    "tree_sleep_policy": (("actuator",), "what has motors does not sleep"),
    "mesh_*": (("geom",), "of meshes that collide MuJoCo finds the hull"),
}


def reason(case: Case, one: Difference) -> tuple[str, str]:
    """Give the group of a difference and why it is; no words where nobody knows."""
    for pattern, group, why, holds in _REASONS:
        if fnmatchcase(one.field, pattern) and holds(case, one):
            return group, why
    return UNKNOWN, ""


def on_ground(model: mujoco.MjModel, geom: int) -> bool:
    """Say whether the masks of a geom meet our ground's, or a pair of the two is listed."""
    ground = model.geom("ground").id
    return frozenset((geom, ground)) in _listed(model) or _masks_meet(model, geom, ground)


def _masks_meet(model: mujoco.MjModel, one: int, other: int) -> bool:
    there = model.geom_contype[one] & model.geom_conaffinity[other]
    return bool(there or model.geom_contype[other] & model.geom_conaffinity[one])


def self_contacts(model: mujoco.MjModel, welded: Collection[str] = ()) -> int:
    """Count the pairs of geoms that may touch each other, those of the world aside.

    Args:
        model: the model.
        welded: joints that are taken for fixed.
    """
    bodies = [int(body) for body in model.geom_bodyid]
    geoms = [index for index in range(model.ngeom) if bodies[index] and int(model.geom_type[index]) not in GROUNDS]
    links = [0] * model.nbody  # the first of the bodies that are one
    for body in range(1, model.nbody):
        first = int(model.body_jntadr[body])
        moves = any(model.joint(first + place).name not in welded for place in range(int(model.body_jntnum[body])))
        links[body] = body if moves or model.body_mocapid[body] >= 0 else links[int(model.body_parentid[body])]
    above = [links[int(model.body_parentid[links[body]])] for body in range(model.nbody)]
    parents = not model.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_FILTERPARENT)
    excluded, listed = {int(one) for one in model.exclude_signature}, _listed(model)
    count = 0
    for one, other in combinations(geoms, 2):
        if frozenset((one, other)) in listed:
            count += 1
            continue
        pair = sorted((bodies[one], bodies[other]))
        first, second = (links[body] for body in pair)
        related = first == second or (parents and first and second and (above[first] == second or above[second] == first))
        count += bool(not related and (pair[0] << 16) + pair[1] not in excluded and _masks_meet(model, one, other))
    return count


def _listed(model: mujoco.MjModel) -> set[frozenset[int]]:
    """Give the pairs of geoms that the file lists, whatever their masks."""
    return {frozenset(pair) for pair in zip(model.pair_geom1.tolist(), model.pair_geom2.tolist(), strict=True)}


def written(value: Any, what: str = "") -> str:
    """Write a field's number in words."""
    name = what.removeprefix("opt.")
    if name in _CHOICES:
        kinds, prefix = _CHOICES[name]
        return kinds(int(value)).name.removeprefix(prefix).lower()
    if name in _FLAGS:
        kinds, prefix = _FLAGS[name]
        bits = [bit for bit in kinds.__members__.values() if int(bit) and int(value) & int(bit) == int(bit)]
        return " ".join(bit.name.removeprefix(prefix).lower() for bit in bits) or "none"
    if isinstance(value, np.ndarray) and value.size <= 7 and value.dtype.kind in "fiub":
        return " ".join(f"{float(one) + 0.0:.4g}" for one in value.ravel())
    return f"{value.size} numbers" if isinstance(value, np.ndarray) else str(value)
