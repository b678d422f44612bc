"""What a policy sees of a pose command."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from embodied_rl.mdp.mirrors import Reflection
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.term import observation


def _mirrored_command(robot: Part, **_: Any) -> Reflection:
    """Reflect (height, roll, pitch)."""
    return (0, 1, 2), (1.0, -1.0, 1.0)


@observation(mirror=_mirrored_command)
def pose_command(env: Moment, *, command: str = "pose") -> Tensor:
    """Pose that is asked for: height of the base above the ground [m], roll and pitch [rad], (N, 3)."""
    return env.command(command)
