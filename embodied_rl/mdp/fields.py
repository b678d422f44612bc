"""The model's numbers that differ from robot to robot: what terms read of them, and what events have drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.mdp.draft import Draft
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.state import where
from embodied_rl.physics.protocol import Physics
from embodied_rl.problems import did_you_mean

#: What the events of one mode draw: by model field the columns, int64 (C,), and the model's own numbers there, (C,).
Drawn = dict[str, tuple[Tensor, Tensor]]


def drawn_by(events: dict[str, list[tuple[str, Any]]], robot: Part, page: str) -> dict[str, Drawn]:
    """Collect what events draw, by mode.

    Args:
        events: name and event of each entry, by mode.
        robot: the robot, whose model has the numbers.
        page: its name, for the error.

    Raises:
        UserError: a number of the model is drawn at two moments, so that nobody's would be what the later begins from.
    """
    found: dict[str, dict[str, set[int]]] = {mode: {} for mode in events}
    owners: dict[tuple[str, int], tuple[str, str]] = {}
    for mode, terms in events.items():
        for name, event in terms:
            for field in event.fields:
                columns = _columns(event, field, robot)
                found[mode].setdefault(field, set()).update(columns)
                for column in columns:
                    first, when = owners.setdefault((field, column), (name, mode))
                    if first != name and (when != mode or mode == "interval"):
                        raise UserError(
                            f"{page}: events.{first} ({when}) and events.{name} ({mode}) both draw numbers of {field}; give both "
                            "the same `when`, other than interval, or take one off"
                        )
    device = robot.default_joint_pos.device
    tensors = {
        mode: {field: torch.tensor(sorted(columns), dtype=torch.int64, device=device) for field, columns in fields.items()}
        for mode, fields in found.items()
    }
    return {
        mode: {field: (columns, model_numbers(robot, field)[columns]) for field, columns in fields.items()}
        for mode, fields in tensors.items()
    }


def _columns(event: Any, field: str, robot: Part) -> Sequence[int]:
    """Columns of a model field that an event draws: all, where it does not say which."""
    places = getattr(event, "places", None)
    return places[field] if places else range(model_field(robot.model, field).size)


def model_numbers(robot: Part, name: str) -> Tensor:
    """Return a field of the robot's model, or `opt.NAME` of its options, flat, float32 on the robot's device."""
    return torch.tensor(model_field(robot.model, name).reshape(-1), dtype=torch.float32, device=robot.default_joint_pos.device)


def model_field(model: mujoco.MjModel, name: str) -> np.ndarray:
    """Return a field of a model, or `opt.NAME` of its options, in double precision."""
    owner, _, option = name.rpartition(".")
    return np.array(getattr(model.opt if owner else model, option), dtype=np.float64)


def model_field_names() -> list[str]:
    """List the fields that a model has, and its options as `opt.NAME`."""
    owners = (("", mujoco.MjModel), ("opt.", mujoco.MjOption))
    return [before + name for before, owner in owners for name in dir(owner) if not name.startswith("_")]


class Values(dict[str, Tensor]):
    """Fields by name; one that is not there is one that nobody asked for."""

    def __missing__(self, name: str) -> Tensor:
        """Say how it is asked for."""
        if name not in (known := model_field_names()):
            raise UserError(f"a term reads the model field {name!r}, which MuJoCo's model has not{did_you_mean(name, known)}")
        raise UserError(f"a term reads the model field {name!r} without saying so: give its decorator needs=('model:{name}',)")


class ModelFields:
    """Model fields with a value per robot, here and in the engine, which is told of the drawn columns alone.

    Args:
        physics: the engine.
        names: the fields that are read or drawn.
        drawn: what is drawn, by mode of event.
    """

    def __init__(self, physics: Physics, names: tuple[str, ...], drawn: dict[str, Drawn]) -> None:
        self._physics, self._drawn = physics, drawn
        expanded = {name: physics.expand(name) for name in names}
        shapes = {name: model_field(physics.model, name).shape for name in names}
        self.values = Values((name, _as_in_c(value, shapes[name])) for name, value in expanded.items())
        """By MuJoCo's names and in the shapes of MjModel, each (N, ...), float32; they keep their addresses."""
        # engines keep fewer parameters of an actuator than C: where C's columns are with this one
        self._widths = {name: (shapes[name][-1], value.shape[-1]) for name, value in expanded.items()}
        self._everyone = torch.ones_like(physics.unstable)
        often = [one for mode in ("reset", "interval") for one in drawn[mode].items()]
        self._often = {name: torch.cat([columns for other, (columns, _) in often if other == name]) for name, _ in often}
        for mode in drawn.values():  # in the single precision that draws have
            for name, (columns, numbers) in mode.items():
                self._tell(self._everyone, name, columns, numbers.expand(physics.num_envs, -1))

    def draft(self, mode: str, qpos: Tensor, qvel: Tensor) -> Draft:
        """Begin a draft whose fields are as they are, but where the mode's events draw: there they are the model's own."""
        draft = Draft(qpos, qvel, self.values)
        for name, (columns, numbers) in self._drawn[mode].items():
            draft.set_columns(name, columns, numbers.expand(len(qpos), -1))
        return draft

    def num_drawn(self, mode: str) -> int:
        """Count the numbers of a robot that `drawn_in` gives."""
        model = self._physics.model
        return model.nq + model.nv + sum(len(columns) for columns, _ in self._drawn[mode].values())

    def drawn_in(self, mode: str, draft: Draft) -> Tensor:
        """Lay side by side what a mode's events may have set in a draft: qpos, qvel, the fields' columns; (N, K)."""
        drawn = [draft.columns(name, columns) for name, (columns, _) in self._drawn[mode].items()]
        return torch.cat((draft.qpos, draft.qvel, *drawn), dim=-1)

    def take(self, done: Tensor, lost: Tensor, fresh: Draft, going: Draft) -> None:
        """Take what is drawn while episodes go on: from `fresh` in the rows that are done (N,), from `going` in the others.

        In the rows that are lost (N,) nothing changes.
        """
        for name in self._often:
            self.values[name].copy_(where(lost, self.values[name], where(done, fresh.model[name], going.model[name])))

    def write(self, mask: Tensor) -> None:
        """Tell the engine what `take` took, in the rows of the mask (N,)."""
        for name, columns in self._often.items():
            self._tell(mask, name, columns, self.values[name].flatten(1)[:, columns])

    def write_all(self, mode: str, draft: Draft) -> None:
        """Take a mode's draft for all rows and tell the engine, which derives from it what it needs to; not for a step."""
        for name, (columns, _) in self._drawn[mode].items():
            self.values[name].copy_(draft.model[name])
            self._tell(self._everyone, name, columns, draft.columns(name, columns))
        if not set(self._drawn[mode]).isdisjoint(mujoco.MjModel._setconst_inputs):
            self._physics.set_const(self._everyone)

    def _tell(self, mask: Tensor, name: str, columns: Tensor, values: Tensor) -> None:
        wide, narrow = self._widths[name]
        if wide != narrow:
            columns = torch.div(columns, wide, rounding_mode="floor") * narrow + columns % wide
        self._physics.write_model(mask, name, columns, values)


def _as_in_c(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give an engine's values (N, ...) the shape that C has; what the engine does not keep is zero."""
    if value.shape[1:] == shape:
        return value
    return torch.nn.functional.pad(value.view(len(value), *shape[:-1], -1), (0, shape[-1] - value.shape[-1]))
