"""Does it get across?  How policies that walk over patches of rough ground are judged."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.config.types import Fraction, Ge, NonNegative, Positive, Range
from embodied_rl.errors import UserError
from embodied_rl.mdp.score import Environment, Verdict
from embodied_rl.mdp.term import score
from embodied_rl.tasks.velocity.score import foot_friction, stresses, velocity_command

#: Mean error of the velocity in training, below which an evaluation is worth its time [m/s].
_NEAR = 0.4


@score()
class Cross:
    """Judges who leaves a patch from its middle through the side that is commanded, by kind of ground and row of difficulty.

    `robots` of them begin in the middle of each patch, of a ground whose seed no training meets, with observation noise and
    random foot `friction`, joints turned by up to `start_joint_pos` [rad], and nothing else random.  A quarter each is to walk
    along +x, +y, -x and -y: `speed` [m/s] ahead, and a yaw rate that turns the heading there.  Who is through that side
    within `episode_s` [s] is across; a fall, more than `tilt` [rad] from the vertical among them, another side, and time
    that is up are failures.  `success/KIND/row_N` is the share of those across; the limits are on the failures in the first
    `easy_rows`, and in row `hard_row`, each a mean over all kinds.
    """

    failure = "fall"
    progress = "Tracking/lin_vel"

    def __init__(
        self,
        *,
        speed: Positive = 0.6,
        episode_s: Positive = 20.0,
        robots: Annotated[int, Ge(4)] = 16,
        friction: Range = (0.5, 1.25),
        start_joint_pos: NonNegative = 0.2,
        tilt: Positive = 1.0,
        easy_rows: Annotated[int, Ge(1)] = 4,
        hard_row: Annotated[int, Ge(0)] = 5,
        easy_failures: Fraction = 0.1,
        hard_failures: Fraction = 0.2,
    ) -> None:
        self._speed, self._episode_s, self._robots, self._friction = speed, episode_s, robots, friction
        self._start_joint_pos, self._tilt = start_joint_pos, tilt
        self._easy_rows, self._hard_row = easy_rows, hard_row
        self._limits = {"easy_failures": easy_failures, "hard_failures": hard_failures}

    def overrides(self, page: Page, reference: bool) -> list[str]:
        """Set ground, starts, command and what a fall is; take all other randomness away.

        Raises:
            UserError: the page has no velocity command, or no patches as hard as the limits speak of.
        """
        command = f"commands.{velocity_command(page, 'rough')}"
        if not page.patches:
            raise UserError(f"{page.name}: task: rough judges who gets across patches, and the page has none; add patches")
        if max(self._easy_rows - 1, self._hard_row) >= page.terrain.rows:
            raise UserError(
                f"{page.name}: score: rows up to {max(self._easy_rows - 1, self._hard_row)} are judged, and terrain.rows is "
                f"{page.terrain.rows}; lower easy_rows and hard_row"
            )
        return [
            f"env.num_envs={self._robots * len(page.patches) * page.terrain.rows}",
            f"env.episode_s={self._episode_s}",
            f"terrain.seed={page.env.seed + 2**31}",  # the page's own seed is below
            f"{command}.lin_vel_x={[self._speed, self._speed]}",
            f"{command}.lin_vel_y=[0.0, 0.0]",
            f"{command}.ang_vel_z=[-1.0, 1.0]",
            f"{command}.resample_s={[2 * self._episode_s, 2 * self._episode_s]}",
            f"{command}.standing=0.0",
            f"{command}.heading=true",
            "events=null",
            f"events.start_on_patch={{rows: [0, {page.terrain.rows - 1}], curriculum: false}}",
            "events.reset_base={position: 0.0, yaw: 0.0}",
            f"events.reset_joints={{position: {self._start_joint_pos}}}",
            *foot_friction(self._friction),
            *(f"terminations.{name}=null" for name, entry in page.terminations.items() if entry.term == "stuck"),
            # beside the page's own, under names that no page has
            f"terminations.score_left={{term: leaves_patch, size: {page.terrain.size}}}",
            "terminations.score_time_out={term: time_out}",
            f"terminations.score_tilt={{term: tilt, limit: {self._tilt}}}",
        ]

    def stresses(self, page: Page) -> dict[str, list[str]]:
        """List pushes each 4 s, heavier bases and slippery feet, in about three rows up to the hard one."""
        step = self._hard_row // 2 or 1
        rows = range(self._hard_row % step, self._hard_row + 1, step)
        start = f"{{rows: [{rows[0]}, {self._hard_row}], step: {step}, curriculum: false}}"
        fewer = [f"events.start_on_patch={start}", f"env.num_envs={self._robots * len(page.patches) * len(rows)}"]
        return {name: [*changes, *fewer] for name, changes in stresses(page).items()}

    def begin(self, env: Environment) -> None:
        """Say where each robot is to go."""
        page, ids = env.page, torch.arange(env.num_envs, device=env.device)
        self._kinds = list(page.patches)
        row = env.buffers["events.start_on_patch.row"]
        self._cell = row * len(self._kinds) + ids % len(self._kinds)
        self._side = ids // (len(self._kinds) * len(row.unique())) % 4
        turn = (0.5 * self._side + 1.0) % 2.0 - 1.0  # of half a turn, in [-1, 1)
        env.terms.commands[velocity_command(page, "rough")].target.copy_(math.pi * turn)
        self._left = env.buffers["terminations.score_left.side"]
        self._across = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
        self._going = torch.ones_like(self._across)

    def step(self, env: Environment, going: Tensor) -> None:
        """Note who is through the right side."""
        self._across |= self._going & ~going & (self._left == self._side) & ~env.buffers["terminated"]
        self._going = going.clone()

    def figures(self) -> dict[str, float]:
        """Share of robots that are across, by kind and row, and failures of the rows that the limits speak of."""
        kinds = len(self._kinds)
        across = torch.zeros(int(self._cell.max()) + 1, dtype=torch.float64, device=self._cell.device)
        across = across.index_add(0, self._cell, self._across.double()) / torch.bincount(self._cell)
        table = across.view(-1, kinds).cpu()  # rows, kinds; NaN in rows that nobody begins in
        found = {
            "success": float(table.nanmean()),
            "hard_failures": 1.0 - float(table[self._hard_row].mean()),
        }
        if not (easy := table[: self._easy_rows]).isnan().all():
            found["easy_failures"] = 1.0 - float(easy.nanmean())
        for kind, name in enumerate(self._kinds):
            shares = table[:, kind].tolist()
            found |= {f"success/{name}/row_{row}": share for row, share in enumerate(shares) if not math.isnan(share)}
        return found

    def limits(self, reference: bool) -> dict[str, float]:
        """Give the page's limits."""
        return self._limits

    def verdict(self, figures: dict[str, float], reference: bool) -> Verdict:
        """Judge that both limits hold."""
        crosses = all(figures[name] <= limit for name, limit in self._limits.items())
        return Verdict(crosses, "it gets across" if crosses else "it does not get across yet")

    def near(self, metrics: dict[str, float]) -> bool:
        """Whether robots follow their command in training, nearly as well as on flat ground."""
        return metrics.get("Metrics/lin_vel_error", float("inf")) <= _NEAR
