"""Observation terms: `(env, ...) -> (N, size)`, clean; the group adds noise, clips, scales, delays and stacks."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.mdp.term import observation
from embodied_rl.mdp.view import View


@observation(mirror="vector")
def base_lin_vel(env: View) -> Tensor:
    """Velocity of the base in its own frame [m/s], (N, 3)."""
    return env.robot.base_lin_vel_b


@observation(mirror="pseudovector")
def base_ang_vel(env: View) -> Tensor:
    """Angular velocity of the base in its own frame, as a gyroscope gives it [rad/s], (N, 3)."""
    return env.robot.base_ang_vel_b


@observation(mirror="vector")
def projected_gravity(env: View) -> Tensor:
    """Direction of gravity in the base frame, (N, 3)."""
    return env.robot.projected_gravity_b


@observation(mirror="scalar")
def base_height(env: View) -> Tensor:
    """Height of the base above the ground below it [m], (N, 1)."""
    position = env.robot.base_pos_w
    return (position[:, 2] - env.terrain.height(position[:, :2]))[:, None]


@observation(mirror="joints")
def joint_pos(env: View) -> Tensor:
    """Joint positions, counted from the default pose [rad], (N, J)."""
    return env.robot.joint_pos - env.robot.default_joint_pos


@observation(mirror="joints")
def joint_vel(env: View) -> Tensor:
    """Joint velocities [rad/s], (N, J)."""
    return env.robot.joint_vel


@observation(mirror="joints", needs=("joint_torque",))
def joint_torque(env: View) -> Tensor:
    """Torques of the actuators [N m], (N, J)."""
    return env.robot.joint_torque


@observation(mirror="joints")
def last_action(env: View) -> Tensor:
    """Last actions of the policy, (N, A)."""
    return env.actions


@observation(mirror="feet", needs=("foot_contact",))
def foot_contact(env: View) -> Tensor:
    """1 where a foot touches the ground, (N, F)."""
    return env.robot.foot_contact


@observation(mirror="feet", needs=("foot_frames",))
def foot_height(env: View) -> Tensor:
    """Height of the feet's undersides above the ground [m], (N, F)."""
    position = env.robot.foot_pos_w
    return position[..., 2] - env.robot.foot_radius - env.terrain.height(position[..., :2])


@observation(mirror="feet", needs=("foot_air_time",))
def foot_air_time(env: View) -> Tensor:
    """How long each foot has been in the air [s], (N, F)."""
    return env.buffers["foot_air_time"]


@observation(mirror="feet", needs=("foot_friction",))
def foot_friction(env: View) -> Tensor:
    """Sliding friction coefficient of each foot, (N, F)."""
    return env.buffers["foot_friction"]


@observation(mirror="velocity_command")
def velocity_command(env: View, *, command: str = "velocity") -> Tensor:
    """Velocities that are asked for: vx, vy [m/s] in the base's yaw frame and the yaw rate [rad/s], (N, 3)."""
    return env.command(command)


@observation(mirror="phase")
def gait_phase(env: View, *, command: str = "velocity") -> Tensor:
    """Sine and cosine of the gait clock, both 0 while standing is asked for, (N, 2)."""
    phase = env.commands[command].phase(env)
    moving = env.commands[command].moving(env)
    return torch.stack((torch.sin(phase), torch.cos(phase)), dim=-1) * moving[:, None]
