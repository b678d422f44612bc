"""The velocity command: where to walk, and the clock of the gait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embodied_rl import rotations
from embodied_rl.config.types import Fraction, NonNegative, NonNegativeRange, Positive, Range
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import command
from embodied_rl.mdp.totals import Share

#: Below this a command asks for standing [m/s, rad/s].
_STANDING = 0.1
#: Longer than any robot takes to end its stride [s].
_LONG = 1e3
#: Over which time it is judged who walks: who turns round gets nowhere for a moment [s].
_WALKS_S = 0.4
#: What a turn weighs beside a walk, as a lever [m]: 1 rad/s as much as 0.5 m/s.
_LEVER = 0.5


@command()
class velocity:  # noqa: N801  named as its entry on the page
    """Velocity commands (vx, vy, wz) in the base's yaw frame, uniform in their ranges, held for `resample_s` [s].

    A share `standing` of them is zero, held for `standing_hold` times as long as the others: it is stopping that has to be
    learned, and standing on teaches little.  A share `straight` is (vx, 0, 0).
    With `heading`, a target direction is drawn instead of a yaw rate and wz = heading_gain (target - heading), within its
    range.  `gait_frequency` [Hz] drives the clock of `gait_phase`; it runs on for `settle_s` [s] once standing is asked for, so
    that a robot told to stop in mid-stride may end it.
    """

    size = 3
    names = ("vx [m/s]", "vy [m/s]", "wz [rad/s]")
    command: Tensor
    """What is asked for, (N, 3)."""
    time_left: Tensor
    """Until the next resampling [s], (N,)."""
    target: Tensor
    """The direction to turn to, with `heading` [rad], (N,)."""
    still: Tensor
    """For how long standing has been asked for [s], (N,)."""
    walks: Tensor
    """Whether the robot gets where it is asked to, in [0, 1], (N,): 0 at rest, 1 from a quarter of the velocity up."""
    held: Tensor
    """Whether the command is held from outside, bool (N,)."""

    def __init__(
        self,
        robot: Part,
        *,
        lin_vel_x: Range = (-1.0, 1.0),
        lin_vel_y: Range = (-0.5, 0.5),
        ang_vel_z: Range = (-1.0, 1.0),
        resample_s: NonNegativeRange = (5.0, 5.0),
        standing: Fraction = 0.1,
        standing_hold: Fraction = 1.0,
        straight: Fraction = 0.0,
        heading: bool = False,
        heading_gain: NonNegative = 0.5,
        gait_frequency: Positive = 2.0,
        settle_s: NonNegative = 0.0,
    ) -> None:
        self.ranges = (lin_vel_x, lin_vel_y, ang_vel_z)
        self.resample_s, self.standing, self.standing_hold, self.straight = resample_s, standing, standing_hold, straight
        self.heading, self.heading_gain = heading, heading_gain
        self.gait_frequency, self.settle_s = gait_frequency, settle_s
        kept = {part: State(fresh="keep") for part in ("time_left", "target", "still", "walks")}
        self.state = {"command": State((3,), fresh="keep"), **kept, "held": State(dtype=torch.bool, fresh="keep")}

    def resample(self, env: Moment, done: Tensor) -> None:
        """Draw anew where the time is up or an episode begins, done (N,) bool."""
        draw = env.draw
        time_left = self.time_left - env.step_dt
        fresh = done | (time_left < 0.5 * env.step_dt)
        kind = draw(1)
        stands, straight = kind < self.standing, kind >= 1.0 - self.straight
        held = draw.between(self.resample_s[0], self.resample_s[1], 1) * torch.where(stands, self.standing_hold, 1.0)
        time_left = torch.where(fresh, held[:, 0], time_left)
        self.time_left.copy_(time_left)
        drawn = torch.cat([draw.between(r[0], r[1], 1) for r in self.ranges], dim=-1)
        drawn = torch.cat((drawn[:, :1], torch.where(straight, 0.0, drawn[:, 1:])), dim=-1)
        drawn = torch.where(stands, 0.0, drawn)
        current = torch.where((fresh & ~self.held)[:, None], drawn, self.command)
        if self.heading:
            target = torch.where(fresh, draw.between(-math.pi, math.pi, 1)[:, 0], self.target)
            self.target.copy_(target)
        self.command.copy_(current)
        # an episode that begins with standing has nothing to end
        self.still.copy_(torch.where(done, _LONG, self.still + env.step_dt))
        self.walks.copy_(torch.where(done, 1.0, self.walks))

    def settle(self, env: Moment) -> None:
        """Turn headings into yaw rates, of the state that an episode begins with too; note who walks."""
        current = self.command
        if self.heading:
            turn = self.heading_gain * rotations.wrap_angle(self.target - env.robot.heading)
            low, high = torch.as_tensor(self.ranges[2])
            turn = torch.minimum(torch.maximum(turn, low), high)
            moving = (current[:, :2].square().sum(-1) > 0) | (current[:, 2] != 0)
            turned = torch.cat((current[:, :2], (turn * moving)[:, None]), dim=-1)
            current = torch.where(self.held[:, None], current, turned)
            self.command.copy_(current)
        self.still.copy_(torch.where(asks_to_walk(current), 0.0, self.still))

    def hold(self, values: Sequence[float] | None) -> None:
        """Ask all robots for (vx, vy, wz) [m/s, m/s, rad/s] and nothing else from now on; None: draw again."""
        self.held.fill_(values is not None)
        if values is not None:
            self.command.copy_(torch.as_tensor(values, dtype=torch.float32).expand_as(self.command))

    def moving(self, env: Moment) -> Tensor:
        """1 where walking is asked for or was less than `settle_s` ago, 0 where standing is, (N,)."""
        settling = self.still < self.settle_s + 0.5 * env.step_dt
        return (asks_to_walk(self.command) | settling & (torch.as_tensor(self.settle_s) > 0.0)).float()

    def phase(self, env: Moment) -> Tensor:
        """Phase of the gait clock [rad], (N,)."""
        return (2.0 * math.pi * env.step_dt) * self.gait_frequency * env.episode_length

    def cycle(self, env: Moment) -> Tensor:
        """Where each foot is in its cycle of the gait, begun by its `gait_offset`, in [0, 1), (N, F)."""
        offset = 2.0 * math.pi * env.robot.gait_offset
        return torch.remainder((self.phase(env)[:, None] + offset) / (2.0 * math.pi), 1.0)

    def update(self, env: Moment) -> None:
        """Note who gets where it is asked to: min(1, 4 c . v / c . c), a mean over the last 0.4 s, exponentially weighted.

        With v = (v_x, v_y, lever w_z) in the base's yaw frame, c what is asked for alike, and a lever of 0.5 m; 1 of nothing.
        """
        ahead, turn = self.command[:, :2], _LEVER**2 * self.command[:, 2]
        whole = ahead.square().sum(-1) + turn * self.command[:, 2]
        along = (ahead * env.robot.lin_vel_yaw).sum(-1) + turn * env.robot.yaw_rate
        # to pay for all of a speed that swings in each stride would pay for more than is asked for
        share = (4.0 * along / whole.clamp(min=1e-6)).clamp(0.0, 1.0)
        share = torch.where(whole > 0.0, share, 1.0)
        self.walks.add_(min(env.step_dt / _WALKS_S, 1.0) * (share - self.walks))

    def errors(self, env: Moment) -> dict[str, Tensor]:
        """How far the robot is from what is asked for, each (N,): |v_xy - command| [m/s], |w_z - command| [rad/s]."""
        return {
            "lin_vel_error": (env.robot.lin_vel_yaw - self.command[:, :2]).norm(dim=-1),
            "ang_vel_error": (env.robot.yaw_rate - self.command[:, 2]).abs(),
        }

    def shares(self, env: Moment) -> list[Share]:
        """Count how much of what is asked for is reached, at most all of it."""
        ways = (
            ("Tracking/lin_vel", (env.robot.lin_vel_yaw * self.command[:, :2]).sum(-1), self.command[:, :2].norm(dim=-1)),
            ("Tracking/ang_vel", env.robot.yaw_rate * self.command[:, 2], self.command[:, 2].abs()),
        )
        return [Share([name], torch.minimum(along / asked.clamp(min=1e-6), asked), asked) for name, along, asked in ways]

    def contract(self) -> dict[str, Any]:
        """Return ranges and clock: standing is |v_xy| <= `standing_below` and |wz| <= `standing_below`."""
        return {
            "ranges": self.ranges,
            **({"rest": (0.0, 0.0, 0.0)} if self.standing > 0.0 else {}),
            "gait_frequency": self.gait_frequency,
            "settle_s": self.settle_s,
            "standing_below": _STANDING,
        }


def asks_to_walk(command: Tensor) -> Tensor:
    """Whether commands (N, 3) ask for more than standing, bool (N,)."""
    return (command[:, :2].norm(dim=-1) > _STANDING) | (command[:, 2].abs() > _STANDING)
