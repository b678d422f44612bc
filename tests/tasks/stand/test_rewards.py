"""The rewards of standing against their values by hand for the three robots of conftest.py."""

from __future__ import annotations

from math import cos, exp, sin

import pytest
import torch

#: Of robot 1, which is level: the squared distance between (0, 0, -1) and the gravity of roll 0.1, pitch -0.2, a chord.
CHORD_1 = 2.0 - 2.0 * cos(0.1) * cos(0.2)

CASES = [
    # 0.3 m; 0.25 m where the ground is at 0.1; 0.1 m where it is at -0.2
    ("track_height", {"std": 0.05}, [exp(-(0.02**2) / 0.05**2), exp(-(0.05**2) / 0.05**2), 1.0]),
    ("track_height", {"std": 0.1}, [exp(-(0.02**2) / 0.01), exp(-(0.05**2) / 0.01), 1.0]),
    ("track_attitude", {"std": 0.1}, [1.0, exp(-CHORD_1 / 0.01), 1.0]),
    ("track_attitude", {"std": 0.5}, [1.0, exp(-CHORD_1 / 0.25), 1.0]),
    ("feet_down", {}, [1.0, 0.5, 0.5]),
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
    assert {name for name, _, _ in CASES} == terms_of("reward", "tasks.stand")


@pytest.mark.parametrize("turn", [1, 2])
def test_each_angle_is_followed_with_its_sign(moment, call, term, turn):
    """A level robot earns the same on either side; one rolled to the right, less where it is asked to lean to the left."""
    command = moment.commands["pose"].command
    reward = term("reward", "track_attitude")
    command[:, 1:] = 0.0
    command[:, turn] = 0.3
    one = call(reward, moment, std=0.5)
    command[:, turn] = -0.3
    other = call(reward, moment, std=0.5)
    assert one[0] == pytest.approx(exp(-((2.0 * sin(0.15)) ** 2) / 0.25), rel=1e-5)
    torch.testing.assert_close(one[:2], other[:2])
    assert (one[2] > other[2] + 0.1) == (turn == 1)
