"""The types that a term's parameters and the page's fields may have.

Imports no torch: the config reads the annotations of terms from their source and evaluates them among these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from embodied_rl.problems import did_you_mean, quoted, shown
from embodied_rl.sections import ByJoint

__all__ = [
    "BodyGroup",
    "Fraction",
    "Ge",
    "Gt",
    "IntRange",
    "JointGroup",
    "Le",
    "Lt",
    "NonNegative",
    "NonNegativeRange",
    "PerGroup",
    "Positive",
    "Range",
]


def refuse(message: str) -> PydanticCustomError:
    """Make the error of a check of our own: `message` is shown as it stands."""
    return PydanticCustomError("refused", "{message}", {"message": message})


class Check:
    """A check that pydantic runs on the value after its type."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self.check, handler(source))

    def check(self, value: Any, info: ValidationInfo) -> Any:
        """Give the value back, or raise `refuse(...)`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ordered(Check):
    """The two numbers of a range: low <= high."""

    def check(self, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        """Refuses low > high."""
        if value[0] > value[1]:
            raise refuse(f"{shown(value)} is not allowed: low must be at most high")
        return value


@dataclass(frozen=True)
class RobotName(Check):
    """The string is a name that robot.yaml defines in `section`.

    `bodies` are its body groups, `feet` among them; `groups` its joint groups and joints.
    """

    section: str

    def check(self, value: str, info: ValidationInfo) -> str:
        """Refuses a name that the robot of the page does not have; without a robot every name passes."""
        names = (info.context or {}).get(self.section)
        if names is not None and value not in names:
            near = did_you_mean(value, names)
            raise refuse(f"{shown(value)} is not among the robot's {self.section}{near} (it has {quoted(names)})")
        return value


Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Range = Annotated[tuple[float, float], Ordered()]
NaturalNumber = Annotated[int, Ge(0)]
NonNegativeRange = Annotated[tuple[NonNegative, NonNegative], Ordered()]
IntRange = Annotated[tuple[NaturalNumber, NaturalNumber], Ordered()]
BodyGroup = Annotated[str, RobotName("bodies")]
JointGroup = Annotated[str, RobotName("groups")]

if TYPE_CHECKING:
    _T = TypeVar("_T")
    #: A term that says so gets a tensor: one number, or one for each joint.
    PerGroup = Annotated[_T, ...]
else:

    class PerGroup:
        """`PerGroup[Positive]`: one number for all joints, or a mapping from joint groups to numbers."""

        def __class_getitem__(cls, number: Any) -> Any:
            return Annotated[number | dict[str, number], ByJoint()]
