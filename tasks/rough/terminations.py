"""Ends of episodes on patches."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.config.types import Positive
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import termination


@termination(time_out=True)
class leaves_patch:  # noqa: N801  named as its entry on the page
    """base more than half of `size` [m] along x or y from where it began, as in the middle of a patch."""

    begun: Tensor
    """Where the episode began [m], (N, 2)."""
    side: Tensor
    """The side that the robot left through: 0 for +x, then counter-clockwise; -1 while it has not, int64 (N,)."""

    def __init__(self, robot: object, *, size: Positive) -> None:
        self._half = 0.5 * size
        self.state = {"begun": State((2,), fresh="keep"), "side": State(dtype=torch.int64, fresh="keep")}

    def settle(self, env: Moment) -> None:
        """Note where episodes begin."""
        self.begun.copy_(torch.where(env.done[:, None], env.robot.base_pos_w[:, :2], self.begun))

    def update(self, env: Moment) -> None:
        """Note who is out, and where."""
        x, y = (env.robot.base_pos_w[:, :2] - self.begun).unbind(-1)
        side = torch.where(x.abs() > y.abs(), torch.where(x > 0.0, 0, 2), torch.where(y > 0.0, 1, 3))
        self.side.copy_(torch.where(torch.maximum(x.abs(), y.abs()) > self._half, side, -1))

    def __call__(self, env: Moment) -> Tensor:
        """Say who is out, bool (N,)."""
        return self.side >= 0


@termination(time_out=True)
class stuck:  # noqa: N801  named as its entry on the page
    """base within `within` [m] for `after_s` [s] while at least `speed` [m/s] were asked for all along.

    It ends the episode as its time would: nobody is punished for it, and nobody's row is judged by it.
    """

    place: Tensor
    """Where the robot was last further away, or not asked to go [m], (N, 2)."""
    since: Tensor
    """How long ago that was [s], (N,)."""

    def __init__(
        self,
        robot: object,
        *,
        within: Positive = 0.3,
        after_s: Positive = 5.0,
        speed: Positive = 0.3,
        command: str = "velocity",
    ) -> None:
        self._within, self._after_s, self._speed, self._command = within, after_s, speed, command
        self.state = {"place": State((2,), fresh="keep"), "since": State(fresh="zero")}

    def update(self, env: Moment) -> None:
        """Note who has gone on, or need not."""
        place = env.robot.base_pos_w[:, :2]
        free = (place - self.place).norm(dim=-1) > self._within
        free = free | (env.command(self._command)[:, :2].norm(dim=-1) < self._speed) | (self.since == 0.0)
        self.place.copy_(torch.where(free[:, None], place, self.place))
        self.since.copy_(torch.where(free, 0.0, self.since) + env.step_dt)

    def __call__(self, env: Moment) -> Tensor:
        """Say who is stuck, bool (N,)."""
        return self.since > self._after_s
