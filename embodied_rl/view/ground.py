"""Pictures of a page's ground from above: where its patches lie, and how many get across each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from embodied_rl.config.page import Page
from embodied_rl.errors import UserError
from embodied_rl.mdp.ground import make_ground
from embodied_rl.scene.terrain import FlatTerrain
from embodied_rl.view.film import check_picture

#: Side of a patch, and of a field of the table of successes [pixels].
_PATCH, _FIELD = 96, 64
_MARGIN, _TEXT = 12, 16
_INK, _PAPER, _LINE = (30, 30, 30), (255, 255, 255), (255, 255, 255)
#: Colours of the deepest, the level and the highest ground.
_DEEP, _LEVEL, _HIGH = (38, 84, 124), (214, 209, 196), (150, 70, 40)
#: Colours of nobody and everybody.
_NOBODY, _HALF, _EVERYBODY = (178, 50, 50), (245, 214, 120), (56, 132, 82)
#: Where the light comes from: low, so that steps are seen.
_LIGHT = np.array([-0.55, 0.45, 0.70]) / np.linalg.norm([-0.55, 0.45, 0.70])


def draw_map(page: Page, file: Path) -> None:
    """Draw the ground of a page from above: kinds along y, rows of difficulty along x, with the heights' scale.

    Raises:
        UserError: the page's ground is a plane, or the file's name is no picture's.
    """
    check_picture(file)
    _save(_map(page), file)


def draw_successes(page: Page, figures: Mapping[str, float], stressed: Mapping[str, Mapping[str, float]], file: Path) -> None:
    """Draw the map beside the share of robots that got across each patch, and below it those under stress.

    Args:
        page: as it is judged.
        figures: `success/KIND/row_N` of each patch.
        stressed: the same of some rows, by the name of the stress.
        file: the picture.

    Raises:
        UserError: the page's ground is a plane.
    """
    parts = [_map(page), _table(page, figures)]
    wide = sum(part.width for part in parts) + _MARGIN
    below = _stresses(page, stressed) if stressed else None
    high = max(part.height for part in parts) + (below.height if below else 0)
    picture = Image.new("RGB", (max(wide, below.width if below else 0), high), _PAPER)
    picture.paste(parts[0], (0, 0))
    picture.paste(parts[1], (parts[0].width + _MARGIN, 0))
    if below:
        picture.paste(below, (0, max(part.height for part in parts)))
    _save(picture, file)


def _map(page: Page) -> Image.Image:
    ground = make_ground(page)
    if isinstance(ground, FlatTerrain):
        raise UserError(f"{page.name}: its ground is a plane, of which there is no map; a page with `patches` has one")
    kinds, rows = list(page.patches), page.terrain.rows
    border = round(page.terrain.border / page.terrain.cell)
    inner = ground.heights[border : ground.heights.shape[0] - border, border : ground.heights.shape[1] - border]
    along_x, along_y = np.gradient(inner, page.terrain.cell)
    normal = np.stack((-along_x, -along_y, np.ones_like(inner)), axis=-1)
    light = np.clip((normal / np.linalg.norm(normal, axis=-1, keepdims=True)) @ _LIGHT, 0.0, 1.0) / _LIGHT[2]
    extreme = max(abs(float(inner.min())), abs(float(inner.max())), 1e-3)
    shade = _ramp(0.5 + 0.5 * inner / extreme, (_DEEP, _LEVEL, _HIGH)) * np.clip(0.25 + 0.75 * light, 0.0, 1.25)[..., None]
    pixels = np.clip(shade, 0, 255).astype(np.uint8).transpose(1, 0, 2)[::-1]  # y up, x to the right
    size = (rows * _PATCH, len(kinds) * _PATCH)
    picture, pen, left = _sheet(
        kinds, size, _PATCH, f"rows: {rows}, patches of {page.terrain.size:g} m, seed {page.terrain.seed}"
    )
    picture.paste(Image.fromarray(pixels).resize(size, Image.Resampling.BOX), (left, 2 * _TEXT + _MARGIN))
    for row in range(1, rows):
        pen.line([(left + row * _PATCH, 2 * _TEXT + _MARGIN), (left + row * _PATCH, 2 * _TEXT + _MARGIN + size[1])], _LINE)
    for kind in range(1, len(kinds)):
        y = 2 * _TEXT + _MARGIN + kind * _PATCH
        pen.line([(left, y), (left + size[0], y)], _LINE)
    _columns(pen, left, range(rows), _PATCH)
    _scale(picture, pen, left, size, (_DEEP, _LEVEL, _HIGH), (f"{-extreme:.2f} m", "0", f"{extreme:.2f} m"))
    return picture


def _table(page: Page, figures: Mapping[str, float]) -> Image.Image:
    kinds, rows = list(page.patches), page.terrain.rows
    picture, pen, left = _sheet(
        [], (rows * _FIELD, len(kinds) * _PATCH), _PATCH, "share of robots that get across, by kind and row"
    )
    for kind, name in enumerate(reversed(kinds)):
        for row in range(rows):
            _field(
                pen, left + row * _FIELD, 2 * _TEXT + _MARGIN + kind * _PATCH, _PATCH, figures.get(f"success/{name}/row_{row}")
            )
    _columns(pen, left, range(rows), _FIELD)
    size = (rows * _FIELD, len(kinds) * _PATCH)
    _scale(picture, pen, left, size, (_NOBODY, _HALF, _EVERYBODY), ("nobody", "half", "everybody"))
    return picture


def _stresses(page: Page, stressed: Mapping[str, Mapping[str, float]]) -> Image.Image:
    """Draw a line of fields for each stress: the mean over kinds in each of its rows."""
    found = {
        name: {
            row: float(np.mean([figures[key] for kind in page.patches if (key := f"success/{kind}/row_{row}") in figures]))
            for row in range(page.terrain.rows)
            if any(f"success/{kind}/row_{row}" in figures for kind in page.patches)
        }
        for name, figures in stressed.items()
    }
    rows = sorted({row for one in found.values() for row in one})
    high = _TEXT + 10
    names = list(found)
    picture, pen, left = _sheet(names[::-1], (len(rows) * _PATCH, len(names) * high), high, "under stress: mean over kinds")
    for line, name in enumerate(names):
        for column, row in enumerate(rows):
            _field(pen, left + column * _PATCH, 2 * _TEXT + _MARGIN + line * high, high, found[name].get(row), wide=_PATCH)
    _columns(pen, left, rows, _PATCH)
    return picture


def _sheet(lines: list[str], size: tuple[int, int], high: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """Make a sheet with room for a field of `size`, the names of its lines from the lowest up, and where the field begins."""
    left = _MARGIN + max((round(_font().getlength(name)) + _MARGIN for name in lines), default=0)
    wide = max(left + size[0], round(_font().getlength(title)) + left) + _MARGIN
    picture = Image.new("RGB", (wide, 2 * _TEXT + size[1] + 2 * _MARGIN + 3 * _TEXT), _PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((left, _MARGIN // 2), title, _INK, _font())
    for line, name in enumerate(reversed(lines)):
        pen.text((_MARGIN, 2 * _TEXT + _MARGIN + (line + 0.5) * high), name, _INK, _font(), anchor="lm")
    return picture, pen, left


def _columns(pen: ImageDraw.ImageDraw, left: int, rows: range | list[int], wide: int) -> None:
    for column, row in enumerate(rows):
        pen.text(
            (left + (column + 0.5) * wide, 2 * _TEXT + _MARGIN - 4), f"row {row}" if wide > 80 else f"{row}", _INK, _font(), "ms"
        )


def _field(pen: ImageDraw.ImageDraw, x: int, y: int, high: int, share: float | None, wide: int = _FIELD) -> None:
    if share is None:
        return
    colour = tuple(_ramp(np.array(share), (_NOBODY, _HALF, _EVERYBODY)).round().astype(int).tolist())
    pen.rectangle([x, y, x + wide - 2, y + high - 2], colour)
    pen.text((x + wide / 2, y + high / 2), f"{share:.2f}", _INK if 0.25 < share < 0.8 else _PAPER, _font(), "mm")


def _scale(
    picture: Image.Image, pen: ImageDraw.ImageDraw, left: int, size: tuple[int, int], colours: tuple, labels: tuple[str, str, str]
) -> None:
    """Draw a bar of the colours below the field, with what they stand for."""
    wide, y = min(size[0], 240), 2 * _TEXT + size[1] + 2 * _MARGIN
    bar = _ramp(np.linspace(0.0, 1.0, wide)[None].repeat(10, axis=0), colours).astype(np.uint8)
    picture.paste(Image.fromarray(bar), (left, y))
    for label, place, anchor in zip(labels, (0, wide // 2, wide), ("la", "ma", "ra"), strict=True):
        pen.text((left + place, y + 12), label, _INK, _font(), anchor)


def _ramp(share: np.ndarray, colours: tuple) -> np.ndarray:
    """Colours of shares in [0, 1], straight between three, (..., 3)."""
    return np.stack([np.interp(share, (0.0, 0.5, 1.0), [colour[k] for colour in colours]) for k in range(3)], axis=-1)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(14)


def _save(picture: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)
