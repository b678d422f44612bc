"""How values turn when the robot is reflected through its xz plane: an index and a sign for each number.

A term names one of `MIRRORS`, or brings a function `mirror(robot, **params)` that returns indices and signs, given the robot and
the entry's parameters as the page has them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.mdp.finder import naming_own
from embodied_rl.mdp.part import Part
from embodied_rl.problems import article

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
    if isinstance(mirror, str):
        index, sign = MIRRORS[mirror](robot)
    else:
        index, sign = _returned(mirror, robot, params, path)
    if not len(index) == len(sign) == size:
        raise UserError(f"{path}: its mirror is of {len(index)} numbers, the value has {size}")
    if sorted(index) != list(range(size)) or any(abs(one) != 1.0 for one in sign):
        raise UserError(
            f"{path}: its mirror is an index, which has each of 0 to {size - 1} once, and a sign, 1 or -1, for each number"
        )
    if any(index[index[i]] != i or sign[i] * sign[index[i]] != 1.0 for i in range(size)):
        raise UserError(f"{path}: its mirror applied twice is not the identity")
    return index, sign


def _returned(mirror: Callable[..., Reflection], robot: Part, params: dict[str, Any], path: str) -> Reflection:
    """Ask a function of a person's for the reflection."""
    with naming_own(path):
        try:
            found = mirror(robot, **params)
        except TypeError as error:
            if error.__traceback__ and error.__traceback__.tb_next:  # from within it
                raise
            raise UserError(f"{path}: its mirror is called as mirror(robot, **params): {error}") from None
    try:
        index, sign = found
        return [operator.index(one) for one in index], [float(one) for one in sign]
    except (TypeError, ValueError):
        raise UserError(
            f"{path}: its mirror returns {article(type(found).__name__)}, no (index, sign) of whole numbers and signs"
        ) from None


def tensors(index: Sequence[int], sign: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Put a reflection on a device: int64 and float32, each (size,)."""
    return torch.tensor(list(index), dtype=torch.int64, device=device), torch.tensor(list(sign), device=device)
