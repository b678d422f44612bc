"""The pose command: ranges, timing, and how far a robot is from what is asked for."""

from __future__ import annotations

from math import cos, pi, sin
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from embodied_rl import rotations
from embodied_rl.mdp.moment import Draw, Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.state import Memory
from embodied_rl.tasks.stand.command import angle_between, gravity_of, pose

DT = 0.02


class Robots:
    """N robots that are asked for poses; the numbers of the command are tensors, as a page binds them."""

    def __init__(self, count: int, **ranges: tuple[float, float]) -> None:
        given = {"height": (0.2, 0.32), "roll": (-0.2, 0.2), "pitch": (-0.1, 0.3), "resample_s": (3.0, 3.0)} | ranges
        bound = {name: torch.tensor(value) for name, value in given.items()}
        self.command, self.count = pose(cast("Part", None), **bound), count  # pyright: ignore[reportArgumentType]
        self.generator = torch.Generator().manual_seed(0)
        Memory(count, torch.device("cpu")).add("commands.pose", self.command)

    def update(self, done: bool | torch.Tensor = False) -> torch.Tensor:
        view = SimpleNamespace(draw=Draw(torch.rand(self.count, 4, generator=self.generator)), step_dt=DT)
        done = torch.full((self.count,), done) if isinstance(done, bool) else done
        self.command.resample(cast(Moment, view), done)
        return self.command.command.clone()


def test_poses_are_uniform_in_their_ranges():
    poses = Robots(20_000).update(done=True)
    for column, (low, high) in enumerate(((0.2, 0.32), (-0.2, 0.2), (-0.1, 0.3))):
        values, width = poses[:, column], high - low
        assert low - 1e-6 <= values.min() < low + 0.01 * width and high - 0.01 * width < values.max() <= high + 1e-6
        assert abs(values.mean() - (low + high) / 2) < 0.02 * width
    assert (torch.corrcoef(poses.T) - torch.eye(3)).abs().max() < 0.03


def test_a_pose_holds_for_its_time():
    robots = Robots(50, resample_s=(0.1, 0.1))
    trace = torch.stack([robots.update(done=step == 0) for step in range(21)])
    changed = (trace[1:] != trace[:-1]).any(-1)
    assert changed.all(1).tolist() == [(step + 1) % 5 == 0 for step in range(20)]  # 0.1 s are 5 steps
    assert changed.any(1).tolist() == changed.all(1).tolist()


def test_holding_times_are_drawn_from_their_range():
    robots = Robots(2000, resample_s=(1.0, 2.0))
    robots.update(done=True)
    left = robots.command.time_left
    assert 1.0 <= left.min() < 1.01 and 1.99 < left.max() <= 2.0


def test_an_episode_begins_with_a_new_pose_for_its_row_alone():
    robots = Robots(10)
    before, done = robots.update(done=True), torch.arange(10) == 3
    assert torch.equal((robots.update(done) != before).any(-1), done)


def test_a_held_pose_outlasts_resampling_and_resets():
    robots = Robots(5, resample_s=(DT, DT))
    robots.update(done=True)
    robots.command.hold((0.25, -0.1, 0.05))
    for done in (False, True, False):
        assert torch.equal(robots.update(done), torch.tensor([0.25, -0.1, 0.05]).repeat(5, 1))
    robots.command.hold(None)
    assert (robots.update() != torch.tensor([0.25, -0.1, 0.05])).any(-1).all()


def test_errors_are_a_distance_and_an_angle(moment):
    errors = moment.commands["pose"].errors(moment)
    # 0.3 m; 0.25 m where the ground is at 0.1; 0.1 m where it is at -0.2
    torch.testing.assert_close(errors["height_error"], torch.tensor([0.02, 0.05, 0.0]))
    # level, and asked for roll 0.1 and pitch -0.2: cos of the angle is cos 0.1 cos 0.2
    expected = torch.acos(torch.tensor(cos(0.1) * cos(0.2), dtype=torch.float64)).float()
    torch.testing.assert_close(errors["tilt_error"], torch.stack((expected * 0, expected, expected * 0)), rtol=1e-5, atol=1e-6)


def test_the_gravity_of_a_pose_is_that_of_a_base_turned_into_it():
    asked = torch.tensor([[0.3, 0.1, 0.0], [0.3, 0.0, 0.2], [0.3, -0.4, 0.5]])
    for yaw in (0.0, 2.0):
        quat = rotations.quat_from_euler(asked[:, 1], asked[:, 2], torch.full((3,), yaw))
        expected = rotations.rotate_inverse(quat, torch.tensor([[0.0, 0.0, -1.0]]).expand(3, 3))
        torch.testing.assert_close(gravity_of(asked), expected, rtol=0, atol=1e-6)
    # a positive roll leans to the right (-y falls), a positive pitch lowers the nose
    torch.testing.assert_close(gravity_of(asked)[0], torch.tensor([0.0, -sin(0.1), -cos(0.1)]))
    torch.testing.assert_close(gravity_of(asked)[1], torch.tensor([sin(0.2), 0.0, -cos(0.2)]))


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.1, 2.0, pi])
def test_the_angle_between_vectors_is_exact_near_zero(angle):
    one, other = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[cos(angle), sin(angle), 0.0]])
    assert float(angle_between(one, other)) == pytest.approx(angle, rel=1e-3, abs=1e-6)


def test_the_contract_has_the_ranges():
    ranges = Robots(1).command.contract()["ranges"]
    assert [one.tolist() for one in ranges[:2]] == [pytest.approx([0.2, 0.32]), pytest.approx([-0.2, 0.2])]
