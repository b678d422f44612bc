"""Every termination term, on both sides of its threshold, for the three robots of conftest.py."""

from __future__ import annotations

import importlib
from math import pi

import pytest
import torch

from embodied_rl.config.terms import find_terms
from embodied_rl.mdp import terminations

CASES = [
    ("time_out", {}, [False, True, True]),  # steps 5, 20 and 1000 of 20
    ("tilt", {"limit": pi / 6 - 0.01}, [False, False, True]),
    ("tilt", {"limit": pi / 6 + 0.01}, [False, False, False]),
    ("illegal_contact", {"group": "base"}, [False, True, False]),
    ("illegal_contact", {"group": "thighs"}, [False, True, True]),
    ("out_of_bounds", {"distance": 1.5}, [False, True, True]),  # y = -1.7, x = -2
    ("out_of_bounds", {"distance": 1.8}, [False, False, True]),
    ("leaves_ground", {"margin": 0.5}, [False, False, True]),  # of a ground of +-2 and +-4 m: y = -1.7, x = -2
    ("leaves_ground", {"margin": 0.0}, [False, False, False]),
    ("height", {"minimum": 0.2}, [False, True, False]),  # 0.3, 0.15 and 0.3 m above the ground
    ("height", {"minimum": 0.14}, [False, False, False]),
    ("height", {"minimum": 0.31}, [True, True, True]),
]


def _term(name: str):
    return getattr(importlib.import_module(find_terms()[0]["termination"][name].module_name), name)


@pytest.mark.parametrize(("name", "params", "expected"), CASES)
def test_a_termination_equals_its_rule(moment, call, name, params, expected):
    value = call(_term(name), moment, **params)
    assert value.dtype == torch.bool and value.tolist() == expected


def test_tilt_counts_in_every_direction(moment, call):
    physics = moment.robot._physics
    physics.qpos[:, 3:7] = torch.tensor([[0.0, 1.0, 0, 0], [0.6, 0, -0.8, 0], [0.8, 0, 0, 0.6]])  # over, over, turned
    assert call(terminations.tilt, moment, limit=1.0).tolist() == [True, True, False]


def test_who_fails_does_not_truncate():
    flags = {name: _term(name).time_out for name in find_terms()[0]["termination"]}
    assert flags == {name: name in ("time_out", "leaves_ground", "leaves_patch", "stuck") for name in flags}


def test_every_termination_has_a_case():
    # that one: tests/tasks/rough
    assert {name for name, _, _ in CASES} | {"leaves_patch", "stuck"} == set(find_terms()[0]["termination"])
