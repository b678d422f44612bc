"""Achieved / commanded by bins, and the drift of a heading, against what is written by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from embodied_rl.tasks.velocity.findings import failures, table
from embodied_rl.tasks.velocity.reach import Reach

DT = 0.1


def _reach(count: int) -> Reach:
    env = SimpleNamespace(step_dt=DT, num_envs=count, device=torch.device("cpu"))
    return Reach(env)  # pyright: ignore[reportArgumentType]


def _state(velocities: list[list[float]]) -> SimpleNamespace:
    values = torch.tensor(velocities)
    return SimpleNamespace(lin_vel_yaw=values[:, :2], yaw_rate=values[:, 2])


def test_each_axis_has_its_bins():
    reach = _reach(4)
    asked = torch.tensor([[0.2, 0.0, 0.0], [-0.25, 0.4, 0.05], [0.7, 0.0, -2.0], [0.2, 0.2, 0.2]])
    has = [[0.1, 9.0, 9.0], [-0.2, -0.1, 9.0], [0.7, 9.0, -1.0], [9.0, 9.0, 9.0]]
    reach.step(_state(has), asked, torch.tensor([True, True, True, False]))  # pyright: ignore[reportArgumentType]
    found = reach.figures()
    assert {name: value for name, value in found.items() if name.startswith("reached/")} == {
        "reached/vx_0.1_to_0.3": pytest.approx(0.3 / 0.45),
        "reached/vx_0.6_to_1": pytest.approx(1.0),
        "reached/vy_0.3_to_0.6": pytest.approx(-0.25),
        "reached/wz_1_to_inf": pytest.approx(0.5),
    }
    assert found["shortfall"] == 1.0
    said = failures(found, {"shortfall": 0.5, "heading_drift": 4.0}, 0.5)
    assert said == ["stands where it should walk (-0.25 of what is asked for sideways, 0.3 to 0.6 m/s)"]
    lines = table(found)
    assert [line.split()[0] for line in lines] == ["achieved", "ahead", "sideways", "turning"]
    assert lines[1].split()[-4:] == ["0.67", "-", "1.00", "-"]


def test_a_stander_is_named_although_its_errors_are_small():
    reach, counted = _reach(1), torch.ones(1, dtype=torch.bool)
    for _ in range(100):
        asked = torch.tensor([[0.12, 0.0, 0.0]])
        reach.step(_state([[0.0, 0.0, 0.0]]), asked, counted)  # pyright: ignore[reportArgumentType]
    assert reach.figures()["shortfall"] == 1.0


def test_a_heading_drifts_over_ten_seconds():
    reach, counted = _reach(4), torch.tensor([True, True, True, False])
    straight = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0], [0.5, 0.0, 0.1], [0.5, 0.0, 0.0]])
    has = _state([[0.5, 0.0, 0.1], [-0.5, 0.0, -0.02], [0.5, 0.0, 3.0], [0.5, 0.0, 3.0]])
    for _ in range(50):
        reach.step(has, straight, counted)  # pyright: ignore[reportArgumentType]
    for _ in range(20):
        reach.step(has, straight, torch.zeros_like(counted))  # pyright: ignore[reportArgumentType]  the next command is too new
    for _ in range(5):
        reach.step(_state([[0.5, 0.0, 9.0]] * 4), straight, counted)  # pyright: ignore[reportArgumentType]  half a second
    # 0.1 and 0.02 rad/s for 10 s; who turns, or is not counted, says nothing
    assert reach.figures()["heading_drift"] == pytest.approx(0.2 + 0.95 * 0.8, rel=1e-4)
    assert "walks in an arc" in failures(reach.figures(), {"heading_drift": 0.785}, 0.5)[0]


def test_a_command_that_goes_on_to_the_end_counts():
    reach, counted = _reach(1), torch.ones(1, dtype=torch.bool)
    for _ in range(20):
        reach.step(_state([[0.0, 0.0, -0.3]]), torch.tensor([[0.2, 0.0, 0.0]]), counted)  # pyright: ignore[reportArgumentType]
    assert reach.figures()["heading_drift"] == pytest.approx(3.0, rel=1e-4)
