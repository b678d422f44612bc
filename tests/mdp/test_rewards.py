"""Every generic reward term against its value by hand for the three robots of conftest.py; a family's are in tests/tasks."""

from __future__ import annotations

from math import exp

import pytest
import torch

CASES = [
    ("alive", {}, [1.0, 1.0, 1.0]),
    ("termination", {}, [0.0, 50.0, 0.0]),  # 1 / 0.02 s
    ("vertical_velocity", {}, [0.1**2, 0.3**2, 0.2**2]),
    ("roll_pitch_rate", {}, [0.1**2 + 0.2**2, 0.4**2, 0.3**2 + 0.2**2]),
    ("orientation", {}, [0.0, 0.0, 0.25]),  # sin^2 30
    ("base_height", {"target": 0.3}, [0.0, 0.15**2, 0.0]),  # 0.25 m where the ground is at 0.1, 0.1 m at -0.2
    ("base_height", {"target": 0.25}, [0.05**2, 0.1**2, 0.05**2]),
    ("pose", {"std": 0.5}, [1.0, exp(-(0.04 / 2) / 0.25), exp(-((1.05**2 + 0.65**2) / 2) / 0.25)]),
    ("pose", {"std": (0.5, 2.0)}, [1.0, exp(-(0.4**2) / 2), exp(-(2.1**2 + 0.325**2) / 2)]),  # a number for each joint
    ("joint_limits", {"soft": 0.9}, [0.0, 0.0, 0.05 + 0.05]),  # a within +-0.9, b within -0.5 +- 0.9
    ("joint_limits", {"soft": 0.5}, [0.0, 0.0, 0.45 + 0.45]),
    ("joint_acceleration", {}, [0.0, 50.0**2 + 100.0**2, 10.0**2 + 50.0**2]),
    ("torques", {}, [0.0, 4.0 + 9.0, 100.0 + 16.0]),
    ("energy", {}, [0.0, 2.0 * 1.0 + 3.0 * 2.0, 10.0 * 0.5 + 4.0 * 3.0]),
    ("action_rate", {}, [0.0, 0.5**2 + 2.0**2, 0.0]),
    ("foot_slip", {}, [1.0, 0.25, 0.05 + 0.09]),
    ("undesired_contacts", {"group": "thighs"}, [0.0, 2.0, 1.0]),
    ("undesired_contacts", {"group": "base"}, [0.0, 1.0, 0.0]),
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
    assert {name for name, _, _ in CASES} == terms_of("reward", "mdp")
