"""The ground as a tensor: what terms ask for its height, so that no ray is cast for it."""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

#: Friction of the ground; feet have the higher priority, so theirs is the friction of the contact.
_FRICTION = (1.0, 0.02, 0.01)


class FlatTerrain:
    """An endless plane at z = 0."""

    friction = _FRICTION
    """Sliding [1], spinning and rolling [m]."""

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add the ground to a model: contype 1, which robots' geoms (conaffinity 1) collide with."""
        spec.worldbody.add_geom(
            name="ground",
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=[0.0, 0.0, 0.05],
            contype=1,
            conaffinity=0,
            condim=3,
            friction=self.friction,
            group=0,
        )

    def height(self, xy: Tensor) -> Tensor:
        """Height of the ground [m] at world positions (..., 2); shape (...,)."""
        return torch.zeros_like(xy[..., 0])
