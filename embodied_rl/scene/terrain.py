"""The ground as a tensor: what terms ask for its height, so that no ray is cast for it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl.scene.field_height import field_height, load_function
from embodied_rl.scene.plain import PLAIN

#: Friction of the ground; what it meets has the higher priority, so the contact's is that of the other geom.
_FRICTION = (1.0, 0.02, 0.01)
#: How far a height field reaches below its lowest point [m]: what is deeper in the ground than that falls through it.
_BASE = 1.0


class FlatTerrain:
    """An endless plane at z = 0."""

    friction = _FRICTION
    """Sliding [1], spinning and rolling [m]."""
    half = (math.inf, math.inf)
    """Half its length along x and y [m]."""
    origins = None
    """Where robots begin on patches, of which there are none."""
    kinds = ()
    """What its patches are called."""

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add the ground to a model; what it touches is for `embodied_rl.scene.contacts` to say."""
        _ground(spec)

    def on(self, device: torch.device) -> FlatTerrain:
        """Return the ground as terms on a device ask for it."""
        return self

    def height(self, xy: Tensor) -> Tensor:
        """Height of the ground [m] at world positions (..., 2); shape (...,)."""
        return torch.zeros_like(xy[..., 0])

    def heights_around(self, place: Tensor, heading: Tensor, points: Tensor) -> Tensor:
        """Heights of the ground [m] around robots, (N, P).

        Args:
            place: where each is in the world [m], (N, 2).
            heading: and its heading [rad], (N,).
            points: places in the frame of each, ahead and to the left [m], (P, 2).
        """
        return place.new_zeros((place.shape[0], points.shape[0]))

    def normal(self, xy: Tensor) -> Tensor:
        """Upward normal of the ground at world positions (..., 2); unit vectors (..., 3)."""
        up = torch.zeros_like(xy[..., :1])
        return torch.cat((up, up, up + 1.0), dim=-1)


class HeightField:
    """A grid of heights, between which the ground is MuJoCo's: two triangles a cell, parted from its least x and y.

    Beyond its edge nothing holds a robot, and `height` is that of the nearest point of the edge.

    Args:
        heights: [m] over a grid of points, x along the first axis and y along the second; float64 (X, Y), at least 2 x 2.
        cell: the distance of two points [m].
        origins: where robots begin, by kind of patch and row of difficulty: positions on the ground [m], (kinds, rows, 3).
        kinds: what those are called.
    """

    friction = _FRICTION
    """Sliding [1], spinning and rolling [m]."""

    def __init__(self, heights: np.ndarray, cell: float, origins: np.ndarray, kinds: Sequence[str] = ()) -> None:
        low, high = float(heights.min()), float(heights.max())
        self._lift, self._rise = low, max(high - low, 1e-3)  # MuJoCo wants some
        # as MuJoCo keeps it: shares of the rise, float32, y along the first axis
        self._shares = np.ascontiguousarray(((heights - low) / self._rise).T, dtype=np.float32)
        self.cell = cell
        self.heights = (self._shares.astype(np.float64) * self._rise + self._lift).T
        """What is simulated [m], float64 (X, Y)."""
        self.half = tuple(0.5 * cell * (count - 1) for count in heights.shape)
        """Half its length along x and y [m]; its middle is the world's origin."""
        self.origins = torch.tensor(origins, dtype=torch.float32)
        """Where robots begin [m], (kinds, rows, 3)."""
        self.kinds = tuple(kinds)
        """What its patches are called."""
        self._table = torch.tensor(self.heights.ravel(), dtype=torch.float32)
        # the last point lies in the last cell: the largest float32 below the number of cells
        self._most = tuple(float(np.nextafter(np.float32(count - 1), np.float32(0.0))) for count in heights.shape)
        self._grid = torch.tensor([cell, *self.half, *self._most], dtype=torch.float32)
        self._compiled = False

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add the ground to a model, in the place of the plane if there is one."""
        rows, columns = self._shares.shape
        spec.add_hfield(
            name="ground",
            nrow=rows,
            ncol=columns,
            size=[*self.half, self._rise, _BASE],
            userdata=self._shares.ravel(),
        )
        ground = spec.geom("ground") or _ground(spec)
        ground.type, ground.hfieldname, ground.pos = mujoco.mjtGeom.mjGEOM_HFIELD, "ground", [0.0, 0.0, self._lift]

    def on(self, device: torch.device, dtype: torch.dtype = torch.float32) -> HeightField:
        """Return the ground as terms on a device ask for it."""
        moved = copy.copy(self)
        exact = dtype == torch.float64
        moved._table = torch.tensor(self.heights.ravel(), device=device) if exact else self._table.to(device)
        moved.origins = self.origins.to(device, dtype)
        moved._compiled = not exact and device.type == "cpu" and load_function() is not None
        return moved

    def height(self, xy: Tensor) -> Tensor:
        """Height of the ground [m] at world positions (..., 2); shape (...,)."""
        return self._height(*xy.unbind(-1))

    def heights_around(self, place: Tensor, heading: Tensor, points: Tensor) -> Tensor:
        """Heights of the ground [m] around robots, (N, P).

        Args:
            place: where each is in the world [m], (N, 2).
            heading: and its heading [rad], (N,).
            points: places in the frame of each, ahead and to the left [m], (P, 2).
        """
        (ahead, left), c, s = points.unbind(-1), torch.cos(heading)[:, None], torch.sin(heading)[:, None]
        if self._compiled and place.dtype == heading.dtype == points.dtype == torch.float32:
            frames = torch.cat((place, c, s), dim=-1)
            return field_height(frames, ahead.contiguous(), left.contiguous(), self._table, self._grid, self.heights.shape[1])
        return self._height(place[:, :1] + c * ahead - s * left, place[:, 1:] + s * ahead + c * left)

    def _height(self, x: Tensor, y: Tensor) -> Tensor:
        corner, beside, far, u, v = self._triangle(x, y)
        return corner + torch.maximum(u, v) * (beside - corner) + torch.minimum(u, v) * (far - beside)

    def normal(self, xy: Tensor) -> Tensor:
        """Upward normal of the ground at world positions (..., 2); unit vectors (..., 3)."""
        corner, beside, far, u, v = self._triangle(*xy.unbind(-1))
        first, second = beside - corner, far - beside
        along_x, along_y = torch.where(u > v, first, second), torch.where(u > v, second, first)
        normal = torch.stack((-along_x, -along_y, torch.full_like(along_x, self.cell)), dim=-1)
        return normal / normal.norm(dim=-1, keepdim=True)

    def _triangle(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Find the triangle below each point.

        Returns:
            Heights of its three corners [m], that of least x and y first and that of most last, and where in the cell the point
            is, [0, 1] along x and y; each (...,).
        """
        columns = self.heights.shape[1]
        x = ((x + self.half[0]) / self.cell).nan_to_num().clamp(0.0, self._most[0])
        y = ((y + self.half[1]) / self.cell).nan_to_num().clamp(0.0, self._most[1])
        i, j = x.long(), y.long()
        u, v = x - i, y - j
        at = i * columns + j
        beside = self._table[torch.where(u > v, at + columns, at + 1)]
        return self._table[at], beside, self._table[at + columns + 1], u, v


Terrain = FlatTerrain | HeightField


def _ground(spec: mujoco.MjSpec) -> mujoco.MjsGeom:
    """Add the plane."""
    plane = {"type": mujoco.mjtGeom.mjGEOM_PLANE, "size": [0.0, 0.0, 0.05]}
    return spec.worldbody.add_geom(PLAIN, name="ground", contype=0, conaffinity=0, condim=3, friction=_FRICTION, group=0, **plane)
