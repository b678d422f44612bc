"""On which patch of the ground a robot begins, and when it gets a harder or an easier one."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from embodied_rl.config.types import Fraction, Ge, IntRange, NonNegative, Positive
from embodied_rl.errors import UserError
from embodied_rl.mdp.draft import Draft
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import event
from embodied_rl.mdp.totals import Share
from embodied_rl.problems import did_you_mean


@event(mode="reset")
class start_on_patch:  # noqa: N801  named as its entry on the page
    """Start robots in the middle of a patch: each on one kind for ever, in first rows of `rows`, dealt out by their numbers.

    Kinds are dealt out in the order of `kinds`, where one that stands twice gets twice as many; without any each once.  First
    rows are every `step`-th from the first of `rows` to the last.

    With `curriculum` a robot's row is judged when its episode ends.  One that fell goes a row down.  One whose time is up goes
    a row up if it went `share` of the way that the last command asked for, in that command's direction as it turned; no
    command is judged that was given for less than `window_s` [s], or asked for less than `speed` [m/s].  Who is through with
    the last row goes on in any.
    """

    row: Tensor
    """Row of difficulty of each robot's patch, int64 (N,)."""
    begun: Tensor
    """Whether it has a row, bool (N,)."""
    asked: Tensor
    """What the present command has asked for, (N, 2)."""
    way: Tensor
    """Ways since then: asked for, and gone in that direction, each at most as far as asked [m], (N, 2)."""
    time: Tensor
    """Time since then [s], (N,)."""
    over: Tensor
    """Whether the episode's whole time is up, bool (N,): when events happen, its length is that of the next one."""

    def __init__(
        self,
        robot: Part,
        *,
        kinds: tuple[str, ...] = (),
        rows: IntRange = (0, 3),
        step: Annotated[int, Ge(1)] = 1,
        curriculum: bool = True,
        command: str = "velocity",
        share: Fraction = 0.75,
        window_s: NonNegative = 2.0,
        speed: Positive = 0.2,
    ) -> None:
        if not robot.floating:
            raise UserError(f"rows: {robot.spec.name} is mounted, and cannot begin elsewhere; take the entry off the page")
        self._kinds, self._dealt = kinds, None
        self._rows, self._step, self._curriculum, self._command = rows, step, curriculum, command
        self._share, self._window_s, self._speed = share, window_s, speed
        flag, number = State(dtype=torch.bool, fresh="keep"), State(fresh="keep")
        self.state = {"row": State(dtype=torch.int64, fresh="keep"), "begun": flag, "time": number, "over": flag}
        self.state |= {"asked": State((2,), fresh="keep"), "way": State((2,), fresh="keep")}

    def update(self, env: Moment) -> None:
        """Add this step to the way that the present command asks for, and to the way gone."""
        asked = env.command(self._command)[:, :2]
        other = (asked != self.asked).any(-1)
        speed = asked.norm(dim=-1)
        gone = torch.minimum((env.robot.lin_vel_yaw * asked).sum(-1) / speed.clamp(min=1e-6), speed)
        way = torch.where(other[:, None], 0.0, self.way) + env.step_dt * torch.stack((speed, gone), dim=-1)
        self.way.copy_(way)
        self.time.copy_(torch.where(other, 0.0, self.time) + env.step_dt)
        self.asked.copy_(asked)
        self.over.copy_(env.episode_length >= env.max_episode_length)

    def __call__(self, env: Moment, draft: Draft) -> None:
        """Place robots on their patches, as if the ground were level there: all are lifted onto it at the end."""
        origins = _origins(env)
        rows, turns = origins.shape[1], len(self._kinds or env.terrain.kinds)
        low, high = min(self._rows[0], rows - 1), min(self._rows[1], rows - 1)
        first = low + self._step * (env.env_ids // turns % ((high - low) // self._step + 1))
        row = torch.where(self.begun, self._judged(env, rows), first)
        self.row.copy_(torch.where(env.done, row, self.row))
        self.begun.logical_or_(env.done)
        self.time.copy_(torch.where(env.done, 0.0, self.time))
        self.way.copy_(torch.where(env.done[:, None], 0.0, self.way))
        origin = origins[self._kind(env), self.row]
        place = draft.root_pos(env.robot)
        place[:, :2] += origin[:, :2]
        draft.set_root_pose(env.robot, place, draft.root_quat(env.robot))

    def shares(self, env: Moment) -> list[Share]:
        """Count the mean row, that of each kind, and how many of those judged in each row go up."""
        kinds, rows, one = env.terrain.kinds, _origins(env).shape[1], torch.ones_like(self.time)
        kind, row = self._kind(env), self.row.float()
        through, judged = self._judge(env)
        cells = [f"Success/{name}/row_{row}" for name in kinds for row in range(rows)]
        return [
            Share(["Metrics/row"], row, one),
            Share([f"Level/{name}" for name in kinds], row, one, kind),
            Share(cells, through.float(), judged.float(), kind * rows + self.row),
        ]

    def _kind(self, env: Moment) -> Tensor:
        """Kind of each robot's patch, int64 (N,)."""
        if self._dealt is None:
            kinds = env.terrain.kinds
            if odd := next((name for name in self._kinds if name not in kinds), None):
                raise UserError(f"start_on_patch: kinds: the page has no patches {odd!r}{did_you_mean(odd, kinds)}")
            self._dealt = torch.tensor([kinds.index(name) for name in self._kinds or kinds], device=env.env_ids.device)
        return self._dealt[env.env_ids % len(self._dealt)]

    def _judge(self, env: Moment) -> tuple[Tensor, Tensor]:
        """Say whose episode ends with its row gone through, and whose ends with a judgement at all, bool (N,)."""
        if env.terminated is None:  # nobody is judged at `Env.reset`
            return torch.zeros_like(self.begun), torch.zeros_like(self.begun)
        long_enough = (self.time >= self._window_s) & (self.way[:, 0] >= self._speed * self.time)
        # other time-outs come before that, as where the robot is stuck or the ground ends
        up = env.timed_out & self.over & long_enough
        return up & (self.way[:, 1] >= self._share * self.way[:, 0]), up | env.terminated

    def _judged(self, env: Moment, rows: int) -> Tensor:
        """Rows of the next episodes, int64 (N,)."""
        if not self._curriculum:
            return self.row
        anywhere = env.draw.integers(0, rows - 1).long()
        through, judged = self._judge(env)
        row = self.row + through.long() - (judged & ~env.timed_out).long()
        return torch.where(row >= rows, anywhere, row.clamp(min=0))


def _origins(env: Moment) -> Tensor:
    """Return where robots begin on patches, (kinds, rows, 3).

    Raises:
        UserError: the page has none; one line.
    """
    if env.terrain.origins is None:
        raise UserError(
            "start_on_patch places robots on patches, and the page has none; add patches: {stairs: {}}, or take it off"
        )
    return env.terrain.origins
