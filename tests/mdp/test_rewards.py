"""Every reward term against its value by hand for the three robots of conftest.py."""

from __future__ import annotations

import dataclasses
import importlib
from math import exp, sqrt

import pytest
import torch

from embodied_rl.config.terms import find_terms
from embodied_rl.mdp.part import PartState

#: Rolled by 30 degrees: the vertical component of robot 2's angular velocity, sin 30 * 0.2 - cos 30 * 0.6.
YAW_RATE_2 = 0.1 - 0.3 * sqrt(3.0)

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


def _term(name: str):
    return getattr(importlib.import_module(find_terms()[0]["reward"][name].module_name), name)


@pytest.mark.parametrize(("name", "params", "expected"), CASES)
def test_a_reward_equals_its_formula(moment, call, name, params, expected):
    value = call(_term(name), moment, **params)
    assert value.shape == (3,)
    torch.testing.assert_close(value, torch.tensor(expected), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES}))
def test_a_reward_depends_on_its_own_robot_alone(moment, call, name):
    params = next(params for case, params, _ in CASES if case == name)
    before = call(_term(name), moment, **params)
    physics = moment.robot._physics
    view = dataclasses.replace(moment, robot=PartState(moment.robot._part, physics))
    state = (physics.qpos, physics.qvel, physics.frame_pos, physics.frame_lin_vel, physics.joint_torque)
    owners = (view.episode, *view.trackers.values(), *view.commands.values())
    remembered = [
        b for owner in owners for b in vars(owner).values() if isinstance(b, torch.Tensor) and len(b.shape) and len(b) == 3
    ]
    remembered = [b for b in remembered if b.is_floating_point()]
    for tensor in (*state, *physics.sensors.values(), *remembered):
        tensor[1:] *= 0.7
    assert call(_term(name), view, **params)[0] == before[0]


def test_every_reward_has_a_case():
    assert {name for name, _, _ in CASES} == set(find_terms()[0]["reward"])
