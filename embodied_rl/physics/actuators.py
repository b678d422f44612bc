"""What the actuators of a model do to its joints."""

from __future__ import annotations

import mujoco
import numpy as np

_JOINT = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))


def motors_of(model: mujoco.MjModel, name: str | int) -> list[int]:
    """List the actuators that drive a joint, of this name or number."""
    joint = model.joint(name).id
    return [
        one for one in range(model.nu) if int(model.actuator_trntype[one]) in _JOINT and model.actuator_trnid[one, 0] == joint
    ]


def torque_range(model: mujoco.MjModel, name: str | int) -> tuple[float, float]:
    """Find the torques between which a model lets its actuators turn a joint [N m]; infinite where it sets none."""
    joint = model.joint(name).id
    ranges = [model.jnt_actfrcrange[joint]] if model.jnt_actfrclimited[joint] else []
    for motor in motors_of(model, name):
        gear, torque = model.actuator_gear[motor, 0], model.actuator_biastype[motor] == int(mujoco.mjtBias.mjBIAS_NONE)
        if model.actuator_forcelimited[motor]:
            ranges.append(np.sort(gear * model.actuator_forcerange[motor]))
        elif model.actuator_ctrllimited[motor] and torque:
            ranges.append(np.sort(gear * model.actuator_gainprm[motor, 0] * model.actuator_ctrlrange[motor]))
    return max([-np.inf, *(float(low) for low, _ in ranges)]), min([np.inf, *(float(high) for _, high in ranges)])
