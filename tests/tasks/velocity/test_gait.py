"""Figures of gaits that are written down step by step: a walker's, a shuffler's, one on one leg's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from embodied_rl.tasks.velocity import gait
from embodied_rl.tasks.velocity.findings import remarks
from embodied_rl.tasks.velocity.gait import Gait

DT, HEIGHT, SPEED = 0.02, 0.8, 0.5
#: A cycle of a second: on the ground for 0.6 of it, the right foot half a cycle after the left.
CYCLE, STANCE = 50, 30
ALL, NONE = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)


class Robot:
    """One robot, whose feet go 0.5 m ahead in each cycle, along `lift` while they swing."""

    num_envs, device, step_dt = 1, torch.device("cpu"), DT

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, lift: float = 0.1, stances: tuple[int, int] = (STANCE, STANCE)
    ) -> None:
        self.lift, self.stances, self.apart, self.joints = lift, stances, 0.2, torch.zeros(1, 2)
        self.robot = SimpleNamespace(
            foot_names=("left", "right"),
            joint_names=("left_knee", "right_knee"),
            foot_pairs=(torch.tensor([0]), torch.tensor([1])),
            spec=SimpleNamespace(
                base_height=HEIGHT,
                mirror={"left": "right"},
                foot_mirror=lambda: (1, 0),
                joint_mirror=lambda: ((1, 0), (1.0, 1.0)),
            ),
        )
        self.physics = SimpleNamespace(refresh=lambda: None)
        self.scene = SimpleNamespace(terrain=SimpleNamespace(height=lambda xy: torch.zeros(xy.shape[:-1])))
        self.bounces = 0
        monkeypatch.setattr(gait, "PartState", lambda robot, physics: self.state())
        self.step, self.before = 0, torch.ones(1, 2)

    def feet(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Contact (2,), places (2, 2) and heights (2,) after a step."""
        contact, place, height = torch.zeros(2), torch.zeros(2, 2), torch.zeros(2)
        for foot, stance in enumerate(self.stances):
            cycles, at = divmod(step + foot * CYCLE // 2, CYCLE)
            swung = max(at - stance + 1, 0) / max(CYCLE - stance + 1, 1)
            contact[foot] = float(at < stance)
            place[foot] = torch.tensor([SPEED * (cycles + swung), self.apart * (0.5 - foot)])
            height[foot] = 4.0 * self.lift * swung * (1.0 - swung)
        return contact, place, height

    def state(self) -> SimpleNamespace:
        contact, place, height = self.feet(self.step)
        velocity = (place - self.feet(self.step - 1)[1]) / DT
        down = (contact[None] > self.before).float() * (1.0 + self.bounces)
        self.before = contact[None]
        return SimpleNamespace(
            foot_contact=contact[None],
            foot_touchdown=down,
            foot_pos_w=torch.cat((place, height[:, None]), dim=-1)[None],
            foot_lin_vel_w=torch.cat((velocity, torch.zeros(2, 1)), dim=-1)[None],
            foot_underside_w=height[None],
            foot_left=place[None, :, 1],
            base_lin_vel_w=torch.tensor([[0.03, 0.04, 1.0]]),
            joint_vel=torch.tensor([[0.3, -0.4]]),
            joint_pos=self.joints,
            default_joint_pos=torch.zeros(2),
            joint_limits=torch.tensor([[-1.0, -1.0], [1.0, 1.0]]),
        )

    def walk(self, steps: int = 10 * CYCLE, *, standing: bool = False) -> dict[str, float]:
        watched = Gait(self)  # pyright: ignore[reportArgumentType]
        for self.step in range(1, steps + 1):
            watched.step(self, NONE if standing else ALL, ALL if standing else NONE)  # pyright: ignore[reportArgumentType]
        return watched.figures()


def test_a_walker(monkeypatch):
    found = Robot(monkeypatch).walk()
    assert found["gait/steps_per_s"] == pytest.approx(1.0)
    assert found["gait/touchdowns_per_s"] == pytest.approx(1.0)
    assert found["gait/double_stance"] == pytest.approx(2 * (STANCE - CYCLE / 2) / CYCLE)
    assert found["gait/flight"] == 0.0
    assert found["gait/stride"] == pytest.approx(SPEED)
    assert found["gait/clearance"] == pytest.approx(0.1, rel=0.01)
    assert found["gait/alternation"] == 1.0 and found["gait/left_right"] == pytest.approx(1.0, abs=0.05)
    assert found["gait/feet_distance"] == pytest.approx(0.2)
    assert found["gait/shuffling"] < 0.2  # an arch of 0.1 m is below 2.4 cm at both of its ends
    assert not [one for one in found if one.startswith("standing/")]
    assert remarks(found) == []


def test_a_shuffler_goes_its_ways_near_the_ground(monkeypatch):
    assert Robot(monkeypatch, lift=0.02).walk()["gait/shuffling"] == pytest.approx(1.0)


def test_one_leg_that_is_up_longer_is_told(monkeypatch):
    found = Robot(monkeypatch, stances=(20, 40)).walk()
    assert found["gait/left_right"] == pytest.approx(3.0, rel=0.1)
    assert any("walks on one leg" in one for one in remarks(found))


def test_a_foot_that_never_comes_down_alternates_with_nothing(monkeypatch):
    found = Robot(monkeypatch, stances=(30, 0)).walk()
    assert found["gait/alternation"] == 0.0 and found["gait/flight"] == pytest.approx(0.4, abs=0.01)


def test_what_bounces_is_counted_and_is_no_step(monkeypatch):
    robot = Robot(monkeypatch)
    robot.bounces = 2
    found = robot.walk()
    assert found["gait/steps_per_s"] == pytest.approx(1.0) and found["gait/touchdowns_per_s"] == pytest.approx(3.0)


def test_joints_and_feet_that_are_where_they_should_not_be_are_told(monkeypatch):
    robot = Robot(monkeypatch)
    robot.joints, robot.apart = torch.tensor([[0.995, 0.2]]), -0.05
    found = robot.walk()
    assert found["gait/joint_limits"] == pytest.approx(1.0) and found["gait/uneven"] == pytest.approx(0.795, rel=1e-4)
    assert found["gait/feet_distance"] == pytest.approx(-0.05)
    assert len(remarks(found)) == 3


def test_standing_is_measured_apart(monkeypatch):
    found = Robot(monkeypatch, stances=(CYCLE, CYCLE)).walk(standing=True)
    assert found == {
        "standing/speed": pytest.approx(0.05),
        "standing/feet_up": 0.0,
        "standing/joint_speed": pytest.approx((0.5 * (0.09 + 0.16)) ** 0.5),
    }
