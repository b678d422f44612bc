"""How much room a scene needs for contacts and constraints, measured: MuJoCo Warp allocates it once."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import mujoco
import numpy as np

from embodied_rl.errors import UserError
from embodied_rl.physics.field_contacts import mujocos_own, smooth_fields

#: Robots dropped, for how long [s], and how far the measured maximum is exceeded.
_DROPS, _SECONDS, _HEADROOM = 24, 1.0, 1.5
_MULTIPLE = 8
#: Model fields whose numbers have a row of constraints each where they are above zero, and none where they are zero.
LOSSES = ("dof_frictionloss", "tendon_frictionloss")


def measure(model: mujoco.MjModel, pairs: np.ndarray, *, smooth: bool = False, seed: int = 0) -> tuple[int, int]:
    """Room for what happens when robots fall in every attitude, with random targets.

    Args:
        model: the model.
        pairs: ids of the geoms that may collide, (P, 2).
        smooth: whether the engine has our contacts of balls with height fields, which are fewer than MuJoCo's.
        seed: of the drops.

    Returns:
        nconmax: contacts, or pairs that the broad phase cannot tell from contacts, of one simulation; njmax: rows of the
        constraint Jacobian of one simulation.  Both with head-room.
    """
    rng, data = np.random.default_rng(seed), mujoco.MjData(model)
    contacts = candidates = rows = 0
    steps = round(_SECONDS / model.opt.timestep)
    with nullcontext() if smooth and _are_smooth() else mujocos_own():
        for _ in range(_DROPS):
            mujoco.mj_resetData(model, data)
            _scatter(model, data, rng)
            for step in range(steps):
                if step % 10 == 0:
                    data.ctrl[:] += rng.normal(0.0, 0.5, model.nu)
                mujoco.mj_step(model, data)
                contacts, rows = max(contacts, data.ncon), max(rows, data.nefc)
                if step % 5 == 0:
                    candidates = max(candidates, _near(model, data, pairs))
    return _room(max(contacts, candidates)), _room(rows)


def _are_smooth() -> bool:
    """Let balls on height fields have our contacts in C, if this machine can build them; there is room for MuJoCo's otherwise."""
    try:
        smooth_fields()
    except UserError:
        return False
    return True


def with_losses(model: mujoco.MjModel, field: str) -> tuple[mujoco.MjModel, int]:
    """Copy the model with a friction loss wherever it has none, and how many rows of constraints that adds.

    Engines with a fixed number of rows count those of the model; one that simulations add would otherwise be left out.
    """
    model = copy.copy(model)
    losses = getattr(model, field)
    without = losses <= 0.0
    losses[without] = 1.0
    return model, int(without.sum())


def _scatter(model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
    for joint in range(model.njnt):
        address, kind = model.jnt_qposadr[joint], model.jnt_type[joint]
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            quat = rng.normal(size=4)
            data.qpos[address + 3 : address + 7] = quat / np.linalg.norm(quat)
            data.qpos[address + 2] = max(data.qpos[address + 2], 0.4)
        elif kind in (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE) and model.jnt_limited[joint]:
            data.qpos[address] = rng.uniform(*model.jnt_range[joint])
    for actuator in range(model.nu):
        joint = model.actuator_trnid[actuator, 0]
        # a target of the joint's velocity stays zero, one of its position is where the joint is
        if model.actuator_trntype[actuator] == mujoco.mjtTrn.mjTRN_JOINT and model.actuator_biasprm[actuator, 1]:
            data.ctrl[actuator] = data.qpos[model.jnt_qposadr[joint]]


def _near(model: mujoco.MjModel, data: mujoco.MjData, pairs: np.ndarray) -> int:
    """Pairs whose bounding spheres touch; a plane's is all below it."""
    first, second = pairs[:, 0], pairs[:, 1]
    plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    first, second = np.where(plane[second], second, first), np.where(plane[second], first, second)
    apart = data.geom_xpos[second] - data.geom_xpos[first]
    normal = data.geom_xmat[first].reshape(-1, 3, 3)[:, :, 2]
    distance = np.where(plane[first], (apart * normal).sum(1), np.linalg.norm(apart, axis=1))
    reach = model.geom_rbound[second] + np.where(plane[first], 0.0, model.geom_rbound[first])
    margin = np.maximum(model.geom_margin[first], model.geom_margin[second])
    return int((distance <= reach + margin).sum())


def _room(measured: int) -> int:
    """With head-room, a whole multiple of 8."""
    return int(np.ceil(max(measured, 1) * _HEADROOM / _MULTIPLE) * _MULTIPLE)
