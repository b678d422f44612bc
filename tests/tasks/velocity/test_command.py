"""The velocity command: ranges, timing, heading, clock; and the gait that the clock asks for."""

from __future__ import annotations

import itertools
from math import pi
from types import SimpleNamespace
from typing import cast

import pytest
import torch

import embodied_rl
from embodied_rl import rotations
from embodied_rl.config import load
from embodied_rl.mdp.curricula import Curricula
from embodied_rl.mdp.moment import Draw, Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.state import Memory
from embodied_rl.tasks.velocity.command import velocity
from embodied_rl.tasks.velocity.rewards import gait_phase

DT = 0.02


def _command(**options) -> velocity:
    """With its numbers as tensors, as a page binds them."""
    number = lambda value: isinstance(value, float | tuple)  # noqa: E731
    defaults = {
        "lin_vel_x": (-1.0, 1.0),
        "lin_vel_y": (-0.5, 0.5),
        "ang_vel_z": (-1.0, 1.0),
        "resample_s": (5.0, 5.0),
        "standing": 0.1,
        "standing_hold": 1.0,
        "straight": 0.0,
        "settle_s": 0.0,
        "heading_gain": 0.5,
        "gait_frequency": 2.0,
    }
    given = {name: torch.tensor(value) if number(value) else value for name, value in (defaults | options).items()}
    return velocity(cast("Part", None), **given)  # pyright: ignore[reportArgumentType]


class Robots:
    """N robots that do what a command says, as far as the command can see."""

    def __init__(self, command: velocity, count: int) -> None:
        self.command, self.count = command, count
        self.generator = torch.Generator().manual_seed(0)
        Memory(count, torch.device("cpu")).add("commands.velocity", command)
        self.episode_length = torch.zeros(count, dtype=torch.int64)
        self.robot = SimpleNamespace(heading=torch.zeros(count), gait_offset=torch.tensor([0.0, 0.5, 0.5, 0.0]))

    def view(self, block: torch.Tensor | None = None) -> Moment:
        return cast(
            Moment,
            SimpleNamespace(
                robot=self.robot,
                draw=Draw(block),
                step_dt=DT,
                command_term=lambda name: {"velocity": self.command}[name],
                episode_length=self.episode_length,
            ),
        )

    def update(self, done: bool | torch.Tensor = False) -> torch.Tensor:
        block = torch.rand(self.count, 8, generator=self.generator)
        done = torch.full((self.count,), done) if isinstance(done, bool) else done
        self.command.resample(self.view(block), done)
        self.command.settle(self.view())
        return self.command.command.clone()


def test_commands_are_uniform_in_their_ranges_and_some_are_to_stand():
    robots = Robots(_command(lin_vel_x=(-0.5, 1.5), lin_vel_y=(0.1, 0.3), ang_vel_z=(-2.0, -1.0), standing=0.2), 20_000)
    commands = robots.update(done=True)
    standing = (commands == 0.0).all(-1)
    assert 0.19 < standing.float().mean() < 0.21
    moving = commands[~standing]
    for column, (low, high) in enumerate(((-0.5, 1.5), (0.1, 0.3), (-2.0, -1.0))):
        values, width = moving[:, column], high - low
        assert low - 1e-6 <= values.min() < low + 0.01 * width and high - 0.01 * width < values.max() <= high + 1e-6
        assert abs(values.mean() - (low + high) / 2) < 0.02 * width
    correlation = torch.corrcoef(moving.T)
    assert (correlation - torch.eye(3)).abs().max() < 0.03


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_standing_share_may_be_none_or_all(share, expected):
    commands = Robots(_command(standing=share), 2000).update(done=True)
    assert (commands == 0.0).all(-1).float().mean() == expected


def test_a_share_of_the_commands_is_straight_ahead():
    command = Robots(_command(standing=0.25, straight=0.5), 4000).update(done=True)
    standing, straight = (command == 0.0).all(-1), (command[:, 1:] == 0.0).all(-1) & (command[:, 0] != 0.0)
    assert 0.22 < standing.float().mean() < 0.28 and 0.46 < straight.float().mean() < 0.54
    assert command[straight, 0].min() < -0.9 and command[straight, 0].max() > 0.9


def test_a_command_holds_for_its_time():
    robots = Robots(_command(resample_s=(0.1, 0.1), standing=0.0), 50)
    trace = torch.stack([robots.update(done=step == 0) for step in range(21)])
    changed = (trace[1:] != trace[:-1]).any(-1)
    assert changed.all(1).tolist() == [(step + 1) % 5 == 0 for step in range(20)]  # 0.1 s are 5 steps
    assert changed.any(1).tolist() == changed.all(1).tolist()


def test_holding_times_are_drawn_from_their_range():
    robots = Robots(_command(resample_s=(0.1, 0.2), standing=0.0), 3000)
    before, since = robots.update(done=True), torch.zeros(3000)
    held = []
    for _ in range(40):
        after = robots.update()
        changed = (after != before).any(-1)
        since += 1
        held.append(since[changed].clone())
        since[changed], before = 0.0, after
    values, counts = torch.cat(held).unique(return_counts=True)
    assert values.tolist() == [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]  # to the nearest step
    assert counts[1:5].min() > 2500 and counts[0] > 1000 and counts[5] > 1000


def test_standing_holds_for_a_share_of_the_time():
    """0.1 s of walking are 5 steps, 0.4 of that standing are 2."""
    robots = Robots(_command(resample_s=(0.1, 0.1), standing=0.5, standing_hold=0.4), 400)
    trace = torch.stack([robots.update(done=step == 0) for step in range(60)])
    stands = (trace == 0.0).all(-1)
    lengths: dict[bool, set[int]] = {True: set(), False: set()}
    for row in range(400):
        changes = [0, *(1 + torch.nonzero((trace[1:, row] != trace[:-1, row]).any(-1))[:, 0]).tolist()]
        for first, last in itertools.pairwise(changes):
            lengths[bool(stands[first, row])].add(last - first)
    assert lengths[False] == {5}
    assert min(lengths[True]) == 2 and all(length % 2 == 0 for length in lengths[True])  # standing may follow standing


def test_the_gait_goes_on_for_a_while_after_the_command_to_stand():
    """0.1 s are 5 steps; who begins with standing, or has no time to settle, stands at once."""
    command = _command(standing=0.0, settle_s=0.1)
    robots = Robots(command, 2)
    robots.update(done=True)
    assert command.moving(robots.view()).tolist() == [1.0, 1.0]
    torch.as_tensor(command.standing).fill_(1.0)
    trace = []
    for step in range(8):
        robots.command.time_left.fill_(0.0 if step == 0 else 1.0)
        robots.update(torch.tensor([False, step == 0]))  # the second robot's episode begins anew
        trace.append(command.moving(robots.view()).tolist())
    assert [first for first, _ in trace] == [1.0] * 5 + [0.0] * 3
    assert [second for _, second in trace] == [0.0] * 8
    at_once = _command(standing=0.0)
    robots = Robots(at_once, 2)
    robots.update(done=True)
    torch.as_tensor(at_once.standing).fill_(1.0)
    robots.command.time_left.fill_(0.0)
    robots.update()
    assert at_once.moving(robots.view()).tolist() == [0.0, 0.0]


def test_an_episode_begins_with_a_new_command_for_its_row_alone():
    robots = Robots(_command(standing=0.0), 10)
    before = robots.update(done=True)
    done = torch.arange(10) == 3
    after = robots.update(done)
    assert torch.equal((after != before).any(-1), done)


def test_the_heading_option_turns_the_robot_to_its_target():
    robots = Robots(_command(heading=True, heading_gain=2.0, resample_s=(100.0, 100.0)), 300)
    robots.robot.heading = torch.linspace(-pi, pi, 300)
    robots.update(done=True)
    target = robots.command.target.clone()
    assert target.min() < -2.9 and target.max() > 2.9
    turned = torch.zeros(300)
    for _ in range(400):
        commands = robots.update()
        assert commands[:, 2].abs().max() <= 1.0  # within the range of yaw rates
        robots.robot.heading = robots.robot.heading + DT * commands[:, 2]
        turned += DT * commands[:, 2].abs()
    assert torch.equal(robots.command.target, target)
    standing = (commands[:, :2] == 0.0).all(-1)
    assert 0 < standing.sum() < 100 and not turned[standing].any()
    error = torch.remainder(target - robots.robot.heading + pi, 2 * pi) - pi
    assert error[~standing].abs().max() < 0.01
    assert turned.max() <= pi + 0.01  # the shorter way round


def test_heading_yaw_rates_are_the_gain_times_the_error():
    robots = Robots(_command(heading=True, heading_gain=0.5, standing=0.0, ang_vel_z=(-0.4, 1.0)), 3)
    robots.update(done=True)
    robots.command.target.copy_(torch.tensor([0.6, -3.0, 3.0]))
    robots.robot.heading = torch.tensor([0.0, 0.0, -3.0])
    # the third turns backwards through pi: the error is 6 - 2 pi = -0.283
    torch.testing.assert_close(robots.update()[:, 2], torch.tensor([0.3, -0.4, 0.5 * (6.0 - 2 * pi)]))


def test_a_held_command_outlasts_resampling_and_resets_and_turns_to_no_heading():
    robots = Robots(_command(heading=True, resample_s=(DT, DT)), 5)
    robots.update(done=True)
    robots.command.hold((0.3, -0.2, 0.7))
    for done in (False, True, False):
        assert torch.equal(robots.update(done), torch.tensor([0.3, -0.2, 0.7]).repeat(5, 1))
    robots.command.hold(None)
    assert (robots.update()[:, :2] != torch.tensor([0.3, -0.2])).any(-1).all()


def test_the_first_command_of_an_episode_knows_the_heading_that_it_begins_with():
    """It did not: it was turned by the heading of the episode before, up to 2 rad/s off."""
    extra = ["commands.velocity.heading=true", "commands.velocity.heading_gain=0.5", "commands.velocity.standing=0.0"]
    env = embodied_rl.make("go2_flat", ["env.compile=false", "env.episode_s=0.1", "commands.velocity.ang_vel_z=[-9, 9]", *extra])
    command = env.terms.commands["velocity"]
    with torch.no_grad():
        for _ in range(12):
            env.step(torch.zeros(env.num_envs, env.num_actions))
            heading = rotations.yaw_of(env.physics.qpos[:, 3:7])
            expected = 0.5 * rotations.wrap_angle(command.target - heading)
            torch.testing.assert_close(command.command[:, 2], expected, rtol=0, atol=1e-5)
    assert env.drain_totals()["episodes"] >= env.num_envs
    env.close()


def test_moving_is_asked_for_above_a_tenth():
    robots = Robots(_command(), 6)
    commands = [[0.09, 0, 0], [0.11, 0, 0], [0.08, -0.08, 0], [0, 0, 0.09], [0, 0, -0.11], [0, 0, 0]]
    robots.command.command.copy_(torch.tensor(commands))
    assert robots.command.moving(robots.view()).tolist() == [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]


def test_the_clock_runs_at_the_gait_frequency():
    robots = Robots(_command(gait_frequency=1.25), 3)
    robots.episode_length = torch.tensor([0, 40, 50])  # 0, 0.8, 1 s
    torch.testing.assert_close(robots.command.phase(robots.view()), torch.tensor([0.0, 2 * pi, 2.5 * pi]))


def test_errors_are_distances():
    robots = Robots(_command(), 2)
    robots.command.command.copy_(torch.tensor([[0.5, 0.0, 0.1], [0.0, -0.5, -1.0]]))
    robots.robot.lin_vel_yaw, robots.robot.yaw_rate = torch.tensor([[0.8, -0.4], [0.0, -0.5]]), torch.tensor([0.4, 0.5])
    errors = robots.command.errors(robots.view())
    torch.testing.assert_close(errors["lin_vel_error"], torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(errors["ang_vel_error"], torch.tensor([0.3, 1.5]))


def test_what_is_reached_of_a_command_lies_in_its_direction():
    robots = Robots(_command(), 4)
    robots.command.command.copy_(torch.tensor([[0.3, 0.4, 0.5], [1.0, 0.0, -1.0], [-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    robots.robot.lin_vel_yaw = torch.tensor([[0.3, 0.4], [2.0, 5.0], [1.0, 0.0], [1.0, 1.0]])
    robots.robot.yaw_rate = torch.tensor([0.25, -3.0, -0.5, 1.0])
    lin, ang = robots.command.shares(robots.view())
    assert lin.names == ["Tracking/lin_vel"] and ang.names == ["Tracking/ang_vel"]
    torch.testing.assert_close(lin.number, torch.tensor([0.5, 1.0, -1.0, 0.0]))
    torch.testing.assert_close(ang.number, torch.tensor([0.25, 1.0, -0.5, 0.0]))
    torch.testing.assert_close(lin.whole, torch.tensor([0.5, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(ang.whole, torch.tensor([0.5, 1.0, 1.0, 0.0]))


def test_a_robot_walks_that_gets_a_quarter_as_fast_as_it_is_asked_to():
    robots = Robots(_command(), 6)
    robots.command.command.copy_(torch.tensor([[0.8, 0.0, 0.0]] * 3 + [[0.0, 0.0, -0.8], [0.3, 0.0, 0.8], [0.0, 0.0, 0.0]]))
    robots.robot.lin_vel_yaw = torch.tensor([[0.05, 3.0], [0.4, 0.0], [-0.8, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    robots.robot.yaw_rate = torch.tensor([0.0, 0.0, 0.0, -0.05, 0.1, 0.0])
    # the fifth: 4 x (0.4 x 0.05) / (0.3^2 + 0.4^2), with a lever of 0.5 m
    share = torch.tensor([0.25, 1.0, 0.0, 0.25, 0.32, 1.0])
    robots.command.walks.fill_(1.0)
    for step in range(1, 41):
        robots.command.update(robots.view())
        torch.testing.assert_close(robots.command.walks, share + (1.0 - share) * (1.0 - DT / 0.4) ** step)
    # an episode begins with everybody walking
    robots.update(done=torch.tensor([True, False, False, False, False, False]))
    assert robots.command.walks[0] == 1.0 and robots.command.walks[3] < 0.4


def _gait_rewards(offsets: tuple[float, float, float, float], share: float) -> torch.Tensor:
    """The gait reward over two cycles of 25 steps, of feet that stand for `share` of a cycle, each from its offset on."""
    robots = Robots(_command(gait_frequency=2.0), 50)
    steps = torch.arange(50)
    robots.episode_length = steps
    robots.command.command[:, 0] = 1.0
    robots.command.walks.fill_(1.0)
    # in twentyfifths of a cycle, which floats count exactly
    contact = [[float((step + round(25 * offset)) % 25 < 25 * share) for offset in offsets] for step in range(50)]
    robots.robot.foot_contact = torch.tensor(contact)
    return gait_phase(robots.view(), stance=torch.tensor(0.5))  # pyright: ignore[reportArgumentType]


def test_the_gait_reward_is_for_a_trot():
    trot = _gait_rewards((0.0, 0.5, 0.5, 0.0), 0.5)
    # at 25 steps a cycle one step in a cycle falls between the two halves
    assert (trot == 1.0).float().mean() > 0.9 and trot.min() == 0.5
    pace = _gait_rewards((0.0, 0.5, 0.0, 0.5), 0.5)
    assert (pace == 0.5).float().mean() > 0.9
    opposite = _gait_rewards((0.5, 0.0, 0.0, 0.5), 0.5)
    assert (opposite == 0.0).float().mean() > 0.9
    assert (_gait_rewards((0.0, 0.0, 0.0, 0.0), 1.0) == 0.5).float().mean() > 0.9  # all four on the ground


def test_the_gait_reward_asks_nothing_of_a_standing_robot():
    robots = Robots(_command(gait_frequency=2.0), 4)
    robots.command.command.zero_()
    robots.robot.foot_contact = torch.ones(4, 4).tril()  # robot 0 stands on one foot, robot 3 on all
    reward = gait_phase(robots.view(), stance=torch.tensor(0.5))  # pyright: ignore[reportArgumentType]
    assert reward.tolist() == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("gain", "widens"), [(0.0, False), (0.9, True)])
def test_ranges_widen_for_who_walks_and_never_for_who_stands(gain, widens):
    """By what is reached of what is asked for: a stander is paid well at slow commands, and has reached nothing."""
    change = "{term: earned, parameter: commands.velocity.lin_vel_x, start: [-0.1, 0.1], end: [-1.0, 1.0], "
    curricula = Curricula(load("go2_flat", [f"curriculum.wider={change}share: Tracking/lin_vel, step: 0.1}}"]))
    number = curricula.params["commands.velocity.lin_vel_x"]
    curricula.advance({}, 0)
    robots = Robots(_command(lin_vel_x=(-0.1, 0.1), lin_vel_y=(0.0, 0.0), standing=0.2), 500)
    for iteration in range(1, 20):
        command = robots.update(done=True)
        robots.robot.lin_vel_yaw, robots.robot.yaw_rate = gain * command[:, :2], torch.zeros(500)
        share = robots.command.shares(robots.view())[0]
        sums = {"share": float(share.number.sum()), "share_of": float(share.whole.sum())}
        curricula.advance({f"{kind}/{share.names[0]}": value for kind, value in sums.items()}, iteration)
    assert number.tolist() == pytest.approx([-1.0, 1.0] if widens else [-0.1, 0.1])
