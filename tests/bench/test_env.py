from __future__ import annotations

import pytest

from embodied_rl.bench import env
from embodied_rl.config import Page


@pytest.mark.usefixtures("standing")
def test_the_environment_beside_its_physics(page: Page) -> None:
    result = env.bench_env(page)
    bare = {"bare_steps_per_s", "bare_ratio"} if page.physics.engine == "native" else set()
    assert set(result) == {"num_envs", "physics_steps_per_s", "env_steps_per_s", "ratio", *bare}
    assert result["num_envs"] == 4 and min(result.values()) > 0.0
