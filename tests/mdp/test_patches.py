from __future__ import annotations

import numpy as np
import pytest

from embodied_rl.config.terms import find_terms
from embodied_rl.mdp import patches
from embodied_rl.mdp.patches import Patch

CELL = 0.05


def patch(seed: int = 0, half: float = 4.0) -> Patch:
    along = np.arange(-round(half / CELL), round(half / CELL) + 1) * CELL
    x, y = np.meshgrid(along, along, indexing="ij")
    return Patch(x, y, half, np.random.default_rng(seed))


def made(kind: str, difficulty: float, seed: int = 0, **params) -> np.ndarray:
    terms, _ = find_terms()
    defaults = {name: one.default for name, one in terms["patch"][kind].parameters.items()}
    return getattr(patches, kind)(patch(seed), difficulty, **(defaults | params))


KINDS = sorted(find_terms()[0]["patch"])


def test_the_kinds() -> None:
    trained = {"flat", "random_rough", "slope", "slope_down", "stairs", "stairs_down", "discrete", "waves"}
    assert set(KINDS) == trained | {"stepping_stones", "gaps"}


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_finite_and_ends_at_zero(kind: str, difficulty: float) -> None:
    heights = made(kind, difficulty)
    assert heights.shape == (161, 161) and np.isfinite(heights).all()
    assert all(np.abs(edge).max() < 1e-12 for edge in (heights[0], heights[-1], heights[:, 0], heights[:, -1]))
    middle = heights[75:86, 75:86]
    assert np.ptp(middle) < 1e-12  # robots begin on level ground


@pytest.mark.parametrize(("kind", "sign"), [("stairs", 1), ("stairs_down", -1)])
def test_stairs_have_their_steps(kind: str, sign: int) -> None:
    """Seen from the middle outward: ten steps of 12.5 cm at difficulty 0.5, each tread 0.3 m with its riser."""
    outward = made(kind, 0.5)[80:, 80] * sign
    rises = np.diff(outward)
    steps = np.flatnonzero(rises > 1e-9)
    np.testing.assert_allclose(rises[steps], 0.125, atol=1e-12)
    assert np.all(rises >= 0.0) and len(steps) == 10
    assert set(np.diff(steps)) == {6} and steps[0] == 15  # 0.3 m, after a platform of 0.75 m


@pytest.mark.parametrize(("kind", "sign"), [("slope", 1), ("slope_down", -1)])
def test_slopes_have_their_angle(kind: str, sign: int) -> None:
    for difficulty, angle in ((0.0, 0.087), (1.0 / 3.0, 0.2613), (1.0, 0.61)):
        outward = made(kind, difficulty)[80:, 80] * sign
        np.testing.assert_allclose(np.diff(outward)[16:] / CELL, np.tan(angle), rtol=1e-3)


def test_random_ground_is_random_along_both_axes() -> None:
    """Neighbours differ as much along x as along y, and heights fill their range."""
    heights = np.stack([made("random_rough", 1.0, seed)[10:60, 10:60] for seed in range(20)])
    along_x, along_y = (np.diff(heights, axis=axis).std() for axis in (1, 2))
    assert along_x == pytest.approx(along_y, rel=0.05) and along_x > 0.005
    assert 0.055 < np.abs(heights).max() <= 0.06
    assert not np.array_equal(heights[0], heights[1])


def test_blocks_cover_their_share() -> None:
    heights = made("discrete", 1.0)
    assert 0.3 < (heights != 0.0).mean() < 0.6
    assert np.abs(heights).max() <= 0.2 and heights.min() < -0.1 < 0.1 < heights.max()


def test_waves_have_their_height_and_length() -> None:
    along = made("waves", 1.0)[80, 80:150]
    assert along.min() == pytest.approx(-0.2, abs=0.01)
    assert along[32] == pytest.approx(0.0, abs=1e-9) and along[48] == pytest.approx(-0.2, abs=1e-9)


def test_holes_are_as_wide_and_deep_as_they_should_be() -> None:
    for difficulty, width in ((0.0, 1), (1.0, 7)):  # points of a gap of 0.05 and 0.4 m, its rims aside
        outward = made("gaps", difficulty)[80:, 80]
        holes = np.flatnonzero(outward < 0.0)
        first = holes[: np.argmax(np.diff(holes, append=1e9) > 1) + 1]
        assert abs(len(first) - width) <= 1 and set(outward[holes]) == {-0.5}
    hard, easy = (np.mean(made("stepping_stones", one) < 0.0) for one in (1.0, 0.0))
    assert hard > 0.5 > easy > 0.02
