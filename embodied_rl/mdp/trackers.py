"""What several terms want to know of the past: bound once, and only where a term `needs` it by its name.

Legend: N envs, F feet, J joints.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.state import State
from embodied_rl.problems import did_you_mean


class air_time:  # noqa: N801  named as terms need it
    """How long each foot has been in the air, and how long a flight was that ends now."""

    needs: ClassVar = ("foot_contact",)
    time: Tensor
    """Time since the foot left the ground [s], 0 while it touches, (N, F)."""
    flight: Tensor
    """Length of the flight that ended with this step [s], 0 where none did, (N, F)."""

    def __init__(self, robot: Part) -> None:
        feet = len(robot.foot_names)
        self.state = {"time": State((feet,)), "flight": State((feet,))}

    def update(self, env: Moment) -> None:
        """Count on, from this step's contacts."""
        contact = env.robot.foot_contact
        self.flight.copy_(self.time * contact)
        self.time.copy_((self.time + env.step_dt) * (contact == 0))


class previous_joint_vel:  # noqa: N801
    """The joints' velocities when the present actions were chosen."""

    needs: ClassVar = ()
    value: Tensor
    """Joint velocities of the step before [rad/s], (N, J)."""

    def __init__(self, robot: Part) -> None:
        self.state = {"value": State((len(robot.joint_names),), fresh="keep")}

    def settle(self, env: Moment) -> None:
        """Note the velocities that the next actions meet."""
        self.value.copy_(env.robot.joint_vel)


TRACKERS: dict[str, type] = {one.__name__: one for one in (air_time, previous_joint_vel)}
"""Every tracker, by the name that terms need it by."""


class Trackers(dict[str, Any]):
    """Trackers by name; one that is not there is one that nobody asked for."""

    def __missing__(self, name: str) -> Any:
        """Say how it is asked for."""
        if name not in TRACKERS:
            there = did_you_mean(name, TRACKERS) or f"; there are {', '.join(TRACKERS)}"
            raise UserError(f"a term reads the tracker {name!r}, which there is not{there}")
        raise UserError(f"a term reads the tracker {name!r} without saying so: give its decorator needs=({name!r},)")
