"""Walking where a velocity command says: the command, and the rewards that speak of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from embodied_rl import rotations
from embodied_rl.config.types import Fraction, NonNegative, Positive, Range
from embodied_rl.mdp.term import command, reward
from embodied_rl.mdp.view import View

#: Below this a command asks for standing [m/s, rad/s].
_STANDING = 0.1
#: Longer than any robot takes to end its stride [s].
_LONG = 1e3


@command()
class velocity:  # noqa: N801  named as its entry on the page
    """Velocity commands (vx, vy, wz) in the base's yaw frame, uniform in their ranges, held for `resample_s` [s].

    A share `standing` of them is zero, held for `standing_hold` times as long as the others: it is stopping that has to be
    learned, and standing on teaches little.
    With `heading`, a target direction is drawn instead of a yaw rate and wz = heading_gain (target - heading), within its
    range.  `gait_frequency` [Hz] drives the clock of `gait_phase`; it runs on for `settle_s` [s] once standing is asked for, so
    that a robot told to stop in mid-stride may end it.
    """

    def __init__(
        self,
        name: str,
        *,
        lin_vel_x: Range = (-1.0, 1.0),
        lin_vel_y: Range = (-0.5, 0.5),
        ang_vel_z: Range = (-1.0, 1.0),
        resample_s: Range = (5.0, 5.0),
        standing: Fraction = 0.1,
        standing_hold: Fraction = 1.0,
        heading: bool = False,
        heading_gain: NonNegative = 0.5,
        gait_frequency: Positive = 2.0,
        settle_s: NonNegative = 0.0,
    ) -> None:
        self.name = name
        self.ranges = (lin_vel_x, lin_vel_y, ang_vel_z)
        self.resample_s, self.standing, self.standing_hold = resample_s, standing, standing_hold
        self.heading, self.heading_gain = heading, heading_gain
        self.gait_frequency, self.settle_s = gait_frequency, settle_s
        self.state = {f"{name}.{part}": size for part, size in (("command", 3), ("time_left", 0), ("heading", 0), ("still", 0))}

    def update(self, env: View, done: Tensor) -> None:
        """Resample where the time is up or an episode begins, (N,) bool; turn headings into yaw rates."""
        state, draw = env.buffers, env.draw
        time_left = state[f"{self.name}.time_left"] - env.step_dt
        fresh = done | (time_left < 0.5 * env.step_dt)
        stands = draw(1) < self.standing
        held = draw.between(self.resample_s[0], self.resample_s[1], 1) * torch.where(stands, self.standing_hold, 1.0)
        time_left = torch.where(fresh, held[:, 0], time_left)
        state[f"{self.name}.time_left"].copy_(time_left)
        drawn = torch.cat([draw.between(r[0], r[1], 1) for r in self.ranges], dim=-1)
        drawn = torch.where(stands, 0.0, drawn)
        current = torch.where(fresh[:, None], drawn, state[f"{self.name}.command"])
        if self.heading:
            target = torch.where(fresh, draw.between(-math.pi, math.pi, 1)[:, 0], state[f"{self.name}.heading"])
            state[f"{self.name}.heading"].copy_(target)
            turn = self.heading_gain * rotations.wrap_angle(target - env.robot.heading)
            low, high = torch.as_tensor(self.ranges[2])
            turn = torch.minimum(torch.maximum(turn, low), high)
            moving = (current[:, :2].square().sum(-1) > 0) | (current[:, 2] != 0)
            current = torch.cat((current[:, :2], (turn * moving)[:, None]), dim=-1)
        state[f"{self.name}.command"].copy_(current)
        still = state[f"{self.name}.still"]
        # an episode that begins with standing has nothing to end
        still.copy_(torch.where(_walks(current), 0.0, torch.where(done, _LONG, still + env.step_dt)))

    def moving(self, env: View) -> Tensor:
        """1 where walking is asked for or was less than `settle_s` ago, 0 where standing is, (N,)."""
        settling = env.buffers[f"{self.name}.still"] < self.settle_s + 0.5 * env.step_dt
        return (_walks(env.command(self.name)) | settling & (torch.as_tensor(self.settle_s) > 0.0)).float()

    def phase(self, env: View) -> Tensor:
        """Phase of the gait clock [rad], (N,)."""
        return (2.0 * math.pi * env.step_dt) * self.gait_frequency * env.episode_length

    def errors(self, env: View) -> dict[str, Tensor]:
        """How far the robot is from what is asked for, each (N,): |v_xy - command| [m/s], |w_z - command| [rad/s]."""
        asked = env.command(self.name)
        return {
            "lin_vel_error": (env.robot.lin_vel_yaw - asked[:, :2]).norm(dim=-1),
            "ang_vel_error": (env.robot.yaw_rate - asked[:, 2]).abs(),
        }


@reward()
def track_linear_velocity(env: View, *, std: Positive = 0.5, command: str = "velocity") -> Tensor:
    """exp(-|v_xy - command|^2 / std^2), v in the base's yaw frame."""
    error = (env.robot.lin_vel_yaw - env.command(command)[:, :2]).square().sum(-1)
    return torch.exp(-error / std**2)


@reward()
def track_angular_velocity(env: View, *, std: Positive = 0.5, command: str = "velocity") -> Tensor:
    """exp(-(w_z - command)^2 / std^2), w about the vertical."""
    error = (env.robot.yaw_rate - env.command(command)[:, 2]).square()
    return torch.exp(-error / std**2)


@reward()
def stand_still(env: View, *, command: str = "velocity") -> Tensor:
    """sum_j |q_j - q0_j| where standing is asked for."""
    away = (env.robot.joint_pos - env.robot.default_joint_pos).abs().sum(-1)
    return away * (1.0 - env.commands[command].moving(env))


@reward(needs=("foot_contact", "foot_air_time"))
def feet_air_time(env: View, *, minimum: NonNegative = 0.2, maximum: Positive = 0.5, command: str = "velocity") -> Tensor:
    """sum_f (clamp(t_air,f, max) - min) at the moment a foot comes down, while walking is asked for [s]."""
    landed = env.robot.foot_contact * (env.buffers["foot_air_time"] > 0)
    earned = (torch.minimum(env.buffers["foot_air_time"], torch.as_tensor(maximum)) - minimum) * landed
    return earned.sum(-1) * env.commands[command].moving(env)


@reward(needs=("foot_frames",))
def foot_clearance(env: View, *, target: Positive = 0.08, command: str = "velocity") -> Tensor:
    """sum_f |h_f - target| |v_xy,f|, with h the height of a foot's underside [m], while walking is asked for."""
    position = env.robot.foot_pos_w
    height = position[..., 2] - env.robot.foot_radius - env.terrain.height(position[..., :2])
    speed = env.robot.foot_lin_vel_w[..., :2].norm(dim=-1)
    return ((height - target).abs() * speed).sum(-1) * env.commands[command].moving(env)


@reward(needs=("foot_contact",))
def gait_phase(env: View, *, stance: Fraction = 0.55, command: str = "velocity") -> Tensor:
    """mean_f [contact_f == stance_f], where diagonal feet share a clock; 1 while standing is asked for.

    A foot is in stance for the share `stance` of each cycle.  Standing asks nothing of the feet: a robot told to stop at full
    speed has to step to keep its balance.  Feet in the order front left, front right, rear left, rear right.
    """
    phase = env.commands[command].phase(env)[:, None]
    foot = torch.arange(4, device=phase.device)
    offset = math.pi * ((foot == 1) | (foot == 2))
    cycle = torch.remainder((phase + offset) / (2.0 * math.pi), 1.0)
    kept = ((cycle < stance) == (env.robot.foot_contact > 0)).float().mean(-1)
    return torch.where(env.commands[command].moving(env) > 0, kept, 1.0)


def _walks(command: Tensor) -> Tensor:
    """Whether commands (N, 3) ask for more than standing, bool (N,)."""
    return (command[:, :2].norm(dim=-1) > _STANDING) | (command[:, 2].abs() > _STANDING)
