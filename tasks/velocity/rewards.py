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


@reward()
def still_joints(env: Moment, *, command: str = "velocity") -> Tensor:
    """sum_j qd_j^2 where standing is asked for."""
    return env.robot.joint_vel.square().sum(-1) * (1.0 - env.command_term(command).moving(env))


@reward(needs=("air_time",))
def feet_air_time(env: Moment, *, minimum: NonNegative = 0.2, maximum: Positive = 0.5, command: str = "velocity") -> Tensor:
    """sum_f (clamp(t_air,f, max) - min) at the moment a foot comes down x `walks` [s]."""
    flight = env.tracker("air_time").flight
    earned = (torch.minimum(flight, torch.as_tensor(maximum)) - minimum) * (flight > 0)
    return earned.sum(-1) * _walking(env, command)


@reward(needs=("foot_frames",))
def foot_clearance(env: Moment, *, target: Positive = 0.08, command: str = "velocity") -> Tensor:
    """sum_f |h_f - target| |v_xy,f|, with h the height of a foot's underside [m], while walking is asked for."""
    speed = env.robot.foot_lin_vel_w[..., :2].norm(dim=-1)
    return ((_heights(env) - target).abs() * speed).sum(-1) * env.command_term(command).moving(env)


@reward(needs=("foot_contact",))
def gait_phase(env: Moment, *, stance: Fraction = 0.55, gated: Fraction = 1.0, command: str = "velocity") -> Tensor:
    """mean_f [contact_f == stance_f] x (1 - gated + gated `walks`); 1 while standing is asked for.

    A foot is in stance for the share `stance` of its cycle, which robot.yaml's `gait_offset` begins.  `gated` is the share of the
    pay that only who gets somewhere has.  Standing asks nothing of the feet: a robot told to stop at full speed has to step to
    keep its balance.
    """
    stands = env.command_term(command).cycle(env) < stance
    kept = (stands == (env.robot.foot_contact > 0)).float().mean(-1)
    return _earned(env, command, kept, 1.0, gated)


@reward(needs=("foot_contact", "foot_frames"))
def clocked_steps(
    env: Moment,
    *,
    stance: Fraction = 0.58,
    target: Positive = 0.07,
    slip: Positive = 0.3,
    gated: Fraction = 1.0,
    command: str = "velocity",
) -> Tensor:
    """mean_f of what each foot does at its time x (1 - gated + gated `walks`); as planted as can be, standing.

    In stance, for the share `stance` of its cycle, c_f exp(-|v_xy,f|^2 / slip^2), with c_f 1 where it touches the ground; in
    swing min(1, h_f / (target sin(pi s) + 1 cm)) where it does not, s in [0, 1] of the swing, h the height of its underside [m].
    Unlike `gait_phase` it pays neither for feet that chatter nor for feet that slide.
    """
    cycle, contact = env.command_term(command).cycle(env), env.robot.foot_contact
    swing = ((cycle - stance) / (1.0 - stance)).clamp(min=0.0)
    planted = contact * torch.exp(-env.robot.foot_lin_vel_w[..., :2].square().sum(-1) / slip**2)
    lifted = (_heights(env) / (target * torch.sin(math.pi * swing) + 0.01)).clamp(0.0, 1.0) * (1.0 - contact)
    return _earned(env, command, torch.where(cycle >= stance, lifted, planted).mean(-1), planted.mean(-1), gated)


@reward(needs=("foot_orientation",))
def flat_feet(env: Moment) -> Tensor:
    """sum_f sin^2 of the angle by which a foot is tilted from how it stands in the default pose."""
    w, x, y, z = env.robot.foot_quat_w.unbind(-1)
    up = torch.stack(
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), dim=-1
    )  # the world's, in the foot's frame
    return (1.0 - (up * env.robot.default_foot_up).sum(-1).square()).clamp(min=0.0).sum(-1)


@reward(needs=("foot_frames",))
def feet_apart(env: Moment, *, minimum: Positive = 0.18) -> Tensor:
    """sum how much closer than `minimum` a left and a right foot are across the base's heading [m]."""
    (left, right), across = env.robot.foot_pairs, env.robot.foot_left
    return (minimum - (across[:, left] - across[:, right])).clamp(min=0.0).sum(-1)  # of legs that have crossed it is below zero


def _heights(env: Moment) -> Tensor:
    """Height of each foot's underside above the ground, heel or toe, whichever is lower [m], (N, F)."""
    return env.robot.foot_underside_w - env.terrain.height(env.robot.foot_pos_w[..., :2])


def _walking(env: Moment, command: str) -> Tensor:
    """Whether the robot gets where it is asked to, in [0, 1]; 0 while standing is asked for, (N,)."""
    term = env.command_term(command)
    return term.moving(env) * term.walks


def _earned(env: Moment, command: str, walking: Tensor, standing: Tensor | float, gated: Tensor | float) -> Tensor:
    """Pay for steps as far as the robot gets anywhere by them, (N,): feet that step in place are no gait."""
    term = env.command_term(command)
    return torch.where(term.moving(env) > 0, walking * (1.0 - gated + gated * term.walks), standing)
