"""Legs that reach: from where the feet shall be to the joints, for any number of legs.

Damped least squares on each leg's own joints, from where they are.  A foot of a leg with more than three joints is held by three
points, so that it stays turned as in the default pose; that of a shorter one by its site alone.

Legend of the shapes: N envs, J joints, F feet, P points of a foot, K joints of the longest leg.
"""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl import rotations
from embodied_rl.errors import UserError
from embodied_rl.mdp.part import Part
from embodied_rl.physics.kinematics import Frame, Kinematics
from embodied_rl.scene import Scene
from embodied_rl.scene.build import site_frame

#: How far the two points beside a foot's site are from it [m], and how much their places matter against that of the site.
_ARM, _TURN = 0.1, 0.1
#: Joints that hold the place of a foot, and no more.
_PLACE = 3
_ROUNDS, _REFINED, _DAMPING = 6, 4, 1e-3
#: The most that a joint turns in a round; who would turn none so far is there [rad].
_STEP, _CLOSE = 0.5, 3e-4
#: Who is far from a place goes so far towards it in a round, for further on a leg bends otherwise [m].
_NEAR = 0.05


class Reached(NamedTuple):
    """Joints whose feet are where they shall be, or as near as they come."""

    joint_pos: Tensor
    """[rad], (N, J)."""
    joint_vel: Tensor
    """[rad/s], (N, J)."""
    miss: Tensor
    """How far the points of the feet should be from there [m], (N, F, P, 3)."""
    jacobian: Tensor
    """How each leg's joints move the points of its foot, (N, F, 3 P, K)."""


class Legs:
    """The legs of a floating robot, in the frame of its heading.

    Args:
        scene: its model.
        robot: its constants.

    Raises:
        UserError: it has no feet, does not float, or a foot has no lowest point; one line.
    """

    def __init__(self, scene: Scene, robot: Part) -> None:
        page = robot.spec.folder / "robot.yaml"
        if not robot.foot_names or not robot.floating:
            raise UserError(f"{page}: feet: none that could be led" if robot.floating else f"{page}: base: it does not float")
        cpu = robot.default_joint_pos.device
        self._robot = robot
        chains = [_chain(scene, foot.site) for foot in robot.spec.feet]
        several = {joint for chain in chains for joint in chain if sum(joint in other for other in chains) > 1}
        own = [[joint for joint in chain if joint not in several] for chain in chains]
        longest = max(map(len, own), default=0)
        if longest == 0:
            raise UserError(f"{page}: feet: no joint moves one of them alone")
        there = [leg + [-1] * (longest - len(leg)) for leg in own]
        self._joints = torch.tensor(there, device=cpu)  # (F, K), -1 where a leg has no more
        points = 3 if longest > _PLACE else 1
        self._kinematics = Kinematics(scene.model, _frames(scene.model, robot, points), cpu)
        turning = [_TURN if len(leg) > _PLACE else 0.0 for leg in own]
        weights = torch.tensor([[1.0, share, share][:points] for share in turning], device=cpu)
        self._weights = weights[..., None].expand(-1, -1, 3).flatten(1)  # (F, 3 P)
        root = robot.root_qpos
        self._qpos = robot.default_qpos.clone()
        self._qpos[root : root + 7] = torch.cat((torch.zeros(3, device=cpu), level_of(robot)))
        # one row for each of a leg's joints, in which all legs turn theirs
        turns = torch.zeros(longest, len(robot.joint_names), device=cpu)
        for _, rank in (self._joints >= 0).nonzero().tolist():
            column = self._joints[:, rank]
            turns[rank, column[column >= 0]] = 1.0
        self._turns = turns
        default = self.points(robot.default_joint_pos[None])[0]
        height = float(robot.default_qpos[root + 2])
        self.feet = default.clone()
        """Points of the feet in the default pose, each foot put on the ground, (F, P, 3)."""
        self.feet[..., 2] -= (height + self._undersides(scene))[:, None]

    def points(self, joint_pos: Tensor) -> Tensor:
        """Find the points of the feet for joint positions (N, J); (N, F, P, 3)."""
        return self._at(joint_pos, torch.zeros_like(joint_pos))[0]

    def jacobian(self, joint_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Find the points of the feet, (N, F, P, 3), and how each leg's joints move its own, (N, F, 3 P, K)."""
        rows, (ranks, joints) = len(joint_pos), self._turns.shape
        turns = self._turns[:, None].expand(-1, rows, -1).reshape(-1, joints)
        points, moved = self._at(joint_pos.repeat(ranks, 1), turns)
        return points[:rows], moved.view(ranks, rows, *moved.shape[1:]).flatten(3).movedim(0, -1)

    def reach(self, joint_pos: Tensor, points: Tensor, velocity: Tensor) -> Reached:
        """Turn the joints until the feet are where they shall be, as well as they can.

        Args:
            joint_pos: where to begin [rad], (N, J).
            points: where the feet shall be, (N, F, P, 3).
            velocity: how they shall move against the base [m/s], (N, F, P, 3).
        """
        low, high = self._robot.joint_limits
        for _ in range(_ROUNDS):
            there, jacobian = self.jacobian(joint_pos)
            wrong = points - there
            far = wrong[:, :, :1].norm(dim=-1, keepdim=True).clamp(min=_NEAR)
            step = self._solved(jacobian, wrong * (_NEAR / far))
            if float(step.abs().max()) < _CLOSE:
                break
            joint_pos = torch.minimum(torch.maximum(self._spread(step.clamp(-_STEP, _STEP), joint_pos), low), high)
        else:
            there, jacobian = self.jacobian(joint_pos)
        rates = torch.zeros_like(jacobian[:, :, 0])
        for _ in range(_REFINED):  # what the damping left undone
            left = velocity - (jacobian @ rates[..., None]).view_as(velocity)
            rates = rates + self._solved(jacobian, left)
        return Reached(joint_pos, self._spread(rates, torch.zeros_like(joint_pos)), points - there, jacobian)

    def bearing(self, reached: Reached, shares: Tensor) -> Tensor:
        """Find the torques with which the joints bear the robot's weight, of which each foot takes a share, (N, F); (N, J)."""
        weight = -self._robot.mass * float(self._robot.model.opt.gravity[2])
        return self._spread(-weight * shares[..., None] * reached.jacobian[:, :, 2], torch.zeros_like(reached.joint_pos))

    def _at(self, joint_pos: Tensor, joint_vel: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and velocities of the points of the feet, (N, F, P, 3) each."""
        robot = self._robot
        qpos = self._qpos.repeat(len(joint_pos), 1)
        qpos[:, robot.qpos_index] = joint_pos
        qvel = torch.zeros(len(joint_vel), robot.model.nv, device=qpos.device)
        qvel[:, robot.qvel_index] = joint_vel
        position, velocity, _ = self._kinematics(qpos, qvel)
        shape = (len(joint_pos), len(self._joints), -1, 3)
        return position.view(shape), velocity.view(shape)

    def _solved(self, jacobian: Tensor, wanted: Tensor) -> Tensor:
        """Solve for what the joints of each leg have to do, (N, F, K), for what is wanted of its points, (N, F, P, 3)."""
        weighted = jacobian * self._weights[..., None]
        damping = _DAMPING * torch.eye(jacobian.shape[-1], device=jacobian.device)
        right = weighted.mT @ wanted.flatten(2)[..., None]
        return torch.linalg.solve(weighted.mT @ jacobian + damping, right)[..., 0]

    def _spread(self, values: Tensor, joints: Tensor) -> Tensor:
        """Add numbers by leg, (N, F, K), to numbers by joint, (N, J)."""
        here = self._joints >= 0
        return joints.index_add(1, self._joints[here], values[:, here])

    def _undersides(self, scene: Scene) -> Tensor:
        """Height of the lowest point of each foot in the default pose, above the base, (F,)."""
        device = self._qpos.device
        sites = [site_frame(scene.model, foot.name, foot.site) for foot in self._robot.spec.feet]
        exact = Kinematics(scene.model, sites, device, orientation=True)
        qpos = self._qpos.clone()
        qpos[self._robot.qpos_index] = self._robot.default_joint_pos
        position, _, quat = exact(qpos[None], torch.zeros(1, scene.model.nv, device=device))
        return scene.feet(device).undersides(position, quat)[0]


def level_of(robot: Part) -> Tensor:
    """Say how a floating base is turned in the default pose, in the frame of its heading, wxyz, (4,)."""
    quat = robot.default_qpos[robot.root_qpos + 3 : robot.root_qpos + 7]
    zero = torch.zeros_like(quat[0])
    return rotations.quat_mul(rotations.quat_from_euler(zero, zero, -rotations.yaw_of(quat)), quat)


def _chain(scene: Scene, site: str) -> list[int]:
    """List the joints between the base and a foot's site, the base's side first, counted in robot.yaml's order."""
    model, names = scene.model, scene.robot.joint_names
    body, found = int(model.site(site).bodyid[0]), []
    while body not in (0, scene.base_body):
        start = int(model.body_jntadr[body])
        joints = [model.joint(start + index).name for index in range(int(model.body_jntnum[body]))]
        found += [names.index(name) for name in reversed(joints) if name in names]
        body = int(model.body_parentid[body])
    return found[::-1]


def _frames(model: mujoco.MjModel, robot: Part, points: int) -> list[Frame]:
    """Make the points of the feet: each foot's site, and one beside it along each of two of its axes."""
    found = []
    for foot in robot.spec.feet:
        site = site_frame(model, foot.name, foot.site)
        axes = np.zeros(9)
        mujoco.mju_quat2Mat(axes, site.quat)
        ends = [site.position, *(site.position + _ARM * axis for axis in axes.reshape(3, 3).T[:2])]
        found += [Frame(foot.name, site.body, end, site.quat) for end in ends[:points]]
    return found
