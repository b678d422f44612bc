"""One event for all numbers of the model that a robot may differ in: a table of quantities, and the row that a page writes.

    feet_friction: {term: randomize, quantity: friction, of: feet, operation: set, range: [0.5, 1.25], when: reset}
    payload: {term: randomize, quantity: mass, of: base, operation: add, range: [-1.0, 2.0]}

Only the columns of the model that are drawn are written; all others keep the engine's own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl.config.types import Positive, Range
from embodied_rl.errors import UserError
from embodied_rl.mdp.draft import Draft
from embodied_rl.mdp.fields import model_field, model_numbers
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.term import event
from embodied_rl.robot import RobotError

#: A normal distribution keeps within so many of its standard deviations, where the range ends.
_DEVIATIONS = 2.0


@dataclass(frozen=True)
class Column:
    """One number of the model."""

    field: str
    """Of MjModel, or `opt.NAME` of its options."""
    index: int
    """Into the field, flattened."""
    sign: float | None = 1.0
    """What it is of the quantity's number; None: it grows in proportion to it."""


@dataclass(frozen=True)
class Element:
    """What one drawn number changes: a geom, a body, a joint, an axis of a body's centre of mass, the world."""

    name: str
    columns: tuple[Column, ...]
    """The first holds the number."""


@dataclass(frozen=True)
class Quantity:
    """A number that a robot's parts have, and where it stands in the model."""

    elements: Callable[[Part, str], list[Element]]
    """Those of a group."""
    axes: int = 1
    """Numbers of each element that are drawn apart."""
    derived: bool = False
    """Whether MuJoCo derives other numbers from it (mj_setConst), too slow for a step."""
    positive: bool = True
    """Whether it may not be negative."""
    operations: tuple[str, ...] = ("add", "scale", "set")


def _geoms(robot: Part, group: str) -> list[Element]:
    model = robot.model
    own = [geom for geom in range(model.ngeom) if robot.owns(int(model.geom_bodyid[geom]))]
    if group == "feet":
        chosen = [model.geom(name).id for foot in robot.spec.feet for name in foot.geoms]
    else:
        bodies = own_bodies(robot, group)
        chosen = [geom for geom in own if int(model.geom_bodyid[geom]) in bodies]
    return [Element(model.geom(geom).name or f"geom {geom}", (Column("geom_friction", 3 * geom),)) for geom in chosen]


def own_bodies(robot: Part, group: str) -> list[int]:
    """List the ids of a group's bodies; `all` are the robot's.

    Raises:
        UserError: robot.yaml has no such group.
    """
    model = robot.model
    if group == "all":
        return [body for body in range(1, model.nbody) if robot.owns(body)]
    return [model.body(name).id for name in _named(robot, group, robot.spec.bodies, "bodies")]


def _named(robot: Part, group: str, groups: dict[str, tuple[str, ...]], key: str) -> tuple[str, ...]:
    if group in groups:
        return groups[group]
    allowed = ", ".join(["all", *groups])
    raise UserError(f"of: {group!r} is no group of {key} in {robot.spec.folder / 'robot.yaml'} (there are {allowed})")


def _masses(robot: Part, group: str) -> list[Element]:
    inertia = lambda body: tuple(Column("body_inertia", 3 * body + axis, None) for axis in range(3))  # noqa: E731
    return [
        Element(robot.model.body(body).name, (Column("body_mass", body), *inertia(body))) for body in own_bodies(robot, group)
    ]


def _centres(robot: Part, group: str) -> list[Element]:
    return [
        Element(f"{robot.model.body(body).name} {'xyz'[axis]}", (Column("body_ipos", 3 * body + axis),))
        for body in own_bodies(robot, group)
        for axis in range(3)
    ]


def _of_joints(columns: Callable[[Part, int], tuple[Column, ...]]) -> Callable[[Part, str], list[Element]]:
    def elements(robot: Part, group: str) -> list[Element]:
        return [Element(robot.joint_names[joint], columns(robot, joint)) for joint in robot.joint_indices(group)]

    return elements


def _dof(name: str) -> Callable[[Part, int], tuple[Column, ...]]:
    return lambda robot, joint: (Column(name, robot.qvel_address[joint]),)


# torque = gain[0] target + bias[1] q + bias[2] qd: of a position kp, -kp, -kd, of a velocity kd, 0, -kd


def _stiffness(robot: Part, joint: int) -> tuple[Column, ...]:
    gain, bias = mujoco.mjNGAIN * joint, mujoco.mjNBIAS * joint
    if not robot.model.actuator_biasprm[joint, 1]:
        raise UserError(f"of: {robot.joint_names[joint]!r} has no stiffness: nothing controls its position")
    return Column("actuator_gainprm", gain), Column("actuator_biasprm", bias + 1, -1.0)


def _damping(robot: Part, joint: int) -> tuple[Column, ...]:
    gain, bias = mujoco.mjNGAIN * joint, mujoco.mjNBIAS * joint
    held = robot.model.actuator_biasprm[joint, 1] != 0.0
    moved = (Column("actuator_gainprm", gain),)
    return (Column("actuator_biasprm", bias + 2, -1.0),) + (() if held else moved)


def _gravity(robot: Part, group: str) -> list[Element]:
    if group != "all":
        raise UserError(f"of: {group!r}: gravity is the world's; leave `of` out")
    down = Column("opt.gravity", 2, -1.0)
    if robot.model.opt.gravity[0] or robot.model.opt.gravity[1] or robot.model.opt.gravity[2] >= 0.0:
        raise UserError("gravity: that of the robot's model does not point down; leave the model's gravity at its default")
    return [Element("the world", (down,))]


#: Every quantity by its name on the page, in SI units.
QUANTITIES: dict[str, Quantity] = {
    "friction": Quantity(_geoms),
    "mass": Quantity(_masses, derived=True),
    "com": Quantity(_centres, axes=3, derived=True, positive=False, operations=("add",)),
    "armature": Quantity(_of_joints(_dof("dof_armature")), derived=True),
    "stiffness": Quantity(_of_joints(_stiffness)),
    "damping": Quantity(_of_joints(_damping)),
    "friction_loss": Quantity(_of_joints(_dof("dof_frictionloss"))),
    "gravity": Quantity(_gravity),
}


@event()
class randomize:  # noqa: N801  named as its entries' term
    """A quantity of the group `of`, drawn anew from `range`: the model's own number + it, x it, or it alone.

    `quantity`: sliding friction of geoms; mass [kg] of bodies, inertia growing with it; com, their centres of mass [m], each axis
    apart; armature [kg m^2], stiffness [N m/rad], damping [N m s/rad] and friction_loss [N m] of joints and their motors; gravity
    [m/s^2], downwards.  `of`: a group of robot.yaml, `feet`, or all.  `per`: one number for the whole group (robot), or one for
    each of it (element).  `distribution`: normal has its mean in the middle of the range, which holds two standard deviations
    either way and cuts off what is beyond.  `when`: at startup, for each episode (reset), every `interval_s` [s] on average
    (interval), or for each iteration of a training.  Entries for the same moment work one upon the other in the page's order.
    """

    needs = ()

    def __init__(
        self,
        robot: Part,
        *,
        quantity: Literal["friction", "mass", "com", "armature", "stiffness", "damping", "friction_loss", "gravity"],
        range: Range,
        operation: Literal["add", "scale", "set"],
        of: str = "all",
        per: Literal["robot", "element"] = "robot",
        distribution: Literal["uniform", "log_uniform", "normal"] = "uniform",
        when: Literal["startup", "reset", "interval", "iteration"] = "startup",
        interval_s: Positive = 10.0,
    ) -> None:
        self.mode, self.interval_s = when, interval_s
        self._range, self._operation, self._per, self._distribution = range, operation, per, distribution
        self._quantity = kind = QUANTITIES[quantity]
        if kind.derived and when in ("reset", "interval"):
            raise UserError(
                f"when: {when}: MuJoCo derives other numbers from {quantity}, too slow for a step; write `when: iteration`, or "
                "`when: startup`"
            )
        if operation not in kind.operations:
            raise UserError(f"operation: {operation}: of {quantity} only {' or '.join(kind.operations)}")
        try:
            elements = kind.elements(robot, of)
        except RobotError as error:  # robot.yaml has no such group of joints
            raise UserError(f"of: {str(error).split(': ', 1)[-1]}") from None
        if not elements:
            raise UserError(f"of: {of!r} holds nothing that has {quantity} in this scene")
        own = _numbers(robot.model, [element.columns[0] for element in elements])
        self._check(quantity, elements, own)
        self._arrange(robot, elements)

    def _check(self, quantity: str, elements: Sequence[Element], own: np.ndarray) -> None:
        """Refuse a range that leads to numbers that there are not."""
        low, high = (float(end) for end in self._range)
        if self._distribution == "log_uniform" and low <= 0.0:
            raise UserError(f"range: [{low:g}, {high:g}]: a log_uniform distribution is of numbers above 0")
        if quantity == "mass" and (massless := [e.name for e, mass in zip(elements, own, strict=True) if mass <= 0.0]):
            raise UserError(f"of: {massless[0]!r} has no mass of its own; name a group without it")
        if not self._quantity.positive:
            return
        least = {"add": own + low, "scale": own * low, "set": np.full_like(own, low)}[self._operation]
        worst = int(least.argmin())
        if least[worst] < 0.0 or (quantity == "mass" and least[worst] <= 0.0):
            raise UserError(
                f"range: [{low:g}, {high:g}]: {quantity} of {elements[worst].name!r} is {own[worst]:g}, and would become "
                f"{least[worst]:g}; {'more than' if quantity == 'mass' else 'at least'} 0"
            )

    def _arrange(self, robot: Part, elements: Sequence[Element]) -> None:
        """Columns by field, each with its element; what is constant lies on the device."""
        device = robot.default_joint_pos.device
        axes = self._quantity.axes
        self._count = axes if self._per == "robot" else len(elements)
        # which of the drawn numbers each element gets
        self._drawn = torch.arange(len(elements), device=device) % axes if self._per == "robot" else None
        self._number_sign = torch.tensor([float(element.columns[0].sign or 1.0) for element in elements], device=device)
        fields: dict[str, list[tuple[int, Column]]] = {}
        for position, element in enumerate(elements):
            for column in element.columns:
                fields.setdefault(column.field, []).append((position, column))
        self.fields = tuple(fields)
        whole = lambda values: torch.tensor(values, dtype=torch.int64, device=device)  # noqa: E731
        self.places = {name: [column.index for _, column in one] for name, one in fields.items()}
        """The columns that are drawn, by field."""
        self.columns = {name: whole(places) for name, places in self.places.items()}
        self._element = {name: whole([position for position, _ in one]) for name, one in fields.items()}
        # None: in proportion, which holds for all columns of a field or for none
        self._sign = {
            name: None if one[0][1].sign is None else torch.tensor([column.sign for _, column in one], device=device)
            for name, one in fields.items()
        }
        self._source = elements[0].columns[0].field
        places = [column for _, column in fields[self._source]]
        self._first = whole([places.index(element.columns[0]) for element in elements])
        self.own = {name: model_numbers(robot, name)[columns] for name, columns in self.columns.items()}
        """The model's own numbers in those columns, float32 (C,)."""

    def __call__(self, env: Moment, draft: Draft) -> Tensor | None:
        """Draw, and put the numbers into the draft; an interval's returns the rows that it changed, bool (N,)."""
        hit = env.draw(1)[:, 0] < env.step_dt / self.interval_s if self.mode == "interval" else None
        drawn = self._draw(env)
        if self._drawn is not None:
            drawn = drawn[:, self._drawn]
        # an interval's begins from the model's own numbers each time, in rows that have drawn before
        base = (lambda name: self.own[name]) if hit is not None else (lambda name: draft.columns(name, self.columns[name]))
        before = base(self._source)[..., self._first] * self._number_sign
        number = {"add": before + drawn, "scale": before * drawn, "set": drawn + torch.zeros_like(before)}[self._operation]
        for name, columns in self.columns.items():
            element, sign = self._element[name], self._sign[name]
            value = number[:, element] * sign if sign is not None else base(name) * (number / before)[:, element]
            draft.set_columns(
                name, columns, value if hit is None else torch.where(hit[:, None], value, draft.columns(name, columns))
            )
        return hit

    def _draw(self, env: Moment) -> Tensor:
        """Numbers from the range, (N, count)."""
        low, high = self._range[0], self._range[1]
        if self._distribution == "uniform":
            return env.draw.between(low, high, self._count)
        share = env.draw(self._count)
        if self._distribution == "log_uniform":
            low, high = torch.log(torch.as_tensor(low)), torch.log(torch.as_tensor(high))
            return torch.exp(low + (high - low) * share)
        deviations = (math.sqrt(2.0) * torch.erfinv(2.0 * share - 1.0)).clamp(-_DEVIATIONS, _DEVIATIONS)
        return 0.5 * (low + high) + (high - low) / (2.0 * _DEVIATIONS) * deviations


def _numbers(model: mujoco.MjModel, columns: Sequence[Column]) -> np.ndarray:
    return np.array([(column.sign or 1.0) * model_field(model, column.field).reshape(-1)[column.index] for column in columns])
