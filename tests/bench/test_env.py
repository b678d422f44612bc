from __future__ import annotations

import mujoco
import numpy as np
import pytest

from embodied_rl.bench import env
from embodied_rl.config import Page, load


@pytest.mark.usefixtures("standing")
def test_the_environment_beside_its_physics(page: Page) -> None:
    result = env.bench_env(page)
    bare = {"bare_steps_per_s", "bare_ratio"} if page.physics.engine == "native" else set()
    assert set(result) == {"num_envs", "physics_steps_per_s", "env_steps_per_s", "ratio", *bare}
    assert result["num_envs"] == 4 and min(result.values()) > 0.0


def test_the_bare_robots_friction_is_its_joints_alone() -> None:
    model = env._bare_model(load("go2_flat"))
    joints = np.array([model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE for joint in model.dof_jntid])
    np.testing.assert_array_equal(model.dof_frictionloss, np.where(joints, 0.2, 0.0))
