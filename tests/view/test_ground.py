from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.view.ground import draw_map, draw_successes


@pytest.fixture
def page() -> Page:
    ground = ["terrain={rows: 3, size: 4.0, border: 1.0, cell: 0.1}", "patches={flat: {}, stairs_down: {}, stairs: {}}"]
    return load("go2_flat", ground)


def pixels(file: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(file)).astype(int)


def test_kinds_lie_along_y_and_rows_along_x(page: Page, tmp_path: Path) -> None:
    """Pits are bluer than level ground and hills are redder, the more the harder: the lowest line is the first kind's."""
    draw_map(page, tmp_path / "made" / "map.png")
    seen = pixels(tmp_path / "made" / "map.png")
    warmth = seen[..., 0] - seen[..., 2]
    level = warmth[:, :, None] == 214 - 196
    rows, columns = np.nonzero(level[..., 0])
    left, right, low = columns.min(), columns.max(), rows.max()  # the flat line at the bottom is level throughout
    side = (right - left + 1) / 3
    middle = {
        (kind, row): warmth[round(low - (kind + 0.5) * side), round(left + (row + 0.5) * side)]
        for kind in range(3)
        for row in range(3)
    }
    assert middle[0, 0] == middle[0, 2] == 18
    assert 18 < middle[1, 0] < middle[1, 1] < middle[1, 2]
    assert 18 > middle[2, 0] > middle[2, 1] > middle[2, 2]


def test_successes_stand_beside_the_map(page: Page, tmp_path: Path) -> None:
    shares = {f"success/{kind}/row_{row}": 1.0 for kind in ("flat", "stairs", "stairs_down") for row in range(3)}
    hard = shares | {"success/stairs/row_2": 0.0}
    green, red = [56, 132, 82], [178, 50, 50]
    counts = []
    for figures in (shares, hard):
        draw_successes(page, figures, {}, tmp_path / "all.png")
        seen = pixels(tmp_path / "all.png")
        counts.append([int((seen == colour).all(-1).sum()) for colour in (green, red)])
    field = counts[0][0] / 9
    assert counts[1][0] == pytest.approx(8 * field, rel=0.05) and counts[1][1] > counts[0][1] + 0.8 * field
    draw_successes(page, shares, {"push": {"success/flat/row_1": 1.0, "success/stairs/row_1": 0.0}}, tmp_path / "stressed.png")
    half = (pixels(tmp_path / "stressed.png") == [245, 214, 120]).all(-1).sum()
    assert half > (pixels(tmp_path / "all.png") == [245, 214, 120]).all(-1).sum() + 1000  # the mean of both, in its own field


def test_a_plane_has_no_map(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="go2_flat: its ground is a plane, of which there is no map; a page with `patches` has one"
    ):
        draw_map(load("go2_flat"), tmp_path / "map.png")
