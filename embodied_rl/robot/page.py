"""Reading robot.yaml: what it extends, and every mistake in it at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embodied_rl import paths
from embodied_rl.problems import ConfigError, Problem, did_you_mean, quoted, shown
from embodied_rl.robot import groups, motors
from embodied_rl.robot.errors import RobotError
from embodied_rl.robot.groups import ALL, nearest
from embodied_rl.robot.schema import ENTRIES, FootEntry, Head, Joint, Motor, NameList, RobotPage
from embodied_rl.robot.spec import Foot, RobotSpec, mirrored_name
from embodied_rl.sections import M, check_section
from embodied_rl.strict_yaml import Document, Keys, display, merge, problem_at, read


def robot_names() -> list[str]:
    """List the robots that ship with the package."""
    return sorted(page.parent.name for page in paths.shipped("robots").glob("*/robot.yaml"))


def load_robot(name_or_path: str) -> RobotSpec:
    """Read a robot: a shipped name, a folder that holds robot.yaml, or the path of the page itself.

    Raises:
        RobotError: there is no such robot, or its page has mistakes: all of them, a line each.
    """
    try:
        page = _find(name_or_path, Path(), "robot")
        document = _read_chain(page, ())
    except ConfigError as error:
        raise RobotError(error.problems) from None
    document.value.setdefault("name", page.parent.name)
    return _Checker(document, page.parent).robot()


def find_robot(what: str) -> RobotSpec | None:
    """Read the robot of this shipped name or folder; None where it is neither: a page, perhaps."""
    return load_robot(what) if what in robot_names() or (Path(what) / "robot.yaml").is_file() else None


def _find(name_or_path: str, folder: Path, key: str) -> Path:
    """Find the page that a name, or a path relative to `folder`, means."""
    path = (paths.shipped("robots") if name_or_path in robot_names() else folder) / Path(name_or_path).expanduser()
    path = path / "robot.yaml" if path.is_dir() else path
    if path.suffix.lower() in (".urdf", ".xml", ".mjcf", ".xacro"):
        advice = f"name the folder with its robot.yaml; `embodied-rl new robot {path.name}` makes one"
        raise ConfigError([Problem("", key, f"{shown(name_or_path)} is a model file; {advice}")])
    if path.is_file():
        return path.resolve()
    missing = f"no {name_or_path!r}, neither a shipped robot nor a folder with robot.yaml"
    raise ConfigError([Problem("", key, f"{missing}{nearest(name_or_path, robot_names())}")])


def _read_chain(path: Path, below: tuple[Path, ...]) -> Document:
    """Read a page, merged over the one that it extends."""
    document = read(path)
    if not isinstance(document.value, dict) or not (document.value or document.problems):
        given = shown(document.value) if document.value else "an empty file"
        raise ConfigError([*document.problems, Problem(display(path), "", f"robot.yaml is a mapping, not {given}")])
    if isinstance(model := document.value.get("model"), str):
        document.value["model"] = str(path.parent / Path(model).expanduser())
    if "extends" not in document.value:
        return document
    extends, chain = document.value.pop("extends"), (*below, path)
    try:
        if not isinstance(extends, str):
            raise ConfigError([Problem("", "extends", f"{shown(extends)} is not a string")])
        base_path = _find(extends, path.parent, "extends")
        if base_path in chain:
            circle = " -> ".join(map(display, (*chain, base_path)))
            raise ConfigError([Problem("", "extends", f"robots extend each other in a circle: {circle}")])
    except ConfigError as error:
        (wrong,) = error.problems
        place = document.places[("extends",)]
        raise ConfigError([*document.problems, Problem(place, wrong.path, wrong.message)]) from None
    base = _read_chain(base_path, chain)
    base.value.pop("name", None)
    return merge(base, document, lambda keys: keys[0] in ENTRIES and len(keys) <= 2, "entry", ENTRIES)


class _Checker:
    """A merged page on its way to a RobotSpec."""

    def __init__(self, document: Document, folder: Path):
        self.value: dict[str, Any] = document.value
        self.places = document.places
        self.problems = list(document.problems)
        self.folder = folder

    def problem(self, path: Keys, message: str) -> None:
        self.problems.append(problem_at(self.places, path, message))

    def robot(self) -> RobotSpec:
        """Check everything, then build."""
        for key in self.value:
            if key not in RobotPage.model_fields:
                near = did_you_mean(key, RobotPage.model_fields)
                self.problem((key,), f"no such key{near or f'; allowed are {quoted(RobotPage.model_fields)}'}")
        head = self.section(Head, {key: one for key, one in self.value.items() if key in Head.model_fields}, ())
        joints, feet = self.entries("joints", Joint), self.entries("feet", FootEntry)
        numbers = self.numbers(joints)
        bodies, lists = self.name_lists("bodies"), self.name_lists("groups")
        names = self.names("joints")
        if "joints" not in self.value:
            self.problem(("joints",), "is missing; it must be a mapping")
        elif self.value["joints"] == {}:
            self.problem(("joints",), "nothing is not allowed: at least 1 joint")
        welded = self.welded(names, lists) if names else set()
        self.check_sdk(joints)
        self.check_feet(feet)
        self.check_mirror(names, welded)
        self.check_model()
        if self.problems or head is None:
            raise RobotError(self.problems)
        moving = [name for name in names if name not in welded]
        expanded = {name: groups.expand(name, lists, names) for name in (ALL, *lists)}
        ordered = {group: tuple(name for name in moving if name in within) for group, within in expanded.items()}
        gains = [motors.gains(numbers[name]) for name in moving]

        def optional(key: str) -> tuple[float | None, ...]:
            return tuple(numbers[name].get(key) for name in moving)

        return RobotSpec(
            name=head.name,
            folder=self.folder,
            model_path=Path(head.model),
            base=head.base,
            base_height=head.base_height,
            joint_names=tuple(moving),
            default_joint_pos=tuple(joints[name].default for name in moving),
            stiffness=tuple(stiffness for stiffness, _ in gains),
            damping=tuple(damping for _, damping in gains),
            effort_limit=tuple(numbers[name]["effort_limit"] for name in moving),
            velocity_limit=optional("velocity_limit"),
            armature=optional("armature"),
            friction_loss=optional("friction_loss"),
            joint_damping=optional("joint_damping"),
            sdk_index=tuple(joints[name].sdk_index for name in moving),
            groups={group: within for group, within in ordered.items() if within},
            feet=tuple(Foot(name, foot.geoms, foot.site, foot.gait_offset) for name, foot in feet.items()),
            bodies=bodies,
            mirror=head.mirror,
            welded={name: joints[name].default for name in names if name in welded},
            welded_motors={
                name: (*motors.gains(numbers[name]), numbers[name]["effort_limit"], joints[name].sdk_index)
                for name in names
                if name in welded
            },
            places=self.places,
        )

    def section(self, model: type[M], value: object, path: Keys) -> M | None:
        """Check a mapping of scalars and lists; None where something is wrong with it."""
        if not isinstance(value, dict):
            return self.problem(path, f"{shown(value)} is not a mapping")
        parsed, told = check_section(model, value)
        for where, message in told.items():
            self.problem((*path, *where), message)
        return parsed

    def names(self, key: str) -> list[str]:
        """List the entries of a key, whatever else is wrong with them."""
        value = self.value.get(key, {})
        return [*value] if isinstance(value, dict) else []

    def entries(self, key: str, model: type[M]) -> dict[str, M]:
        """Check the entries of a key; those that are as they should be."""
        value = self.value.get(key, {})
        if not isinstance(value, dict):
            self.problem((key,), f"{shown(value)} is not a mapping")
            return {}
        parsed = {name: self.section(model, one, (key, name)) for name, one in value.items()}
        return {name: one for name, one in parsed.items() if one is not None}

    def name_lists(self, key: str) -> dict[str, tuple[str, ...]]:
        """Check lists of names; one that is none is empty."""
        value, lists = self.value.get(key, {}), {}
        if not isinstance(value, dict):
            self.problem((key,), f"{shown(value)} is not a mapping")
            return {}
        for name, one in value.items():
            parsed, told = check_section(NameList, {"names": one})
            for (_, *where), message in told.items():
                self.problem((key, name, *where), message)
            lists[name] = parsed.names if parsed else ()
        return lists

    def numbers(self, joints: Mapping[str, Joint]) -> dict[str, dict[str, float]]:
        """Lay each joint's numbers over those of its motor; what is null is left out."""
        classes, numbers = self.entries("motors", Motor), {}
        for name, joint in joints.items():
            own = joint.model_dump(exclude_unset=True, exclude={"default", "motor", "sdk_index"})
            inherited: dict[str, float | None] = {}
            if joint.motor in classes:
                inherited = classes[joint.motor].model_dump(exclude_unset=True)
            elif joint.motor is not None:
                if joint.motor not in (known := self.names("motors")):
                    self.problem(("joints", name, "motor"), f"no motor {joint.motor!r}{nearest(joint.motor, known)}")
                continue
            numbers[name] = _written({**inherited, **own})
            motors_own = {*motors.mistakes(_written(inherited))} if joint.motor in classes else set()
            for key, message in motors.mistakes(numbers[name]):
                # what is wrong with a motor is told there, once for all of its joints
                where = ("motors", joint.motor) if joint.motor and (key, message) in motors_own else ("joints", name)
                self.problem((*where, key), message)
        return numbers

    def welded(self, names: list[str], lists: Mapping[str, tuple[str, ...]]) -> set[str]:
        """Check the groups and which of their joints are welded."""
        for where, message in groups.mistakes(lists, names):
            self.problem(where, message)
        members, welded = self.value.get("weld", []), set()
        if not isinstance(members, list):
            return welded
        for index, member in enumerate(members):
            known = (*names, *lists, ALL)
            if isinstance(member, str) and member not in known:
                self.problem(("weld", index), groups.unknown(member, known))
            elif isinstance(member, str):
                welded |= groups.expand(member, lists, names)
        if welded == {*names}:
            self.problem(("weld",), "takes every joint; a robot needs one that moves")
        return welded

    def check_sdk(self, joints: Mapping[str, Joint]) -> None:
        """Check that the motors of an SDK are of all joints or of none, and each of one."""
        given: dict[int, str] = {}
        for name, joint in joints.items():
            index = joint.sdk_index
            if index is None and any(other.sdk_index is not None for other in joints.values()):
                self.problem(
                    ("joints", name, "sdk_index"), "is missing, and other joints have one; write it for every joint or for none"
                )
            elif index is not None and index in given:
                self.problem(("joints", name, "sdk_index"), f"{index} is already of {given[index]!r}")
            elif index is not None:
                given[index] = name

    def check_feet(self, feet: Mapping[str, FootEntry]) -> None:
        """Check that each geom is of one foot, and that all feet have a gait offset or none."""
        owners: dict[str, str] = {}
        for name, foot in feet.items():
            for index, geom in enumerate(foot.geoms):
                if geom in owners:
                    self.problem(("feet", name, "geoms", index), f"{geom!r} is already of foot {owners[geom]!r}")
                owners.setdefault(geom, name)
        with_offset = [name for name, foot in feet.items() if foot.gait_offset is not None]
        for name in (one for one in feet if with_offset and one not in with_offset):
            message = f"is missing, and foot {with_offset[0]!r} has one; write it for every foot or for none"
            self.problem(("feet", name, "gait_offset"), message)

    def check_mirror(self, joints: list[str], welded: set[str]) -> None:
        """Check that every joint and foot has its partner, and that every side occurs in a joint's name."""
        mirror = self.value.get("mirror", {})
        if not isinstance(mirror, dict) or not all(isinstance(one, str) for one in mirror.values()) or not joints:
            return
        sides = [(left, side) for left, right in mirror.items() for side in (left, right)]
        parts = {part for name in joints for part in (name, *name.split("_"))}
        seen: set[str] = set()
        for left, side in sides:
            if side in seen:
                self.problem(("mirror", left), f"{side!r} stands twice; write each pair once")
            elif side not in parts:
                self.problem(("mirror", left), f"{side!r} is no part of a joint's name{nearest(side, sorted(parts))}")
            seen.add(side)
        for key, names in (("joints", joints), ("feet", self.names("feet"))):
            for name in names:
                partner = mirrored_name(mirror, name)
                if partner not in names:
                    self.problem((key, name), f"{name!r} has no mirror partner {partner!r}{nearest(partner, names)}")
                elif key == "joints" and name in welded and partner not in welded:
                    self.problem(("weld",), f"{name!r} is welded, its mirror partner {partner!r} is not; weld both or none")

    def check_model(self) -> None:
        """Check that the model's file is there."""
        if isinstance(name := self.value.get("model"), str) and not (file := Path(name)).is_file():
            present = sorted(one.name for one in file.parent.glob("*") if one.suffix in (".xml", ".urdf"))
            self.problem(("model",), f"no file {file.name!r} in {display(file.parent)}{nearest(file.name, present)}")


def _written(motor: Mapping[str, float | None]) -> dict[str, float]:
    """Leave out what is null."""
    return {key: value for key, value in motor.items() if value is not None}
