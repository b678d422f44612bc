"""How learning rate and entropy bonus move, against numbers reckoned by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embodied_rl.config.ppo import PPOSettings
from embodied_rl.learn.schedules import adapted, entropy_coef, learning_rate


def settings(**changes: Any) -> PPOSettings:
    return PPOSettings.model_validate({"learning_rate": 8e-4, "entropy_coef": 0.02, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "constant"}, [None] * 5),
        ({"schedule": "adaptive"}, [None] * 5),
        ({"schedule": "linear"}, [8e-4, 6e-4, 4e-4, 2e-4, 8e-5]),
        ({"schedule": "linear", "final_learning_rate": 4e-4}, [8e-4, 7e-4, 6e-4, 5e-4, 4e-4]),
        ({"schedule": "linear", "final_learning_rate": 1.6e-3}, [8e-4, 1e-3, 1.2e-3, 1.4e-3, 1.6e-3]),
        ({"schedule": "hold"}, [8e-4, 8e-4, 8e-4, 4e-4, 8e-5]),
        ({"schedule": "hold", "hold": 0.25, "final_learning_rate": 2e-4}, [8e-4, 8e-4, 6e-4, 4e-4, 2e-4]),
        ({"schedule": "hold", "hold": 0.0, "final_learning_rate": 0.0}, [8e-4, 6e-4, 4e-4, 2e-4, 0.0]),
    ],
    ids=lambda changes: " ".join(map(str, changes.values())) if isinstance(changes, dict) else "",
)
def test_learning_rates(changes: dict[str, Any], expected: list[float | None]) -> None:
    found = [learning_rate(settings(**changes), done) for done in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == [None if rate is None else pytest.approx(rate, abs=1e-12) for rate in expected]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.02, 0.02, 0.02, 0.02]),
        ({"entropy_schedule": "constant"}, [0.02, 0.02, 0.02, 0.02]),
        ({"final_entropy_coef": 0.0}, [0.02, 0.015, 0.01, 0.0]),
        ({"final_entropy_coef": 0.04}, [0.02, 0.025, 0.03, 0.04]),
        ({"entropy_schedule": "hold", "final_entropy_coef": 0.0}, [0.02, 0.02, 0.02, 0.0]),
        ({"entropy_schedule": "hold", "final_entropy_coef": 0.005, "hold": 0.25}, [0.02, 0.02, 0.015, 0.005]),
    ],
)
def test_entropy_bonuses(changes: dict[str, Any], expected: list[float]) -> None:
    assert [entropy_coef(settings(**changes), done) for done in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(expected)


def test_a_rate_that_is_held_for_440_of_900_iterations() -> None:
    """Then it falls to 0.15 of it: halfway down it stands at 0.575."""
    page = settings(schedule="hold", learning_rate=7e-4, final_learning_rate=1.05e-4, hold=440 / 900)
    rates = [learning_rate(page, iteration / 900) for iteration in (0, 440, 670, 900)]
    assert rates == pytest.approx([7e-4, 7e-4, 4.025e-4, 1.05e-4])


@pytest.mark.parametrize(
    ("kl", "rate", "expected"),
    [
        (0.021, 3e-4, 2e-4),
        (0.019, 3e-4, 3e-4),
        (0.0051, 3e-4, 3e-4),
        (0.0049, 3e-4, 4.5e-4),
        (0.0, 3e-4, 3e-4),  # nothing was learned: no reason to go faster
        (1e-17, 3e-4, 3e-4),  # what rounding leaves of that
        (1.0, 1.2e-5, 1e-5),
        (0.001, 9e-3, 1e-2),
    ],
)
def test_the_learning_rate_keeps_the_kl_near_the_desired(kl: float, rate: float, expected: float) -> None:
    found = adapted(*(torch.tensor(number, dtype=torch.float64) for number in (rate, kl, 0.01)))
    assert float(found) == pytest.approx(expected)
