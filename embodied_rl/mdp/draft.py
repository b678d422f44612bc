"""What events will set rows to: positions and velocities by part of the robot, model fields by name."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl import rotations
from embodied_rl.errors import UserError
from embodied_rl.mdp.part import Part, PartState
from embodied_rl.scene.terrain import FlatTerrain, Terrain


class Draft:
    """The state that finished rows will start from, or that rows which go on will be pushed to.

    Its tensors are its own: what an event sets is in no simulation until the environment writes it.

    Args:
        qpos: (N, nq): the default pose for resets, the present one for interval events.
        qvel: (N, nv).
        model: model fields that events draw, by MuJoCo's names, (N, ...).
    """

    def __init__(self, qpos: Tensor, qvel: Tensor, model: dict[str, Tensor]) -> None:
        self.qpos = qpos.clone()
        self.qvel = qvel.clone()
        self._given = self.qpos.shape, self.qvel.shape
        self._own = self.qpos, self.qvel
        self.model = dict(model)

    @property
    def places(self) -> bool:
        """Whether an event has placed or moved the robots in it."""
        counts = lambda one: not one.is_inference() and one._version > 0  # noqa: E731  torch counts what is written into each
        return self.qpos is not self._own[0] or self.qvel is not self._own[1] or counts(self.qpos) or counts(self.qvel)

    def check(self, own: str) -> None:
        """Check that an event left tensors as they were given to it, whatever is in them; nothing is read from the device.

        Args:
            own: the event, by its path.

        Raises:
            UserError: it left something else; one line.
        """
        for name, value, given in (("qpos", self.qpos, self._given[0]), ("qvel", self.qvel, self._given[1])):
            if not isinstance(value, Tensor) or value.shape != given:
                left = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"{own}: the draft's {name} is {tuple(given)}, and the event leaves {left}; change it in place")

    def columns(self, field: str, columns: Tensor) -> Tensor:
        """Numbers of a model field, at places in it flattened, int64 (C,); (N, C)."""
        return self.model[field].flatten(1)[:, columns]

    def set_columns(self, field: str, columns: Tensor, values: Tensor) -> None:
        """Set numbers of a model field, values (N, C), at places in it flattened, int64 (C,)."""
        model = self.model[field]
        self.model[field] = model.flatten(1).index_copy(1, columns, values).view_as(model)

    def root_pos(self, part: Part | PartState) -> Tensor:
        """Position of the part's base in the world [m], (N, 3); a copy."""
        return self.qpos[:, part.root_qpos : part.root_qpos + 3].clone()

    def root_quat(self, part: Part | PartState) -> Tensor:
        """Orientation of the part's base, wxyz, (N, 4); a copy."""
        return self.qpos[:, part.root_qpos + 3 : part.root_qpos + 7].clone()

    def set_root_pose(self, part: Part | PartState, pos: Tensor, quat: Tensor) -> None:
        """Set where a floating base is, pos (N, 3) [m] and quat (N, 4) wxyz in the world."""
        start = part.root_qpos
        self.qpos[:, start : start + 3] = pos
        self.qpos[:, start + 3 : start + 7] = quat

    def stand_on(self, terrain: Terrain, part: Part) -> None:
        """Lift floating bases, which until now stand as on a plane at 0, by the highest ground below their feet.

        The feet are where the default pose has them.
        """
        if isinstance(terrain, FlatTerrain) or not part.floating:
            return
        place, heading = self.root_pos(part)[:, :2], rotations.yaw_of(self.root_quat(part))
        below = terrain.heights_around(place, heading, part.footprint)
        self.qpos[:, part.root_qpos + 2] += below.amax(-1)

    def set_root_velocity(self, part: Part | PartState, linear: Tensor, angular: Tensor) -> None:
        """Set a floating base's velocity: linear (N, 3) [m/s] in the world, angular (N, 3) [rad/s] in the base."""
        self.qvel[:, part.root_qvel : part.root_qvel + 6] = torch.cat((linear, angular), dim=-1)

    def add_root_velocity(self, part: Part | PartState, linear: Tensor, angular: Tensor) -> None:
        """Add to a floating base's velocity, in the frames of `set_root_velocity`."""
        self.qvel[:, part.root_qvel : part.root_qvel + 6] += torch.cat((linear, angular), dim=-1)

    def set_joints(self, part: Part | PartState, pos: Tensor, vel: Tensor) -> None:
        """Set all joints, in robot.yaml's order: pos (N, J) [rad] and vel (N, J) [rad/s]."""
        self.qpos[:, part.qpos_index] = pos
        self.qvel[:, part.qvel_index] = vel
