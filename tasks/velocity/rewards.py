"""Rewards that speak of a velocity command."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from embodied_rl.config.types import Fraction, NonNegative, Positive
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.term import reward


@reward()
def track_linear_velocity(env: Moment, *, std: Positive = 0.5, command: str = "velocity") -> Tensor:
    """exp(-|v_xy - command|^2 / std^2), v in the base's yaw frame."""
    error = (env.robot.lin_vel_yaw - env.command(command)[:, :2]).square().sum(-1)
    return torch.exp(-error / std**2)


@reward()
def track_angular_velocity(env: Moment, *, std: Positive = 0.5, command: str = "velocity") -> Tensor:
    """exp(-(w_z - command)^2 / std^2), w about the vertical."""
    error = (env.robot.yaw_rate - env.command(command)[:, 2]).square()
    return torch.exp(-error / std**2)


@reward()
def stand_still(env: Moment, *, command: str = "velocity") -> Tensor:
    """sum_j |q_j - q0_j| where standing is asked for."""
    away = (env.robot.joint_pos - env.robot.default_joint_pos).abs().sum(-1)
    return away * (1.0 - env.command_term(command).moving(env))


@reward(needs=("air_time",))
def feet_air_time(env: Moment, *, minimum: NonNegative = 0.2, maximum: Positive = 0.5, command: str = "velocity") -> Tensor:
    """sum_f (clamp(t_air,f, max) - min) at the moment a foot comes down, while walking is asked for [s]."""
    flight = env.tracker("air_time").flight
    earned = (torch.minimum(flight, torch.as_tensor(maximum)) - minimum) * (flight > 0)
    return earned.sum(-1) * env.command_term(command).moving(env)


@reward(needs=("foot_frames",))
def foot_clearance(env: Moment, *, target: Positive = 0.08, command: str = "velocity") -> Tensor:
    """sum_f |h_f - target| |v_xy,f|, with h the height of a foot's underside [m], while walking is asked for."""
    height = env.robot.foot_underside_w - env.terrain.height(env.robot.foot_pos_w[..., :2])
    speed = env.robot.foot_lin_vel_w[..., :2].norm(dim=-1)
    return ((height - target).abs() * speed).sum(-1) * env.command_term(command).moving(env)


@reward(needs=("foot_contact",))
def gait_phase(env: Moment, *, stance: Fraction = 0.55, command: str = "velocity") -> Tensor:
    """mean_f [contact_f == stance_f], each foot's cycle begun by its gait offset; 1 while standing is asked for.

    A foot is in stance for the share `stance` of each cycle; `gait_offset` is robot.yaml's.  Standing asks nothing of the feet: a
    robot told to stop at full speed has to step to keep its balance.
    """
    phase = env.command_term(command).phase(env)[:, None]
    offset = 2.0 * math.pi * env.robot.gait_offset
    cycle = torch.remainder((phase + offset) / (2.0 * math.pi), 1.0)
    kept = ((cycle < stance) == (env.robot.foot_contact > 0)).float().mean(-1)
    return torch.where(env.command_term(command).moving(env) > 0, kept, 1.0)
