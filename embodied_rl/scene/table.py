"""A compiled robot in rows: every number of its joints, links, collision geoms and what else acts on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np

from embodied_rl.scene.build import Scene


def rows(scene: Scene) -> Iterator[str]:
    """Write the robot of a scene, as it is simulated: SI units, poses in the parent's frame, quaternions wxyz."""
    robot, model = scene.robot, scene.model
    yield f"robot {robot.name}: base {robot.base}, {_numbers(robot.base_height)} m above the ground"
    columns = zip(
        *(robot.joint_names, robot.default_joint_pos, robot.stiffness, robot.damping, robot.effort_limit),
        *(robot.velocity_limit, robot.sdk_index),
        strict=True,
    )
    for name, default, stiffness, damping, effort, speed, index in columns:
        joint = model.joint(name)
        dof = int(joint.dofadr[0])
        kind = mujoco.mjtJoint(int(joint.type[0])).name.removeprefix("mjJNT_").lower()
        bounds = f"[{_numbers(joint.range)}]" if joint.limited[0] else "unlimited"
        motor = f"kp {_numbers(stiffness)} kd {_numbers(damping)} effort {_numbers(effort)}"
        motor += "" if speed is None else f" speed {_numbers(speed)}"
        passive = {"armature": model.dof_armature, "damping": model.dof_damping, "friction": model.dof_frictionloss}
        passive = {key: values[dof] for key, values in passive.items()}
        passive |= {"spring": joint.stiffness[0], "ref": model.qpos0[joint.qposadr[0]], "margin": joint.margin[0]}
        more = " ".join(f"{key} {_numbers(value)}" for key, value in passive.items() if value)
        placed = f"axis {_numbers(joint.axis)} at {_numbers(joint.pos)}"
        limit = _constraint(joint.solref, joint.solimp) if joint.limited[0] else ""
        sdk = "" if index is None else f" sdk {index}"
        yield f"joint {name}{sdk}: {kind} {placed} {bounds} default {_numbers(default)} {motor} {more}{limit}"
    for index in range(1, model.nbody):
        body = model.body(index)
        inertia = (
            f"mass {_numbers(body.mass)} at {_numbers(body.ipos)} inertia {_numbers(body.inertia)} turned {_numbers(body.iquat)}"
        )
        weight = f" gravcomp {_numbers(model.body_gravcomp[index])}" if model.body_gravcomp[index] else ""
        pose = f"{_numbers(body.pos)} turned {_numbers(body.quat)}"
        yield f"link {body.name or index} of {model.body(int(body.parentid[0])).name}: {pose} {inertia}{weight}"
    for index in range(model.ngeom):
        yield _geom(model, index)
    looks = scene.render_model.ngeom - model.ngeom
    yield f"looks: {looks} geoms, {scene.render_model.nmesh} meshes, {scene.render_model.nmat} materials"
    for what, groups in (("joints", robot.groups), ("bodies", robot.bodies)):
        for name, members in groups.items():
            yield f"{what} {name}: {' '.join(members)}"
    for foot in robot.feet:
        site = model.site(foot.site)
        yield f"foot {foot.name}: {' '.join(foot.geoms)}, site {foot.site} at {_numbers(site.pos)}, gait {foot.gait_offset}"
    if robot.mirror:
        yield "mirror " + " ".join(f"{left}-{right}" for left, right in robot.mirror.items())
    if robot.welded:
        yield "welded " + " ".join(f"{name} {_numbers(value)}" for name, value in robot.welded.items())
    yield from _others(model)


def _geom(model: mujoco.MjModel, index: int) -> str:
    geom = model.geom(index)
    kind = mujoco.mjtGeom(int(geom.type[0])).name.removeprefix("mjGEOM_").lower()
    masks = (
        f"masks {int(geom.contype[0])} {int(geom.conaffinity[0])} priority {int(geom.priority[0])} condim {int(geom.condim[0])}"
    )
    more = {"margin": geom.margin[0], "gap": geom.gap[0], "solmix": geom.solmix[0] - 1.0}
    told = "".join(f" {key} {_numbers(value)}" for key, value in more.items() if value)
    pose = f"{_numbers(geom.pos)} turned {_numbers(geom.quat)}"
    shape = f"{kind} {_numbers(geom.size)} at {pose}"
    where = model.body(int(geom.bodyid[0])).name
    soft = _constraint(geom.solref, geom.solimp)
    return f"geom {geom.name or index} of {where}: {shape} friction {_numbers(geom.friction)} {masks}{told}{soft}"


def _others(model: mujoco.MjModel) -> Iterator[str]:
    """Write what else is compiled into a model: each field of it, whole."""
    for prefix, count in (("eq_", model.neq), ("tendon_", model.ntendon), ("pair_", model.npair), ("exclude_", model.nexclude)):
        if count:
            for name in sorted(name for name in dir(model) if name.startswith(prefix)):
                value = getattr(model, name)
                if isinstance(value, np.ndarray):
                    yield f"{name}: {_numbers(value)}"
    option = model.opt
    for name in ("gravity", "wind", "density", "viscosity", "magnetic", "disableflags", "enableflags", "o_margin", "impratio"):
        yield f"option {name}: {_numbers(getattr(option, name))}"


def _constraint(solref: Any, solimp: Any) -> str:
    """Write how soft a constraint is, where it is not as MuJoCo has it by default."""
    usual = (0.02, 1.0), (0.9, 0.95, 0.001, 0.5, 2.0)
    told = zip(("solref", "solimp"), (solref, solimp), usual, strict=True)
    return "".join(f" {name} {_numbers(value)}" for name, value, default in told if not np.allclose(value, default))


def _numbers(value: Any) -> str:
    return " ".join(f"{float(one) + 0.0:.6g}" for one in np.ravel(value))
