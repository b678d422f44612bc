"""Every generic observation term against its value by hand for the three robots of conftest.py; a family's are in tests/tasks."""

from __future__ import annotations

from math import cos, pi, sin, sqrt

import pytest
import torch

C, S = sqrt(3.0) / 2.0, 0.5  # of robot 2's 30 degrees

CASES = {
    # robot 1 looks along y; robot 2's frame is rolled: (x, c y + s z, c z - s y)
    "base_lin_vel": [[0.5, -0.2, 0.1], [0.5, -1.0, -0.3], [0.4, C * 0.6 - S * 0.2, -C * 0.2 - S * 0.6]],
    "base_ang_vel": [[0.1, 0.2, 0.3], [0.0, -0.4, 0.5], [0.3, 0.2, -0.6]],
    "projected_gravity": [[0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [0.0, -S, -C]],
    "base_height": [[0.3], [0.15], [0.3]],
    "joint_pos": [[0.0, 0.0], [0.2, 0.0], [-1.05, -0.65]],
    "joint_vel": [[0.0, 0.0], [1.0, -2.0], [0.5, 3.0]],
    "joint_torque": [[0.0, 0.0], [2.0, -3.0], [-10.0, 4.0]],
    "last_action": [[0.0, 0.0], [1.0, -1.0], [0.5, 0.25]],
    "foot_contact": [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]],
    "foot_height": [[-0.02] * 4, [0.08, 0.08, 0.0, 0.0], [0.48] * 4],
    "foot_air_time": [[0.0] * 4, [0.3, 0.4, 0.0, 0.9], [0.3, 0.3, 0.1, 0.1]],
    "foot_friction": [[0.5] * 4, [0.75] * 4, [1.25] * 4],
}


@pytest.mark.parametrize("name", CASES)
def test_an_observation_equals_its_definition(moment, term, name):
    torch.testing.assert_close(term("observation", name)(moment), torch.tensor(CASES[name]), rtol=1e-5, atol=1e-6)


def test_every_observation_has_a_case(terms_of):
    assert {*CASES, "height_scan"} == terms_of("observation", "mdp")  # that one: test_ground.py


def test_the_state_that_no_term_of_its_own_shows(moment):
    robot = moment.robot
    torch.testing.assert_close(robot.heading, torch.tensor([0.0, pi / 2, 0.0]))
    torch.testing.assert_close(robot.yaw_rate, torch.tensor([0.3, 0.5, S * 0.2 - C * 0.6]))
    torch.testing.assert_close(robot.lin_vel_yaw, torch.tensor([[0.5, -0.2], [0.5, -1.0], [0.4, 0.6]]))


def test_a_fixed_base_stands_where_the_model_puts_it(moment):
    robot = moment.robot._part
    robot.floating, robot.fixed_base_pos = False, torch.tensor([1.0, 2.0, 0.5])
    robot.fixed_base_quat = torch.tensor([cos(pi / 4), 0.0, 0.0, sin(pi / 4)])
    state = moment.robot
    assert state.base_pos_w.tolist() == [[1.0, 2.0, 0.5]] * 3
    torch.testing.assert_close(state.heading, torch.full((3,), pi / 2))
    torch.testing.assert_close(state.projected_gravity_b, torch.tensor([[0.0, 0.0, -1.0]] * 3), rtol=0, atol=1e-6)
    for name in ("base_lin_vel_w", "base_lin_vel_b", "base_ang_vel_b", "lin_vel_yaw", "yaw_rate"):
        assert not getattr(state, name).any(), name


def test_a_quantity_is_computed_once(moment):
    assert moment.robot.base_lin_vel_b is moment.robot.base_lin_vel_b
