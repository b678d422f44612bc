"""Motors of a robot whose file gives limits at most: gains that scale with its weight and its legs.

Two legs in stance hold up an inverted pendulum of the robot's mass m on legs of length L, which topples with the stiffness
m g L: each joint of a leg gets half of it, or more where the load of standing would bend its most loaded joint by more than
0.14 rad, or where the joint's own rotor would swing slower on it than four times as fast as that pendulum.  A Go2's is 38
N m/rad (it ships with 35, and stands 0.15 rad bent).  On two legs hip, knee and ankle bend in series and topple it sooner, so
that all is made stiffer until it stands (`STIFFER`).  Damping and armature follow a Go2's by the same similarity, in which a
time is sqrt(L / g): damping = stiffness sqrt(L / g) / 14, armature = 0.004 m L^2.  What is in no leg gets a natural frequency
of four times that of a pendulum of length L, and no more stiffness than a leg.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

from embodied_rl.new.anatomy import Anatomy, role
from embodied_rl.new.source import Source
from embodied_rl.new.stance import Stance

_GRAVITY = 9.81
_DAMPING, _ARMATURE = 1.0 / 14.0, 0.004
#: What a Go2's joint has of the motor's damping by itself; a joint that has more is damped less by its motor.
_OWN_DAMPING = 0.2
#: How far the load of standing bends a leg's most loaded joint at most [rad]
_SAG = 0.14
#: No stiffer than that the effort limit is reached at this error [rad], a Go2's being 0.68, unless it does not stand so; soles
#: have to hold all upright.
_AT_LEAST = 0.4
#: Factors of all stiffness, of which the first is taken with which the robot stands.
STIFFER = (1.0, 1.5, 2.0, 3.0, 4.0)
#: Of a rotor alone, and of what is in no leg: frequency in those of the legs' pendulum; damping ratio of the latter.
_FREQUENCY, _DAMPING_RATIO = 4.0, 0.7


@dataclass(frozen=True)
class Motor:
    """Numbers of robot.yaml; None is not written."""

    stiffness: float
    damping: float
    effort_limit: float
    velocity_limit: float | None
    armature: float | None


def choose(source: Source, anatomy: Anatomy, stance: Stance, stiffer: float) -> tuple[dict[str, Motor], dict[str, str]]:
    """Choose classes of motors: their numbers, and the class of each joint; `stiffer` is a factor of all stiffness."""
    model, data = anatomy.model, mujoco.MjData(anatomy.model)
    for name, position in stance.joints.items():
        data.joint(name).qpos[:] = position
    mujoco.mj_forward(model, data)
    inertia = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, inertia)
    weight = float(model.body_subtreemass[anatomy.base]) * _GRAVITY
    leg = stiffer * max(0.5 * weight * stance.reach, _load(anatomy, data, weight) / _SAG)
    time = math.sqrt(stance.reach / _GRAVITY)
    own_armature = {name: float(model.dof_armature[model.joint(name).dofadr[0]]) for name in anatomy.joints}
    flat = {name for one in anatomy.legs if one.flat for name in one.joints}
    one_each: dict[str, Motor] = {}
    for name in anatomy.joints:
        if name in source.passive:
            one_each[name] = Motor(0.0, 0.0, 1.0, None, None)
            continue
        dof = int(model.joint(name).dofadr[0])
        carries = name in anatomy.moving
        swings = float(own_armature[name] if carries else inertia[dof, dof]) * (_FREQUENCY / time) ** 2
        free = max(leg, swings) if carries else min(leg, stiffer * swings)
        effort = source.effort.get(name, free)
        stiffness = free if name in flat else min(free, stiffer * effort / _AT_LEAST)
        damping = stiffness * time * (_DAMPING if carries else 2.0 * _DAMPING_RATIO / _FREQUENCY)
        damping = min(damping, max(round((1.0 + _OWN_DAMPING) * damping - float(model.dof_damping[dof]), 9), 0.0))
        armature = None if own_armature[name] else _ARMATURE * weight / _GRAVITY * stance.reach**2 * stiffness / leg
        numbers = (stiffness, damping, effort, source.velocity.get(name), armature)
        one_each[name] = Motor(*(None if one is None else float(f"{one:.3g}") for one in numbers))  # pyright: ignore
    return _classes(one_each)


def _load(anatomy: Anatomy, data: mujoco.MjData, weight: float) -> float:
    """Give the largest torque of a leg's joint that stands, each foot with its share of the weight [N m]."""
    model, largest = anatomy.model, 0.0
    for leg in anatomy.legs:
        jacobian = np.zeros((3, model.nv))
        foot = data.geom_xpos[leg.geoms].mean(axis=0)
        mujoco.mj_jac(model, data, jacobian, None, foot, leg.body)
        torque = data.qfrc_bias - jacobian[2] * weight / len(anatomy.legs)
        largest = max(largest, *(abs(float(torque[model.joint(name).dofadr[0]])) for name in leg.joints))
    return largest


def _classes(one_each: dict[str, Motor]) -> tuple[dict[str, Motor], dict[str, str]]:
    """Gather joints of one role and one kind of numbers."""
    classes: dict[str, Motor] = {}
    of: dict[str, str] = {}
    for name, motor in one_each.items():
        number, wanted = 1, role(name)
        while True:
            candidate = wanted if number == 1 else f"{wanted}_{number}"
            known = classes.setdefault(candidate, motor)
            if _alike(known, motor):
                break
            number += 1
        of[name] = candidate
    return classes, of


def _alike(one: Motor, other: Motor) -> bool:
    """Whether two joints may have one motor: sides differ by what a CAD program rounds."""
    limits = (one.effort_limit, one.velocity_limit) == (other.effort_limit, other.velocity_limit)
    return (
        limits
        and math.isclose(one.stiffness, other.stiffness, rel_tol=0.05)
        and (one.armature is None) == (other.armature is None)
    )
