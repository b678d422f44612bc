"""Does it walk?  How policies that follow a velocity command are judged."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.config.types import Fraction, NonNegative, NonNegativeRange, Positive, Range
from embodied_rl.errors import UserError
from embodied_rl.mdp.part import PartState
from embodied_rl.mdp.score import Environment, SettledCommand, Verdict
from embodied_rl.mdp.term import score
from embodied_rl.tasks.velocity.command import asks_to_walk
from embodied_rl.tasks.velocity.findings import failures, remarks, table
from embodied_rl.tasks.velocity.gait import NEEDS, Gait
from embodied_rl.tasks.velocity.reach import Reach

_GRAVITY = 9.81
#: Within so many times the limits in training, an evaluation is worth its time.
_NEAR = 2.0
#: Share of the commands that ask for straight ahead, or back.
_STRAIGHT = 0.125


@score(needs=("joint_torque",), wants=NEEDS)
class Walk:
    """Judges how well commands of velocity are followed, over how many falls, at which cost of transport.

    Episodes of `episode_s` [s] with observation noise and random foot `friction`, from random starts (`start_joint_pos`
    [rad], `start_lin_vel` [m/s], `start_ang_vel` [rad/s]); nothing pushes, nothing else of the robot is random, and all that
    curricula move, of what is not said here, is as the policy had it last.  Commands in `lin_vel_x`, `lin_vel_y` [m/s] and
    `ang_vel_z` [rad/s] are resampled every `resample_s` [s]; a share `standing` of them is zero, which is scored too, the first
    `unscored_s` [s] after each resampling are not.  Velocities are those of the base's origin, in its yaw frame.  A fall is
    any termination but time_out, more than `tilt` [rad] from the vertical among them; a fallen episode counts up to the fall.
    `fall_rate`, `lin_vel_error` [m/s] and `ang_vel_error` [rad/s] are the limits, those of `reference_` in reference physics.

    What those errors hide has limits too: `shortfall`, how much of the commanded speed is missing where most is, of bins of
    speed from 0.1 m/s or rad/s up, ahead, sideways and turning each; `heading_drift` [rad], how far nineteen in twenty of the
    robots that are to walk straight ahead or back turn in 10 s at most, as an eighth of the commands asks them to; and
    `shuffling`, the share of the feet's ways that they go on or near the ground.
    """

    failure = "fall"
    tabled = "reached/"
    progress = "Tracking/lin_vel"

    def __init__(
        self,
        *,
        lin_vel_x: Range = (-1.0, 1.0),
        lin_vel_y: Range = (-0.5, 0.5),
        ang_vel_z: Range = (-1.0, 1.0),
        resample_s: NonNegativeRange = (5.0, 5.0),
        standing: Fraction = 0.1,
        episode_s: Positive = 20.0,
        unscored_s: NonNegative = 1.0,
        friction: NonNegativeRange = (0.5, 1.25),
        tilt: Positive = 1.0,
        start_joint_pos: NonNegative = 0.2,
        start_lin_vel: NonNegative = 0.3,
        start_ang_vel: NonNegative = 0.3,
        fall_rate: Fraction = 0.01,
        lin_vel_error: NonNegative = 0.15,
        ang_vel_error: NonNegative = 0.20,
        shortfall: Fraction = 0.5,
        heading_drift: NonNegative = 0.785,
        shuffling: Fraction = 0.5,
        reference_fall_rate: Fraction = 0.05,
        reference_lin_vel_error: NonNegative = 0.20,
    ) -> None:
        self._ranges = {"lin_vel_x": lin_vel_x, "lin_vel_y": lin_vel_y, "ang_vel_z": ang_vel_z, "resample_s": resample_s}
        self._standing, self._episode_s, self._unscored_s = standing, episode_s, unscored_s
        self._friction, self._tilt = friction, tilt
        self._start_joint_pos, self._start_lin_vel, self._start_ang_vel = start_joint_pos, start_lin_vel, start_ang_vel
        self._limits = {"fall_rate": fall_rate, "lin_vel_error": lin_vel_error, "ang_vel_error": ang_vel_error}
        self._limits |= {"shortfall": shortfall, "heading_drift": heading_drift}
        self._shuffling = shuffling
        self._reference_limits = {"fall_rate": reference_fall_rate, "lin_vel_error": reference_lin_vel_error}

    def overrides(self, page: Page, reference: bool) -> list[str]:
        """Set commands, starts, friction and what a fall is; take all other randomness away.

        Raises:
            UserError: the page has no velocity command.
        """
        command = f"commands.{velocity_command(page)}"
        return [
            f"env.episode_s={self._episode_s}",
            *(f"{command}.{name}={list(value)}" for name, value in self._ranges.items()),
            f"{command}.standing={self._standing}",
            f"{command}.standing_hold=1.0",
            f"{command}.straight={_STRAIGHT}",
            f"{command}.heading=false",
            "events=null",
            f"events.reset_base={{position: 0.5, lin_vel: {self._start_lin_vel}, ang_vel: {self._start_ang_vel}}}",
            f"events.reset_joints={{position: {self._start_joint_pos}}}",
            *foot_friction(self._friction),
            # beside the page's own, under names that no page has
            "terminations.score_time_out={term: time_out}",
            f"terminations.score_tilt={{term: tilt, limit: {self._tilt}}}",
        ]

    def stresses(self, page: Page) -> dict[str, list[str]]:
        """List pushes each 4 s, heavier bases and slippery feet."""
        return stresses(page)

    def begin(self, env: Environment) -> None:
        """Start to count."""
        self._settled = SettledCommand(env, env.terms.commands[velocity_command(env.page)], self._unscored_s)
        self._reach = Reach(env)
        self._gait = Gait(env) if {*NEEDS} <= env.robot.measured else None
        zero = torch.zeros((), dtype=torch.float64, device=env.device)
        self._scored = self._lin_error = self._ang_error = self._energy = self._distance = zero
        self._weight = env.robot.mass * _GRAVITY

    def step(self, env: Environment, going: Tensor) -> None:
        """Compare with the command that was seen before the step."""
        counted = self._settled.step(going)
        # rows that are done stand in their next episode already, and are not looked at again
        state = PartState(env.robot, env.physics)
        lin = (state.lin_vel_yaw - self._settled.asked[:, :2]).norm(dim=-1)
        ang = (state.yaw_rate - self._settled.asked[:, 2]).abs()
        self._scored = self._scored + counted.sum()
        self._lin_error = self._lin_error + (lin * counted).sum()
        self._ang_error = self._ang_error + (ang * counted).sum()
        power = (state.joint_torque * state.joint_vel).abs().sum(-1)
        self._energy = self._energy + (power * going).sum() * env.step_dt
        self._distance = self._distance + (state.base_lin_vel_w[:, :2].norm(dim=-1) * going).sum() * env.step_dt
        self._reach.step(state, self._settled.asked, counted)
        if self._gait is not None:
            walks = asks_to_walk(self._settled.asked)
            self._gait.step(env, counted & walks, counted & ~walks)
        self._settled.next()

    def figures(self) -> dict[str, float]:
        """Mean errors [m/s, rad/s], the cost of transport, and what `Reach` and `Gait` have seen."""
        return {
            "lin_vel_error": float(self._lin_error / self._scored.clamp(min=1.0)),
            "ang_vel_error": float(self._ang_error / self._scored.clamp(min=1.0)),
            "cost_of_transport": float(self._energy / (self._weight * self._distance.clamp(min=1e-6))),
            **self._reach.figures(),
            **(self._gait.figures() if self._gait else {}),
        }

    def limits(self, reference: bool) -> dict[str, float]:
        """Give the page's limits for these physics."""
        return self._reference_limits if reference else self._limits

    def verdict(self, figures: dict[str, float], reference: bool) -> Verdict:
        """Judge that walking is every limit at once, on feet that leave the ground; say what is odd about it."""
        limits = self.limits(reference)
        said = failures(figures, limits, self._shuffling)
        walks = all(figures[name] <= limit for name, limit in limits.items()) and not said
        said += remarks(figures)
        sentence = "it walks" if walks else "it does not walk yet"
        return Verdict(walks, "; ".join([sentence, *said]))

    def table(self, figures: dict[str, float]) -> list[str]:
        """Lay out what is achieved of what is commanded, by speed."""
        return table(figures)

    def near(self, metrics: dict[str, float]) -> bool:
        """Whether the errors in training come near the limits."""
        limits = {name: limit for name, limit in self._limits.items() if name.endswith("_error")}
        return all(metrics.get(f"Metrics/{name}", float("inf")) <= _NEAR * limit for name, limit in limits.items())


def velocity_command(page: Page, family: str = "velocity") -> str:
    """Find the page's velocity command.

    Raises:
        UserError: it has none.
    """
    name = next((name for name, entry in page.commands.items() if entry.term == "velocity"), None)
    if name is None:
        what = f"{family} judges how a velocity command is followed, and the page has none"
        raise UserError(f"{page.name}: task: {what}; write commands: {{velocity: {{}}}}")
    return name


def stresses(page: Page) -> dict[str, list[str]]:
    """List what a walking robot has to bear, by name, as changes of the page that it is judged on."""
    payload = "events.score_payload={{term: randomize, quantity: mass, of: base, operation: scale, range: [{0}, {0}]}}"
    push = "events.score_push={{term: push, interval_s: 4.0, lin_vel: {0}}}"
    return {
        **{f"push_{speed}_m/s": [push.format(speed)] for speed in (0.5, 1.0)},
        **{f"base_mass_x{factor}": [payload.format(factor)] for factor in (1.25, 1.5)},
        **{f"friction_{friction}": foot_friction((friction, friction)) for friction in (0.4, 0.25)},
    }


def foot_friction(friction: tuple[float, float]) -> list[str]:
    """Draw the feet's friction anew for each episode."""
    row = f"{{term: randomize, quantity: friction, of: feet, operation: set, range: {list(friction)}, when: reset}}"
    return [f"events.foot_friction={row}"]
