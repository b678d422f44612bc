from __future__ import annotations

import mujoco
import numpy as np
import pytest

from embodied_rl.scene.terrain import FlatTerrain, HeightField
from embodied_rl.view.window import Window


def ground(cells: tuple[int, int] = (400, 300), cell: float = 0.2) -> mujoco.MjModel:
    rng = np.random.default_rng(0)
    spec = mujoco.MjSpec()
    heights = rng.uniform(-0.2, 0.3, (cells[0] + 1, cells[1] + 1))
    HeightField(heights, cell, np.zeros((1, 1, 3))).add_to(spec)
    return spec.compile()


def height(model: mujoco.MjModel, xy: np.ndarray) -> float:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return mujoco.mj_ray(model, data, np.array([*xy, 9.0]), np.array([0.0, 0.0, -1.0]), None, 1, -1, np.zeros(1, dtype=np.int32))


@pytest.mark.parametrize("place", [(0.0, 0.0), (17.3, -12.1), (-39.0, 29.0), (500.0, 0.0)])
def test_the_ground_around_a_place_is_the_whole_ones(place: tuple[float, float]) -> None:
    whole = ground()
    window = Window(whole)
    assert window.follow(np.array([*place, 0.3])) and window.model.hfield_nrow[0] == window.model.hfield_ncol[0] == 121
    rng = np.random.default_rng(1)
    inside = np.clip(place, (-40.0, -30.0), (40.0, 30.0))
    for step in rng.uniform(-6.0, 6.0, (20, 2)):
        xy = np.clip(inside + step, (-39.9, -29.9), (39.9, 29.9))
        assert height(window.model, xy) == pytest.approx(height(whole, xy), abs=1e-6)


def test_it_moves_when_the_place_nears_its_edge() -> None:
    window = Window(ground())
    assert window.follow(np.array([0.0, 0.0]))
    assert not window.follow(np.array([5.9, -5.9]))
    assert window.follow(np.array([6.1, 0.0])) and not window.follow(np.array([0.2, 0.0]))


def test_a_small_ground_and_a_plane_are_shown_whole() -> None:
    small = ground((20, 30))
    window = Window(small)
    assert window.follow(np.array([0.0, 0.0])) and not window.follow(np.array([9.0, 9.0]))
    assert height(window.model, np.array([1.0, 1.0])) == height(small, np.array([1.0, 1.0]))
    spec = mujoco.MjSpec()
    FlatTerrain().add_to(spec)
    plane = spec.compile()
    assert Window(plane).model is plane and not Window(plane).follow(np.zeros(3))
