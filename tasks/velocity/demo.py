"""What policies that follow a velocity command are shown with: vx, vy [m/s] in the yaw frame and the yaw rate wz [rad/s]."""

from __future__ import annotations

from collections.abc import Sequence

from embodied_rl.mdp.demo import Canvas
from embodied_rl.mdp.part import PartState
from embodied_rl.mdp.score import Environment

COLUMNS = ("vx  m/s", "vy  m/s", "wz  rad/s")
KEYS = {"up": (0.1, 0.0, 0.0), "down": (-0.1, 0.0, 0.0), "left": (0.0, 0.0, 0.2), "right": (0.0, 0.0, -0.2)}
KEYS |= {"home": (0.0, 0.1, 0.0), "end": (0.0, -0.1, 0.0)}

#: Forward, along a curve, to the left, backward, on the spot to the right, standing: shares of the page's ranges.
_SHARES = ((0.8, 0.0, 0.0), (0.6, 0.0, 0.7), (0.0, 0.8, 0.0), (-0.5, 0.0, 0.0), (0.0, 0.0, -0.7), (0.0, 0.0, 0.0))
#: An arrow ends where the robot would be after this time, an arc at the heading it would have [s].
_AHEAD_S = 0.6


def script(env: Environment) -> list[list[float]]:
    """Go once through everything that a command can ask for, scaled to the page's ranges."""
    command = next(iter(env.terms.commands.values()), None)
    if command is None:
        return []
    bounds = [bound.tolist() for bound in command.ranges]
    return [
        [share * high if share > 0 else -share * low for share, (low, high) in zip(shares, bounds, strict=True)]
        for shares in _SHARES
    ]


def measured(env: Environment) -> list[float]:
    """Measure the first robot's velocity in its yaw frame and its yaw rate."""
    robot = PartState(env.robot, env.physics)
    return [*robot.lin_vel_yaw[0].tolist(), float(robot.yaw_rate[0])]


def draw(canvas: Canvas, values: Sequence[float]) -> None:
    """Draw an arrow along (vx, vy), and from the heading on an arc over the angle that wz turns."""
    vx, vy, wz = (float(value) * _AHEAD_S for value in values)
    canvas.arrow(vx, vy)
    canvas.arc(wz)
