"""Event terms: what happens to the robot from outside its policy.

`startup` events run once, when the environment is built, and change model fields of all rows.  `reset` events shape the draft
from which finished rows start anew; `interval` events push rows that go on.  All draw from `env.draw`.
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
    """The base starts within +-position [m] and +-yaw [rad], rolled and pitched within +-tilt [rad], with random velocities.

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
    """Joints start within +-position [rad] of the default pose, inside their limits, and +-velocity [rad/s]."""
    robot = env.robot
    count = len(robot.qpos_index)
    angles = robot.default_joint_pos + env.draw.between(-position, position, count)
    angles = torch.minimum(torch.maximum(angles, robot.joint_limits[0]), robot.joint_limits[1])
    draft.set_joints(robot, angles, env.draw.between(-velocity, velocity, count))


@event(mode="reset", fields=("geom_friction",))
def randomize_friction(env: Moment, draft: Draft, *, range: Range = (0.5, 1.25)) -> None:
    """One sliding friction for all feet of a robot, anew for each episode."""
    friction = env.draw.between(range[0], range[1], 1)
    fields = draft.model["geom_friction"]
    draft.model["geom_friction"] = torch.cat(
        (torch.where(env.robot.foot_geoms, friction, fields[..., 0])[..., None], fields[..., 1:]), dim=-1
    )


@event(mode="interval")
def push(
    env: Moment, draft: Draft, *, interval_s: Positive = 10.0, lin_vel: NonNegative = 0.5, ang_vel: NonNegative = 0.0
) -> Tensor:
    """Adds a random velocity to the base, every interval_s on average (a memoryless process); the rows pushed, (N,).

    Horizontal components within +-lin_vel [m/s], angular ones within +-ang_vel [rad/s].
    """
    _floating(env, "push")
    hit = env.draw(1)[:, 0] < env.step_dt / interval_s
    horizontal = torch.cat((env.draw.between(-lin_vel, lin_vel, 2), torch.zeros_like(hit[:, None].float())), dim=-1)
    angular = env.draw.between(-ang_vel, ang_vel, 3)
    draft.add_root_velocity(env.robot, horizontal * hit[:, None], angular * hit[:, None])
    return hit


@event(mode="startup", fields=("body_mass", "body_inertia"))
def randomize_base_mass(env: Moment, draft: Draft, *, added: Range = (-1.0, 2.0)) -> None:
    """Adds mass [kg] to the base, its inertia growing in proportion."""
    body = env.scene.base_body
    mass, inertia = draft.model["body_mass"].clone(), draft.model["body_inertia"].clone()
    grown = mass[:, body] + env.draw.between(added[0], added[1], 1)[:, 0]
    inertia[:, body] *= (grown / mass[:, body])[:, None]
    mass[:, body] = grown
    draft.model["body_mass"], draft.model["body_inertia"] = mass, inertia


@event(mode="startup", fields=("body_ipos",))
def randomize_base_com(env: Moment, draft: Draft, *, offset: NonNegative = 0.03) -> None:
    """Moves the base's centre of mass within +-offset [m] in each axis."""
    com = draft.model["body_ipos"].clone()
    com[:, env.scene.base_body] += env.draw.between(-offset, offset, 3)
    draft.model["body_ipos"] = com


@event(mode="startup", fields=("dof_armature",))
def randomize_armature(env: Moment, draft: Draft, *, factor: Range = (1.0, 1.1)) -> None:
    """Scales the reflected rotor inertia of every joint, one factor a joint."""
    armature = draft.model["dof_armature"].clone()
    columns = env.robot.qvel_index
    armature[:, columns] *= env.draw.between(factor[0], factor[1], len(columns))
    draft.model["dof_armature"] = armature


@event(mode="startup", fields=("actuator_gainprm", "actuator_biasprm"))
def randomize_gains(env: Moment, draft: Draft, *, stiffness: Range = (0.9, 1.1), damping: Range = (0.9, 1.1)) -> None:
    """Scales every actuator's stiffness and damping, one factor each."""
    # torque = gain[0] target + bias[1] q + bias[2] qd: gain[0] = kp, bias[1] = -kp, bias[2] = -kd
    gain, bias = draft.model["actuator_gainprm"].clone(), draft.model["actuator_biasprm"].clone()
    kp = env.draw.between(stiffness[0], stiffness[1], gain.shape[1])
    gain[..., 0] *= kp
    bias[..., 1] *= kp
    bias[..., 2] *= env.draw.between(damping[0], damping[1], gain.shape[1])
    draft.model["actuator_gainprm"], draft.model["actuator_biasprm"] = gain, bias


def _floating(env: Moment, name: str) -> None:
    if not env.robot.floating:
        raise UserError(f"events.{name}: the base of {env.scene.robot.name} does not move; take the entry off the page")
