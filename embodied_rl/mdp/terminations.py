"""Termination terms: `(env, ...) -> (N,)` bool."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.config.types import BodyGroup, NonNegative, Positive
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.term import termination


@termination(time_out=True)
def time_out(env: Moment) -> Tensor:
    """t >= env.episode_s."""
    return env.episode_length >= env.max_episode_length


@termination()
def tilt(env: Moment, *, limit: Positive = 1.0) -> Tensor:
    """angle between the base's z axis and the vertical > limit [rad]."""
    return -env.robot.projected_gravity_b[:, 2] < torch.cos(torch.as_tensor(limit))


@termination(needs=("contact:{group}",))
def illegal_contact(env: Moment, *, group: BodyGroup = "base") -> Tensor:
    """any body of the group touches something."""
    return env.robot.contact(group).amax(-1) > 0


@termination()
def out_of_bounds(env: Moment, *, distance: Positive) -> Tensor:
    """|x| or |y| of the base > distance [m] from the origin."""
    return env.robot.base_pos_w[:, :2].abs().amax(-1) > distance


@termination(time_out=True)
def leaves_ground(env: Moment, *, margin: NonNegative = 0.5) -> Tensor:
    """|x| or |y| of the base > that of the edge of the ground - margin [m]; never on a plane."""
    beside = env.robot.base_pos_w[:, :2].abs()
    return (beside[:, 0] > env.terrain.half[0] - margin) | (beside[:, 1] > env.terrain.half[1] - margin)


@termination()
def height(env: Moment, *, minimum: Positive) -> Tensor:
    """height of the base above the ground < minimum [m]."""
    position = env.robot.base_pos_w
    return position[:, 2] - env.terrain.height(position[:, :2]) < minimum
