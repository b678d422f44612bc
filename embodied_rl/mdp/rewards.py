"""Reward terms that any legged task may use: `(env, ...) -> (N,)`, unweighted; penalties get a negative weight."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.config.types import BodyGroup, Fraction, PerGroup, Positive
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.term import reward


@reward()
def alive(env: Moment) -> Tensor:
    """1."""
    return torch.ones_like(env.robot.heading)


@reward(floored=False)
def termination(env: Moment) -> Tensor:
    """1 / step_dt where the episode ends other than by time, so that its weight is the whole price of a fall."""
    assert env.terminated is not None
    return env.terminated.float() / env.step_dt


@reward()
def vertical_velocity(env: Moment) -> Tensor:
    """v_z^2."""
    return env.robot.base_lin_vel_w[:, 2].square()


@reward()
def roll_pitch_rate(env: Moment) -> Tensor:
    """w_x^2 + w_y^2."""
    return env.robot.base_ang_vel_b[:, :2].square().sum(-1)


@reward()
def orientation(env: Moment) -> Tensor:
    """g_x^2 + g_y^2, with g the direction of gravity in the base frame."""
    return env.robot.projected_gravity_b[:, :2].square().sum(-1)


@reward()
def base_height(env: Moment, *, target: Positive) -> Tensor:
    """(h - target)^2, with h the height of the base above the ground [m]."""
    position = env.robot.base_pos_w
    return (position[:, 2] - env.terrain.height(position[:, :2]) - target).square()


@reward()
def pose(env: Moment, *, std: PerGroup[Positive] = 0.5) -> Tensor:
    """exp(-mean_j ((q_j - q0_j) / std_j)^2)."""
    error = ((env.robot.joint_pos - env.robot.default_joint_pos) / std).square()
    return torch.exp(-error.mean(-1))


@reward()
def joint_limits(env: Moment, *, soft: Fraction = 0.9) -> Tensor:
    """sum_j how far q_j is beyond the inner share `soft` of its range [rad]."""
    low, high = env.robot.joint_limits
    middle, half = 0.5 * (low + high), 0.5 * (high - low) * soft
    return ((env.robot.joint_pos - middle).abs() - half).clamp(min=0.0).sum(-1)


@reward(needs=("previous_joint_vel",))
def joint_acceleration(env: Moment) -> Tensor:
    """sum_j ((qd_j - qd_j of the step before) / step_dt)^2."""
    return ((env.robot.joint_vel - env.tracker("previous_joint_vel").value) / env.step_dt).square().sum(-1)


@reward(needs=("joint_torque",))
def torques(env: Moment) -> Tensor:
    """sum_j tau_j^2."""
    return env.robot.joint_torque.square().sum(-1)


@reward(needs=("joint_torque",))
def energy(env: Moment) -> Tensor:
    """sum_j |tau_j qd_j| [W]."""
    return (env.robot.joint_torque * env.robot.joint_vel).abs().sum(-1)


@reward()
def action_rate(env: Moment) -> Tensor:
    """sum_a (a - a of the step before)^2."""
    return (env.actions - env.previous_actions).square().sum(-1)


@reward(needs=("foot_contact", "foot_frames"))
def foot_slip(env: Moment) -> Tensor:
    """sum_f c_f |v_xy,f|^2, with c_f 1 where the foot touches the ground."""
    return (env.robot.foot_contact * env.robot.foot_lin_vel_w[..., :2].square().sum(-1)).sum(-1)


@reward(needs=("contact:{group}",))
def undesired_contacts(env: Moment, *, group: BodyGroup = "thighs") -> Tensor:
    """how many bodies of the group touch something."""
    return env.robot.contact(group).sum(-1)
