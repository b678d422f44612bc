"""The rewards of walking against their values by hand for the three robots of conftest.py."""

from __future__ import annotations

from math import exp, sqrt

import pytest
import torch

#: Rolled by 30 degrees: the vertical component of robot 2's angular velocity, sin 30 * 0.2 - cos 30 * 0.6.
YAW_RATE_2 = 0.1 - 0.3 * sqrt(3.0)

#: Robot 1 at 0.8 of a cycle: FR and RL are to stand, at 0.3 of theirs, and do not touch; FL and RR are to swing, and touch.
LIFTED_1 = 0.0
#: Robot 2 is to stand: FL slides at 0.22 m/s and FR at 0.3, the others are up.
PLANTED_2 = (exp(-0.05 / 0.25) + exp(-0.09 / 0.25)) / 4

CASES = [
    # in the frame of the heading robot 1 moves at (0.5, -1.0)
    ("track_linear_velocity", {"std": 0.5}, [exp(-0.29 / 0.25), exp(-0.25 / 0.25), exp(-0.4825 / 0.25)]),
    ("track_linear_velocity", {"std": 1.0}, [exp(-0.29), exp(-0.25), exp(-0.4825)]),
    ("track_angular_velocity", {"std": 0.5}, [exp(-0.36), exp(-0.36), exp(-((YAW_RATE_2 - 0.05) ** 2) / 0.25)]),
    ("stand_still", {}, [0.0, 0.0, 1.05 + 0.65]),
    ("still_joints", {}, [0.0, 0.0, 0.5**2 + 3.0**2]),
    # robot 1 puts down its feet after 0.3 s and 0.9 s; robot 2 is asked to stand
    ("feet_air_time", {"minimum": 0.2, "maximum": 0.5}, [0.0, 0.1 + 0.3, 0.0]),
    ("feet_air_time", {"minimum": 0.4, "maximum": 2.0}, [0.0, -0.1 + 0.5, 0.0]),
    # robot 0: 0.1 m below the target at 1 m/s; robot 1: undersides at 0.08, 0.08, 0, 0 at 0.5, 1, 2, 0 m/s
    ("foot_clearance", {"target": 0.08}, [0.1, 0.16, 0.0]),
    ("foot_clearance", {"target": 0.1}, [0.12, 0.02 * 0.5 + 0.02 * 1.0 + 0.1 * 2.0, 0.0]),
    # robot 0 at 0.2 of its cycle: FL and RR stand; robot 1 at 0.8: FR and RL, 0.3; robot 2 is to stand
    ("gait_phase", {"stance": 0.55}, [2 / 4, 0.0, 1.0]),
    ("gait_phase", {"stance": 0.75}, [4 / 4, 0.0, 1.0]),
    ("gait_phase", {"stance": 0.25}, [2 / 4, 2 / 4, 1.0]),
    # robot 0 touches with all feet, of which FL slides at 1 m/s and FR and RL are to swing
    ("clocked_steps", {"stance": 0.55, "target": 0.07, "slip": 0.5}, [(exp(-4.0) + 1.0) / 4, LIFTED_1, PLANTED_2]),
    ("flat_feet", {}, [0.0, 0.25 + 0.75, 0.0]),
    # across the heading: robot 0's feet are in one place; robot 1 looks along y, its feet at x = 0, 1, 0 and 0.3 m
    ("feet_apart", {"minimum": 0.2}, [0.4, 0.0, 0.4]),
    ("feet_apart", {"minimum": 1.5}, [3.0, 0.5 + 1.2, 3.0]),
]


@pytest.mark.parametrize(("name", "params", "expected"), CASES)
def test_a_reward_equals_its_formula(moment, call, term, name, params, expected):
    value = call(term("reward", name), moment, **params)
    assert value.shape == (3,)
    torch.testing.assert_close(value, torch.tensor(expected), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES}))
def test_a_reward_depends_on_its_own_robot_alone(moment, call, term, others_changed, name):
    params = next(params for case, params, _ in CASES if case == name)
    before = call(term("reward", name), moment, **params)
    assert call(term("reward", name), others_changed(moment), **params)[0] == before[0]


def test_every_reward_has_a_case(terms_of):
    assert {name for name, _, _ in CASES} == terms_of("reward", "tasks.velocity")


@pytest.mark.parametrize("name", ["clocked_steps", "feet_air_time", "foot_clearance", "gait_phase"])
def test_who_stands_where_it_should_walk_earns_nothing(moment, call, term, name):
    """Nor who steps in place: whatever the feet do, the robot gets nowhere."""
    physics = moment.robot._physics
    physics.qvel[:, :6] = 0.0
    physics.frame_lin_vel[:] = 0.0
    moment.commands["velocity"].command[:] = torch.tensor([0.15, 0.0, 0.0])
    moment.commands["velocity"].walks[:] = 0.0
    moment.robot = type(moment.robot)(moment.robot._part, physics)
    assert call(term("reward", name), moment).tolist() == [0.0, 0.0, 0.0]


def test_swinging_feet_earn_by_their_height(moment, call, term):
    physics = moment.robot._physics
    physics.sensors["foot_contact"][0] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    physics.frame_lin_vel[0] = 0.0
    # at 0.7 of their cycle, a third of the swing from 0.55 on, FR and RL are to be at 0.07 sin(pi / 3) + 0.01 m
    physics.frame_pos[0, :, 2] = torch.tensor([0.02, 0.02 + 0.03, 0.02 + 0.5, 0.02])
    value = call(term("reward", "clocked_steps"), moment, stance=0.55, target=0.07, slip=0.5)[0]
    assert value == pytest.approx((1.0 + 0.03 / (0.07 * sqrt(3) / 2 + 0.01) + 1.0 + 1.0) / 4, rel=1e-5)


@pytest.mark.parametrize("gated", [0.0, 0.25, 1.0])
def test_a_share_of_the_pay_is_for_who_gets_somewhere(moment, call, term, gated):
    moment.commands["velocity"].walks[0] = 0.25
    whole = call(term("reward", "gait_phase"), moment, stance=0.55, gated=0.0)[0]
    assert whole == pytest.approx(0.5)
    assert call(term("reward", "gait_phase"), moment, stance=0.55, gated=gated)[0] == pytest.approx(0.5 * (1.0 - 0.75 * gated))
