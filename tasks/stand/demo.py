"""What policies that hold a commanded pose are shown with: the base's height [m], its roll and pitch [rad]."""

from __future__ import annotations

import math
from collections.abc import Sequence

from embodied_rl.mdp.demo import Canvas
from embodied_rl.mdp.part import PartState
from embodied_rl.mdp.score import Environment

from .command import height_above

COLUMNS = ("height  m", "roll  rad", "pitch  rad")
KEYS = {"up": (0.01, 0.0, 0.0), "down": (-0.01, 0.0, 0.0), "left": (0.0, -0.05, 0.0), "right": (0.0, 0.05, 0.0)}
KEYS |= {"home": (0.0, 0.0, 0.05), "end": (0.0, 0.0, -0.05)}

#: Crouch, rise, lean left, lean right, nose up, nose down, crouched and leaning forward to the right, level: the height as its
#: share of the page's range, the angles as shares of their bounds.
_SHARES = (
    (0.0, 0.0, 0.0),
    (1.0, 0.0, 0.0),
    (0.5, -1.0, 0.0),
    (0.5, 1.0, 0.0),
    (0.5, 0.0, -1.0),
    (0.5, 0.0, 1.0),
    (0.2, 0.7, 0.7),
    (0.8, 0.0, 0.0),
)
#: An arrow ends where the tip of a mast of this length on the base would be, seen from above [m].
_MAST = 1.5


def script(env: Environment) -> list[list[float]]:
    """Go once through everything that a command can ask for, scaled to the page's ranges."""
    command = next(iter(env.terms.commands.values()), None)
    if command is None:
        return []
    (low, high), *angles = (bound.tolist() for bound in command.ranges)
    return [
        [low + height * (high - low), *(_within(share, bounds) for share, bounds in zip(shares, angles, strict=True))]
        for height, *shares in _SHARES
    ]


def measured(env: Environment) -> list[float]:
    """Measure the first robot's height above the ground, its roll and its pitch."""
    robot = PartState(env.robot, env.physics)
    x, y, z = robot.projected_gravity_b[0].tolist()
    height = height_above(robot.base_pos_w[:1], env.scene.terrain)
    return [float(height[0]), math.atan2(-y, -z), math.asin(max(-1.0, min(1.0, x)))]


def draw(canvas: Canvas, values: Sequence[float]) -> None:
    """Draw an arrow to where the base leans."""
    _, roll, pitch = values
    canvas.arrow(_MAST * math.sin(pitch) * math.cos(roll), -_MAST * math.sin(roll))


def _within(share: float, bounds: Sequence[float]) -> float:
    """Take a share of the upper bound, or where negative of the lower one."""
    return share * bounds[1] if share > 0 else -share * bounds[0]
