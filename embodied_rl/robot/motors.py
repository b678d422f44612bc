"""The gains of a motor, written as such or as the second-order system that they make of the joint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

GAINS = ("stiffness", "damping")
SECOND_ORDER = ("natural_frequency", "damping_ratio")


def gains(motor: Mapping[str, float]) -> tuple[float, float]:
    """Give stiffness and damping.

    A motor without load, I q'' = kp (target - q) - kd q' with its armature I, is the second-order system
    q'' + 2 zeta w q' + w^2 q = w^2 target of the textbooks, hence kp = I w^2 and kd = 2 zeta I w with w = 2 pi f.
    mjlab derives the gains of its robots likewise, from 10 Hz and a damping ratio of 2
    (https://github.com/mujocolab/mjlab/blob/main/src/mjlab/asset_zoo/robots/unitree_g1/g1_constants.py).
    """
    if "stiffness" in motor:
        return motor["stiffness"], motor["damping"]
    omega = 2.0 * math.pi * motor["natural_frequency"]  # [rad/s]
    return motor["armature"] * omega**2, 2.0 * motor["damping_ratio"] * motor["armature"] * omega


def mistakes(motor: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Find what keeps a motor from having gains and a limit: the key, and what is wrong with it."""
    direct, derived = ([key for key in keys if key in motor] for keys in (GAINS, SECOND_ORDER))
    if direct and derived:
        both = f"stands beside {derived[0]}: gains are written one way"
        yield direct[0], f"{both}, {' and '.join(GAINS)} or {' and '.join(SECOND_ORDER)}; null takes an inherited key away"
    elif not direct and not derived:
        yield GAINS[0], f"is missing; write {' and '.join(GAINS)}, or {' and '.join(SECOND_ORDER)} with armature"
    else:
        for pair, written in ((GAINS, direct), (SECOND_ORDER, derived)):
            if len(written) == 1:
                (other,) = (key for key in pair if key not in written)
                yield other, f"is missing beside {written[0]}; write both"
        if derived and not motor.get("armature"):
            yield "armature", f"is {'0' if 'armature' in motor else 'missing'}; gains of {derived[0]} need one above 0 [kg m^2]"
    if "effort_limit" not in motor:
        yield "effort_limit", "is missing; it must be a number"
