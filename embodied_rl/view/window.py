"""The part of a large ground that is near what is looked at."""

from __future__ import annotations

import copy

import mujoco
import numpy as np

#: Side of the part that is drawn [m]; it is moved along once what is looked at is within a quarter of it of its edge.
_SIDE = 24.0


class Window:
    """A copy of a model whose height field is the part around a place: software draws three million points in a second.

    Args:
        model: with a height field on a geom `ground` that is not turned, or without one: then it is `model` itself.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        """What is to be drawn."""
        self._middle: np.ndarray | None = None
        ground = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "ground")
        self._field = int(model.geom_dataid[ground]) if ground >= 0 else -1  # none in another's model
        if self._field < 0:
            return
        rows, columns = int(model.hfield_nrow[self._field]), int(model.hfield_ncol[self._field])
        self._first = int(model.hfield_adr[self._field])
        self._heights = model.hfield_data[self._first : self._first + rows * columns].reshape(rows, columns).copy()
        self._half, self._at = model.hfield_size[self._field, :2].copy(), model.geom("ground").pos.copy()
        self._cell = 2.0 * self._half / (columns - 1, rows - 1)
        self._points = np.minimum(np.round(_SIDE / self._cell).astype(int) + 1, (columns, rows))
        self.model = copy.copy(model)
        self.model.hfield_ncol[self._field], self.model.hfield_nrow[self._field] = self._points
        self.model.hfield_size[self._field, :2] = 0.5 * self._cell * (self._points - 1)

    def follow(self, place: np.ndarray) -> bool:
        """Move the part so that a place, (2,) or more [m], is well inside; whether its points are others now."""
        if self._field < 0 or (self._middle is not None and np.abs(place[:2] - self._middle).max() < _SIDE / 4):
            return False
        first = np.round((place[:2] - self._at[:2] + self._half) / self._cell - 0.5 * (self._points - 1)).astype(int)
        first = np.clip(first, 0, self._heights.shape[::-1] - self._points)
        middle = self._at[:2] + self._cell * (first + 0.5 * (self._points - 1)) - self._half
        part = self._heights[first[1] : first[1] + self._points[1], first[0] : first[0] + self._points[0]]
        self.model.hfield_data[self._first : self._first + part.size] = part.ravel()
        self.model.geom("ground").pos[:2] = middle
        moved = self._middle is None or bool(np.any(middle != self._shown))
        self._middle, self._shown = place[:2].copy(), middle
        return moved
