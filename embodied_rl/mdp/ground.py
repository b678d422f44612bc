"""The page's ground: a plane, or a grid of patches, each kind along y and harder along x."""

from __future__ import annotations

import numpy as np

from embodied_rl.config.page import Page
from embodied_rl.errors import Faults, UserError
from embodied_rl.mdp.bind import Finder, naming_own
from embodied_rl.mdp.patches import Patch
from embodied_rl.scene.terrain import FlatTerrain, HeightField, Terrain

#: Heights and depths that a robot's world may have [m].
_HIGHEST = 100.0


def make_ground(page: Page) -> Terrain:
    """Make the ground that a page describes.

    Raises:
        UserError: a patch is no whole number of cells wide, or a kind of ground gives something else than its heights.
    """
    if not page.patches:
        return FlatTerrain()
    settings = page.terrain
    cells = round(settings.size / settings.cell)
    border = round(settings.border / settings.cell)
    if not np.isclose(cells * settings.cell, settings.size, rtol=0.0, atol=1e-6) or cells % 2:
        near = 2 * settings.cell * max(1, round(0.5 * settings.size / settings.cell))
        message = f"{settings.size:g} is no even number of cells of {settings.cell:g} m; take {near:g}"
        raise UserError(f"{page.name}: terrain.size: {message}")
    kinds = len(page.patches)
    heights = np.zeros((settings.rows * cells + 2 * border + 1, kinds * cells + 2 * border + 1))
    origins = np.zeros((kinds, settings.rows, 3))
    along = settings.cell * (np.arange(cells + 1) - cells // 2)
    x, y = np.meshgrid(along, along, indexing="ij")
    find, faults = Finder(page), Faults()
    for kind, (name, entry) in enumerate(page.patches.items()):
        for row in range(settings.rows):
            random = np.random.default_rng((settings.seed, kind, row))
            patch = Patch(x, y, 0.5 * cells * settings.cell, random)
            with faults.noted(), naming_own(f"patches.{name}"):
                drawn = find("patches", entry.term)(patch, row / max(1, settings.rows - 1), **entry.params)
                first, second = border + row * cells, border + kind * cells
                heights[first : first + cells + 1, second : second + cells + 1] = _checked(drawn, x)
                middle = np.array([first, second]) + cells // 2
                place = settings.cell * (middle - 0.5 * (np.array(heights.shape) - 1))
                origins[kind, row] = *place, heights[tuple(middle)]
    faults.tell()
    return HeightField(heights, settings.cell, origins, list(page.patches))


def _checked(drawn: object, x: np.ndarray) -> np.ndarray:
    """Check what a kind of ground gave."""
    if not isinstance(drawn, np.ndarray) or drawn.shape != x.shape:
        given = f"{drawn.shape}" if isinstance(drawn, np.ndarray) else f"a {type(drawn).__name__}"
        raise UserError(f"a term returns {x.shape} heights, got {given}")
    if not np.all(np.isfinite(drawn)) or np.abs(drawn).max() > _HIGHEST:
        raise UserError(f"a term returns heights that are finite and within +-{_HIGHEST:g} m")
    edge = np.concatenate((drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]))
    if np.abs(edge).max() > 1e-6:
        raise UserError(f"a term returns height 0 along a patch's edge, got {edge[np.abs(edge).argmax()]:g} m")
    return drawn
