"""Event terms: what happens to the robot from outside its policy.

`reset` events shape the draft from which finished rows start anew; `interval` events push rows that go on.  All draw from
`env.draw`.  What they do to the numbers of the model is a table of its own, `embodied_rl.mdp.randomize`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl import rotations
from embodied_rl.config.types import NonNegative, Positive, Range
from embodied_rl.errors import UserError
from embodied_rl.mdp.draft import Draft
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.term import event


@event(mode="reset")
def reset_base(
    env: Moment,
    draft: Draft,
    *,
    position: NonNegative = 0.5,
    height: Range = (0.0, 0.0),
    yaw: NonNegative = 3.141593,
    tilt: NonNegative = 0.0,
    lin_vel: NonNegative = 0.0,
    ang_vel: NonNegative = 0.0,
) -> None:
    """Start the base within +-position [m] and +-yaw [rad], rolled and pitched within +-tilt [rad], with random velocities.

    `height` [m] is added to the default one; velocities are within +-lin_vel [m/s] and +-ang_vel [rad/s] in each axis.
    """
    _floating(env, "reset_base")
    xy = env.draw.between(-position, position, 2)
    z = env.draw.between(height[0], height[1], 1)
    angles = env.draw.between(-1.0, 1.0, 3)
    quat = rotations.quat_from_euler(tilt * angles[:, 0], tilt * angles[:, 1], yaw * angles[:, 2])
    quat = rotations.quat_mul(quat, draft.root_quat(env.robot))
    draft.set_root_pose(env.robot, draft.root_pos(env.robot) + torch.cat((xy, z), dim=-1), quat)
    draft.set_root_velocity(env.robot, env.draw.between(-lin_vel, lin_vel, 3), env.draw.between(-ang_vel, ang_vel, 3))


@event(mode="reset")
def reset_joints(env: Moment, draft: Draft, *, position: NonNegative = 0.1, velocity: NonNegative = 0.0) -> None:
    """Start joints within +-position [rad] of the default pose, inside their limits, and +-velocity [rad/s]."""
    robot = env.robot
    count = len(robot.qpos_index)
    angles = robot.default_joint_pos + env.draw.between(-position, position, count)
    angles = torch.minimum(torch.maximum(angles, robot.joint_limits[0]), robot.joint_limits[1])
    draft.set_joints(robot, angles, env.draw.between(-velocity, velocity, count))


@event(mode="interval")
def push(
    env: Moment, draft: Draft, *, interval_s: Positive = 10.0, lin_vel: NonNegative = 0.5, ang_vel: NonNegative = 0.0
) -> Tensor:
    """Add a random velocity to the base, every interval_s on average (a memoryless process); the rows pushed, (N,).

    Horizontal components within +-lin_vel [m/s], angular ones within +-ang_vel [rad/s].
    """
    _floating(env, "push")
    hit = env.draw(1)[:, 0] < env.step_dt / interval_s
    horizontal = torch.cat((env.draw.between(-lin_vel, lin_vel, 2), torch.zeros_like(hit[:, None].float())), dim=-1)
    angular = env.draw.between(-ang_vel, ang_vel, 3)
    draft.add_root_velocity(env.robot, horizontal * hit[:, None], angular * hit[:, None])
    return hit


def _floating(env: Moment, name: str) -> None:
    if not env.robot.floating:
        raise UserError(f"events.{name}: the base of {env.scene.robot.name} does not move; take the entry off the page")
