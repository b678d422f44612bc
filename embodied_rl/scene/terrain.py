"""The ground as a tensor: what terms ask for its height, so that no ray is cast for it."""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

from embodied_rl.scene.plain import PLAIN

#: Friction of the ground; what it meets has the higher priority, so the contact's is that of the other geom.
_FRICTION = (1.0, 0.02, 0.01)


class FlatTerrain:
    """An endless plane at z = 0."""

    friction = _FRICTION
    """Sliding [1], spinning and rolling [m]."""

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add the ground to a model; what it touches is for `embodied_rl.scene.contacts` to say."""
        spec.worldbody.add_geom(
            PLAIN,
            name="ground",
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=[0.0, 0.0, 0.05],
            contype=0,
            conaffinity=0,
            condim=3,
            friction=self.friction,
            group=0,
        )

    def height(self, xy: Tensor) -> Tensor:
        """Height of the ground [m] at world positions (..., 2); shape (...,)."""
        return torch.zeros_like(xy[..., 0])
