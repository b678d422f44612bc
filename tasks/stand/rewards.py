"""Rewards that speak of a pose command."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.config.types import Positive
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.term import reward

from .command import gravity_of, height_above


@reward()
def track_height(env: Moment, *, std: Positive = 0.05, command: str = "pose") -> Tensor:
    """exp(-(h - command)^2 / std^2), h the height of the base above the ground [m]."""
    error = height_above(env.robot.base_pos_w, env.terrain) - env.command(command)[:, 0]
    return torch.exp(-error.square() / std**2)


@reward()
def track_attitude(env: Moment, *, std: Positive = 0.1, command: str = "pose") -> Tensor:
    """exp(-|g - command|^2 / std^2), g and command the directions of gravity in the base as it is and as it is asked to be."""
    error = env.robot.projected_gravity_b - gravity_of(env.command(command))
    return torch.exp(-error.square().sum(-1) / std**2)


@reward(needs=("foot_contact",))
def feet_down(env: Moment) -> Tensor:
    """mean_f c_f, with c_f 1 where the foot touches the ground."""
    return env.robot.foot_contact.mean(-1)
