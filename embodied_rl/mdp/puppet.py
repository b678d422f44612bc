"""What a page is tried with before it is trained: the protocol of a task family's puppets, robots that are led by the hand.

Legend of the shapes: N envs, F feet, P points of a foot, its site the first of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.family import load_family
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.score import Environment


class Motion(NamedTuple):
    """What puppets do at one moment, in the frame of their heading, whose origin is the base."""

    velocity: Tensor
    """Of the base: vx, vy [m/s], and its yaw rate [rad/s], (N, 3)."""
    feet: Tensor
    """Where the points of the feet are [m], (N, F, P, 3)."""
    feet_velocity: Tensor
    """How they move over the ground [m/s], (N, F, P, 3)."""


#: From the environment, the moment that will be judged, and where the points of the feet stand in the default pose, all on the
#: ground, (F, P, 3), to what the puppets do then.
Script = Callable[[Environment, Moment, Tensor], Motion]


class Puppet(NamedTuple):
    """One that is tried."""

    script: Script
    word: str
    """For people, as in "... earns 80 % of what a walker would": `marching in place`."""


class Audit(Protocol):
    """What pages of a task family are tried with: the module audit.py of its folder."""

    PUPPETS: dict[str, Puppet]
    """By name; the last one does what the family asks for, and the others are measured by it."""

    def asked(self, page: Page) -> dict[str, list[str]]:
        """Change a page to how its puppets are asked, by name, each a list of `key.path=value`; the first is the main one.

        Raises:
            UserError: it is no page of this family.
        """
        ...

    def counts(self, env: Environment, moment: Moment) -> Tensor:
        """Say which robots are asked for something that standing is not, bool (N,); no others count."""
        ...


def audit_of(page: Page) -> Audit | None:
    """Import the audit of a page's family; None where the page has no task, or its family no audit.

    Raises:
        UserError: the family is broken; one line.
    """
    return load_family(page.task).part("audit", Audit) if page.task else None
