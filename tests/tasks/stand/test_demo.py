from __future__ import annotations

from math import cos, pi, sin
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from embodied_rl.tasks.stand import demo


def env_of(*ranges: tuple[float, float]) -> Any:
    commands = {"pose": SimpleNamespace(ranges=[torch.tensor(one) for one in ranges])} if ranges else {}
    return SimpleNamespace(terms=SimpleNamespace(commands=commands))


def test_the_script_crouches_rises_and_leans_to_every_side_within_the_ranges_of_the_page() -> None:
    script = torch.tensor(demo.script(env_of((0.2, 0.3), (-0.2, 0.1), (-0.3, 0.4))))
    assert script.shape == (8, 3)
    assert torch.allclose(script[:, 0], torch.tensor([0.2, 0.3, 0.25, 0.25, 0.25, 0.25, 0.22, 0.28]))
    assert torch.allclose(script[:, 1], torch.tensor([0.0, 0.0, -0.2, 0.1, 0.0, 0.0, 0.07, 0.0]))
    assert torch.allclose(script[:, 2], torch.tensor([0.0, 0.0, 0.0, 0.0, -0.3, 0.4, 0.28, 0.0]))


def test_where_there_is_no_command_there_is_no_script() -> None:
    assert demo.script(env_of()) == []


def test_keys_and_columns_are_those_of_the_command() -> None:
    assert {len(change) for change in demo.KEYS.values()} == {len(demo.COLUMNS)} == {3}
    assert demo.KEYS["up"][0] == -demo.KEYS["down"][0] > 0  # higher
    assert demo.KEYS["right"][1] == -demo.KEYS["left"][1] > 0  # a lean to the right


def test_what_is_measured_is_the_pose(moment: Any) -> None:
    """Height above the slope, and the angles of the first robot, rolled by 0.1 and then pitched by -0.2."""
    moment.robot._physics.qpos[0, :3] = torch.tensor([-1.0, 0.0, 0.2])
    a, b = 0.05, -0.1  # half of the angles
    moment.robot._physics.qpos[0, 3:7] = torch.tensor([cos(a) * cos(b), sin(a) * cos(b), cos(a) * sin(b), -sin(a) * sin(b)])
    env: Any = SimpleNamespace(robot=moment.robot._part, physics=moment.robot._physics, scene=moment.scene)
    assert demo.measured(env) == pytest.approx([0.3, 0.1, -0.2], abs=1e-5)


def test_a_lean_is_an_arrow_to_where_the_robot_leans() -> None:
    drawn: list[list[float]] = []
    canvas: Any = SimpleNamespace(arrow=lambda *parts: drawn.append(list(parts)))
    demo.draw(canvas, [0.3, 0.0, pi / 6])  # nose down
    demo.draw(canvas, [0.3, pi / 6, 0.0])  # to the right
    demo.draw(canvas, [0.2, 0.0, 0.0])
    assert drawn == [pytest.approx(one, abs=1e-9) for one in ([0.75, 0.0], [0.0, -0.75], [0.0, 0.0])]
