"""The pages of a new robot, robot.yaml and a first page to train, as text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, fields

from embodied_rl.new.anatomy import Anatomy, role
from embodied_rl.new.motors import Motor
from embodied_rl.new.source import Source
from embodied_rl.new.stance import Stance

#: A Go2's legs and height [m], of which go2_flat speaks.
REACH, _BASE_HEIGHT = 0.412, 0.3235
#: How deep feet may start in the ground at most, as a share of the legs' reach; a Go2's start 0.12.
_SUNK = 0.13
#: What YAML takes for something else than a name.
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def robot_page(
    source: Source,
    anatomy: Anatomy,
    stance: Stance,
    motors: tuple[Mapping[str, Motor], Mapping[str, str]],
    feet: Mapping[str, tuple[list[str], str]],
) -> str:
    """Write robot.yaml.

    Args:
        source: the model's file.
        anatomy: its joints and legs.
        stance: its default pose.
        motors: classes, and the class of each joint.
        feet: geoms and site of each foot.
    """
    classes, of = motors
    lines = [
        "# Guessed by `embodied-rl new robot` from the model file alone: compare motors with the robot's data sheet.",
        f"name: {text(source.name)}",
        f"model: {text(source.path.name)}",
        f"base: {text(source.base)}",
        f"base_height: {number(stance.base_height)}  # [m] of the base in the default pose, feet just touching the ground",
        "",
        "motors:  # stiffness [N m/rad], damping [N m s/rad], effort_limit [N m], velocity_limit [rad/s], armature [kg m^2]",
    ]
    for name, motor in classes.items():
        values = zip([field.name for field in fields(motor)], astuple(motor), strict=True)
        lines.append(f"  {text(name)}: {flow({key: number(value) for key, value in values if value is not None})}")
    lines += ["", "joints:  # default [rad]"]
    for name in anatomy.joints:
        lines.append(f"  {text(name)}: {flow({'default': number(stance.joints[name], 6), 'motor': text(of[name])})}")
    if welded := source.welded(anatomy.joints):
        lines += ["", f"weld: {listed(welded)}  # no actuator drives them"]
    lines += ["", "groups:  # of joints, for numbers per joint"]
    lines += [f"  {text(name)}: {listed(joints)}" for name, joints in _groups(anatomy).items()]
    lines += ["", "feet:  # the collision geoms of each, the site that marks it, and when it steps"]
    for (name, (geoms, site)), offset in zip(feet.items(), gait_offsets(anatomy), strict=True):
        lines.append(f"  {text(name)}: {flow({'geoms': listed(geoms), 'site': text(site), 'gait_offset': number(offset)})}")
    lines += ["", "bodies:  # groups of bodies that terms speak of"]
    lines += [f"  {text(name)}: {listed(bodies)}" for name, bodies in _bodies(anatomy).items()]
    if anatomy.mirror:
        mirror = flow({text(one): text(other) for one, other in anatomy.mirror.items()})
        lines += ["", f"mirror: {mirror}  # names swapped by a left-right reflection"]
    return "\n".join(lines) + "\n"


def flat_page(source: Source, anatomy: Anatomy, stance: Stance) -> str:
    """Write a page that walks on flat ground: go2_flat, scaled so that motions are similar under gravity.

    With a length l against a Go2's, a time is sqrt(l), a speed sqrt(l) and a rate 1 / sqrt(l); weights of rewards are scaled
    such that a similar motion earns the same.
    """
    length = stance.reach / REACH
    speed = time = math.sqrt(length)

    def span(limit: float) -> str:
        return f"[{number(-limit)}, {number(limit)}]"

    ranges = {"lin_vel_x": span(speed), "lin_vel_y": span(0.5 * speed), "ang_vel_z": span(1.0 / time)}
    clock = {"gait_frequency": number(2.0 / time), "settle_s": number(0.5 * time)}
    limits = {"lin_vel_error": number(0.15 * speed), "ang_vel_error": number(0.2 / time)}
    reference = {"reference_lin_vel_error": number(0.2 * speed)}
    # joints far from their feet move these far: at the start deep into the ground, which throws the robot up, and in training
    # wherever the first actions' noise is
    turned = min(0.2, _SUNK * stance.reach / max(stance.lift, 1e-9))  # straight legs lift nothing at first
    starts = {"start_joint_pos": number(turned), "start_lin_vel": number(0.3 * speed), "start_ang_vel": number(0.3 / time)}
    score = [f"  {key}: {value}" for key, value in (ranges | starts | limits | reference).items()]
    lines = [
        f"# {source.name} on flat ground: go2_flat, its lengths scaled by {number(length)} (legs of {number(stance.reach)} m",
        f"# against a Go2's {number(REACH)} m), speeds and times by {number(speed)}, the root of it (Froude).",
        "extends: go2_flat",
        "task: velocity",
        "robot: .",
        f"actions: {{joint_position: {{scale: {number(0.5 * turned / 0.2)}}}}}",
        # a Go2's feet on a plane make do with half the steps, and with 6 and 10
        f"physics: {{dt: {number(round(0.005 * time, 4))}, decimation: 4, iterations: 10, ls_iterations: 20}}",
        "commands:",
        "  velocity:",
        *(f"    {key}: {value}" for key, value in (ranges | clock).items()),
        "rewards:",
        f"  track_linear_velocity: {{std: {number(0.5 * speed)}}}",
        f"  track_angular_velocity: {{std: {number(0.5 / time)}}}",
        f"  foot_clearance: {{weight: {number(-1.0 / (length * speed))}, target: {number(0.08 * length)}}}",
        f"  vertical_velocity: {{weight: {number(-0.5 / speed**2)}}}",
        f"  roll_pitch_rate: {{weight: {number(-0.05 * time**2)}}}",
        "terminations:",
        f"  height: {{minimum: {number(0.12 * stance.base_height / _BASE_HEIGHT)}}}",
        "events:",
        f"  reset_base: {{lin_vel: {number(0.3 * speed)}, ang_vel: {number(0.3 / time)}}}",
        f"  reset_joints: {{position: {number(turned)}}}",
        f"  push: {{lin_vel: {number(0.5 * speed)}}}",
        "score:",
        *score,
    ]
    if not anatomy.mirror:
        lines += ["ppo:", "  symmetry: none  # no mirror was found"]
    return "\n".join(lines) + "\n"


def gait_offsets(anatomy: Anatomy) -> list[float]:
    """Let neighbours take turns, across and along: a walk on two feet, a trot on four, a tripod on six."""
    offsets, row, before = [], -1, ""
    for leg in anatomy.legs:
        second = bool(before) and anatomy.partners.get(before) == leg.joints[-1]
        row += 0 if second else 1
        offsets.append(0.5 * ((row + second) % 2))
        before = leg.joints[-1]
    return offsets


def text(name: str) -> str:
    """Write a name as YAML reads it back."""
    return name if re.fullmatch(r"[A-Za-z_][\w.-]*|\.", name) and name.lower() not in _RESERVED else json.dumps(name)


def number(value: float, figures: int = 4) -> str:
    """Write a number with so many figures, and with a point."""
    written = f"{value:.{figures}g}"
    written = f"{value:.9f}".rstrip("0") if "e" in written else written
    return written if "." in written else f"{written}.0"


def flow(entries: Mapping[str, str]) -> str:
    """Write a mapping on one line."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in entries.items()) + "}"


def listed(names: Iterable[str]) -> str:
    """Write names on one line."""
    return "[" + ", ".join(map(text, names)) + "]"


def _groups(anatomy: Anatomy) -> dict[str, list[str]]:
    """Gather joints by what they do, and all legs."""
    groups: dict[str, list[str]] = {}
    for name in anatomy.joints:
        groups.setdefault(role(name), []).append(name)
    taken = {*anatomy.joints, "all"}
    groups = {name: joints for name, joints in groups.items() if name not in taken and len(joints) > 1}
    if len(anatomy.moving) < len(anatomy.joints):
        groups |= {"legs": anatomy.moving, "others": [name for name in anatomy.joints if name not in anatomy.moving]}
    return groups or {"legs": anatomy.moving}


def _bodies(anatomy: Anatomy) -> dict[str, list[str]]:
    """Name the body that the base's mass is in, and the links of the legs by what they do."""
    model = anatomy.model
    still = [body for body in range(1, model.nbody) if model.body_weldid[body] == anatomy.base]
    heaviest = max(still, key=lambda body: float(model.body_mass[body]))
    bodies = {"base": [model.body(heaviest).name]}
    for name in anatomy.moving:
        body = model.body(int(model.joint(name).bodyid[0])).name
        if (group := role(body)) != "base" and body not in bodies.setdefault(group, []):
            bodies[group].append(body)
    return bodies
