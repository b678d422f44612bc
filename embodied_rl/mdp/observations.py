"""Observation terms: `(env, ...) -> (N, size)`, clean; the group adds noise, clips, scales, delays and stacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.config.types import Positive
from embodied_rl.mdp.mirrors import Reflection
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.term import observation


@observation(mirror="vector", privileged=True)
def base_lin_vel(env: Moment) -> Tensor:
    """Velocity of the base in its own frame [m/s], (N, 3)."""
    return env.robot.base_lin_vel_b


@observation(mirror="pseudovector")
def base_ang_vel(env: Moment) -> Tensor:
    """Angular velocity of the base in its own frame, as a gyroscope gives it [rad/s], (N, 3)."""
    return env.robot.base_ang_vel_b


@observation(mirror="vector")
def projected_gravity(env: Moment) -> Tensor:
    """Direction of gravity in the base frame, (N, 3)."""
    return env.robot.projected_gravity_b


@observation(mirror="scalar", privileged=True)
def base_height(env: Moment) -> Tensor:
    """Height of the base above the ground below it [m], (N, 1)."""
    position = env.robot.base_pos_w
    return (position[:, 2] - env.terrain.height(position[:, :2]))[:, None]


def _grid(length: float, width: float, spacing: float) -> tuple[int, int]:
    """Count the points of a scan, forward and to the left."""
    return round(length / spacing) + 1, round(width / spacing) + 1


def _mirrored_scan(robot: Part, *, length: float, width: float, spacing: float, **others: Any) -> Reflection:
    """Swap left and right."""
    along, across = _grid(length, width, spacing)
    order = np.arange(along * across).reshape(along, across)[:, ::-1].ravel()
    return order.tolist(), (1.0,) * order.size


@observation(mirror=_mirrored_scan, coarse=True)
class height_scan:  # noqa: N801  named as its entry on the page
    """Ground around the base in the frame of its heading: how far it lies above where level ground would be [m], (N, P).

    A grid of `length` x `width` [m] with a point each `spacing` [m], its middle `ahead` [m] before the base; rows lead to the
    left, the rear one first.  Level ground lies the robot's base_height below the base.  Nothing is cast: no tilt and no
    height of the base hides a point, and a hole without a ground has none either.
    """

    def __init__(
        self, robot: Part, *, length: Positive = 1.6, width: Positive = 1.0, spacing: Positive = 0.1, ahead: float = 0.0
    ) -> None:
        along, across = _grid(float(length), float(width), float(spacing))
        points = torch.meshgrid(
            (torch.arange(along) - 0.5 * (along - 1)) * float(spacing) + float(ahead),
            (torch.arange(across) - 0.5 * (across - 1)) * float(spacing),
            indexing="ij",
        )
        self._points = torch.stack(points, dim=-1).flatten(0, 1).to(robot.default_joint_pos.device)
        self._level = robot.spec.base_height

    def __call__(self, env: Moment) -> Tensor:
        """Ask the ground for all points."""
        base = env.robot.base_pos_w
        ground = env.terrain.heights_around(base[:, :2], env.robot.heading, self._points)
        return ground - (base[:, 2:] - self._level)


@observation(mirror="joints")
def joint_pos(env: Moment) -> Tensor:
    """Joint positions, counted from the default pose [rad], (N, J)."""
    return env.robot.joint_pos - env.robot.default_joint_pos


@observation(mirror="joints")
def joint_vel(env: Moment) -> Tensor:
    """Joint velocities [rad/s], (N, J)."""
    return env.robot.joint_vel


@observation(mirror="joints", needs=("joint_torque",))
def joint_torque(env: Moment) -> Tensor:
    """Torques of the actuators [N m], (N, J)."""
    return env.robot.joint_torque


@observation(mirror="actions")
def last_action(env: Moment) -> Tensor:
    """Last actions of the policy, (N, A)."""
    return env.actions


@observation(mirror="feet", needs=("foot_contact",))
def foot_contact(env: Moment) -> Tensor:
    """1 where a foot touches the ground, (N, F)."""
    return env.robot.foot_contact


@observation(mirror="feet", needs=("foot_frames",), privileged=True)
def foot_height(env: Moment) -> Tensor:
    """Height of the feet's undersides above the ground [m], (N, F)."""
    return env.robot.foot_underside_w - env.terrain.height(env.robot.foot_pos_w[..., :2])


@observation(mirror="feet", needs=("air_time",))
def foot_air_time(env: Moment) -> Tensor:
    """How long each foot has been in the air [s], (N, F)."""
    return env.tracker("air_time").time


@observation(mirror="feet", needs=("model:geom_friction",), privileged=True)
def foot_friction(env: Moment) -> Tensor:
    """Sliding friction coefficient of each foot, (N, F)."""
    return env.model["geom_friction"][:, env.robot.first_foot_geoms, 0]
