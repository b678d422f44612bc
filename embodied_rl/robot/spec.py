"""What robot.yaml says, checked against the model and applied to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from embodied_rl.problems import Problem
from embodied_rl.robot.errors import RobotError
from embodied_rl.robot.groups import nearest, unknown
from embodied_rl.robot.weld import obstacles, weld
from embodied_rl.strict_yaml import Keys, display, problem_at
from embodied_rl.urdf import is_urdf, read_urdf

if TYPE_CHECKING:
    import mujoco

#: How far partners may be from each other's reflection, as a share of the robot's size: no robot is made to the micrometre.
_ASIDE = 0.2
#: How far a default may be beyond a limit, or off what another joint asks of it: rounding [rad, or m].
ROUNDING = 1e-4


@dataclass(frozen=True)
class Foot:
    """A foot: its collision geoms and the site that marks it, on one body."""

    name: str
    geoms: tuple[str, ...]
    site: str
    gait_offset: float | None = None
    """When it steps, as a share of a gait cycle in [0, 1); None: the robot has no gait."""


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
    """Joints that move; those of `welded` aside."""
    default_joint_pos: tuple[float, ...]
    """Joint positions of the default pose [rad, or m for a slide joint]."""
    stiffness: tuple[float, ...]
    """Proportional gains [N m/rad]."""
    damping: tuple[float, ...]
    """Derivative gains [N m s/rad]."""
    effort_limit: tuple[float, ...]
    """Largest torque, either way [N m]."""
    velocity_limit: tuple[float | None, ...]
    """Largest speed, either way [rad/s]; None where it is not known."""
    armature: tuple[float | None, ...]
    """Rotor inertia as the joint feels it [kg m^2]; None keeps the model's."""
    friction_loss: tuple[float | None, ...]
    """Dry friction [N m]; None keeps the model's."""
    joint_damping: tuple[float | None, ...]
    """Passive viscous damping [N m s/rad]; None keeps the model's."""
    sdk_index: tuple[int | None, ...]
    """Where each joint's motor stands in the arrays of the robot's SDK; None where the page does not say."""
    groups: dict[str, tuple[str, ...]]
    """Named groups of joints, each in the order of `joint_names`; `all` is every joint."""
    feet: tuple[Foot, ...]
    bodies: dict[str, tuple[str, ...]]
    """Named groups of bodies."""
    mirror: dict[str, str]
    """Name parts that swap under a left-right reflection, each pair once: `{"FL": "FR"}`."""
    welded: dict[str, float]
    """Joints taken out of the model, and the positions at which they are fixed [rad, or m for a slide joint]."""
    welded_motors: dict[str, tuple[float, float, float, int | None]] = field(default_factory=dict)
    """What holds them there on a robot: stiffness, damping, effort limit, and the motor's place in the SDK's arrays."""
    places: Mapping[Keys, str] = field(default_factory=dict, repr=False, compare=False)
    """Where each key was written, `file:line`; for messages."""

    @property
    def foot_geoms(self) -> tuple[str, ...]:
        """Geoms of all feet, by foot."""
        return tuple(geom for foot in self.feet for geom in foot.geoms)

    def joints_of(self, name: str) -> tuple[str, ...]:
        """List the joints of a group, or the joint of this name.

        Raises:
            RobotError: there is neither.
        """
        if name in self.groups:
            return self.groups[name]
        if name in self.joint_names:
            return (name,)
        self._fail((), self._unknown(name))

    def per_joint(self, values: float | Mapping[str, float], joints: Sequence[str] | None = None) -> tuple[float, ...]:
        """Spread a number, or numbers by group or joint, over joints.

        Args:
            values: one number for all, or a mapping whose keys name every one of the joints exactly once.
            joints: which joints, in the order of the result; default: all.

        Raises:
            ValueError: a joint is missing or named twice, or a key is unknown or names none of the joints.
        """
        joints = self.joint_names if joints is None else joints
        if not isinstance(values, Mapping):
            return (float(values),) * len(joints)
        keys: dict[str, list[str]] = {name: [] for name in joints}
        wrong = []
        for key in values:
            if key not in self.groups and key not in self.joint_names:
                wrong.append(self._unknown(key))
                continue
            named = [name for name in self.joints_of(key) if name in keys]
            if not named:
                wrong.append(f"{key!r} is none of the joints that are asked for ({', '.join(joints)})")
            for name in named:
                keys[name].append(key)
        wrong += [f"{name!r} is named twice, by {' and '.join(map(repr, by))}" for name, by in keys.items() if len(by) > 1]
        if missing := [repr(name) for name, by in keys.items() if not by]:
            wrong.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; name every joint once")
        if wrong:
            raise ValueError("; ".join(wrong))
        return tuple(float(values[by[0]]) for by in keys.values())

    def mjspec(self) -> mujoco.MjSpec:
        """Build the robot alone, without the file's actuators, sensors, keyframes and tuples: the scene adds its own.

        Per-joint overrides are applied and welded joints taken out; `embodied_rl.urdf` tells what is added to a URDF.

        Raises:
            RobotError: the model cannot be read, or the page names something that it does not have.
        """
        import mujoco

        spec = self._read_model()
        overrides = zip(self.joint_names, self.armature, self.friction_loss, self.joint_damping, strict=True)
        for name, armature, friction_loss, joint_damping in overrides:
            joint = spec.joint(name)
            # The limit of robot.yaml, on the actuator, is the only one.
            joint.actfrclimited = mujoco.mjtLimited.mjLIMITED_FALSE
            if armature is not None:
                joint.armature = armature
            if friction_loss is not None:
                joint.frictionloss = friction_loss
            if joint_damping is not None:
                joint.damping = (joint_damping, 0.0, 0.0)  # linear: MuJoCo's has terms of higher order
        if self.welded:
            model = self.compile(spec)
            wrong = [(("joints", name, "default"), self.beyond(model, name, at)) for name, at in self.welded.items()]
            if problems := [problem_at(self._places(), keys, message) for keys, message in wrong if message]:
                raise RobotError(problems)
            weld(spec, self.welded)
        return spec

    def compile(self, spec: mujoco.MjSpec) -> mujoco.MjModel:
        """Compile what was made of the robot's file.

        Raises:
            RobotError: MuJoCo cannot; its own words in one line.
        """
        try:
            return spec.compile()
        except ValueError as error:
            raise self._refused(error, "cannot be compiled") from error

    def check(self, spec: mujoco.MjSpec) -> None:
        """Compare the page's names with the model's.

        Raises:
            RobotError: with every mistake: a name that is not in the model, a joint of the model that is not on the page,
                a foot on several bodies, a welded joint that something else refers to.
        """
        problems = [problem_at(self._places(), keys, message) for keys, message in self._mistakes(spec)]
        if problems:
            raise RobotError(problems)

    def beyond(self, model: mujoco.MjModel, name: str, position: float) -> str:
        """Say that a joint cannot be at this position; nothing if it can."""
        joint = model.joint(name)
        low, high = joint.range
        if not joint.limited[0] or low - ROUNDING <= position <= high + ROUNDING:
            return ""
        return f"{position:g} is outside the joint's range in {self.model_path.name}, [{low:g}, {high:g}]"

    def mirrored_name(self, name: str) -> str:
        """Give the name on the other side: `FL_hip_joint` -> `FR_hip_joint`; a name without a side stays as it is."""
        return mirrored_name(self.mirror, name)

    def joint_mirror(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Give the permutation and signs of a left-right reflection: `mirrored[j] = sign[j] * joint_pos[permutation[j]]`.

        A reflection through the base's xz plane sends the axis (x, y, z) of a rotation, a pseudovector, to (-x, y, -z)
        and that of a slide to (x, -y, z). The sign tells whether the partner's axis, at the zero pose, points there.

        Raises:
            RobotError: the page has no `mirror`, partners are elsewhere than reflected, or their axes not parallel to it, or
                the default pose is not its own reflection.
        """
        return self._joint_mirror

    @cached_property
    def _joint_mirror(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        import mujoco
        import numpy as np

        if not self.mirror:
            self._fail(("mirror",), "is missing, yet left-right symmetry is asked for; write for instance {left: right}")
        model = self.compile(self._read_model())
        data = mujoco.MjData(model)
        data.qpos[:] = 0.0
        mujoco.mj_kinematics(model, data)
        to_base = data.body(self.base).xmat.reshape(3, 3).T
        pose = dict(zip(self.joint_names, self.default_joint_pos, strict=True)) | self.welded
        places = {name: to_base @ (data.joint(name).xanchor - data.body(self.base).xpos) for name in pose}
        size = max(float(np.linalg.norm(place)) for place in places.values())
        feet = {foot.name: to_base @ (data.site(foot.site).xpos - data.body(self.base).xpos) for foot in self.feet}
        sites = {foot.name: foot.site for foot in self.feet}
        below = lambda site: model.body(int(model.body_parentid[model.site(site).bodyid[0]])).name  # noqa: E731
        signs: dict[str, float] = {}
        wrong = []
        for name, position in pose.items():
            partner = self.mirrored_name(name)
            off = float(np.linalg.norm(places[name] * (1.0, -1.0, 1.0) - places[partner]))
            if off > _ASIDE * size and partner not in signs:
                wrong.append((("mirror",), f"{name!r} and {partner!r} are {off:.2g} m from being reflections of each other"))
            hinge = model.joint(partner).type[0] == mujoco.mjtJoint.mjJNT_HINGE
            reflection = np.array((-1.0, 1.0, -1.0) if hinge else (1.0, -1.0, 1.0))
            cosine = float((to_base @ data.joint(name).xaxis) @ (reflection * (to_base @ data.joint(partner).xaxis)))
            sign = math.copysign(1.0, cosine)
            if abs(cosine) < 1.0 - 1e-3:
                wrong.append((("mirror",), f"the axes of {name!r} and {partner!r} are not reflections of each other"))
            elif partner not in signs and abs(sign * position - pose[partner]) > 1e-6:  # each pair once
                message = f"the default pose is not symmetric: {name!r} at {position:g} wants {sign * position + 0.0:g} here"
                wrong.append((("joints", partner, "default"), message))
            signs[name] = sign
        for name, place in feet.items():  # where the last joints turn them
            partner = self.mirrored_name(name)
            off = float(np.linalg.norm(place * (1.0, -1.0, 1.0) - feet[partner]))
            if off > _ASIDE * size and name <= partner and not wrong:
                apart = f"are {off:.2g} m from being reflections of each other with all joints at 0"
                both = " and ".join(f"{sites[one]!r} below {below(sites[one])!r}" for one in (name, partner))
                wrong.append((("mirror",), f"the sites of the feet, {both} in {self.model_path.name}, {apart}"))
        if wrong:
            raise RobotError([problem_at(self._places(), *one) for one in wrong])
        permutation = tuple(self.joint_names.index(self.mirrored_name(name)) for name in self.joint_names)
        return permutation, tuple(signs[name] for name in self.joint_names)

    def foot_mirror(self) -> tuple[int, ...]:
        """Give the permutation of the feet under a left-right reflection."""
        names = [foot.name for foot in self.feet]
        return tuple(names.index(self.mirrored_name(name)) for name in names)

    def _read_model(self) -> mujoco.MjSpec:
        """Read the model's file, before anything is welded."""
        import mujoco

        try:
            urdf = is_urdf(self.model_path)
            spec = read_urdf(self.model_path, self.base) if urdf else mujoco.MjSpec.from_file(str(self.model_path))
            [one.name for kind in (spec.bodies, spec.joints, spec.geoms, spec.sites) for one in kind]  # they may be no text
        except ValueError as error:
            raise self._refused(error, "cannot be read") from error
        _keep_rotors(spec)
        # MuJoCo deletes with an element what refers to it: the others first
        for kind in ("tuples", "sensors", "actuators", "keys"):
            for element in list(getattr(spec, kind)):
                spec.delete(element)
        # what a page names has to be there still once the model is compiled, and where the file has it
        spec.compiler.fusestatic = spec.compiler.discardvisual = False
        for joint in spec.joints:
            joint.align = mujoco.mjtAlignFree.mjALIGNFREE_FALSE
        # sizes are of the file's own world, without what is added
        spec.nkey, spec.memory, spec.njmax, spec.nconmax, spec.nstack = 0, -1, -1, -1, -1
        self.check(spec)
        return spec

    def _refused(self, error: Exception, what: str) -> RobotError:
        words = " ".join(str(error).split())
        try:
            self.model_path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            words += "; the file is not UTF-8, in which MuJoCo reads an MJCF: save it so"
        return RobotError([Problem(str(self.model_path), "", f"{what}: {words}")])

    def _mistakes(self, spec: mujoco.MjSpec) -> Iterator[tuple[Keys, str]]:
        """Find the names that page and model do not share."""
        import mujoco

        file = self.model_path.name
        moving = [joint for joint in spec.joints if joint.type != mujoco.mjtJoint.mjJNT_FREE]
        kinds = {joint.name: joint.type for joint in moving if joint.name}
        bodies = [body.name for body in spec.bodies if body.name != "world"]
        if not bodies:
            yield ("model",), f"{file} has no bodies"
            return
        geoms = {geom.name: geom.parent.name for geom in spec.geoms if geom.name}
        sites = {site.name: site.parent.name for site in spec.sites if site.name}

        def absent(keys: Keys, name: str, allowed: Sequence[str] | Mapping[str, object]) -> Iterator[tuple[Keys, str]]:
            if name not in allowed:
                yield keys, f"{file} has no {name!r}{nearest(name, allowed)}"

        def still(body: str) -> str:
            """Name the body that this one is fixed to."""
            element = spec.body(body)
            while not element.joints and element.parent.name != "world":
                element = element.parent
            return element.name

        listed = (*self.joint_names, *self.welded)
        for name in listed:
            yield from absent(("joints", name), name, kinds)
        for name, kind in kinds.items():
            if kind == mujoco.mjtJoint.mjJNT_BALL:
                yield ("joints",), f"{name!r} of {file} is a ball joint, allowed are hinge and slide"
            elif name not in listed:
                yield ("joints",), f"{name!r} of {file} is not listed; list every joint"
        if nameless := [joint.parent.name for joint in moving if not joint.name]:
            first = f", the first of body {nameless[0]!r}" if nameless[0] else ""
            many = f"{len(nameless)} joints of {file} have" if len(nameless) > 1 else f"a joint of {file} has"
            yield ("joints",), f"{many} no name{first}; name and list every joint, or take out what is not the robot's"
        for joint in moving:
            if joint.limited != mujoco.mjtLimited.mjLIMITED_FALSE and joint.range[0] > joint.range[1]:  # no limit to MuJoCo
                ends = f"[{joint.range[0]:g}, {joint.range[1]:g}]"
                yield ("joints", joint.name), f"its range in {file} is {ends}; the lower end stands first"
        yield from absent(("base",), self.base, bodies)
        for group, names in self.bodies.items():
            for index, name in enumerate(names):
                yield from absent(("bodies", group, index), name, bodies)
        for foot in self.feet:
            for index, name in enumerate(foot.geoms):
                yield from absent(("feet", foot.name, "geoms", index), name, geoms)
            yield from absent(("feet", foot.name, "site"), foot.site, sites)
            body = sites.get(foot.site)
            for index, name in enumerate(foot.geoms):
                if body is not None and still(geoms.get(name, body)) != still(body):
                    message = f"{name!r} is of body {geoms[name]!r}, the site {foot.site!r} of {body!r}; a foot is of one body"
                    yield ("feet", foot.name, "geoms", index), message
        for name, why in obstacles(spec, self.welded):
            yield ("weld",), f"{name!r} cannot be welded: {why}; leave it out of weld, or change {file}"

    def _unknown(self, name: str) -> str:
        if name in self.welded:
            return f"{name!r} is welded: it is no joint any more"
        known = (*self.groups, *self.joint_names)
        return unknown(name, known)

    def _places(self) -> Mapping[Keys, str]:
        return self.places or {(): display(self.folder / "robot.yaml")}

    def _fail(self, keys: Keys, message: str) -> NoReturn:
        raise RobotError([problem_at(self._places(), keys, message)])


def _keep_rotors(spec: mujoco.MjSpec) -> None:
    """Write the armature and passive damping that actuators lend joints and tendons there, through gear^2 as they act."""
    import mujoco

    joints = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
    for actuator in spec.actuators:
        driven = spec.joint(actuator.target) if actuator.trntype in joints else None
        driven = spec.tendon(actuator.target) if actuator.trntype == mujoco.mjtTrn.mjTRN_TENDON else driven
        if driven is not None:
            driven.armature += actuator.gear[0] ** 2 * actuator.armature
            driven.damping = driven.damping + actuator.gear[0] ** 2 * actuator.damping


def mirrored_name(mirror: Mapping[str, str], name: str) -> str:
    """Give the name on the other side: the whole name swaps, or each of its parts between underscores."""
    swaps = {**mirror, **{right: left for left, right in mirror.items()}}
    return swaps.get(name) or "_".join(swaps.get(part, part) for part in name.split("_"))
