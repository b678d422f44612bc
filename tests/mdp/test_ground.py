from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import embodied_rl
from embodied_rl.config import ConfigError, load
from embodied_rl.errors import UserError
from embodied_rl.mdp.ground import make_ground
from embodied_rl.mdp.part import PartState
from embodied_rl.scene.terrain import FlatTerrain, HeightField

GRID = ["terrain={rows: 4, size: 4.0, border: 1.0, cell: 0.1}", "patches.slope={}", "patches.flat={}", "patches.stairs_down={}"]
QUICK = ["env.compile=false", "physics.num_threads=1"]


def test_rows_are_harder_along_x_and_kinds_lie_along_y() -> None:
    ground = make_ground(load("go2_flat", GRID))
    assert isinstance(ground, HeightField)
    assert ground.half == pytest.approx((0.5 * (4 * 4 + 2), 0.5 * (3 * 4 + 2)))
    origins = ground.origins.numpy()
    assert origins.shape == (3, 4, 3)
    np.testing.assert_allclose(origins[:, :, 0], [[-6.0, -2.0, 2.0, 6.0]] * 3, atol=1e-6)
    np.testing.assert_allclose(origins[:, :, 1].T, [[-4.0, 0.0, 4.0]] * 4, atol=1e-6)
    slope, flat, stairs = origins[:, :, 2]
    assert np.all(np.diff(slope) < 0) and np.all(flat == 0) and np.all(np.diff(stairs) > 0)
    np.testing.assert_allclose(slope, -np.tan(np.linspace(0.087, 0.61, 4)) * 1.25, rtol=1e-5)
    np.testing.assert_allclose(ground.height(ground.origins[..., :2]), origins[..., 2], atol=1e-6)
    border = torch.tensor([[-8.9, 0.0], [8.9, 6.0], [0.0, -6.9], [8.99, 6.99]])
    assert ground.height(border).abs().max() < 1e-6


def test_a_seed_is_a_ground() -> None:
    changes = ["terrain={rows: 2, size: 4.0, border: 0.0}", "patches.random_rough={}", "patches.discrete={}"]
    first, again, other = (make_ground(load("go2_flat", [*changes, f"terrain.seed={seed}"])) for seed in (1, 1, 2))
    assert isinstance(first, HeightField) and isinstance(again, HeightField) and isinstance(other, HeightField)
    assert np.array_equal(first.heights, again.heights) and not np.array_equal(first.heights, other.heights)
    assert not np.array_equal(first.heights[:40, :40], first.heights[80:120, :40])


def test_a_page_without_patches_has_a_plane() -> None:
    assert isinstance(make_ground(load("go2_flat")), FlatTerrain)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["terrain={size: 4.0, cell: 0.3}", "patches.flat={}"], "terrain.size: 4 is no even number of cells of 0.3 m; take 4.2"),
        (["terrain.rows=3"], "terrain.rows: only read with patches"),
        (["patches.stair={}"], "patches.stair: no such term; did you mean 'stairs'?"),
        (["patches.stairs={step: [0.2, 0.1]}"], "patches.stairs.step: [0.2, 0.1] is not allowed: low must be at most high"),
        (
            ["patches.stairs={platform: 3.9}"],
            "patches.stairs: has no room on a patch of 8 m for a platform of +-3.9 m and 0.3 m",
        ),
        (["patches.slope={platform: 5.0}"], "patches.slope: has no room on a patch of 8 m for a platform of +-5 m"),
    ],
)
def test_what_cannot_be_is_said(changes: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        make_ground(load("go2_flat", changes))
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


OWN = """
import numpy as np
from embodied_rl.mdp.term import patch

@patch()
def bump(patch, difficulty, *, height: float = 0.1, edge: float = 0.0, bad: str = ""):
    '''A cone.'''
    if bad == "shape":
        return np.zeros(3)
    if bad == "nan":
        return np.full(patch.x.shape, np.nan)
    if bad == "raise":
        return patch.z
    return difficulty * height * np.clip(1.0 - patch.ring / patch.half, 0.0, 1.0) + edge
"""


def test_a_kind_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    changes = [f"terms=[{tmp_path / 'own.py'}]", "terrain={rows: 2, size: 4.0}", "patches.bump={height: 0.3}"]
    ground = make_ground(load("go2_flat", changes))
    assert isinstance(ground, HeightField) and ground.heights.max() == pytest.approx(0.3, abs=1e-6)
    for wrong, said in (
        ("bad: shape", "patches.bump: returns (81, 81) heights, got (3,)"),
        ("bad: nan", "patches.bump: returns heights that are finite and within +-100 m"),
        ("edge: 0.2", "patches.bump: returns height 0 along a patch's edge, got 0.2 m"),
        ("bad: raise", "AttributeError"),
    ):
        with pytest.raises(UserError) as error:
            make_ground(load("go2_flat", [*changes, f"patches.bump={{{wrong}}}"]))
        assert said in str(error.value) and len(str(error.value).splitlines()) == 1
    assert "own.py:13" in str(error.value)
    with pytest.raises(ConfigError, match="curriculum"):
        load("go2_flat", [*changes, "curriculum.patch={}"])


@pytest.mark.parametrize("kind", ["random_rough", "stairs", "stairs_down", "discrete", "waves", "slope"])
def test_robots_begin_on_the_ground(kind: str) -> None:
    """The lowest foot is 0 to 2 cm above the ground below all feet, wherever on a patch, at later resets too."""
    changes = [*QUICK, "terrain={rows: 3, size: 6.0}", f"patches.{kind}={{platform: 0.1}}", "events=null"]
    changes += ["events.start_on_patch={rows: [0, 2]}", "events.reset_base={position: 2.0}", "observations.critic.foot_height={}"]
    env = embodied_rl.make("go2_flat", changes, num_envs=64)
    for _ in range(3):
        env.reset()
        env.physics.refresh()
        state = PartState(env.robot, env.physics)
        below = env.scene.terrain.height(state.foot_pos_w[..., :2])
        clearance = state.foot_underside_w - below.amax(-1, keepdim=True)
        assert clearance.min() > -1e-4
        assert (clearance.amin(-1) < 0.02).float().mean() > 0.6  # others have a foot's corner on what is higher
    env.close()


def test_the_scan_sees_the_ground_as_it_is() -> None:
    changes = [*QUICK, *GRID, "observations.actor.height_scan={length: 0.8, width: 0.4, spacing: 0.2}"]
    changes += ["events=null", "events.start_on_patch={rows: [0, 3]}"]
    env = embodied_rl.make("go2_flat", changes, num_envs=6)
    flat = slice(env.obs["actor"].shape[1] - 15, None)
    # robot 1 of 3 kinds is on the flat patch: level ground is 0 whichever way the base is turned and however high it hangs
    assert env.obs["actor"][1, flat].abs().max() < 1e-6
    qpos = env.physics.qpos.clone()
    from embodied_rl import rotations

    qpos[:, 3:7] = rotations.quat_from_euler(torch.tensor(0.3), torch.tensor(-0.2), torch.tensor(0.7)).expand(6, 4)
    qpos[:, :2] = torch.tensor([-6.0, -2.45])  # on the slope's edge to the flat patch, seen from behind
    env.physics.write(torch.ones(6).bool(), qpos=qpos)
    moment = env.moment(None)  # pyright: ignore[reportArgumentType]
    term = env.groups[0].terms[-1]
    found = term.function(moment)[0].view(5, 3)
    heading = rotations.yaw_of(qpos[:1, 3:7])[0]
    for i, ahead in enumerate((-0.4, -0.2, 0.0, 0.2, 0.4)):
        for j, left in enumerate((-0.2, 0.0, 0.2)):
            x = -6.0 + ahead * torch.cos(heading) - left * torch.sin(heading)
            y = -2.45 + ahead * torch.sin(heading) + left * torch.cos(heading)
            there = env.scene.terrain.height(torch.stack((x, y)))
            assert found[i, j] == pytest.approx(float(there - qpos[0, 2] + env.robot.spec.base_height), abs=1e-5)
    # mirrored: left and right swap
    index, sign = env.terms.reflect(term)
    assert index.view(5, 3).tolist() == [[3 * i + 2, 3 * i + 1, 3 * i] for i in range(5)] and sign.tolist() == [1.0] * 15
    env.close()
