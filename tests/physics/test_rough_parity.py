"""The same rough ground on every engine: a robot let go on it comes to stand where it does in C."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embodied_rl import make_env
from embodied_rl.config import load

MODULES = {"warp": "mujoco_warp", "mjx": "mujoco.mjx"}
GROUND = ["terrain={rows: 2, size: 6.0, border: 2.0, cell: 0.1}", "patches={flat: {}, slope: {}, stairs: {}, waves: {}}"]
GROUND += ["physics={dt: 0.005, decimation: 4}"]  # as the pages on such ground have it
#: Where on a patch robots are let go [m]: in its level middle, and where it rises.
PLACES = ((0.0, 0.0), (1.6, 0.3))


def settle(engine: str) -> tuple[np.ndarray, np.ndarray]:
    """Let robots go on each kind and row; generalised positions after 0.4 s, and the heights of the ground below."""
    page = load("go2_flat", [*GROUND, "env.num_envs=16", "env.compile=false", f"physics.engine={engine}", "physics.device=cpu"])
    env = make_env.make(page)
    try:
        origins = env.scene.terrain.origins
        assert origins is not None
        places = torch.cat([origins[..., :2].reshape(-1, 2) + torch.tensor(place) for place in PLACES])
        qpos = env.robot.default_qpos.expand(16, -1).clone()
        qpos[:, :2] = places
        footprint = places[:, None] + env.robot.footprint
        qpos[:, 2] += env.scene.terrain.height(footprint).amax(-1)
        everybody = torch.ones(16, dtype=torch.bool)
        env.physics.write(everybody, qpos=qpos, qvel=torch.zeros_like(env.physics.qvel))
        for _ in range(20):
            env.physics.step(env.controls())
            assert not env.physics.unstable.any()
        return env.physics.qpos.numpy().copy(), env.scene.terrain.height(env.physics.qpos[:, :2]).numpy()
    finally:
        env.close()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["warp", "mjx"])
def test_a_robot_stands_on_it_as_in_c(engine: str) -> None:
    """On Warp, whose contacts with the ground are ours, within 0.1 mm everywhere.

    On MJX within 1 mm of height on the level, where prisms push it aside by 5 mm; 1.5 cm and 0.05 rad on slopes and steps.
    """
    pytest.importorskip(MODULES[engine])
    (native, ground), (other, _) = settle("native"), settle(engine)
    assert np.all(native[:, 2] - ground > 0.15)
    level = slice(0, 8)
    if engine == "warp":
        np.testing.assert_allclose(other, native, rtol=0.0, atol=1e-4)
    np.testing.assert_allclose(other[level, 2], native[level, 2], rtol=0.0, atol=1e-3)
    np.testing.assert_allclose(other[level, :2], native[level, :2], rtol=0.0, atol=5e-3)
    np.testing.assert_allclose(other[:, :3], native[:, :3], rtol=0.0, atol=1.5e-2)
    turned = 2.0 * np.arccos(np.clip(np.abs((other[:, 3:7] * native[:, 3:7]).sum(-1)), 0.0, 1.0))
    assert turned.max() < 0.05
