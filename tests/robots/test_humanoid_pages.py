"""What pages of humanoids take for a fall, held against the robots' own bodies."""

from __future__ import annotations

import numpy as np
import pytest

from embodied_rl.config import config_names, load
from embodied_rl.robot import RobotSpec, load_robot

from .conftest import posed

PAGES = ("g1_flat", "g1_legs_flat", "g1_legs_rough", "h1_flat")


def _kneeling(robot: RobotSpec) -> float:
    """How high the base is over the lowest point of a robot whose hips are straight and whose knees are folded [m]."""
    model = robot.mjspec().compile()

    def folded(name: str, default: float) -> float:
        if "knee" in name or ("ankle" in name and "roll" not in name):
            return model.joint(name).range[1]
        return 0.0 if "hip" in name else default

    data = posed(robot, model, map(folded, robot.joint_names, robot.default_joint_pos))
    collides = (model.geom_contype > 0) | (model.geom_conaffinity > 0)
    down = np.abs(data.geom_xmat[:, 6:])
    middle = data.geom_xpos[:, 2] + (data.geom_xmat[:, 6:] * model.geom_aabb[:, :3]).sum(1)
    lowest = (middle - (down * model.geom_aabb[:, 3:]).sum(1))[collides]
    return data.body(robot.base).xpos[2] - lowest.min()


@pytest.mark.parametrize("name", PAGES)
def test_on_its_knees_it_has_fallen(name: str) -> None:
    page = load(name)
    robot = load_robot(page.robot)
    least = page.terminations["height"].params["minimum"]
    assert 0.6 * robot.base_height < least < 0.75 * robot.base_height  # nor does it fall by bending its knees
    assert _kneeling(robot) < least


def test_every_page_of_a_humanoid_is_held() -> None:
    pages = [load(name) for name in config_names()]
    assert {page.name for page in pages if page.robot and len(load_robot(page.robot).feet) == 2} == set(PAGES)
