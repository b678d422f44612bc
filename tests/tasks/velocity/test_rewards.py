"""The rewards of walking against their values by hand for the three robots of conftest.py."""

from __future__ import annotations

from math import exp, sqrt

import pytest
import torch

#: Rolled by 30 degrees: the vertical component of robot 2's angular velocity, sin 30 * 0.2 - cos 30 * 0.6.
YAW_RATE_2 = 0.1 - 0.3 * sqrt(3.0)

CASES = [
    # in the frame of the heading robot 1 moves at (0.5, -1.0)
    ("track_linear_velocity", {"std": 0.5}, [exp(-0.29 / 0.25), exp(-0.25 / 0.25), exp(-0.4825 / 0.25)]),
    ("track_linear_velocity", {"std": 1.0}, [exp(-0.29), exp(-0.25), exp(-0.4825)]),
    ("track_angular_velocity", {"std": 0.5}, [exp(-0.36), exp(-0.36), exp(-((YAW_RATE_2 - 0.05) ** 2) / 0.25)]),
    ("stand_still", {}, [0.0, 0.0, 1.05 + 0.65]),
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
