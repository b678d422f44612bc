"""Robots with a number that is not finite: found on the device in every step, named on the host once an iteration.

Legend: N envs, K numbers of one look.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.mdp.state import where
from embodied_rl.vector_env import LARGEST

if TYPE_CHECKING:
    from embodied_rl.mdp.bind import Terms
    from embodied_rl.mdp.group import ObservationGroup
    from embodied_rl.mdp.totals import Told

#: Robots that are named between two drains.
_NAMED = 8


class Quarantine:
    """Notes which robots had a number that is not finite or beyond `LARGEST`, and of each which one was the first.

    Args:
        age: control steps that each robot has lived, int64 (N,), for the notes; read by address.
        names: of the numbers that are looked at, K of each look.
    """

    def __init__(self, age: Tensor, names: dict[str, list[str]]) -> None:
        self._age, self._names = age, [name for one in names.values() for name in one]
        # by look: where its names begin, and K, ..., 1, so that the greatest rank is the first odd number's
        self._looks: dict[str, tuple[int, Tensor]] = {}
        begin = 0
        for look, one in names.items():
            # float32, as what is looked at: a processor compares whole vectors of one type
            self._looks[look] = begin, torch.arange(len(one), 0, -1, dtype=torch.float32, device=age.device)
            begin += len(one)
        self._place = torch.full_like(age, -1)
        self._step = torch.zeros_like(age)
        self._value = torch.zeros_like(age, dtype=torch.float32)

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """What is noted of each robot, (N,)."""
        return self._place, self._step, self._value

    def look(self, what: str, values: Tensor, rows: Tensor | None = None) -> Tensor:
        """Find the rows, bool (N,), in which a number is not finite or beyond `LARGEST`.

        Args:
            what: is looked at.
            values: (N, K).
            rows: those that matter, bool (N,); by default all.
        """
        begin, ranks = self._looks[what]
        if not len(ranks):
            return torch.zeros_like(self._age, dtype=torch.bool)
        odd = _odd(values)
        if rows is not None:
            odd = odd & rows[:, None]
        rank = torch.where(odd, ranks, 0.0).amax(-1).long()
        found, column = rank > 0, len(ranks) - rank.clamp(min=1)
        new = found & (self._place < 0)
        self._place.copy_(torch.where(new, begin + column, self._place))
        self._step.copy_(torch.where(new, self._age, self._step))
        self._value.copy_(torch.where(new, values.gather(-1, column[:, None])[:, 0], self._value))
        return found

    def take(self, what: str, values: Tensor, into: Tensor) -> Tensor:
        """Take values (N, K), zeros in the rows in which `look` finds something; these rows, bool (N,)."""
        odd = self.look(what, values)
        into.copy_(where(odd, torch.zeros_like(values), values))
        return odd

    def refuse(self, what: str, values: Tensor, env_ids: Tensor) -> None:
        """Refuse values (N, K) in which `look` would find something; for what is done between steps, on the host.

        Raises:
            UserError: it names the first robot of which it is so, by its global id, int64 (N,).
        """
        odd = _odd(values)
        if odd.any():
            row, column = (int(index[0]) for index in odd.nonzero(as_tuple=True))
            name = self._names[self._looks[what][0] + column]
            raise UserError(f"{name} is {_shown(float(values[row, column]))}, for robot {int(env_ids[row])}")

    def drain(self) -> list[dict[str, Any]]:
        """Say of some robots since the last call what was the first odd number, the earliest first; waits for the device.

        Each has `row`, `step` of the robot's life, `place` (a name) and `error`, a sentence.
        """
        rows = (self._place >= 0).nonzero()[:, 0]
        if not len(rows):
            return []
        found = sorted(zip(*(one[rows].tolist() for one in (self._step, self._place, self._value)), rows.tolist(), strict=True))
        self._place.fill_(-1)
        return [
            {"row": row, "step": step, "place": self._names[place], "error": f"{self._names[place]} is {_shown(value)}"}
            for step, place, value, row in found[:_NAMED]
        ]


def names_of(terms: Terms, groups: list[ObservationGroup], told: Told, drawn: dict[str, int]) -> dict[str, list[str]]:
    """Name all numbers that the policy and a page's terms give, by what `Env` looks at.

    Args:
        terms: the page's.
        groups: of observations.
        told: what terms tell of the robots.
        drawn: how many numbers the events of each mode draw.
    """
    names = {"actions": _numbered("the policy's action", terms.actions.size)}
    names["rewards"] = [*(f"rewards.{term.name}" for term in terms.rewards), "the sum of rewards"]
    names["told"] = [f"the command's error {name}" for name in told.errors]
    names["told"] += [f"{part} of the share {share[0]}" for share in told.shares for part in ("the number", "the whole")]
    for name, command in terms.commands.items():
        names[f"commands.{name}"] = _numbered(f"commands.{name}", command.command.shape[1])
    for group in groups:
        numbers = [_numbered(term.path, term.size * term.history) for term in group.terms]
        names[f"observations.{group.name}"] = [name for one in numbers for name in one]
    for mode, events in terms.events.items():
        names |= {f"events.{term.name}": [f"what events.{term.name} draws"] * drawn[mode] for term in events}
    return names


def _odd(values: Tensor) -> Tensor:
    """Find the numbers that are not finite or beyond `LARGEST`."""
    return ~(values.abs() <= LARGEST)  # a NaN fails every comparison


def _numbered(name: str, size: int) -> list[str]:
    """Name each of some numbers; a single one has the name itself."""
    return [name] if size == 1 else [f"{name}[{index}]" for index in range(size)]


def _shown(value: float) -> str:
    return f"{value:.3g}" + (f", beyond {LARGEST:.0e}" if math.isfinite(value) else "")
