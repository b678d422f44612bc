from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from embodied_rl.tasks.velocity import demo


def env_of(*ranges: tuple[float, float]) -> Any:
    commands = {"velocity": SimpleNamespace(ranges=[torch.tensor(one) for one in ranges])} if ranges else {}
    return SimpleNamespace(terms=SimpleNamespace(commands=commands))


def test_the_script_stays_within_the_ranges_of_the_page() -> None:
    script = torch.tensor(demo.script(env_of((-0.5, 2.0), (-0.4, 0.4), (-1.0, 1.0))))
    assert script.shape == (6, 3)
    assert torch.allclose(script[:, 0], torch.tensor([1.6, 1.2, 0.0, -0.25, 0.0, 0.0]))
    assert torch.allclose(script[:, 1], torch.tensor([0.0, 0.0, 0.32, 0.0, 0.0, 0.0]))
    assert torch.allclose(script[:, 2], torch.tensor([0.0, 0.7, 0.0, 0.0, -0.7, 0.0]))


def test_where_there_is_no_command_there_is_no_script() -> None:
    assert demo.script(env_of()) == []


def test_keys_and_columns_are_those_of_the_command() -> None:
    assert {len(change) for change in demo.KEYS.values()} == {len(demo.COLUMNS)} == {3}
    assert demo.KEYS["up"][0] == -demo.KEYS["down"][0] > 0  # forward
    assert demo.KEYS["left"][2] == -demo.KEYS["right"][2] > 0  # a turn to the left


def test_a_velocity_is_an_arrow_and_an_arc() -> None:
    drawn = []
    canvas: Any = SimpleNamespace(arrow=lambda *parts: drawn.extend(parts), arc=drawn.append)
    demo.draw(canvas, [1.0, -0.5, 2.0])
    assert drawn == pytest.approx([0.6, -0.3, 1.2])  # after 0.6 s
