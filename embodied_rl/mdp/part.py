"""A robot by address: its constants, and its state at one moment, each quantity computed at most once.

Legend of the shapes: N envs, J joints, F feet.  Frames: `_w` world, `_b` base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl import rotations
from embodied_rl.errors import UserError
from embodied_rl.physics.protocol import Physics
from embodied_rl.scene import Scene

#: Stands for the limits of a joint that has none [rad]; finite, so that sums and differences of limits are.
UNLIMITED = 1e6


class once:  # noqa: N801  a decorator
    """A property computed at its first reading; functools.cached_property holds a lock, which torch.compile cannot trace."""

    def __init__(self, function: Callable[[PartState], Tensor]) -> None:
        self.function, self.name, self.__doc__ = function, function.__name__, function.__doc__

    def __get__(self, owner: PartState, kind: type | None = None) -> Tensor:
        value = self.function(owner)
        setattr(owner, self.name, value)
        return value


class Part:
    """The constants of the page's robot, as tensors on the device."""

    def __init__(self, scene: Scene, device: torch.device) -> None:
        spec, model = scene.robot, scene.model
        self.spec = spec
        self.joint_names = spec.joint_names
        self.default_joint_pos = torch.tensor(spec.default_joint_pos, device=device)
        """Joint positions that actions and observations count from [rad], (J,)."""
        joints = [model.joint(name) for name in spec.joint_names]
        limits = np.array([j.range if j.limited[0] else (-UNLIMITED, UNLIMITED) for j in joints], dtype=np.float32)
        self.joint_limits = torch.tensor(limits.T, device=device)
        """Lower and upper limits [rad], (2, J)."""
        self.model = model
        """The scene's model on the host, for names and its own numbers."""
        self.mass = float(model.body_subtreemass[scene.base_body])
        """Total mass [kg]."""
        self.qpos_index = torch.tensor(scene.qpos_address, device=device)
        self.qvel_index = torch.tensor(scene.qvel_address, device=device)
        self.qvel_address = scene.qvel_address
        """The same as `qvel_index`, on the host."""
        root = model.body(spec.base)
        self.floating = scene.root is not None
        """Whether the base moves freely."""
        self.root_qpos, self.root_qvel = (scene.root.qpos, scene.root.qvel) if scene.root else (-1, -1)
        """Where a floating base's pose begins in qpos (position, quaternion), and its velocity in qvel (linear, angular)."""
        self.default_qpos = torch.tensor(scene.default_qpos(), dtype=torch.float32, device=device)
        """The pose that episodes start from, (nq,)."""
        still = mujoco.MjData(model)
        mujoco.mj_kinematics(model, still)
        self.fixed_base_pos = torch.tensor(still.xpos[root.id], dtype=torch.float32, device=device)
        """Where the base is that does not move freely, in the world [m], (3,)."""
        self.fixed_base_quat = torch.tensor(still.xquat[root.id], dtype=torch.float32, device=device)
        """How it is turned, wxyz, (4,)."""
        self.foot_names = tuple(foot.name for foot in spec.feet)
        offsets = [foot.gait_offset for foot in spec.feet]
        self._gait_offset = None if None in offsets else torch.tensor(offsets, device=device)
        geoms = np.isin(np.arange(model.ngeom), scene.foot_geoms)
        self.foot_geoms = torch.tensor(geoms, device=device)
        """Which geoms of the model are a foot's, bool (ngeom,)."""
        self._first_foot_geoms = torch.tensor(scene.first_foot_geoms, dtype=torch.int64, device=device)
        self.feet = scene.feet(device) if scene.frames else None
        places, ups = scene.default_feet()
        self.default_foot_up = torch.tensor(ups, dtype=torch.float32, device=device)
        """The world's vertical in each foot's frame, in the default pose, (F, 3)."""
        self._foot_across = places[:, 1].tolist()
        self._foot_pairs: tuple[Tensor, Tensor] | None = None
        self.footprint = torch.tensor(scene.footprint(), dtype=torch.float32, device=device)
        """Where the feet stand in the default pose, in the frame of the base's heading: their corners and middles [m], (P, 2)."""
        asked = {"foot_frames": scene.frames, "foot_orientation": scene.frame_orientation, "joint_torque": scene.joint_torque}
        asked["foot_touchdown"] = scene.foot_touchdown
        self.measured = frozenset((*scene.sensors, *(need for need, there in asked.items() if there)))
        """What the engine measures, by the names that terms need it by; what nobody asked for would read as zeros."""

    @property
    def gait_offset(self) -> Tensor:
        """Share of a gait's cycle by which each foot's begins after the clock's, (F,).

        Raises:
            UserError: robot.yaml gives none.
        """
        if self._gait_offset is None:
            raise UserError(
                f"{self.spec.folder / 'robot.yaml'}: feet: a term of the page reads the gait's offsets, and not every foot has "
                "one; give each a gait_offset, like 0.0 and 0.5 for legs that take turns"
            )
        return self._gait_offset

    @property
    def foot_pairs(self) -> tuple[Tensor, Tensor]:
        """Left feet, and the right one that is each one's reflection, counted in robot.yaml's order, int64 (P,) each.

        Raises:
            UserError: robot.yaml has no `mirror`, or feet that are their own reflection alone.
        """
        if self._foot_pairs is None:
            page, mirror = self.spec.folder / "robot.yaml", self.spec.foot_mirror() if self.spec.mirror else ()
            left = [foot for foot, partner in enumerate(mirror) if self._foot_across[foot] > self._foot_across[partner]]
            if not left:
                raise UserError(
                    f"{page}: mirror: a term of the page reads pairs of feet, and none are named; name left and right"
                )
            device = self.qpos_index.device
            self._foot_pairs = torch.tensor(left, device=device), torch.tensor([mirror[foot] for foot in left], device=device)
        return self._foot_pairs

    @property
    def first_foot_geoms(self) -> Tensor:
        """One geom of each foot, int64 (F,).

        Raises:
            UserError: robot.yaml names no feet.
        """
        if not self.foot_names:
            raise UserError(f"{self.spec.folder / 'robot.yaml'}: feet: none named, but a term of the page reads them; name them")
        return self._first_foot_geoms

    def owns(self, body: int) -> bool:
        """Whether a body of the model is the robot's."""
        return int(self.model.body_rootid[body]) == int(self.model.body_rootid[self.model.body(self.spec.base).id])

    def joint_indices(self, group: str) -> Sequence[int]:
        """Joints of a group of robot.yaml, or one joint, counted in its order.

        Raises:
            RobotError: there is no such group.
        """
        names = self.spec.joints_of(group)
        return range(len(names)) if names == self.joint_names else tuple(self.joint_names.index(name) for name in names)


class PartState:
    """The robot at one moment: *state* quantities from qpos and qvel, the others as fresh as the physics says."""

    def __init__(self, part: Part, physics: Physics) -> None:
        self._part, self._physics = part, physics

    @property
    def joint_names(self) -> tuple[str, ...]:
        """The joints in robot.yaml's order."""
        return self._part.joint_names

    @property
    def default_joint_pos(self) -> Tensor:
        """Joint positions that actions and observations count from [rad], (J,)."""
        return self._part.default_joint_pos

    @property
    def joint_limits(self) -> Tensor:
        """Lower and upper limits [rad], (2, J)."""
        return self._part.joint_limits

    @property
    def qpos_index(self) -> Tensor:
        """Where each joint's position stands in qpos, int64 (J,)."""
        return self._part.qpos_index

    @property
    def qvel_index(self) -> Tensor:
        """Where each joint's velocity stands in qvel, int64 (J,)."""
        return self._part.qvel_index

    @property
    def root_qpos(self) -> int:
        """Where a floating base's pose begins in qpos."""
        return self._part.root_qpos

    @property
    def root_qvel(self) -> int:
        """Where a floating base's velocity begins in qvel."""
        return self._part.root_qvel

    @property
    def foot_names(self) -> tuple[str, ...]:
        """The feet in robot.yaml's order."""
        return self._part.foot_names

    @property
    def mass(self) -> float:
        """Total mass [kg]."""
        return self._part.mass

    @property
    def floating(self) -> bool:
        """Whether the base moves freely."""
        return self._part.floating

    @property
    def foot_geoms(self) -> Tensor:
        """Which geoms of the model are a foot's, bool (ngeom,)."""
        return self._part.foot_geoms

    @property
    def first_foot_geoms(self) -> Tensor:
        """One geom of each foot, int64 (F,)."""
        return self._part.first_foot_geoms

    @property
    def gait_offset(self) -> Tensor:
        """Share of a gait's cycle by which each foot's begins after the clock's, (F,); see `Part.gait_offset`."""
        return self._part.gait_offset

    @property
    def default_foot_up(self) -> Tensor:
        """The world's vertical in each foot's frame, in the default pose, (F, 3)."""
        return self._part.default_foot_up

    @property
    def foot_pairs(self) -> tuple[Tensor, Tensor]:
        """Left feet, and the right one that is each one's reflection, int64 (P,) each; see `Part.foot_pairs`."""
        return self._part.foot_pairs

    @once
    def base_pos_w(self) -> Tensor:
        """Position of the base [m], (N, 3).  *state*"""
        if not self._part.floating:
            return self._part.fixed_base_pos.expand(len(self._physics.qpos), 3)
        return self._physics.qpos[:, self._part.root_qpos : self._part.root_qpos + 3]

    @once
    def base_quat_w(self) -> Tensor:
        """Orientation of the base, wxyz, (N, 4).  *state*"""
        if not self._part.floating:
            return self._part.fixed_base_quat.expand(len(self._physics.qpos), 4)
        return self._physics.qpos[:, self._part.root_qpos + 3 : self._part.root_qpos + 7]

    @once
    def base_lin_vel_w(self) -> Tensor:
        """Velocity of the base's origin in the world [m/s], (N, 3).  *state*"""
        if not self._part.floating:
            return self._physics.qvel.new_zeros(len(self._physics.qvel), 3)
        return self._physics.qvel[:, self._part.root_qvel : self._part.root_qvel + 3]

    @once
    def base_lin_vel_b(self) -> Tensor:
        """Velocity of the base's origin in the base frame [m/s], (N, 3).  *state*"""
        return rotations.rotate_inverse(self.base_quat_w, self.base_lin_vel_w)

    @once
    def base_ang_vel_b(self) -> Tensor:
        """Angular velocity of the base in its own frame [rad/s], (N, 3).  *state*"""
        if not self._part.floating:
            return self._physics.qvel.new_zeros(len(self._physics.qvel), 3)
        return self._physics.qvel[:, self._part.root_qvel + 3 : self._part.root_qvel + 6]

    @once
    def yaw_rate(self) -> Tensor:
        """Angular velocity about the world's vertical [rad/s], (N,).  *state*"""
        return -(self.base_ang_vel_b * self.projected_gravity_b).sum(-1)

    @once
    def lin_vel_yaw(self) -> Tensor:
        """Horizontal velocity of the base in the frame of its heading [m/s], (N, 2).  *state*"""
        heading = self.heading
        c, s = torch.cos(heading), torch.sin(heading)
        vx, vy = self.base_lin_vel_w[:, 0], self.base_lin_vel_w[:, 1]
        return torch.stack((c * vx + s * vy, c * vy - s * vx), dim=-1)

    @once
    def projected_gravity_b(self) -> Tensor:
        """Direction of gravity in the base frame, (N, 3); (0, 0, -1) when upright.  *state*"""
        w, x, y, z = self.base_quat_w.unbind(-1)
        return torch.stack((2 * (w * y - x * z), -2 * (w * x + y * z), 2 * (x * x + y * y) - 1), dim=-1)

    @once
    def heading(self) -> Tensor:
        """Direction of the base's x axis in the horizontal plane [rad], (N,).  *state*"""
        return rotations.yaw_of(self.base_quat_w)

    @once
    def joint_pos(self) -> Tensor:
        """Joint positions in robot.yaml's order [rad], (N, J).  *state*"""
        return self._physics.qpos[:, self._part.qpos_index]

    @once
    def joint_vel(self) -> Tensor:
        """Joint velocities [rad/s], (N, J).  *state*"""
        return self._physics.qvel[:, self._part.qvel_index]

    def _measured(self, need: str) -> Physics:
        """Return what measures, where a term says that it needs this."""
        if need not in self._part.measured:
            raise UserError(f"a term reads {need!r} without saying so: give its decorator needs=({need!r},)")
        return self._physics

    @property
    def joint_torque(self) -> Tensor:
        """Torques of the actuators [N m], (N, J).  *force*"""
        return self._measured("joint_torque").joint_torque

    @property
    def foot_pos_w(self) -> Tensor:
        """Positions of the feet [m], (N, F, 3).  *kinematic*"""
        return self._measured("foot_frames").frame_pos

    @property
    def foot_quat_w(self) -> Tensor:
        """Orientations of the feet, wxyz, (N, F, 4); for terms that need `foot_orientation`.  *kinematic*"""
        return self._measured("foot_orientation").frame_quat

    @once
    def foot_left(self) -> Tensor:
        """How far each foot lies to the left, across the base's heading [m], from one origin for all, (N, F).  *kinematic*"""
        heading, position = self.heading[:, None], self.foot_pos_w
        return torch.cos(heading) * position[..., 1] - torch.sin(heading) * position[..., 0]

    @once
    def foot_underside_w(self) -> Tensor:
        """Height of the lowest point of each foot in the world [m], (N, F).  *kinematic*"""
        position = self.foot_pos_w
        assert self._part.feet is not None
        return self._part.feet.undersides(position, self._physics.frame_quat)

    @property
    def foot_lin_vel_w(self) -> Tensor:
        """Velocities of the feet [m/s], (N, F, 3).  *kinematic*"""
        return self._measured("foot_frames").frame_lin_vel

    @property
    def foot_contact(self) -> Tensor:
        """1 where a foot touches something, (N, F).  *force*"""
        return self._measured("foot_contact").sensors["foot_contact"]

    @property
    def foot_touchdown(self) -> Tensor:
        """How often each foot came down in the last control step, every physics step looked at, (N, F).  *force*"""
        return self._measured("foot_touchdown").sensors["foot_touchdown"]

    def contact(self, group: str) -> Tensor:
        """1 where a body of the group touches something, feet aside, (N, bodies of the group).  *force*"""
        return self._measured(f"contact:{group}").sensors[f"contact:{group}"]
