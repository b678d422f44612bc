"""Does it stand?  How policies that hold a commanded pose are judged."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.config.types import Fraction, NonNegative, NonNegativeRange, Positive, Range
from embodied_rl.errors import UserError
from embodied_rl.mdp.part import PartState
from embodied_rl.mdp.score import Environment, SettledCommand, Verdict
from embodied_rl.mdp.term import score

from .command import angle_between, gravity_of, height_above

#: Within so many times the limits in training, an evaluation is worth its time; training counts the way to each new pose as well.
_NEAR = 3.0


@score()
class Stand:
    """Judges how well commanded poses are held, over how many falls.

    Episodes of `episode_s` [s] with observation noise and random foot `friction`, from random starts (`start_joint_pos` [rad],
    `start_lin_vel` [m/s], `start_ang_vel` [rad/s]); nothing pushes, nothing else of the robot is random, and all that
    curricula move, of what is not said here, is as the policy had it last.  Poses in `height` [m], `roll` and `pitch` [rad]
    are resampled every `resample_s` [s]; the first `unscored_s` [s] after each resampling are not scored.  A fall is any
    termination but time_out, more than `tilt` [rad] from the vertical and less than `lowest` [m] above the ground among them;
    a fallen episode counts up to the fall.  `fall_rate`, `height_error` [m] and `tilt_error` [rad] are the limits, the same in
    reference physics.
    """

    failure = "fall"

    def __init__(
        self,
        *,
        height: Range = (0.20, 0.32),
        roll: Range = (-0.2, 0.2),
        pitch: Range = (-0.2, 0.2),
        resample_s: NonNegativeRange = (3.0, 3.0),
        episode_s: Positive = 12.0,
        unscored_s: NonNegative = 1.0,
        friction: NonNegativeRange = (0.5, 1.25),
        tilt: Positive = 1.0,
        lowest: Positive = 0.1,
        start_joint_pos: NonNegative = 0.2,
        start_lin_vel: NonNegative = 0.3,
        start_ang_vel: NonNegative = 0.3,
        fall_rate: Fraction = 0.01,
        height_error: NonNegative = 0.01,
        tilt_error: NonNegative = 0.0349,
    ) -> None:
        self._ranges = {"height": height, "roll": roll, "pitch": pitch, "resample_s": resample_s}
        self._episode_s, self._unscored_s, self._friction = episode_s, unscored_s, friction
        self._tilt, self._lowest = tilt, lowest
        self._start_joint_pos, self._start_lin_vel, self._start_ang_vel = start_joint_pos, start_lin_vel, start_ang_vel
        self._limits = {"fall_rate": fall_rate, "height_error": height_error, "tilt_error": tilt_error}

    def overrides(self, page: Page, reference: bool) -> list[str]:
        """Set commands, starts, friction and what a fall is; take all other randomness away.

        Raises:
            UserError: the page has no pose command.
        """
        command = f"commands.{_command(page)}"
        friction = f"quantity: friction, of: feet, operation: set, range: {list(self._friction)}, when: reset"
        return [
            f"env.episode_s={self._episode_s}",
            *(f"{command}.{name}={list(value)}" for name, value in self._ranges.items()),
            "events=null",
            f"events.reset_base={{position: 0.5, lin_vel: {self._start_lin_vel}, ang_vel: {self._start_ang_vel}}}",
            f"events.reset_joints={{position: {self._start_joint_pos}}}",
            f"events.foot_friction={{term: randomize, {friction}}}",
            # beside the page's own, under names that no page has
            "terminations.score_time_out={term: time_out}",
            f"terminations.score_tilt={{term: tilt, limit: {self._tilt}}}",
            f"terminations.score_height={{term: height, minimum: {self._lowest}}}",
        ]

    def begin(self, env: Environment) -> None:
        """Start to count."""
        self._settled = SettledCommand(env, env.terms.commands[_command(env.page)], self._unscored_s)
        zero = torch.zeros((), dtype=torch.float64, device=env.device)
        self._scored = self._height_error = self._tilt_error = zero

    def step(self, env: Environment, going: Tensor) -> None:
        """Compare with the pose that was asked for before the step."""
        counted = self._settled.step(going)
        # rows that are done stand in their next episode already, and are not looked at again
        state = PartState(env.robot, env.physics)
        height = (height_above(state.base_pos_w, env.scene.terrain) - self._settled.asked[:, 0]).abs()
        tilt = angle_between(state.projected_gravity_b, gravity_of(self._settled.asked))
        self._scored = self._scored + counted.sum()
        self._height_error = self._height_error + (height * counted).sum()
        self._tilt_error = self._tilt_error + (tilt * counted).sum()
        self._settled.next()

    def figures(self) -> dict[str, float]:
        """Mean errors [m, rad]."""
        return {
            "height_error": float(self._height_error / self._scored.clamp(min=1.0)),
            "tilt_error": float(self._tilt_error / self._scored.clamp(min=1.0)),
        }

    def limits(self, reference: bool) -> dict[str, float]:
        """Give the page's limits, the same in both physics."""
        return self._limits

    def verdict(self, figures: dict[str, float], reference: bool) -> Verdict:
        """Judge that standing is every limit at once."""
        stands = all(figures[name] <= limit for name, limit in self.limits(reference).items())
        return Verdict(stands, "it stands" if stands else "it does not stand yet")

    def near(self, metrics: dict[str, float]) -> bool:
        """Whether the errors in training come near the limits."""
        limits = {name: limit for name, limit in self._limits.items() if name.endswith("_error")}
        return all(metrics.get(f"Metrics/{name}", float("inf")) <= _NEAR * limit for name, limit in limits.items())


def _command(page: Page) -> str:
    """Find the page's pose command.

    Raises:
        UserError: it has none.
    """
    name = next((name for name, entry in page.commands.items() if entry.term == "pose"), None)
    if name is None:
        what = "stand judges how a commanded pose is held, and the page has none"
        raise UserError(f"{page.name}: task: {what}; write commands: {{pose: {{height: [0.2, 0.32]}}}}")
    return name
