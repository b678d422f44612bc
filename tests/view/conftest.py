from __future__ import annotations

from collections.abc import Iterator

import pytest

from embodied_rl import make_env
from embodied_rl.config import load, override
from embodied_rl.env import Env
from embodied_rl.view.play import playback_page


@pytest.fixture(scope="module")
def env() -> Iterator[Env]:
    """Two robots, filmed small."""
    page = playback_page(load("go2_flat"), num_envs=2, seconds=2.0)
    env = make_env.make(override(page, ["video.width=96", "video.height=64", "video.fps=25"]))
    # a frame costs more for its shadows and smooth edges than for its few pixels
    quality = env.scene.render_model.vis.quality
    quality.shadowsize = quality.offsamples = 0
    yield env
    env.close()
