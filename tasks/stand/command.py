"""The pose command: at which height and attitude to hold the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embodied_rl.config.types import NonNegativeRange, Range
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import command


@command()
class pose:  # noqa: N801  named as its entry on the page
    """Poses of the base (height, roll, pitch), uniform in their ranges, held for `resample_s` [s].

    `height` [m] is that of the base above the ground below it.  Base and heading are turned into the pose by pitch, then roll
    [rad]: a positive roll leans to the right, a positive pitch lowers the nose.
    """

    size = 3
    names = ("height [m]", "roll [rad]", "pitch [rad]")
    command: Tensor
    """What is asked for, (N, 3)."""
    time_left: Tensor
    """Until the next resampling [s], (N,)."""
    held: Tensor
    """Whether the command is held from outside, bool (N,)."""

    def __init__(
        self,
        robot: Part,
        *,
        height: Range,
        roll: Range = (-0.2, 0.2),
        pitch: Range = (-0.2, 0.2),
        resample_s: NonNegativeRange = (3.0, 3.0),
    ) -> None:
        self.ranges, self.resample_s = (height, roll, pitch), resample_s
        kept = State(fresh="keep")
        self.state = {"command": State((3,), fresh="keep"), "time_left": kept, "held": State(dtype=torch.bool, fresh="keep")}

    def resample(self, env: Moment, done: Tensor) -> None:
        """Draw anew where the time is up or an episode begins, done (N,) bool."""
        time_left = self.time_left - env.step_dt
        fresh = done | (time_left < 0.5 * env.step_dt)
        hold_s = env.draw.between(self.resample_s[0], self.resample_s[1], 1)[:, 0]
        self.time_left.copy_(torch.where(fresh, hold_s, time_left))
        drawn = torch.cat([env.draw.between(low, high, 1) for low, high in self.ranges], dim=-1)
        self.command.copy_(torch.where((fresh & ~self.held)[:, None], drawn, self.command))

    def hold(self, values: Sequence[float] | None) -> None:
        """Ask all robots for (height, roll, pitch) [m, rad, rad] and nothing else from now on; None: draw again."""
        self.held.fill_(values is not None)
        if values is not None:
            self.command.copy_(torch.as_tensor(values, dtype=torch.float32).expand_as(self.command))

    def errors(self, env: Moment) -> dict[str, Tensor]:
        """How far the base is from what is asked for, each (N,): |h - height| [m], the angle between the z axes [rad]."""
        height = height_above(env.robot.base_pos_w, env.terrain)
        return {
            "height_error": (height - self.command[:, 0]).abs(),
            "tilt_error": angle_between(env.robot.projected_gravity_b, gravity_of(self.command)),
        }

    def contract(self) -> dict[str, Any]:
        """Return the ranges that the policy was asked for."""
        return {"ranges": self.ranges}


def height_above(position: Tensor, terrain: Any) -> Tensor:
    """Measure the height of positions (N, 3) above the ground below them [m], (N,)."""
    return position[:, 2] - terrain.height(position[:, :2])


def gravity_of(asked: Tensor) -> Tensor:
    """Turn poses (N, 3) into the direction that gravity has in a base that holds them, (N, 3)."""
    roll, pitch = asked[:, 1], asked[:, 2]
    level = torch.cos(pitch)
    return torch.stack((torch.sin(pitch), -level * torch.sin(roll), -level * torch.cos(roll)), dim=-1)


def angle_between(one: Tensor, other: Tensor) -> Tensor:
    """Measure the angle between unit vectors (N, 3) [rad], (N,)."""
    # by the chord: the arc cosine of numbers near 1 has no digits left at a tenth of a degree
    return 2.0 * torch.asin((0.5 * (one - other).norm(dim=-1)).clamp(max=1.0))
