"""The error of a robot's page or model."""

from __future__ import annotations

from collections.abc import Sequence

from embodied_rl.errors import UserError
from embodied_rl.problems import Problem


class RobotError(UserError):
    """Mistakes in a robot's page or model; `str()` is one line each."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[RobotError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)
