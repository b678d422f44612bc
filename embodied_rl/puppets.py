"""Robots led by the hand: each step they are put where a script has them, and the page's own terms judge them there.

The physics steps as ever, so that feet that stand press the ground and motors bear the weight; but before each of its substeps
puppets are put into the state that will be judged, and after the last one once more.  `Env.advance` sees nothing of it.

Legend of the shapes: N envs, J joints, A actions, F feet, M robots that are led.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl import rotations
from embodied_rl.env import Env
from embodied_rl.legs import Legs, level_of
from embodied_rl.mdp.moment import Draw
from embodied_rl.mdp.puppet import Motion, Script
from embodied_rl.physics.protocol import Controller, Physics

#: How deep a standing foot is pressed into the ground [m]: touching is what contacts are.
PRESS = 1e-3
#: The most that a base is lowered so that feet reach the ends of a stride, as a share of its height.
_LOWEST = 0.15
#: And further, for a leg that is all straight cannot follow its foot [m].
_BENT = 5e-3


class Puppets:
    """The physics of an environment whose first robots are led, some to a script; it stands in the place of the engine's own.

    Args:
        env: the environment, on a plane.
        legs: its robot's; None: who is led keeps the default pose.
        scripts: what is led, each of `count` robots, from the first row on.
        fallen: so many more after them lie on their backs.
        count: robots to a script.
    """

    def __init__(self, env: Env, legs: Legs | None, scripts: Sequence[Script], fallen: int, count: int) -> None:
        self._env, self._legs, self._scripts, self._count = env, legs, scripts, count
        self._physics = env.physics
        self._rows = count * len(scripts)
        row = torch.arange(env.num_envs)
        self._held, self._fallen = row < self._rows + fallen, (row >= self._rows) & (row < self._rows + fallen)
        self._qpos, self._qvel = env.physics.qpos.clone(), env.physics.qvel.clone()
        self._lying = self._on_its_back() if fallen else env.robot.default_qpos
        spec = env.robot.spec
        self._gains = torch.tensor([spec.stiffness, spec.damping]).clamp(min=1e-6)
        # by how much each base is lowered, and whose legs came short
        self._crouch, self._short = torch.zeros(self._rows, 1), torch.zeros(self._rows, 1, dtype=torch.bool)
        self.misses = torch.zeros(len(scripts))
        """By how much a foot of each script has missed its place at most, since this was last set to 0 [m]."""
        env.physics = cast("Physics", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._physics, name)

    def act(self, actions: Tensor) -> Tensor:
        """Make up what those who are held do until the next judgement; the actions of all, (N, A).

        Args:
            actions: those of the robots that nobody holds, (N, A).
        """
        robot, rows = self._env.robot, self._rows
        self._qpos.copy_(torch.where(self._fallen[:, None], self._lying, self._physics.qpos))
        self._qvel.zero_()
        if self._legs is not None:
            pos, vel, torque = self._step(self._legs)
        else:
            pos = robot.default_joint_pos.expand(rows, -1)
            vel = torque = torch.zeros_like(pos)
            if robot.floating:
                self._lead(torch.zeros(rows, 3))
        self._qpos[:rows, robot.qpos_index], self._qvel[:rows, robot.qvel_index] = pos, vel
        actions = torch.where(self._fallen[:, None], 0.0, actions)
        actions[:rows] = self._commanding(pos, vel, torque)
        return actions

    def step(self, ctrl: Tensor, controller: Controller | None = None) -> None:
        """Advance one control step, see `Physics.step`; those that are led do so where they are judged."""

        def hold(physics: Physics, substep: int) -> Tensor:
            physics.write(self._held, qpos=self._qpos, qvel=self._qvel)
            if controller is not None:
                return controller(physics, substep)
            return ctrl if ctrl.dim() == 2 else ctrl[:, substep]

        self._physics.step(ctrl, hold)
        self._physics.write(self._held, qpos=self._qpos, qvel=self._qvel)

    def _step(self, legs: Legs) -> tuple[Tensor, Tensor, Tensor]:
        """Move bases and feet on as the scripts have it; the joints' positions, velocities and torques, (M, J) each."""
        robot, dt = self._env.robot, self._env.step_dt
        motion = self._motion(legs)
        points = motion.feet + torch.nn.functional.pad(self._crouch, (2, 0))[:, None, None]
        # against the base, which goes and turns above the feet
        across = torch.stack((-motion.feet[..., 1], motion.feet[..., 0]), dim=-1) * motion.velocity[:, None, None, 2:]
        velocity = motion.feet_velocity.clone()
        velocity[..., :2] -= motion.velocity[:, None, None, :2] + across
        ahead = self._qpos[: self._rows, robot.qpos_index] + dt * self._physics.qvel[: self._rows, robot.qvel_index]
        # a leg that came short may have bent the wrong way
        reached = legs.reach(torch.where(self._short, robot.default_joint_pos, ahead), points, velocity)
        stands = (motion.feet[:, :, 0, 2] <= legs.feet[:, 0, 2] - 0.5 * PRESS).float()
        self._lead(motion.velocity)
        self._note(reached.miss[:, :, 0], stands)
        torque = legs.bearing(reached, stands / stands.sum(-1, keepdim=True).clamp(min=1.0))
        return reached.joint_pos, reached.joint_vel, torque

    def _motion(self, legs: Legs) -> Motion:
        """Ask each script for its own robots' motion, (M, ...); standing feet are pressed into the ground."""
        # the moment that will be judged, as far as clocks and commands see it
        moment = self._env.moment(Draw())
        episode = copy.copy(moment.episode)
        episode.episode_length = episode.episode_length + 1
        moment = dataclasses.replace(moment, episode=episode)
        feet = legs.feet.clone()
        feet[..., 2] -= PRESS
        made = [script(self._env, moment, feet) for script in self._scripts]
        parts = [[part[i * self._count : (i + 1) * self._count] for part in motion] for i, motion in enumerate(made)]
        return Motion(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _lead(self, velocity: Tensor) -> None:
        """Move the bases on at their velocities (M, 3) for a control step, upright, at the default height or a little lower."""
        robot, dt = self._env.robot, self._env.step_dt
        root, turn = robot.root_qpos, velocity[:, 2]
        start = self._qpos[: self._rows, root : root + 7]
        before = rotations.yaw_of(start[:, 3:])
        after = before + turn * dt
        # along an arc, whose chord points along its middle
        chord = velocity[:, :2] * dt * torch.sinc(0.5 * turn * dt / torch.pi)[:, None]
        place = start[:, :2] + _turned(chord, 0.5 * (before + after))
        zero = torch.zeros_like(after)
        quat = rotations.quat_mul(rotations.quat_from_euler(zero, zero, after), level_of(robot).expand(len(after), 4))
        height = robot.default_qpos[root + 2] - self._crouch
        self._qpos[: self._rows, root : root + 7] = torch.cat((place, height, quat), dim=-1)
        linear = torch.cat((_turned(velocity[:, :2], after), zero[:, None]), dim=-1)
        angular = rotations.rotate_inverse(quat, torch.stack((zero, zero, turn), dim=-1))
        self._qvel[: self._rows, robot.root_qvel : robot.root_qvel + 6] = torch.cat((linear, angular), dim=-1)

    def _note(self, miss: Tensor, stands: Tensor) -> None:
        """Lower the bases of those whose feet miss their places, by (M, F, 3) [m], while they stand, from the next step on."""
        height = float(self._env.robot.default_qpos[self._env.robot.root_qpos + 2])
        # legs that are nearly straight reach a stride's ends only below a base that is lower
        high = (-miss[..., 2] * stands).amax(-1, keepdim=True)
        self._crouch = (self._crouch + torch.where(high > 0.1 * PRESS, high + _BENT, 0.0)).clamp(max=_LOWEST * height)
        far = miss.norm(dim=-1).amax(-1)
        self._short = far[:, None] > PRESS
        self.misses = torch.maximum(self.misses, far.view(-1, self._count).amax(-1))

    def _commanding(self, pos: Tensor, vel: Tensor, torque: Tensor) -> Tensor:
        """Find the actions (M, A) that would command joints at pos, vel with these torques, (M, J) each.

        Zeros for action terms that are no targets.
        """
        stiffness, damping = self._gains
        at, speed = pos + (torque + damping * vel) / stiffness, vel + torque / damping
        parts = []
        for _, term in self._env.terms.actions.terms:
            term: Any
            target = (at if term.control == "position" else speed)[:, list(term.joints)]
            known = hasattr(term, "offset") and hasattr(term, "scale")
            parts.append((target - term.offset) / term.scale if known else torch.zeros_like(target))
        return torch.cat(parts, dim=-1)

    def _on_its_back(self) -> Tensor:
        """Find the state of a robot that lies on its back, (nq,)."""
        robot, model = self._env.robot, self._env.physics.model
        qpos, root = robot.default_qpos.clone(), robot.root_qpos
        qpos[root + 2] = 0.0
        qpos[root + 3 : root + 7] = rotations.quat_mul(torch.tensor([0.0, 1.0, 0.0, 0.0]), qpos[root + 3 : root + 7])
        data = mujoco.MjData(model)
        data.qpos[:] = qpos.numpy()
        mujoco.mj_kinematics(model, data)
        lowest = 0.0
        for geom in range(model.ngeom):
            if robot.owns(int(model.geom_bodyid[geom])):
                up, box = data.geom_xmat[geom].reshape(3, 3)[2], model.geom_aabb[geom]
                lowest = min(lowest, float(data.geom_xpos[geom, 2] + up @ box[:3] - np.abs(up) @ box[3:]))
        qpos[root + 2] = -lowest
        return qpos


def _turned(vector: Tensor, angle: Tensor) -> Tensor:
    """Turn horizontal vectors (M, 2) by angles (M,)."""
    sine, cosine = torch.sin(angle), torch.cos(angle)
    return torch.stack((cosine * vector[:, 0] - sine * vector[:, 1], sine * vector[:, 0] + cosine * vector[:, 1]), dim=-1)
