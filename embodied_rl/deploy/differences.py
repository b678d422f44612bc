"""What a model of a robot has otherwise than the one that a policy was trained in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from embodied_rl.deploy.place import default_pose, fresh, place
from embodied_rl.physics.actuators import motors_of
from embodied_rl.physics.kinematics import free_body
from embodied_rl.scene.reasons import written

#: Numbers that differ by less, as a share of the larger one, are called the same; and lengths [m] and directions.
SAME, _NEAR = 0.01, 0.003

Side = tuple[mujoco.MjModel, str]
"""A model, and the name of its base."""


def differences(
    theirs: Side, ours: Side, contract: Mapping[str, Any], limits: Mapping[str, tuple[float, float]]
) -> Iterator[str]:
    """Tell what a model has otherwise than training's; the same of several joints in one line.

    Args:
        theirs: the model.
        ours: training's.
        contract: of the policy.
        limits: the torques between which the model lets each joint act, infinite where it sets none.
    """
    yield from _of_the_world(theirs[0], ours[0])
    names = [joint["name"] for joint in contract["joints"]]
    told: dict[tuple[str, str, str], list[str]] = {}
    there, here = _joints(theirs, contract), _joints(ours, contract)
    moments = _links(theirs, contract), _links(ours, contract)
    for joint in contract["joints"]:
        name = joint["name"]
        if np.isfinite(limits[name]).any():  # else the contract's holds
            there[name]["effort"] = limits[name]
            here[name]["effort"] = (-joint["effort_limit"], joint["effort_limit"])
    for one, other, exact in ((there, here, True), (*moments, False)):
        for name, properties in one.items():
            for what, values in properties.items():
                relative, absolute = (SAME, 1e-6) if exact and what not in _PLACES else (0.05, _NEAR)
                if not np.allclose(values, other[name][what], rtol=relative, atol=absolute):
                    written = (_written(other[name][what]), _written(values))
                    told.setdefault((what, *written), []).append(name)
    bodies = [(model, model.body(base).id) for model, base in (ours, theirs)]
    mass, theirs_is = (float(model.body_subtreemass[free_body(model, body) or body]) for model, body in bodies)
    if abs(mass - theirs_is) > SAME * mass:
        yield f"mass of the robot: {mass:.4g} in training, {theirs_is:.4g} here"
    for (what, ours_are, theirs_are), of in told.items():
        yield f"{what}: {ours_are} in training, {theirs_are} here, of {counted(of, names)}"


def beside(model: mujoco.MjModel, base: str, names: Sequence[str]) -> Iterator[str]:
    """Tell what acts on a robot beside its motors, in words: springs, equalities, tendons, drag on the free base."""
    sprung = [name for name in names if model.jnt_stiffness[model.joint(name).id] != 0.0]
    if sprung:
        yield f"springs in joints, which training has not: {counted(sprung, names)}"
    if curved := [name for name in names if np.any(model.dof_dampingpoly[model.joint(name).dofadr[0]])]:
        yield f"damping that grows with the speed, which training has not: {counted(curved, names)}"
    if np.any(model.body_gravcomp):
        yield "gravity compensation of bodies, which training has not"
    if model.neq:
        yield f"{model.neq} equality constraints, which training has not"
    if model.ntendon:
        yield f"{model.ntendon} tendons, which training has not"
    driving = {motor for name in names for motor in motors_of(model, name)}
    if others := [model.actuator(index).name or str(index) for index in range(model.nu) if index not in driving]:
        yield f"actuators of other things than the contract's joints, told nothing: {', '.join(others)}"
    root = free_body(model, model.body(base).id)
    if root is not None:
        dofs = slice(int(model.body_dofadr[root]), int(model.body_dofadr[root]) + 6)
        if np.any(model.dof_damping[dofs]) or np.any(model.dof_armature[dofs]) or np.any(model.dof_frictionloss[dofs]):
            yield "damping, armature or friction of the free joint, which holds the base back"


def counted(joints: Sequence[str], names: Sequence[str]) -> str:
    """Name joints: the first of them, or all."""
    if len(joints) == len(names):
        return f"all {len(names)} joints"
    return ", ".join(joints[:4]) + (f" and {len(joints) - 4} more" if len(joints) > 4 else "")


_PLACES = ("axis in the base's frame", "place in the base's frame")


def _of_the_world(theirs: mujoco.MjModel, ours: mujoco.MjModel) -> Iterator[str]:
    for name in ("integrator", "cone"):
        here, there = (written(getattr(model.opt, name), name) for model in (ours, theirs))
        if here != there:
            yield f"option {name}: {here} in training, {there} here"
    for name in ("gravity", "wind", "density", "viscosity", "impratio"):
        here, there = (np.atleast_1d(getattr(model.opt, name)) for model in (ours, theirs))
        if not np.allclose(here, there, rtol=SAME, atol=1e-6):
            yield f"option {name}: {_written(here)} in training, {_written(there)} here"
    reset = int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    here, there = (int(model.opt.disableflags) & ~reset for model in (ours, theirs))
    for bit in (bit for bit in mujoco.mjtDisableBit.__members__.values() if int(bit) and (here ^ there) & int(bit) == int(bit)):
        flag = bit.name.removeprefix("mjDSBL_").lower()
        yield f"option flag {flag}: {'on' if there & int(bit) == 0 else 'off'} here, not so in training"


def _joints(side: Side, contract: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, ...]]]:
    """Collect what each joint has; places and axes in the base's frame, in the default pose."""
    model, data, rotation, origin = _posed(side, contract)
    found = {}
    for name in (joint["name"] for joint in contract["joints"]):
        joint, dof = model.joint(name), int(model.joint(name).dofadr[0])
        found[name] = {
            "kind (2 slide, 3 hinge)": (float(joint.type[0]),),
            "axis in the base's frame": tuple(rotation.T @ data.joint(name).xaxis),
            "place in the base's frame": tuple(rotation.T @ (data.joint(name).xanchor - origin)),
            "position of the drawn pose (ref)": (float(model.qpos0[joint.qposadr[0]]),),
            "armature": (float(model.dof_armature[dof]),),
            "joint damping": (float(model.dof_damping[dof]),),
            "dry friction": (float(model.dof_frictionloss[dof]),),
            "range": tuple(float(one) for one in joint.range) if joint.limited[0] else (-np.inf, np.inf),
        }
    return found


def _links(side: Side, contract: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, ...]]]:
    """Collect what the links have that the joints move, and the base; centres of mass in the base's frame."""
    model, data, rotation, origin = _posed(side, contract)
    bodies = {joint["name"]: int(model.joint(joint["name"]).bodyid[0]) for joint in contract["joints"]}
    found = {}
    for name, body in {"the base": model.body(side[1]).id, **bodies}.items():
        found[name] = {
            "mass of the link": (float(model.body_mass[body]),),
            "centre of mass of the link in the base's frame": tuple(rotation.T @ (data.xipos[body] - origin)),
            "principal inertia of the link x 100": tuple(100.0 * np.sort(model.body_inertia[body])),
        }
    return found


def _posed(side: Side, contract: Mapping[str, Any]) -> tuple[mujoco.MjModel, mujoco.MjData, np.ndarray, np.ndarray]:
    """Put a robot into its default pose; with the base's rotation and origin."""
    model, base = side
    data, joints, body = fresh(model), contract["joints"], model.body(base).id
    place(model, data, body, [joint["name"] for joint in joints], *default_pose(contract, 10.0))
    mujoco.mj_kinematics(model, data)
    return model, data, data.xmat[body].reshape(3, 3).copy(), data.xpos[body].copy()


def _written(values: Any) -> str:
    return (" to " if len(values) == 2 else " ").join(f"{one + 0.0:.4g}" for one in values)
