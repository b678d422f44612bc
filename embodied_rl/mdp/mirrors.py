"""How values turn when the robot is reflected through its xz plane: an index and a sign for each number.

A term names one of `MIRRORS`, or brings a function `mirror(robot, **params)` that returns indices and signs, given the robot and
the entry's parameters as the page has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.mdp.part import Part

#: mirrored = values[index] * sign.
Reflection = tuple[Sequence[int], Sequence[float]]


def _vector(robot: Part) -> Reflection:
    return (0, 1, 2), (1.0, -1.0, 1.0)


def _pseudovector(robot: Part) -> Reflection:
    return (0, 1, 2), (-1.0, 1.0, -1.0)


def _joints(robot: Part) -> Reflection:
    return robot.spec.joint_mirror()


def _feet(robot: Part) -> Reflection:
    feet = robot.spec.foot_mirror()
    return feet, (1.0,) * len(feet)


#: By name; beside them "scalar", which any size has, and "actions", which the page's action terms know.
MIRRORS: dict[str, Callable[[Part], Reflection]] = {
    "vector": _vector,
    "pseudovector": _pseudovector,
    "joints": _joints,
    "feet": _feet,
}


def reflection(mirror: str | Callable[..., Reflection], robot: Part, params: dict[str, Any], size: int, path: str) -> Reflection:
    """Index and sign of a value of `size` numbers.

    Args:
        mirror: what the term declares.
        robot: the robot.
        params: the entry's parameters, as the page has them.
        size: numbers of the value.
        path: of the entry, for the error.

    Raises:
        RobotError: robot.yaml has no `mirror`.
        UserError: the reflection is of another size, or twice is not the identity.
    """
    if mirror == "scalar":
        return range(size), (1.0,) * size
    index, sign = MIRRORS[mirror](robot) if isinstance(mirror, str) else mirror(robot, **params)
    if not len(index) == len(sign) == size or sorted(index) != list(range(size)):
        raise UserError(f"{path}: its mirror is of {len(index)} numbers, the value has {size}")
    if any(index[index[i]] != i or sign[i] * sign[index[i]] != 1.0 for i in range(size)):
        raise UserError(f"{path}: its mirror applied twice is not the identity")
    return index, sign


def tensors(index: Sequence[int], sign: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Put a reflection on a device: int64 and float32, each (size,)."""
    return torch.tensor(list(index), dtype=torch.int64, device=device), torch.tensor(list(sign), device=device)
