"""What a policy sees of a velocity command, by hand for the three robots of conftest.py."""

from __future__ import annotations

from math import cos, pi, sin

import pytest
import torch

CASES = {
    "velocity_command": [[1.0, 0.0, 0.0], [0.5, -0.5, 0.2], [0.05, 0.0, 0.05]],
    # 2 Hz after 0.1 s and 0.4 s; no clock while standing
    "gait_phase": [[sin(0.4 * pi), cos(0.4 * pi)], [sin(1.6 * pi), cos(1.6 * pi)], [0.0, 0.0]],
}


@pytest.mark.parametrize("name", CASES)
def test_an_observation_equals_its_definition(moment, term, name):
    torch.testing.assert_close(term("observation", name)(moment), torch.tensor(CASES[name]), rtol=1e-5, atol=1e-6)


def test_every_observation_has_a_case(terms_of):
    assert set(CASES) == terms_of("observation", "tasks.velocity")
