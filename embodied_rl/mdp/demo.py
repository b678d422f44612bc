"""What shows a policy: the protocol of a task family's demo, and what it draws with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from embodied_rl.config import Page
from embodied_rl.family import load_family
from embodied_rl.mdp.score import Environment


class Canvas(Protocol):
    """What a demo draws on: the air above the filmed robot, in one colour, in its yaw frame."""

    def arrow(self, forward: float, left: float) -> None:
        """Draw an arrow from above the base to a point that lies so far from it [m]."""
        ...

    def arc(self, angle: float) -> None:
        """Draw an arc from the robot's heading on, to the left where positive [rad]."""
        ...


class Demo(Protocol):
    """Shows what policies of a task family do: the module demo.py of its folder."""

    KEYS: dict[str, tuple[float, ...]]
    """What the keys `up`, `down`, `left`, `right`, `home` and `end` add to the command."""
    COLUMNS: tuple[str, ...]
    """Names of the command's numbers, with their units."""

    def script(self, env: Environment) -> list[list[float]]:
        """List the commands that are held one after the other; none where the page has nothing to command."""
        ...

    def measured(self, env: Environment) -> list[float]:
        """Measure what the first robot does, in the order and units of the command."""
        ...

    def draw(self, canvas: Canvas, values: Sequence[float]) -> None:
        """Draw a command, or what was measured."""
        ...


def demo_of(page: Page) -> Demo | None:
    """Import the demo of a page's family; None where the page has no task, or its family no demo.

    Raises:
        UserError: the family is broken; one line.
    """
    return load_family(page.task).part("demo", Demo) if page.task else None
