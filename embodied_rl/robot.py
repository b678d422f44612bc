"""A robot: a folder with robot.yaml beside its MJCF or URDF, read into a RobotSpec.

robot.yaml gives what a model file cannot: the order of the joints, the default pose, gains, named groups of bodies,
feet, and which names swap under a left-right reflection. Reading it imports no simulator; names are checked against
the model when `RobotSpec.mjspec` loads it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from embodied_rl import paths
from embodied_rl.errors import UserError
from embodied_rl.urdf import read_urdf

if TYPE_CHECKING:
    import mujoco


class RobotError(UserError):
    """A mistake in a robot's page or model, told in one line."""


@dataclass(frozen=True)
class Foot:
    """A foot: its collision geoms and the site that marks it."""

    name: str
    geoms: tuple[str, ...]
    site: str


@dataclass(frozen=True)
class RobotSpec:
    """What robot.yaml says. All per-joint tuples follow `joint_names`: the order of actions and observations."""

    name: str
    folder: Path
    model_path: Path
    base: str
    """Body of the floating base."""
    base_height: float
    """Height of the base above flat ground in the default pose, feet just touching [m]."""
    joint_names: tuple[str, ...]
    default_joint_pos: tuple[float, ...]
    """Joint positions of the default pose [rad, or m for a slide joint]."""
    stiffness: tuple[float, ...]
    """Proportional gains [N m/rad]."""
    damping: tuple[float, ...]
    """Derivative gains [N m s/rad]."""
    effort_limit: tuple[float, ...]
    """Largest torque, either way [N m]."""
    armature: tuple[float | None, ...]
    """Rotor inertia as the joint feels it [kg m^2]; None keeps the model's."""
    friction_loss: tuple[float | None, ...]
    """Dry friction [N m]; None keeps the model's."""
    feet: tuple[Foot, ...]
    bodies: dict[str, tuple[str, ...]]
    """Named groups of bodies."""
    mirror: dict[str, str]
    """Name parts that swap under a left-right reflection, each pair once: `{"FL": "FR"}`."""

    def mjspec(self) -> mujoco.MjSpec:
        """The robot alone, free of the file's actuators, sensors and keyframes: the scene adds its own, in joint order.

        Per-joint overrides are applied; `embodied_rl.urdf` tells what is added to a URDF.

        Raises:
            RobotError: the model cannot be read, or the page names something that it does not have.
        """
        import mujoco

        try:
            urdf = self.model_path.suffix == ".urdf"
            spec = read_urdf(self.model_path, self.base) if urdf else mujoco.MjSpec.from_file(str(self.model_path))
        except ValueError as error:
            raise RobotError(f"{self.model_path}: cannot be read: {_one_line(error)}") from error
        for element in [*spec.actuators, *spec.sensors, *spec.keys]:
            spec.delete(element)
        self.check(spec)
        for name, armature, friction_loss in zip(self.joint_names, self.armature, self.friction_loss, strict=True):
            joint = spec.joint(name)
            # The limit of robot.yaml, on the actuator, is the only one.
            joint.actfrclimited = mujoco.mjtLimited.mjLIMITED_FALSE
            if armature is not None:
                joint.armature = armature
            if friction_loss is not None:
                joint.frictionloss = friction_loss
        return spec

    def check(self, spec: mujoco.MjSpec) -> None:
        """Compares the page's names with the model's.

        Raises:
            RobotError: a name is not in the model, or a joint of the model is not on the page.
        """
        import mujoco

        joints = {joint.name: joint.type for joint in spec.joints if joint.type != mujoco.mjtJoint.mjJNT_FREE}
        self._known("joints", self.joint_names, list(joints))
        for name, kind in joints.items():
            if kind == mujoco.mjtJoint.mjJNT_BALL:
                self._fail("joints", f"{name!r} of {self.model_path.name} is a ball joint, allowed are hinge and slide")
            if name not in self.joint_names:
                self._fail("joints", f"{name!r} of {self.model_path.name} is not listed; list every joint")
        bodies = [body.name for body in spec.bodies if body.name != "world"]
        self._known("base", [self.base], bodies)
        for group, names in self.bodies.items():
            self._known(f"bodies.{group}", names, bodies)
        for foot in self.feet:
            self._known(f"feet.{foot.name}.geoms", foot.geoms, [geom.name for geom in spec.geoms if geom.name])
            self._known(f"feet.{foot.name}.site", [foot.site], [site.name for site in spec.sites if site.name])

    def mirrored_name(self, name: str) -> str:
        """The name on the other side: `FL_hip_joint` -> `FR_hip_joint`; a name without a side stays as it is."""
        swaps = {**self.mirror, **{right: left for left, right in self.mirror.items()}}
        return swaps.get(name) or "_".join(swaps.get(part, part) for part in name.split("_"))

    def joint_mirror(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Permutation and signs of a left-right reflection: `mirrored[j] = sign[j] * joint_pos[permutation[j]]`.

        A reflection through the base's xz plane sends the axis (x, y, z) of a rotation, a pseudovector, to (-x, y, -z)
        and that of a slide to (x, -y, z). The sign tells whether the partner's axis, at the zero pose, points there.

        Raises:
            RobotError: the page has no `mirror`, or partner axes are not parallel once reflected.
        """
        import mujoco
        import numpy as np

        if not self.mirror:
            self._fail("mirror", "is missing, yet left-right symmetry is asked for; write for instance {left: right}")
        model = self.mjspec().compile()
        data = mujoco.MjData(model)
        data.qpos[:] = 0.0
        mujoco.mj_kinematics(model, data)
        to_base = data.body(self.base).xmat.reshape(3, 3).T
        permutation = tuple(self.joint_names.index(self.mirrored_name(name)) for name in self.joint_names)
        signs = []
        for name, partner in zip(self.joint_names, (self.joint_names[i] for i in permutation), strict=True):
            hinge = model.joint(partner).type[0] == mujoco.mjtJoint.mjJNT_HINGE
            reflection = np.array((-1.0, 1.0, -1.0) if hinge else (1.0, -1.0, 1.0))
            cosine = float((to_base @ data.joint(name).xaxis) @ (reflection * (to_base @ data.joint(partner).xaxis)))
            if abs(cosine) < 1.0 - 1e-3:
                self._fail("mirror", f"the axes of {name!r} and {partner!r} are not reflections of each other")
            signs.append(math.copysign(1.0, cosine))
        return permutation, tuple(signs)

    def foot_mirror(self) -> tuple[int, ...]:
        """Permutation of the feet under a left-right reflection."""
        names = [foot.name for foot in self.feet]
        return tuple(names.index(self.mirrored_name(name)) for name in names)

    def _known(self, key: str, names: Iterable[str], allowed: Sequence[str]) -> None:
        for name in names:
            if name not in allowed:
                self._fail(key, f"{self.model_path.name} has no {name!r}{_choices(name, allowed)}")

    def _fail(self, key: str, message: str) -> NoReturn:
        raise RobotError(f"{self.folder / 'robot.yaml'}: {key}: {message}")


def robot_names() -> list[str]:
    """The robots that ship with the package."""
    return sorted(page.parent.name for page in paths.shipped("robots").glob("*/robot.yaml"))


def load_robot(name_or_path: str) -> RobotSpec:
    """Reads a robot: a shipped name, a folder that holds robot.yaml, or the path of the page itself.

    Raises:
        RobotError: there is no such robot, or its page has a mistake.
    """
    # the config reads robots, so that at the top this would be a circle
    from embodied_rl import strict_yaml
    from embodied_rl.problems import ConfigError

    page = _find(name_or_path)
    try:
        document = strict_yaml.read(page)
    except ConfigError as error:
        raise RobotError(str(error)) from None
    if document.problems:
        raise RobotError(str(document.problems[0]))
    spec = _build(page, _validate(page, document.value))
    _check_mirror(spec)
    return spec


def _find(name_or_path: str) -> Path:
    path = (paths.shipped("robots") if name_or_path in robot_names() else Path()) / name_or_path
    path = path / "robot.yaml" if path.is_dir() else path
    if path.is_file():
        return path.resolve()
    nearest = _choices(name_or_path, robot_names())
    raise RobotError(f"robot: no {name_or_path!r}, neither a shipped robot nor a folder with robot.yaml{nearest}")


_Names = Annotated[list[str], Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Joint(_Section):
    default: float
    stiffness: NonNegativeFloat
    damping: NonNegativeFloat
    effort_limit: NonNegativeFloat
    armature: NonNegativeFloat | None = None
    friction_loss: NonNegativeFloat | None = None


class _Foot(_Section):
    geoms: _Names
    site: str


class _Page(_Section):
    # The schema of robot.yaml; its keys are RobotSpec's, described there.
    name: str
    model: str
    base: str
    base_height: float
    joints: dict[str, _Joint] = Field(min_length=1)
    feet: dict[str, _Foot] = {}
    bodies: dict[str, _Names] = {}
    mirror: dict[str, str] = {}


def _validate(path: Path, content: object) -> _Page:
    try:
        return _Page.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
    keys = [str(part) for part in first["loc"] if part != "[key]"]
    if first["type"] in ("extra_forbidden", "missing"):
        *parents, key = keys
        section = {"joints": _Joint, "feet": _Foot}[parents[0]] if parents else _Page
        unknown = f"unknown key {key!r}{_choices(key, section.model_fields)}"
        problem = f"key {key!r} is missing" if first["type"] == "missing" else unknown
        raise RobotError(": ".join(filter(None, [str(path), ".".join(parents), problem])))
    allowed = first["msg"].replace("Input should be", "allowed is")
    raise RobotError(f"{path}: {'.'.join(keys) or 'the page'}: given {first['input']!r}, {allowed}")


def _build(path: Path, page: _Page) -> RobotSpec:
    model_path = path.parent / page.model
    if not model_path.is_file():
        present = sorted(file.name for file in path.parent.iterdir() if file.suffix in (".xml", ".urdf"))
        raise RobotError(f"{path}: model: no file {page.model!r} beside the page{_choices(page.model, present)}")
    joints = page.joints.values()
    return RobotSpec(
        name=page.name,
        folder=path.parent,
        model_path=model_path,
        base=page.base,
        base_height=page.base_height,
        joint_names=tuple(page.joints),
        default_joint_pos=tuple(joint.default for joint in joints),
        stiffness=tuple(joint.stiffness for joint in joints),
        damping=tuple(joint.damping for joint in joints),
        effort_limit=tuple(joint.effort_limit for joint in joints),
        armature=tuple(joint.armature for joint in joints),
        friction_loss=tuple(joint.friction_loss for joint in joints),
        feet=tuple(Foot(name, tuple(foot.geoms), foot.site) for name, foot in page.feet.items()),
        bodies={group: tuple(names) for group, names in page.bodies.items()},
        mirror=page.mirror,
    )


def _check_mirror(spec: RobotSpec) -> None:
    """Every joint and foot must have its partner on the page, and every side must occur in a joint's name."""
    sides = [*spec.mirror, *spec.mirror.values()]
    parts = {part for name in spec.joint_names for part in (name, *name.split("_"))}
    for side in sides:
        if sides.count(side) > 1:
            spec._fail("mirror", f"{side!r} stands twice; write each pair once")
        if side not in parts:
            spec._fail("mirror", f"{side!r} is no part of a joint's name{_choices(side, sorted(parts))}")
    for key, names in (("joints", spec.joint_names), ("feet", [foot.name for foot in spec.feet])):
        for name in names:
            partner = spec.mirrored_name(name)
            if partner not in names:
                spec._fail(key, f"{name!r} has no mirror partner {partner!r}{_choices(partner, names)}")


def _choices(name: object, allowed: Iterable[str]) -> str:
    """The nearest name if one is near, else all of them."""
    allowed = list(allowed)
    near = difflib.get_close_matches(str(name), allowed, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(allowed)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
