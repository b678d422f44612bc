"""Any model of a robot as a target for an exported policy: the contract's joints found by name, its motors put in."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from embodied_rl.deploy.contract import DeployError
from embodied_rl.deploy.differences import SAME, beside, counted
from embodied_rl.deploy.differences import differences as compared
from embodied_rl.deploy.place import default_pose, fresh, place
from embodied_rl.physics.actuators import motors_of, torque_range
from embodied_rl.physics.kinematics import free_body
from embodied_rl.problems import did_you_mean, quoted
from embodied_rl.scene.contacts import GROUNDS
from embodied_rl.scene.looks import dress
from embodied_rl.scene.plain import PLAIN
from embodied_rl.strict_yaml import display

#: The last group of geoms that MuJoCo shows unasked.
_SHOWN = 2
#: Begins the names of what is added.
_PREFIX = "contract_"


@dataclass
class Target:
    """A model that an exported policy can drive."""

    model: mujoco.MjModel
    base: str
    """The body whose orientation and angular velocity the policy sees."""
    notes: list[str] = field(default_factory=list)
    """What was changed in it, and what is left as it was."""
    differences: list[str] = field(default_factory=list)
    """What it has otherwise than training's."""
    twice: mujoco.MjModel | None = None
    """The same with the joint damping kept that the contract's gains replace, where there is any."""
    lift: float = 0.0
    """How much higher its base stands than in training, in the default pose [m]."""


def fit(path: Path, contract: Mapping[str, Any], own: mujoco.MjModel, *, keep_motors: bool = False) -> Target:
    """Make a target of an MJCF file.

    Args:
        path: the file; it needs no ground.
        contract: of the policy.
        own: the model that the policy was trained in.
        keep_motors: leave the file's own motors, which must be position or velocity servos.

    Raises:
        DeployError: it is no model of this robot; one line.
    """
    where = display(path)
    spec, notes = _read(path)
    for key in list(spec.keys):
        spec.delete(key)
    spec.add_key(name="default")
    joints = {joint.name: joint for joint in spec.joints}
    names = [joint["name"] for joint in contract["joints"]]
    if missing := [name for name in names if name not in joints]:
        near = did_you_mean(missing[0], joints)
        more = f" ({len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        raise DeployError(f"{where}: no joint {missing[0]!r}{near or f'; it has {quoted(joints)}'}{more}")
    free = mujoco.mjtJoint.mjJNT_FREE
    held = [one for one in contract["held"] if one["name"] in joints]
    if held:
        at = ", ".join(f"{one['name']} {one['position']:g}" for one in held)
        notes.append(f"joints that training had welded are held where it had them [rad]: {at}")
    known = {*names, *(one["name"] for one in held)}
    if others := [name for name, joint in joints.items() if name not in known and joint.type != free]:
        notes.append(f"joints that the policy does not know, left as they are: {', '.join(others)}")
    # what blows up must be seen, not silently put back
    spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    before = spec.compile()
    base = _base(before, contract, where)
    free, frees = (free_body(one, one.body(name).id) is not None for one, name in ((before, base), (own, contract["base"])))
    if free != frees:
        what = "is fixed to the world, and moves freely in training; give it a <freejoint/>"
        raise DeployError(
            f"{where}: {base!r} {what if frees else 'moves freely, and is fixed in training; take its free joint away'}"
        )
    if base != contract["base"]:
        notes.append(f"no body {contract['base']!r}: {base!r}, which has the free joint, is taken for it, with its frame")
    check_time(before, contract, where)
    if not any(int(kind) in GROUNDS and not body for kind, body in zip(before.geom_type, before.geom_bodyid, strict=True)):
        _add_ground(spec, before, base, contract)
        notes.append("the file has no ground; the contract's plane was added")
    limits = {name: torque_range(before, name) for name in names}
    twice = None
    if keep_motors:
        notes += _check_servos(before, contract, where)
        for actuator in spec.actuators:
            actuator.name = actuator.target if actuator.target in names else actuator.name
        notes.append("the file's own motors drive it")
    else:
        damped = _put_motors(spec, before, contract, limits)
        if damped:
            twice = _in_pose(_hold(spec.copy(), held), held)
            for name in damped:
                spec.joint(name).damping = np.zeros_like(spec.joint(name).damping)
            value = ", ".join(sorted({f"{float(twice.dof_damping[twice.joint(name).dofadr[0]]):g}" for name in damped}))
            why = "it stood for the controller's kd, which the motors have now"
            notes.append(f"joint damping {value} -> 0 of {counted(damped, names)}: {why}")
    _hold(spec, held)
    model = _in_pose(spec, held)
    own_geoms = model.geom_bodyid > 0
    if (model.geom_group[own_geoms] > _SHOWN).all():  # collision geoms alone
        model.geom_group[own_geoms] = _SHOWN
    differences = list(compared((before, base), (own, contract["base"]), contract, limits))
    differences += list(beside(before, base, [*names, *(one["name"] for one in held)]))
    here, there = _grip(own, contract["base"], contract), _grip(model, base, contract)
    if there is None:
        differences.append("nothing of the robot touches the ground in the default pose: masks, or a ground that lies elsewhere?")
    elif here is not None and abs(here - there) > SAME * here:
        differences.append(f"friction with the ground: {here:.4g} in training, where it was not random, {there:.4g} here")
    lift = _lift(model, base, contract) - _lift(own, contract["base"], contract)
    return Target(model, base, notes, differences, twice, lift)


def hang(model: mujoco.MjModel, runner: Any, policy: Any, seconds: float = 2.0) -> tuple[str, float]:
    """Hang the robot up by its base and ask for actions of zero: the joint that ends farthest from its target, and how far."""
    policy.reset()
    robot = runner.Simulation(policy, model)
    base, (qpos, qvel) = model.body(robot.base).id, default_pose(policy.contract, 10.0)
    place(model, robot.data, base, policy.joints, qpos, qvel)
    told = policy.targets(np.zeros(len(policy.action)))
    for _ in range(round(seconds / model.opt.timestep)):
        qpos[7:], qvel[6:] = robot.data.qpos[robot.qpos], robot.data.qvel[robot.qvel]
        place(model, robot.data, base, policy.joints, qpos, qvel)
        robot.write(*told)
        mujoco.mj_step(model, robot.data)
    away = np.abs(robot.data.qpos[robot.qpos] - told[0]) * (told[2] > 0.0)
    return policy.joints[int(np.argmax(away))], float(away.max())


def _read(path: Path) -> tuple[mujoco.MjSpec, list[str]]:
    """Read a file; looks whose meshes are not there are left out."""
    if not path.is_file():
        raise DeployError(f"{display(path)}: no such file")
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        spec.compile()
        return spec, []
    except ValueError as error:
        problem = " ".join(str(error).split())
    try:
        stripped, left_out = _without_missing_meshes(path)
        if left_out:
            spec = mujoco.MjSpec.from_string(stripped)
            spec.compile()
            return spec, [f"{left_out} meshes are not there; their looks are left out"]
    except (ValueError, ElementTree.ParseError) as error:
        problem = " ".join(str(error).split())
    raise DeployError(f"{display(path)}: cannot be read: {problem}")


def _without_missing_meshes(path: Path) -> tuple[str, int]:
    """Leave out meshes whose files are missing, with the geoms that only show them; the text, and how many."""
    tree = ElementTree.parse(path).getroot()
    compiler = tree.find("compiler")
    folder = path.parent / (compiler.get("meshdir", "") if compiler is not None else "")
    missing = set()
    for asset in tree.findall("asset"):
        for mesh in asset.findall("mesh"):
            if (file := mesh.get("file")) and not (folder / file).is_file():
                missing.add(mesh.get("name") or Path(file).stem)
                asset.remove(mesh)
    count = len(missing)
    for parent in tree.iter():
        for geom in parent.findall("geom"):
            if geom.get("mesh") in missing:
                parent.remove(geom)
    return ElementTree.tostring(tree, encoding="unicode"), count


def _base(model: mujoco.MjModel, contract: Mapping[str, Any], where: str) -> str:
    """Find the contract's base by its name, or else the free body on which the robot's joints hang.

    Raises:
        DeployError: there is none.
    """
    bodies = [model.body(index).name for index in range(model.nbody)]
    if contract["base"] in bodies:
        return contract["base"]
    carriers = {free_body(model, int(model.joint(joint["name"]).bodyid[0])) for joint in contract["joints"]}
    if len(carriers) == 1 and (body := carriers.pop()) is not None:
        return bodies[body]
    near = did_you_mean(contract["base"], bodies) or f"; it has {quoted(bodies[1:8])}"
    raise DeployError(f"{where}: no body {contract['base']!r}, whose orientation the policy sees{near}")


def check_time(model: mujoco.MjModel, contract: Mapping[str, Any], where: str) -> None:
    """Check that a policy's step is a whole number of the model's."""
    steps = contract["control_dt"] / model.opt.timestep
    if abs(steps - round(steps)) > 1e-6 * steps or round(steps) < 1:
        raise DeployError(
            f"{where}: option.timestep: {model.opt.timestep:g} s goes {steps:.3f} times into the policy's step of "
            f"{contract['control_dt']:g} s; give it one that goes a whole number of times, like {contract['physics_dt']:g}"
        )


def _add_ground(spec: mujoco.MjSpec, model: mujoco.MjModel, base: str, contract: Mapping[str, Any]) -> None:
    """Add the contract's plane, which everything that can collide at all collides with, and light to see by."""
    bits = int(np.bitwise_or.reduce(np.concatenate((model.geom_contype, model.geom_conaffinity, [1]))))
    spec.worldbody.add_geom(
        PLAIN,
        name=f"{_PREFIX}ground",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[0.0, 0.0, 0.05],
        contype=bits,
        conaffinity=bits,
        friction=contract["ground"],
    )
    for texture in list(spec.textures):
        if texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            spec.delete(texture)
    dress(spec, base, f"{_PREFIX}ground", _PREFIX)


def _put_motors(
    spec: mujoco.MjSpec, model: mujoco.MjModel, contract: Mapping[str, Any], limits: Mapping[str, tuple[float, float]]
) -> list[str]:
    """Replace the motors; the joints whose damping stands for the gain of a position servo without one."""
    names, damped = [joint["name"] for joint in contract["joints"]], []
    for name in names:
        servos = [one for one in motors_of(model, name) if model.actuator_biasprm[one, 1] != 0.0]
        if any(model.actuator_biasprm[one, 2] == 0.0 for one in servos) and model.dof_damping[model.joint(name).dofadr[0]] > 0.0:
            damped.append(name)
    for joint in contract["joints"]:
        (low, high), effort = limits[joint["name"]], joint["effort_limit"]
        _put_motor(spec, joint, max(low, -effort), min(high, effort))
    return damped


def _put_motor(spec: mujoco.MjSpec, joint: Mapping[str, Any], low: float, high: float) -> None:
    """Put a servo with the contract's gains in, in place of whatever motors a joint has; torques from low to high [N m]."""
    for actuator in list(spec.actuators):
        if joint["name"] in (actuator.target, actuator.name):
            spec.delete(actuator)
    motor = spec.add_actuator(PLAIN, name=joint["name"], target=joint["name"], trntype=mujoco.mjtTrn.mjTRN_JOINT)
    motor.set_to_position(kp=joint["stiffness"], kv=joint["damping"])
    motor.forcelimited, motor.forcerange, motor.ctrllimited = True, (low, high), False
    # whatever the file's defaults say of motors
    motor.gear, motor.ctrlrange, motor.inheritrange = (1, 0, 0, 0, 0, 0), (0, 0), 0.0
    motor.dyntype, motor.actlimited, motor.actrange, motor.actdim = mujoco.mjtDyn.mjDYN_NONE, False, (0, 0), -1
    spec.joint(joint["name"]).actfrclimited = mujoco.mjtLimited.mjLIMITED_FALSE


def _hold(spec: mujoco.MjSpec, held: list[Mapping[str, Any]]) -> mujoco.MjSpec:
    """Put servos in that hold joints, in place of whatever motors they have."""
    for joint in held:
        _put_motor(spec, joint, -joint["effort_limit"], joint["effort_limit"])
    return spec


def _in_pose(spec: mujoco.MjSpec, held: list[Mapping[str, Any]]) -> mujoco.MjModel:
    """Compile a model whose keyframe has joints where they are held, and their servos told so."""
    model = spec.compile()
    for joint in held:
        model.key_qpos[0, model.joint(joint["name"]).qposadr[0]] = joint["position"]
        model.key_ctrl[0, model.actuator(joint["name"]).id] = joint["position"]
    return model


def _check_servos(model: mujoco.MjModel, contract: Mapping[str, Any], where: str) -> list[str]:
    """Check that each joint has one motor of its own that follows its kind of target; what gains it has, measured.

    Raises:
        DeployError: it has none, or one of another kind.
    """
    by_velocity = {name for part in contract["actions"] if part["target"] == "velocity" for name in part["joint_names"]}
    told, data = [], mujoco.MjData(model)
    for joint in contract["joints"]:
        name, motors = joint["name"], motors_of(model, joint["name"])
        what = ""
        if len(motors) != 1:
            what = f"has {len(motors)} motors"
        elif model.actuator_biastype[motors[0]] != int(mujoco.mjtBias.mjBIAS_AFFINE):
            what = "has a torque motor, which follows no target"
        elif model.actuator_dyntype[motors[0]] != int(mujoco.mjtDyn.mjDYN_NONE):
            what = "has a motor with a state of its own"
        elif (model.actuator_biasprm[motors[0], 1] == 0.0) != (name in by_velocity):
            what = (
                "has a servo of the " + ("position" if name in by_velocity else "velocity") + ", and the policy gives the other"
            )
        if what:
            raise DeployError(f"{where}: --keep-motors: {name} {what}; leave the option out")
        kp, kd = _gains(model, data, model.joint(name), motors[0])
        for letter, measured, wanted in (("kp", kp, joint["stiffness"]), ("kd", kd, joint["damping"])):
            if not (letter == "kp" and name in by_velocity) and abs(measured - wanted) > SAME * max(abs(wanted), 1e-3):
                told.append(f"{letter} of {name}: {wanted:.4g} in training, {measured:.4g} here")
    return told


def _gains(model: mujoco.MjModel, data: mujoco.MjData, joint: Any, motor: int) -> tuple[float, float]:
    """Measure the torque of a servo per radian that its joint is away, and per radian a second."""
    qpos, dof, torques = int(joint.qposadr[0]), int(joint.dofadr[0]), []
    for away, rate in ((0.0, 0.0), (0.001, 0.0), (0.0, 0.01)):
        mujoco.mj_resetData(model, data)
        data.ctrl[motor] = data.qpos[qpos]
        data.qpos[qpos] -= away
        data.qvel[dof] = -rate
        mujoco.mj_forward(model, data)
        torques.append(float(data.qfrc_actuator[dof]))
    return (torques[1] - torques[0]) / 0.001, (torques[2] - torques[0]) / 0.01


def _stand(model: mujoco.MjModel, base: str, contract: Mapping[str, Any], lower: float) -> mujoco.MjData:
    """Put the robot on the ground in its default pose, so much lower than it would just touch it in training [m]."""
    data, names = fresh(model), [joint["name"] for joint in contract["joints"]]
    place(model, data, model.body(base).id, names, *default_pose(contract, contract["base_height"] - lower))
    mujoco.mj_forward(model, data)
    return data


def _lift(model: mujoco.MjModel, base: str, contract: Mapping[str, Any]) -> float:
    """Find how much the base must rise in the default pose so that nothing is in the ground [m]."""
    data = _stand(model, base, contract, 0.0)
    return max(0.0, -float(data.contact.dist.min())) if data.ncon else 0.0


def _grip(model: mujoco.MjModel, base: str, contract: Mapping[str, Any]) -> float | None:
    """Find the sliding friction with the ground of what the robot stands on; None where it stands on nothing."""
    data = _stand(model, base, contract, 0.005)
    return float(data.contact.friction[:, 0].min()) if data.ncon else None
