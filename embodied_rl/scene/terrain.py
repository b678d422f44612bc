"""The ground as a tensor: what terms ask for its height, so that no ray is cast for it."""

from __future__ import annotations

import functools
import operator

import mujoco
import torch
from torch import Tensor

from embodied_rl.scene.plain import PLAIN

#: Friction of the ground; feet have the higher priority, so theirs is the friction of the contact.
_FRICTION = (1.0, 0.02, 0.01)


class FlatTerrain:
    """An endless plane at z = 0."""

    friction = _FRICTION
    """Sliding [1], spinning and rolling [m]."""

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add the ground to a model: its contype is a bit that none of the model's geoms has, so that they stay as they are."""
        taken = functools.reduce(operator.or_, (geom.contype for geom in spec.geoms), 0)
        spec.worldbody.add_geom(
            PLAIN,
            name="ground",
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=[0.0, 0.0, 0.05],
            contype=next((1 << bit for bit in range(31) if not taken >> bit & 1), 1),
            conaffinity=0,
            condim=3,
            friction=self.friction,
            group=0,
        )

    def height(self, xy: Tensor) -> Tensor:
        """Height of the ground [m] at world positions (..., 2); shape (...,)."""
        return torch.zeros_like(xy[..., 0])
