"""What a policy sees of a velocity command."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.mdp.mirrors import Reflection
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.term import observation


def _mirrored_command(robot: Part, **_: Any) -> Reflection:
    """Reflect (vx, vy, wz)."""
    return (0, 1, 2), (1.0, -1.0, -1.0)


def mirrored_phase(robot: Part, **_: Any) -> Reflection:
    """Reflect the sine and cosine of the clock: the mirrored feet take the turns of their partners.

    Raises:
        UserError: no shift of the clock that keeps sine and cosine up to their sign lets them.
    """
    offsets = robot.gait_offset.tolist()
    partners = [offsets[foot] for foot in robot.spec.foot_mirror()]
    for shift, sign in ((0.0, 1.0), (0.5, -1.0)):
        if all(abs(math.remainder(one + shift - other, 1.0)) < 1e-6 for one, other in zip(offsets, partners, strict=True)):
            return (0, 1), (sign, sign)
    raise UserError(
        f"{robot.spec.folder / 'robot.yaml'}: feet: the gait offsets {offsets} of left and right are neither the same nor half a "
        "cycle apart, so the gait has no mirror image; take ppo.symmetry: none"
    )


@observation(mirror=_mirrored_command)
def velocity_command(env: Moment, *, command: str = "velocity") -> Tensor:
    """Velocities that are asked for: vx, vy [m/s] in the base's yaw frame and the yaw rate [rad/s], (N, 3)."""
    return env.command(command)


@observation(mirror=mirrored_phase)
def gait_phase(env: Moment, *, command: str = "velocity") -> Tensor:
    """Sine and cosine of the gait clock, both 0 while standing is asked for, (N, 2)."""
    clock = env.command_term(command)
    phase = clock.phase(env)
    return torch.stack((torch.sin(phase), torch.cos(phase)), dim=-1) * clock.moving(env)[:, None]
