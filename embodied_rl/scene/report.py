"""What training simulates of a robot otherwise than MuJoCo makes of its file, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from xml.etree import ElementTree

import mujoco
import numpy as np

from embodied_rl.config.page import PhysicsSettings, SceneSettings
from embodied_rl.robot import RobotSpec
from embodied_rl.scene.build import Scene
from embodied_rl.scene.compare import KINDS, Comparison, Difference, compare, same
from embodied_rl.scene.terrain import FlatTerrain
from embodied_rl.strict_yaml import display
from embodied_rl.urdf import as_mujoco_reads

#: Kinds whose elements in the file and in the scene are never the same one: the file's go, the scene's are made anew.
_ANEW = ("actuator", "sensor", "key")
#: What people call a field; others go by mjModel's name.
_WORDS = {
    "jnt": "joint",
    "cam": "camera",
    "eq": "equality constraint",
    "key": "keyframe",
    "exclude": "excluded pair",
    "dof_damping": "damping of joints",
    "dof_dampingpoly": "damping of joints that grows with the speed",
    "dof_armature": "armature of joints",
    "dof_frictionloss": "dry friction of joints",
    "dof_M0": "inertia that a joint feels",
    "jnt_range": "range of joints",
    "jnt_actfrclimited": "limit of the torque that a joint takes",
    "body_invweight0": "inverse inertia of bodies, which softens contacts",
    "dof_invweight0": "inverse inertia of joints, which softens limits and dry friction",
    "body_mass": "mass of bodies",
    "body_inertia": "inertia of bodies",
    "body_subtreemass": "mass of a body with what hangs on it",
    "geom_contype": "contype of geoms",
    "geom_conaffinity": "conaffinity of geoms",
    "geom_priority": "priority of geoms in contacts",
    "geom_condim": "contact dimensions of geoms",
    "geom_friction": "friction of geoms",
}
_CHOICES: dict[str, tuple[Any, str]] = {
    "integrator": (mujoco.mjtIntegrator, "mjINT_"),
    "solver": (mujoco.mjtSolver, "mjSOL_"),
    "cone": (mujoco.mjtCone, "mjCONE_"),
}
_FLAGS: dict[str, tuple[Any, str]] = {
    "disableflags": (mujoco.mjtDisableBit, "mjDSBL_"),
    "enableflags": (mujoco.mjtEnableBit, "mjENBL_"),
}
_GROUPS = ("Bodies", "Joints", "Motors", "Contacts", "Options", "Measured and shown", "Follows from the above", "NOT EXPLAINED")


@dataclass(frozen=True)
class Told:
    """Differences of one field with one reason, or something that no field says."""

    group: str
    what: str
    why: str
    differences: tuple[Difference, ...] = ()

    @property
    def explained(self) -> bool:
        """Whether there is a reason."""
        return bool(self.why)

    def __str__(self) -> str:
        ends = f": {self.why}" if self.why else ""
        if not self.differences:
            return self.what + ends
        names = [one.element for one in self.differences if one.element]
        what = _WORDS.get(self.what, self.what.replace("opt.", "option "))
        first = self.differences[0]
        if self.what in KINDS:
            many = f"{len(names)} {what}s" if len(names) > 1 else what
            return f"{many} {'added' if first.theirs is None else 'left out'}, {_named(names)}{ends}"
        values = {(_written(one.theirs, self.what), _written(one.ours, self.what)) for one in self.differences}
        there, here = _written(first.theirs, self.what), _written(first.ours, self.what)
        of = _named(names) if len(values) == 1 else f"{names[0]}; other numbers of {_named(names[1:])}"
        return f"{what}: {there} in the file, {here} here{f', of {of}' if of else ''}{ends}"


@dataclass(frozen=True)
class Report:
    """A comparison and its reasons."""

    robot: RobotSpec
    world: SceneSettings
    compared: tuple[str, ...]
    told: tuple[Told, ...]

    @property
    def unexplained(self) -> tuple[Told, ...]:
        """What no reason is known for."""
        return tuple(one for one in self.told if not one.explained)

    @property
    def count(self) -> int:
        """How many differences there are."""
        return sum(max(1, len(one.differences)) for one in self.told)

    def __str__(self) -> str:
        settings = ", ".join(f"{name}: {str(value).lower()}" for name, value in self.world.model_dump().items())
        unexplained = sum(max(1, len(one.differences)) for one in self.unexplained)
        ends = f"{unexplained} not explained" if unexplained else "all explained"
        lines = [
            f"{self.robot.name}: what is simulated ({settings}), and what MuJoCo makes of {display(self.robot.model_path)}",
            f"{len(self.compared)} fields of mjModel compared, {self.count} differences, {ends}",
        ]
        for group in _GROUPS:
            found = [one for one in self.told if one.group == group]
            lines += ["", group, *(f"  {one}" for one in found)] if found else []
        return "\n".join(lines)


def report(scene: Scene, physics: PhysicsSettings, world: SceneSettings) -> Report:
    """Compare a scene's model with what MuJoCo makes of the robot's file.

    Args:
        scene: the scene.
        physics: what it was built with.
        world: what it was built with.
    """
    case = Case(scene, physics, world)
    comparison = compare(case.file, scene.model, _ANEW)
    return Report(scene.robot, world, comparison.compared, (*case.facts(), *case.reasons(comparison)))


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
        self.urdf = robot.model_path.suffix == ".urdf"
        path = str(robot.model_path)
        if self.urdf:
            try:
                self.stock = mujoco.MjModel.from_xml_path(path)
            except ValueError:  # meshes that it does not find: ours are found
                self.stock = mujoco.MjModel.from_xml_string(as_mujoco_reads(robot.model_path, whole=False))
            self.file = mujoco.MjModel.from_xml_string(as_mujoco_reads(robot.model_path, whole=True))
        else:
            self.stock = self.file = mujoco.MjModel.from_xml_path(path)
            if robot.welded:
                spec = mujoco.MjSpec.from_file(path)
                spec.compiler.fusestatic = False
                self.file = spec.compile()
        self.feet = {geom for foot in robot.feet for geom in foot.geoms}
        self.welded = self._poses() if robot.welded else set()

    def reasons(self, comparison: Comparison) -> Iterator[Told]:
        """Tell why each difference is."""
        found: dict[tuple[str, str, str], list[Difference]] = {}
        late = []
        for one in (*comparison.differences, *self._made()):
            group, why = self._reason(one)
            if not why and any(fnmatchcase(one.field, pattern) for pattern in _FOLLOWS):
                late.append(one)
                continue
            found.setdefault((group, one.field, why), []).append(one)
        explained = {what for _, what, why in found if why}
        for one in late:
            pattern = next(pattern for pattern in _FOLLOWS if fnmatchcase(one.field, pattern))
            causes, why = _FOLLOWS[pattern]
            caused = explained & set(causes)
            key = ("Follows from the above", one.field, why) if caused else ("NOT EXPLAINED", one.field, "")
            found.setdefault(key, []).append(one)
        for (group, what, why), differences in found.items():
            yield Told(group, what, why, tuple(differences))
        for name in comparison.unknown:
            yield Told("NOT EXPLAINED", f"{name}: a field of mjModel that is not known here and was not compared", "")

    def _reason(self, one: Difference) -> tuple[str, str]:
        for pattern, group, why, holds in _REASONS:
            if fnmatchcase(one.field, pattern) and holds(self, one):
                return group, why
        return "NOT EXPLAINED", ""

    def _made(self) -> Iterator[Difference]:
        """Compare the ground and the motors, which no file has, with such that were made of nothing else."""
        robot, model, spec = self.scene.robot, self.scene.model, mujoco.MjSpec()
        FlatTerrain().add_to(spec)
        for joint, kp, kd, limit in zip(robot.joint_names, robot.stiffness, robot.damping, robot.effort_limit, strict=True):
            if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_ACTUATOR, joint) < 0:
                continue
            body = spec.worldbody.add_body(name=f"of {joint}", mass=1.0, inertia=(1.0, 1.0, 1.0), explicitinertial=True)
            body.add_joint(name=joint, type=mujoco.mjtJoint(int(model.joint(joint).type[0])))
            motor = spec.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
            if joint in self.scene.velocity_joints:
                motor.set_to_velocity(kv=kd)
            else:
                motor.set_to_position(kp=kp, kv=kd)
            motor.forcelimited, motor.forcerange, motor.ctrllimited = True, (-limit, limit), False
        for one in compare(spec.compile(), model).differences:
            if one.field.startswith("actuator_") or (one.field.startswith("geom_") and one.element == "ground"):
                yield Difference(f"{one.field} of our own", one.element, one.theirs, one.ours, one.ids)

    def facts(self) -> Iterator[Told]:
        """Tell what no single field says."""
        kept = {_body(self.file, index) for index in range(self.file.nbody)}
        fused = sorted(kept - {_body(self.stock, index) for index in range(self.stock.nbody)})
        if fused:
            why = "kept as bodies of their own; MuJoCo fuses them into their parents, and the joints feel the same inertia"
            holds = self._same_inertia()
            yield Told(*(("Bodies", f"links without a joint, {_named(fused)}", why) if holds else _odd("fused links", fused)))
        counts = _self_contacts(self.file), _self_contacts(self.scene.model)
        if counts[0] != counts[1]:
            what = f"pairs of the robot's own geoms that may touch: {counts[0]} in the file, {counts[1]} here"
            why = "scene.collisions: feet" if self.world.collisions == "feet" else ""
            why = why or ("geoms of a URDF are deaf to each other" if self.urdf else "")
            yield Told("Contacts" if why else "NOT EXPLAINED", what, why)
        model = self.scene.model
        deaf = [index for index in range(model.ngeom) if model.geom_bodyid[index] and not _on_ground(model, index)]
        feet = [name for index in deaf if (name := model.geom(index).name) in self.feet]
        others = [model.geom(index).name or f"geom {index}" for index in deaf if model.geom(index).name not in self.feet]
        if feet:
            yield Told("NOT EXPLAINED", f"feet that pass through the ground, {_named(feet)}: their masks never meet its own", "")
        if others:
            yield Told("Contacts", f"geoms that never touch the ground, {_named(others)}", "so the file's masks say")
        around = [
            model.geom(index).name or f"geom {index}"
            for index in range(model.ngeom)
            if model.geom_bodyid[index] == 0 and model.geom(index).name != "ground"
        ]
        if around:
            yield Told("Contacts", f"the file's own world, {_named(around)}", "kept beside our ground, as it collides")

    def _same_inertia(self) -> bool:
        """Say whether the joints feel the same inertia in both readings of the file, in its own pose."""
        felt = []
        names = [self.stock.joint(index).name for index in range(self.stock.njnt)]
        if any(not name for name in names) or self.stock.nv != self.file.nv:
            return not names
        for model in (self.stock, self.file):
            data, matrix = mujoco.MjData(model), np.zeros((model.nv, model.nv))
            mujoco.mj_forward(model, data)
            mujoco.mj_fullM(model, data, matrix)
            dofs = [model.joint(name).dofadr[0] for name in names]
            felt.append(matrix[np.ix_(dofs, dofs)])
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


# ---------------------------------------------------------------------------------------------------------------- reasons


def _gone(_: Case, one: Difference) -> bool:
    return one.ours is None


def _added(_: Case, one: Difference) -> bool:
    return one.theirs is None


def _visual(case: Case, one: Difference) -> bool:
    geom = one.ids[0]
    paired = geom in (*case.file.pair_geom1, *case.file.pair_geom2)
    return one.ours is None and not paired and not (case.file.geom_contype[geom] or case.file.geom_conaffinity[geom])


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


def _no_dry_friction(case: Case, one: Difference) -> bool:
    return not case.world.dry_friction and one.element in case.scene.robot.joint_names and not np.any(one.ours)


def _option(case: Case, one: Difference) -> bool:
    name = one.field.removeprefix("opt.")
    given = getattr(case.physics, {"timestep": "dt"}.get(name, name))
    return _written(one.ours, one.field) == given if name in _CHOICES else float(one.ours) == given


def _autoreset(_: Case, one: Difference) -> bool:
    return int(one.theirs) ^ int(one.ours) == int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)


def _in_urdf(case: Case, one: Difference) -> bool:
    return case.urdf and _contact(case, one)


def _contact(case: Case, one: Difference) -> bool:
    return one.ours is not None and _on_ground(case.scene.model, one.ids[1])


def _outranks(case: Case, one: Difference) -> bool:
    return case.scene.model.geom(one.ids[1]).name in case.feet and one.ours > case.scene.model.geom("ground").priority[0]


def _massless(case: Case, one: Difference) -> bool:
    return case.urdf and case.scene.model.body_mass[one.ids[1]] == 0.0


def _base(case: Case, one: Difference) -> bool:
    robot = case.scene.robot
    if not case.urdf or one.theirs is not None or one.element != robot.base:
        return False
    held = ElementTree.parse(robot.model_path).getroot().iterfind("joint/child")  # a base that hangs on another link is not free
    return robot.base not in {child.get("link") for child in held}


def _welded(case: Case, one: Difference) -> bool:
    return one.element in case.scene.robot.welded if one.ours is None else False


def _held(kind: str) -> Callable[[Case, Difference], bool]:
    return lambda case, one: f"{kind} {one.element}" in case.welded


def _ground(case: Case, one: Difference) -> bool:
    return one.theirs is None and one.element == "ground" and case.scene.model.geom_bodyid[one.ids[1]] == 0


def _ours(case: Case, one: Difference) -> bool:
    return one.theirs is None and one.element in case.scene.robot.joint_names


def _asked(case: Case, one: Difference) -> bool:
    return one.theirs is None and case.scene.model.sensor_type[one.ids[1]] == mujoco.mjtSensor.mjSENS_CONTACT


def _link(case: Case, one: Difference) -> bool:
    return case.urdf and one.theirs is None


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
    ("body_i*", "Bodies", "a link of a URDF without <inertial> has no mass", _massless),
    ("dof_armature", "Motors", f"{_PAGE} (armature)", _of_page("armature")),
    ("dof_damping*", "Motors", f"{_PAGE} (joint_damping); the motor's own is its gain", _of_page("joint_damping")),
    ("dof_frictionloss", "Motors", "scene.dry_friction: false", _no_dry_friction),
    ("dof_frictionloss", "Motors", f"{_PAGE} (friction_loss)", _of_page("friction_loss")),
    ("jnt_actfrclimited", "Motors", "robot.yaml's effort_limit is the only one", lambda _, one: not one.ours),
    ("actuator", "Motors", "robot.yaml's motors take their place", _gone),
    ("actuator", "Motors", "servos with robot.yaml's stiffness, damping and effort_limit", _ours),
    ("geom", "Contacts", "our ground, an endless plane at z = 0", _ground),
    ("geom", "Contacts", "visual: they touch nothing, and their bodies keep their mass", _visual),
    ("geom", "Contacts", "scene.collisions: feet; their bodies keep their mass", _not_a_foot),
    ("geom_con[ta]*", "Contacts", "geoms of a URDF touch the ground and are deaf to each other", _in_urdf),
    ("geom_con[ta]*", "Contacts", "what the page says collides touches the ground", _contact),
    ("geom_priority", "Contacts", "so that the feet's friction is the contact's", _outranks),
    ("opt.disableflags", "Options", "a state that blew up must be seen, and MuJoCo not reset it", _autoreset),
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
_FOLLOWS = {
    "body_invweight0": ((*_TREE, "dof_armature"), "from inertias, armatures and what moves freely"),
    "dof_invweight0": ((*_TREE, "dof_armature"), "from inertias, armatures and what moves freely"),
    "tendon_invweight0": ((*_TREE, "dof_armature"), "from inertias, armatures and what moves freely"),
    "dof_M0": ((*_TREE, "dof_armature"), "from inertias, armatures and what moves freely"),
    "stat.meaninertia": ((*_TREE, "dof_armature"), "from the inertias; the solver's tolerance is a share of it"),
    "body_subtreemass": (("body_mass",), "from the masses"),
    "tendon_length0": (("jnt",), "from the pose at which joints are welded"),
    "dof_length": (("geom", *_TREE), "from the sizes of the geoms; only sleeping reads it"),
    "tree_sleep_policy": (("actuator",), "what has motors does not sleep"),
    "mesh_*": (("geom",), "of meshes that collide MuJoCo finds the hull"),
}


def _odd(what: str, names: list[str]) -> tuple[str, str, str]:
    return "NOT EXPLAINED", f"{what}, {_named(names)}: the joints feel another inertia", ""


def _body(model: mujoco.MjModel, index: int) -> str:
    return model.body(index).name or f"body {index}"


def _on_ground(model: mujoco.MjModel, geom: int) -> bool:
    """Say whether the masks of a geom meet our ground's, or a pair of the two is listed."""
    ground = model.geom("ground").id
    listed = {frozenset(pair) for pair in zip(model.pair_geom1.tolist(), model.pair_geom2.tolist(), strict=True)}
    return frozenset((geom, ground)) in listed or _masks_meet(model, geom, ground)


def _masks_meet(model: mujoco.MjModel, one: int, other: int) -> bool:
    there = model.geom_contype[one] & model.geom_conaffinity[other]
    return bool(there or model.geom_contype[other] & model.geom_conaffinity[one])


def _self_contacts(model: mujoco.MjModel) -> int:
    """Count the pairs of geoms on moving bodies that may touch each other: by masks, parents, excluded and listed pairs."""
    geoms = [index for index in range(model.ngeom) if model.body_weldid[model.geom_bodyid[index]]]
    if not model.njnt:
        geoms = []
    parents = not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_FILTERPARENT
    excluded = {int(one) for one in model.exclude_signature}
    pairs = {frozenset(pair) for pair in zip(model.pair_geom1.tolist(), model.pair_geom2.tolist(), strict=True)}
    count = 0
    for place, one in enumerate(geoms):
        for other in geoms[place + 1 :]:
            bodies = int(model.geom_bodyid[one]), int(model.geom_bodyid[other])
            links = [int(model.body_weldid[body]) for body in bodies]
            above = [int(model.body_weldid[model.body_parentid[link]]) for link in links]
            if frozenset((one, other)) in pairs:
                count += 1
            elif links[0] != links[1] and _masks_meet(model, one, other):
                related = parents and (above[0] == links[1] or above[1] == links[0])
                count += not related and (min(bodies) << 16) + max(bodies) not in excluded
    return count


def _named(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _written(value: Any, what: str = "") -> str:
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
