"""What a policy sees of a velocity command."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.term import observation


@observation(mirror="velocity_command")
def velocity_command(env: Moment, *, command: str = "velocity") -> Tensor:
    """Velocities that are asked for: vx, vy [m/s] in the base's yaw frame and the yaw rate [rad/s], (N, 3)."""
    return env.command(command)


@observation(mirror="phase")
def gait_phase(env: Moment, *, command: str = "velocity") -> Tensor:
    """Sine and cosine of the gait clock, both 0 while standing is asked for, (N, 2)."""
    phase = env.commands[command].phase(env)
    moving = env.commands[command].moving(env)
    return torch.stack((torch.sin(phase), torch.cos(phase)), dim=-1) * moving[:, None]
