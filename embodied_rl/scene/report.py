"""What training simulates of a robot otherwise than MuJoCo makes of its file, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import mujoco

from embodied_rl.config.page import PhysicsSettings, SceneSettings
from embodied_rl.robot import RobotSpec
from embodied_rl.scene.build import Scene, add_motor
from embodied_rl.scene.compare import KINDS, Comparison, Difference, compare
from embodied_rl.scene.reasons import FOLLOWS, UNKNOWN, Case, on_ground, reason, self_contacts, written
from embodied_rl.strict_yaml import display

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
_GROUPS = ("Bodies", "Joints", "Motors", "Contacts", "Options", "Measured and shown", "Follows from the above", UNKNOWN)


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
        values = {(written(one.theirs, self.what), written(one.ours, self.what)) for one in self.differences}
        there, here = written(first.theirs, self.what), written(first.ours, self.what)
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
    return Report(scene.robot, world, comparison.compared, (*_facts(case), *_reasons(case, comparison)))


def _reasons(case: Case, comparison: Comparison) -> Iterator[Told]:
    """Tell why each difference is."""
    found: dict[tuple[str, str, str], list[Difference]] = {}
    late = []
    for one in (*comparison.differences, *_made(case)):
        group, why = reason(case, one)
        if not why and any(fnmatchcase(one.field, pattern) for pattern in FOLLOWS):
            late.append(one)
            continue
        found.setdefault((group, one.field, why), []).append(one)
    explained = {what for _, what, why in found if why}
    for one in late:
        pattern = next(pattern for pattern in FOLLOWS if fnmatchcase(one.field, pattern))
        causes, why = FOLLOWS[pattern]
        caused = explained & set(causes)
        key = ("Follows from the above", one.field, why) if caused else (UNKNOWN, one.field, "")
        found.setdefault(key, []).append(one)
    for (group, what, why), differences in found.items():
        yield Told(group, what, why, tuple(differences))
    for name in comparison.unknown:
        yield Told(UNKNOWN, f"{name}: a field of mjModel that is not known here and was not compared", "")


def _made(case: Case) -> Iterator[Difference]:
    """Compare the ground and the motors, which no file has, with such that were made of nothing else."""
    robot, model, spec = case.scene.robot, case.scene.model, mujoco.MjSpec()
    case.scene.terrain.add_to(spec)
    for index, joint in enumerate(robot.joint_names):
        if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_ACTUATOR, joint) < 0:
            continue
        body = spec.worldbody.add_body(name=f"of {joint}", mass=1.0, inertia=(1.0, 1.0, 1.0), explicitinertial=True)
        body.add_joint(name=joint, type=mujoco.mjtJoint(int(model.joint(joint).type[0])))
        add_motor(spec, robot, index, by_velocity=joint in case.scene.velocity_joints)
    for one in compare(spec.compile(), model).differences:
        if one.field.startswith("actuator_") or (one.field.startswith("geom_") and one.element == "ground"):
            yield Difference(f"{one.field} of our own", one.element, one.theirs, one.ours, one.ids)


def _facts(case: Case) -> Iterator[Told]:
    """Tell what no single field says."""
    kept = {_body(case.file, index) for index in range(case.file.nbody)}
    fused = sorted(kept - {_body(case.stock, index) for index in range(case.stock.nbody)})
    if fused:
        why = "kept as bodies of their own; MuJoCo fuses them into their parents, and the joints feel the same inertia"
        holds = case.same_inertia()
        if not holds and (holds := case.same_inertia(massless=False)):
            why += ", that of links without mass aside, which MuJoCo leaves out"
        yield Told("Bodies" if holds else UNKNOWN, f"links without a joint, {_named(fused)}", why if holds else "")
    there, here = self_contacts(case.file), self_contacts(case.scene.model)
    if there != here:
        what = f"pairs of the robot's own geoms that may touch: {there} in the file, {here} here"
        reasons = {
            f"scene.self_collision: {case.world.self_collision}": case.world.self_collision != "file",
            "scene.collisions: feet": case.world.collisions == "feet",
            "geoms of a URDF are deaf to each other": case.urdf,
            "robot.yaml's weld makes one body of several": self_contacts(case.file, case.scene.robot.welded) == here,
        }
        why = next((why for why, holds in reasons.items() if holds), "")
        yield Told("Contacts" if why else UNKNOWN, what, why)
    model = case.scene.model
    deaf = [index for index in range(model.ngeom) if model.geom_bodyid[index] and not on_ground(model, index)]
    feet = [name for index in deaf if (name := model.geom(index).name) in case.feet]
    others = [model.geom(index).name or f"geom {index}" for index in deaf if model.geom(index).name not in case.feet]
    if feet:
        yield Told(UNKNOWN, f"feet that pass through the ground, {_named(feet)}: their masks never meet its own", "")
    if others:
        yield Told("Contacts", f"geoms that never touch the ground, {_named(others)}", "so the file's masks say")
    around = [
        model.geom(index).name or f"geom {index}"
        for index in range(model.ngeom)
        if model.geom_bodyid[index] == 0 and model.geom(index).name != "ground"
    ]
    if around:
        yield Told("Contacts", f"the file's own world, {_named(around)}", "kept beside our ground, as it collides")


def _body(model: mujoco.MjModel, index: int) -> str:
    return model.body(index).name or f"body {index}"


def _named(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
