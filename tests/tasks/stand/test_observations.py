"""What a policy sees of a pose command, by hand for the three robots of conftest.py."""

from __future__ import annotations

from math import pi

import pytest
import torch

CASES = {"pose_command": [[0.28, 0.0, 0.0], [0.2, 0.1, -0.2], [0.3, pi / 6, 0.0]]}


@pytest.mark.parametrize("name", CASES)
def test_an_observation_equals_its_definition(moment, term, name):
    torch.testing.assert_close(term("observation", name)(moment), torch.tensor(CASES[name]), rtol=1e-5, atol=1e-6)


def test_every_observation_has_a_case(terms_of):
    assert set(CASES) == terms_of("observation", "tasks.stand")


def test_a_reflection_turns_the_roll_alone(term):
    assert term("observation", "pose_command").mirror(None) == ((0, 1, 2), (1.0, -1.0, 1.0))
