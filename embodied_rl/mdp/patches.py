"""Patches of rough ground: `(patch, difficulty, ...) -> heights`, made once with NumPy before anything is simulated.

Names say what it is to walk from a patch's middle outward: `stairs` climb, `stairs_down` descend.  Every patch is at height 0
along its edge, so that any may lie beside any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embodied_rl.config.types import Fraction, NonNegative, Positive, Range
from embodied_rl.errors import UserError
from embodied_rl.mdp.term import patch


@dataclass(frozen=True)
class Patch:
    """The points of a patch."""

    x: np.ndarray
    """From the middle [m], float64 (P, P): the same along the second axis."""
    y: np.ndarray
    """From the middle [m], (P, P): the same along the first axis."""
    half: float
    """From the middle to the edge [m]."""
    random: np.random.Generator
    """Of this patch alone."""

    @property
    def ring(self) -> np.ndarray:
        """Distance from the middle to the square ring through each point [m], (P, P)."""
        return np.maximum(np.abs(self.x), np.abs(self.y))

    def taper(self, middle: float, over: float = 0.3) -> np.ndarray:
        """Weight of what varies, (P, P): 0 within `middle` [m] of the middle and at the edge, 1 from `over` [m] beside both."""
        return np.clip(np.minimum(self.ring - middle, self.half - self.ring) / over, 0.0, 1.0)


@patch()
def flat(patch: Patch, difficulty: float) -> np.ndarray:
    """0 everywhere."""
    return np.zeros_like(patch.x)


@patch()
def random_rough(
    patch: Patch, difficulty: float, *, height: Range = (0.02, 0.12), spacing: Positive = 0.2, platform: NonNegative = 0.5
) -> np.ndarray:
    """Within +-height/2 [m] at points `spacing` [m] apart, straight between them; level within `platform` [m] of the middle."""
    knots = np.arange(-patch.half, patch.half + spacing, spacing)
    drawn = patch.random.uniform(-0.5, 0.5, (len(knots), len(knots))) * at(height, difficulty)
    return _between(knots, drawn, patch) * patch.taper(platform)


@patch()
def slope(patch: Patch, difficulty: float, *, angle: Range = (0.087, 0.61), platform: NonNegative = 0.75) -> np.ndarray:
    """Rises outward at `angle` [rad] from a square platform of +-`platform` [m] to the edge."""
    return -np.tan(at(angle, difficulty)) * _way_to_edge(patch, platform)


@patch()
def slope_down(patch: Patch, difficulty: float, *, angle: Range = (0.087, 0.61), platform: NonNegative = 0.75) -> np.ndarray:
    """Falls outward at `angle` [rad] from a square platform of +-`platform` [m] to the edge."""
    return np.tan(at(angle, difficulty)) * _way_to_edge(patch, platform)


@patch()
def stairs(
    patch: Patch, difficulty: float, *, step: Range = (0.05, 0.2), tread: Positive = 0.3, platform: NonNegative = 0.75
) -> np.ndarray:
    """Climb outward in square rings: steps of `step` [m], `tread` [m] deep, around a platform of +-`platform` [m]."""
    return -at(step, difficulty) * _steps_from_edge(patch, tread, platform)


@patch()
def stairs_down(
    patch: Patch, difficulty: float, *, step: Range = (0.05, 0.2), tread: Positive = 0.3, platform: NonNegative = 0.75
) -> np.ndarray:
    """Descend outward in square rings: steps of `step` [m], `tread` [m] deep, around a platform of +-`platform` [m]."""
    return at(step, difficulty) * _steps_from_edge(patch, tread, platform)


@patch()
def discrete(
    patch: Patch,
    difficulty: float,
    *,
    height: Range = (0.03, 0.2),
    side: Range = (0.4, 1.6),
    share: Fraction = 0.5,
    platform: NonNegative = 0.75,
) -> np.ndarray:
    """Boxes and pits of +-height/2 to +-height [m], sides in `side` [m], until they cover a `share` of the patch."""
    heights = np.zeros_like(patch.x)
    highest = at(height, difficulty)
    room = patch.half - 0.3
    _check_room(patch, platform, 0.3)
    covered = np.zeros(patch.x.shape, dtype=bool)
    for _ in range(1000):
        if covered.mean() >= share:
            break
        half_x, half_y = 0.5 * patch.random.uniform(*side, 2)
        x, y = patch.random.uniform(-room, room, 2)
        inside = (np.abs(patch.x - x) <= half_x) & (np.abs(patch.y - y) <= half_y)
        inside &= (patch.ring <= room) & (patch.ring > platform)
        heights[inside] = patch.random.choice((-1.0, 1.0)) * patch.random.uniform(0.5, 1.0) * highest
        covered |= inside
    return heights


@patch()
def waves(
    patch: Patch, difficulty: float, *, height: Range = (0.05, 0.4), length: Positive = 1.6, platform: NonNegative = 0.5
) -> np.ndarray:
    """Crests and troughs along x and y, `height` [m] from the lowest to the highest point, `length` [m] from crest to crest."""
    turn = 2.0 * np.pi / length
    return 0.25 * at(height, difficulty) * (np.cos(turn * patch.x) + np.cos(turn * patch.y) - 2.0) * patch.taper(platform, 0.6)


@patch()
def stepping_stones(
    patch: Patch,
    difficulty: float,
    *,
    stone: Range = (0.25, 0.9),
    gap: Range = (0.05, 0.3),
    depth: Positive = 0.5,
    platform: NonNegative = 0.75,
) -> np.ndarray:
    """Square stones, each `stone` [m] wide, less the harder, with a `gap` [m] around it that is `depth` [m] deep."""
    width, between = at(stone, 1.0 - difficulty), at(gap, difficulty)
    pitch = width + between
    # a stone is in the middle, so that rows of them lead outward
    inside = [np.abs((one + 0.5 * pitch) % pitch - 0.5 * pitch) <= 0.5 * width for one in (patch.x, patch.y)]
    solid = (inside[0] & inside[1]) | (patch.ring <= platform) | (patch.ring >= patch.half - 0.3)
    return np.where(solid, 0.0, -depth)


@patch()
def gaps(
    patch: Patch,
    difficulty: float,
    *,
    gap: Range = (0.05, 0.4),
    ground: Positive = 0.8,
    depth: Positive = 0.5,
    platform: NonNegative = 0.75,
) -> np.ndarray:
    """Square rings of ground, `ground` [m] wide, with gaps of `gap` [m] between them that are `depth` [m] deep."""
    width = at(gap, difficulty)
    _check_room(patch, platform, width)
    way = patch.ring - platform
    open_ = (way > 0.0) & (way % (ground + width) < width) & (patch.ring < patch.half - 0.3)
    return np.where(open_, -depth, 0.0)


def at(bounds: tuple[float, float], difficulty: float) -> float:
    """Return the number of a range at a difficulty in [0, 1]: the first at 0, the second at 1."""
    return bounds[0] + difficulty * (bounds[1] - bounds[0])


def _check_room(patch: Patch, platform: float, more: float = 0.0) -> None:
    """Check that what a kind is about lies on the patch."""
    if platform + more > patch.half:
        beside = f" and {more:g} m more" if more else ""
        raise UserError(f"a term has no room on a patch of {2 * patch.half:g} m for a platform of +-{platform:g} m{beside}")


def _way_to_edge(patch: Patch, platform: float) -> np.ndarray:
    """Distance of each point from the edge, no more than that of a platform in the middle [m], (P, P)."""
    _check_room(patch, platform)
    return patch.half - np.maximum(patch.ring, platform)


def _steps_from_edge(patch: Patch, tread: float, platform: float) -> np.ndarray:
    """Count the steps between each point and the edge, (P, P)."""
    _check_room(patch, platform, tread)
    count = int((patch.half - platform) / tread + 1e-9)
    # steps are counted from the platform: it has its size, and what is left over of the way lies at the edge
    passed = np.ceil((patch.ring - platform) / tread - 1e-9).clip(0, count)
    return count - passed


def _between(knots: np.ndarray, values: np.ndarray, patch: Patch) -> np.ndarray:
    """Values at the points of a patch, straight along x and y between those at a square of knots."""
    along_y = np.stack([np.interp(patch.y[0], knots, row) for row in values])
    return np.stack([np.interp(patch.x[:, 0], knots, column) for column in along_y.T], axis=1)
