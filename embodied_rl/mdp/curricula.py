"""Curricula: terms `(params, statistics, iteration, *, ...)`, run once an iteration by the trainer, never in an environment."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from embodied_rl.config import Page, override
from embodied_rl.config.learner_numbers import LEARNER_NUMBERS, why_not
from embodied_rl.config.types import Fraction, IntRange
from embodied_rl.config.validate import entry_model
from embodied_rl.errors import UserError
from embodied_rl.mdp.bind import BoundTerm, bind, numbers
from embodied_rl.mdp.finder import Finder, naming_own
from embodied_rl.mdp.term import curriculum
from embodied_rl.problems import did_you_mean
from embodied_rl.robot import load_robot
from embodied_rl.sections import check_section


class _Statistics(dict[str, float]):
    """An iteration's sums by name; one that is not there is said to be."""

    def __missing__(self, name: str) -> float:
        there = did_you_mean(name, self) if self else "; there are none before the first iteration: ask statistics.get(NAME, ...)"
        raise UserError(f"a term reads the statistic {name!r}, which there is not{there}")


Moved = dict[str, dict[str, Tensor]]
"""Numbers that have moved, by the curriculum that moved them last and their dotted path."""


@curriculum()
def linear(
    params: dict[str, Tensor],
    statistics: dict[str, float],
    iteration: int,
    *,
    parameter: str,
    start: tuple[float, ...],
    end: tuple[float, ...],
    iterations: IntRange,
) -> None:
    """parameter = start + (end - start) (iteration - a) / (b - a), held before a and after b, with (a, b) = iterations.

    `parameter` is a number of the page by its dotted path (`rewards.action_rate.weight`, `commands.velocity.lin_vel_x`,
    `ppo.entropy_coef`); `start` and `end` have as many numbers as it.
    """
    first, last = iterations
    progress = min(max((iteration - first) / max(last - first, 1), 0.0), 1.0)
    _go_to(params[parameter], start, end, progress)


@curriculum()
def earned(
    params: dict[str, Tensor],
    statistics: dict[str, float],
    iteration: int,
    *,
    parameter: str,
    start: tuple[float, ...],
    end: tuple[float, ...],
    share: str,
    above: Fraction = 0.8,
    below: Fraction = 0.0,
    step: Fraction = 0.02,
) -> None:
    """parameter goes from start to end as robots earn it: by `step` of the way after an iteration whose `share` is over `above`.

    By as much back where it is under `below`.  `share` is what a command or an event counts, by its name in TensorBoard:
    `Tracking/lin_vel`, how much of the commanded speed robots reach in its direction, or `Success/stairs/row_0`.  An
    iteration without any moves nothing.  `parameter`, `start` and `end` as of `linear`.
    """
    if below > above:
        raise UserError(f"a term has below: {float(below):g}, over above: {float(above):g}; swap them")
    first, last, number = torch.as_tensor(start), torch.as_tensor(end), params[parameter]
    if not statistics:
        _go_to(number, start, end, 0.0)
        return
    whole = statistics[f"share_of/{share}"]
    reached = statistics[f"share/{share}"] / whole if whole else None
    if reached is None or below <= reached <= above:
        return
    span = (last - first).abs().max()
    if span == 0.0:
        return
    way = (last - first) / span  # a weight's own square may be less than a float32 holds
    gone = ((number.flatten() - first) / span * way).sum() / way.square().sum()
    progress = (gone + (step if reached > above else -step)).clamp(0.0, 1.0)
    _go_to(number, start, end, progress)


def _go_to(number: Tensor, start: Sequence[float], end: Sequence[float], progress: Tensor | float) -> None:
    """Set a number of the page between its two ends, which a term's signature has as tuples and which arrive as tensors."""
    number.copy_(torch.lerp(torch.as_tensor(start), torch.as_tensor(end), progress).view(number.shape))


class Curricula:
    """A page's curricula and the numbers that they move, without a robot: what is global of a run, and the same everywhere.

    Environments only take their numbers over (`VectorEnv.begin_iteration`), and the learner its own (`Learner.update`).  Without
    a trainer nothing moves, and the page's own hold.

    Args:
        page: the task.
        followed: of `LEARNER_NUMBERS`, those that its learner follows.

    Raises:
        UserError: a curriculum moves a number that the page does not have, or its learner does not follow; one line.
    """

    def __init__(self, page: Page, followed: Iterable[str] = LEARNER_NUMBERS) -> None:
        self._page, self._followed = page, tuple(followed)
        self.params = self._numbers()
        """Every number of the page that may change, by dotted path, float32 on the CPU."""
        self._find = Finder(page)
        self._terms = bind("curriculum", page.curriculum, self._find, self.params)
        # the curriculum that moved a number last, by the number's path
        self._mover: dict[str, str] = {}
        self._check_parameters()

    @property
    def numbers(self) -> dict[str, Tensor]:
        """Copies of the environments' numbers that have ever moved: what they have to be told."""
        return {path: self.params[path].clone() for path in self._mover if path not in LEARNER_NUMBERS}

    @property
    def learner_numbers(self) -> dict[str, float]:
        """The learner's numbers that have ever moved: what it has to be told."""
        return {path: self.params[path].item() for path in self._mover if path in LEARNER_NUMBERS}

    def advance(self, statistics: dict[str, float], iteration: int) -> None:
        """Set the numbers to what they are in an iteration.

        Args:
            statistics: sums of the rollout before it over the robots of all ranks (`VectorEnv.drain_totals`: `steps`,
                `episodes`, `reward/total`, ...); empty before the first.
            iteration: the number of the iteration that comes.

        Raises:
            UserError: a curriculum sets what cannot be; one line.
        """
        for term in self._terms:
            self._run(term, statistics, iteration)

    def state_dict(self) -> Moved:
        """Give the numbers that have moved, by the curriculum that moved them last."""
        moved: dict[str, dict[str, Tensor]] = {term.name: {} for term in self._terms}
        for path, term in self._mover.items():
            moved[term][path] = self.params[path].clone()
        return moved

    def load_state_dict(self, state: Moved, iteration: int) -> None:
        """Take up what `state_dict` gave before an iteration, of the curricula that the page still has.

        A curriculum that the state does not know begins with the iteration, without statistics.  What nothing moves any more is
        the page's own again.

        Raises:
            ValueError: a number is not the page's.
        """
        for path, number in self._numbers().items():
            self.params[path].copy_(number)
        self._mover = {}
        for term in self._terms:
            given, now = state.get(term.name, {}), term.params.get("parameter")
            # of one that moves another number now, the number of before is the page's again
            for path, number in given.items() if now is None else [(now, given[now])] if now in given else []:
                if path not in self.params or number.shape != self.params[path].shape:
                    raise ValueError(f"curriculum.{term.name}: {path} differs")
                self.params[path].copy_(number)
                self._mover[path] = term.name
        for term in self._terms:
            if term.name not in state:
                self._run(term, {}, iteration)

    def _run(self, term: BoundTerm, statistics: dict[str, float], iteration: int) -> None:
        """Call a curriculum, and note what it has moved."""
        before = {path: number.clone() for path, number in self.params.items()}
        given = dict(self.params)
        place = f"{self._page.name}: curriculum.{term.name}"
        with naming_own(place):
            term.function(given, _Statistics(statistics), iteration, **term.params)
        for path, value in given.items():
            if path not in before:
                raise UserError(f"{place} sets {path!r}, which {self._why_not(path)}")
            # one that was put in a number's place is as good as one that was changed
            try:
                value = torch.as_tensor(value, dtype=torch.float32)
            except (TypeError, ValueError, RuntimeError):
                raise UserError(f"{place} sets {path} to {value!r}, which is no number") from None
            if value.shape != before[path].shape:
                shapes = [str(tuple(number.shape)) for number in (value, before[path])]
                raise UserError(f"{place} sets {path} to a value of shape {shapes[0]}, and the page's has {shapes[1]}")
            if torch.equal(value, before[path]):
                continue
            if not value.isfinite().all():
                raise UserError(f"{place} sets {path} to {value.tolist()} in iteration {iteration}, which is not finite")
            if path in LEARNER_NUMBERS and value < 0:
                raise UserError(f"{place} sets {path} to {value.item():g} in iteration {iteration}, which is negative")
            self._check_allowed(f"{place} sets {path} in iteration {iteration}", path, value)
            self.params[path].copy_(value)
            self._mover[path] = term.name

    def _check_allowed(self, said: str, path: str, value: Tensor) -> None:
        """Check that the page itself may have this value: else what was trained with it could not be loaded.

        Raises:
            UserError: it may not; one line.
        """
        if path in LEARNER_NUMBERS:
            return
        section, *keys, name, key = path.split(".")
        entries = getattr(self._page, section)
        entry = entries[keys[0]][name] if keys else entries[name]
        given: Any = value.tolist()
        if isinstance(entry.params.get(key, getattr(entry, key, None)), dict):  # by joint
            given = {str(joint): number for joint, number in enumerate(given)}
        weight = {"weight": entry.weight} if section == "rewards" else {}
        model = entry_model(self._find.signature(section, entry.term))
        if told := check_section(model, {**entry.params, **weight, key: given})[1]:
            raise UserError(f"{said}: {next(iter(told.values()))}")

    def _check_parameters(self) -> None:
        """Whether every number that a curriculum's `parameter` names is there and has the length of its values."""
        movers: dict[str, str] = {}
        for term in self._terms:
            path = term.params.get("parameter")
            if path is None:
                continue
            place = f"{self._page.name}: curriculum.{term.name}.parameter: {path!r}"
            if other := movers.setdefault(path, term.name) != term.name and movers[path]:
                raise UserError(f"{place} is moved by curriculum.{other} already, which would move nothing; take one of them off")
            if path not in self.params:
                raise UserError(f"{place} {self._why_not(path)}")
            count = self.params[path].numel()
            if any(term.params[end].numel() != count for end in ("start", "end") if end in term.params):
                raise UserError(f"{place} has {count} numbers, start and end need as many")
            for end in (end for end in ("start", "end") if end in term.params):  # what lies between two that may be may be, too
                value = torch.as_tensor(term.params[end])
                self._check_allowed(f"{self._page.name}: curriculum.{term.name}.{end}", path, value.view(self.params[path].shape))

    def _numbers(self) -> dict[str, Tensor]:
        """Collect what may move: the environments' numbers, and those that the learner follows and nothing else moves."""
        page = self._page
        free = [path for path in self._followed if why_not(path, page.ppo, page.distributed) is None]
        return numbers(page) | {path: torch.tensor(getattr(page.ppo, path.removeprefix("ppo."))) for path in free}

    def _why_not(self, path: str) -> str:
        """Say why curricula do not have a number."""
        if path in LEARNER_NUMBERS and path not in self._followed:
            known = ", ".join(self._followed) or "none"
            return f"is not followed by train.learner: {self._page.train.learner} (its `numbers`: {known})"
        if path.startswith("ppo.") and (why := why_not(path, self._page.ppo, self._page.distributed)):
            return why
        if path.endswith(".noise") and f"{path.removesuffix('noise')}scale" in self.params:
            return "is no number of the page, which has no noise there; give it one, however small"
        near = difflib.get_close_matches(path, self.params, n=1)
        return "is no number of the page" + (f"; did you mean {near[0]!r}?" if near else "")


def page_as_moved(page: Page, state: Moved) -> Page:
    """Write into a page what its curricula had moved, and take them away: the task as the policy would go on with it.

    Args:
        page: the one that is trained.
        state: what `Curricula.state_dict` gave.

    Raises:
        ConfigError: a curriculum has moved a number to where no page may have it.
    """
    if not page.curriculum:
        return page
    own, mapping = numbers(page), page.to_mapping()
    changes = []
    for path, number in ((path, number) for moved in state.values() for path, number in moved.items()):
        if path not in own or own[path].shape != number.shape or path.startswith("curriculum."):
            continue  # the learner's, and what curricula remember
        *keys, last = path.split(".")
        entry = mapping
        for key in keys:
            entry = entry[key]
        value: Any = number.tolist()
        if isinstance(entry[last], dict):
            robot = load_robot(page.robot)
            value = dict(zip(robot.joints_of(entry.get("joints", "all")), value, strict=True))
        changes.append(f"{path}={json.dumps(value)}")
    return override(page, [*changes, "curriculum=null"])
