"""From a page's entries to callables with their parameters as tensors."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from embodied_rl.config.page import Entry, Page
from embodied_rl.config.terms import SECTIONS, TermSignature, find_terms
from embodied_rl.errors import UserError
from embodied_rl.mdp.group import ActionGroup, ObservationGroup, ObservationTerm
from embodied_rl.mdp.mirrors import reflection, tensors
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.term import Action
from embodied_rl.mdp.trackers import TRACKERS
from embodied_rl.problems import did_you_mean
from embodied_rl.robot import RobotSpec
from embodied_rl.scene import NEEDS, Scene

#: Needs that positions and velocities of the feet serve, and what begins the name of a model field.
_FRAMES = {"foot_frames", "foot_orientation"}
_MODEL = "model:"


@dataclass(frozen=True)
class BoundTerm:
    """An entry of the page, ready to be called."""

    name: str
    function: Callable
    """The term; of a class, its instance."""
    params: dict[str, Any]
    """What it is called with; nothing where it is a class, which was made with them."""


class Terms:
    """All terms of a page.

    Args:
        page: the task.
        scene: its model.
        device: where parameters live.

    Raises:
        UserError: the page asks for a combination that cannot work; one line.
    """

    def __init__(self, page: Page, scene: Scene, device: torch.device) -> None:
        self.robot = Part(scene, device)
        self.params: dict[str, Tensor] = {}
        """Every number that may change during a run, by dotted path of the page."""
        self._device, self._page = device, page
        find = _Finder(page)
        asked = _asked(page, find)
        self.trackers = {name: kind(self.robot) for name, kind in TRACKERS.items() if name in asked}
        actions = self._bound("actions", page.actions, find)
        self.actions = ActionGroup([(term.name, cast("Action", term.function)) for term in actions], self.robot)
        self.commands = {term.name: term.function for term in self._bound("commands", page.commands, find)}
        self.rewards = self._bound("rewards", page.rewards, find)
        for name, entry in page.rewards.items():
            self._tensor(f"rewards.{name}.weight", entry.weight)
        self.terminations = self._bound("terminations", page.terminations, find)
        self.events: dict[str, list[BoundTerm]] = {"startup": [], "reset": [], "interval": []}
        events = self._bound("events", page.events, find)
        for term in events:
            self.events[term.function.mode].append(term)
        self._observations = {
            group: self._bound(f"observations.{group}", entries, find) for group, entries in page.observations.items()
        }
        self.curricula = self._bound("curriculum", page.curriculum, find)
        self._check_curricula()
        # commands draw before actions, and both before all others: a page's order of sections changes no number
        self.owners: dict[str, Any] = {f"trackers.{name}": tracker for name, tracker in self.trackers.items()}
        """Whatever may remember something, by `section.name`."""
        self.owners |= {f"commands.{name}": command for name, command in self.commands.items()}
        self.owners |= {f"actions.{term.name}": term.function for term in actions}
        for section, terms in (
            *((f"observations.{group}", terms) for group, terms in self._observations.items()),
            *(("rewards", self.rewards), ("terminations", self.terminations), ("events", events)),
        ):
            self.owners |= {f"{section}.{term.name}": term.function for term in terms if not inspect.isfunction(term.function)}
        self.updates, self.resamples, self.settles = (
            [getattr(owner, method) for owner in self.owners.values() if hasattr(owner, method)]
            for method in ("update", "resample", "settle")
        )
        self.kinematic = bool(_FRAMES & asked)
        """Whether anything reads kinematic quantities, and whether an observation, or what settles before it, does."""
        late = [term.function for terms in self._observations.values() for term in terms]
        late += [owner for owner in self.owners.values() if hasattr(owner, "settle")]
        self.kinematic_obs = any(_FRAMES & set(getattr(one, "needs", ())) for one in late)
        self.reset_fields = tuple(sorted({f for t in self.events["reset"] for f in t.function.fields}))
        startup_fields = {f for t in self.events["startup"] for f in t.function.fields}
        read = {need.removeprefix(_MODEL) for need in asked if need.startswith(_MODEL)}
        self.model_fields = tuple(sorted(startup_fields | read | set(self.reset_fields)))

    def groups(self, moment: Moment) -> list[ObservationGroup]:
        """Make the page's observation groups; each term is called once, for its size."""
        return [
            ObservationGroup(group, [self._observation(group, term, moment) for term in terms])
            for group, terms in self._observations.items()
        ]

    def reflect(self, term: ObservationTerm) -> tuple[Tensor, Tensor]:
        """Index and sign of a value of an observation under left-right reflection, each (size,).

        Raises:
            RobotError: robot.yaml has no `mirror`.
            UserError: the term's mirror does not suit its value.
        """
        mirror, path = term.function.mirror, term.path
        if mirror == "actions":
            return self.reflect_actions()
        params = self._page.observations[path.split(".")[1]][term.name].params
        return tensors(*reflection(mirror, self.robot, params, term.size, path), self._device)

    def reflect_actions(self) -> tuple[Tensor, Tensor]:
        """Index and sign of the actions under left-right reflection, each (A,)."""
        params = {name: entry.params for name, entry in self._page.actions.items()}
        return tensors(*self.actions.reflection(params), self._device)

    def _check_curricula(self) -> None:
        """Every number that a curriculum changes is there and has its length."""
        for term in self.curricula:
            path = term.params.get("parameter")
            if path is None:
                continue
            place = f"curriculum.{term.name}.parameter: {path!r}"
            if path not in self.params:
                near = difflib.get_close_matches(path, self.params, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(f"{self._page.name}: {place} is no number of the page{hint}")
            if any(term.params[end].numel() != self.params[path].numel() for end in ("start", "end")):
                raise UserError(f"{self._page.name}: {place} has {self.params[path].numel()} numbers, start and end need as many")

    def _observation(self, group: str, term: BoundTerm, moment: Moment) -> ObservationTerm:
        entry: Entry = self._page.observations[group][term.name]
        path = f"observations.{group}.{term.name}"
        value = term.function(moment, **term.params)
        if value.dim() != 2 or len(value) != moment.num_envs:
            raise UserError(f"{path}: a term returns (num_envs, size), got shape {tuple(value.shape)}")
        if isinstance(entry.noise, dict) and term.function.mirror != "joints":
            raise UserError(f"{path}.noise: numbers by joint are for values with one number a joint; write one number")
        return ObservationTerm(
            name=term.name,
            path=path,
            function=term.function,
            params=term.params,
            noise=self._tensor(f"{path}.noise", self._by_joint(entry.noise)) if entry.noise else None,
            scale=self._tensor(f"{path}.scale", entry.scale),
            clip=entry.clip,
            delay=entry.delay,
            history=entry.history,
            size=value.shape[1],
        )

    def _bound(self, path: str, entries: dict[str, Entry], find: _Finder) -> list[BoundTerm]:
        section = path.partition(".")[0]
        bound = []
        for name, entry in entries.items():
            term: Any = find(section, entry.term)
            params = self._parameters(f"{path}.{name}", entry)
            if inspect.isclass(term):
                term, params = (term if term.__init__ is object.__init__ else partial(term, self.robot))(**params), {}
            bound.append(BoundTerm(name, term, params))
        return bound

    def _parameters(self, path: str, entry: Entry) -> dict[str, Any]:
        joints = entry.params.get("joints", "all")
        return {key: self._tensor(f"{path}.{key}", self._by_joint(value, joints)) for key, value in entry.params.items()}

    def _by_joint(self, value: Any, joints: str = "all") -> Any:
        """Resolve a mapping from joint groups to numbers into a number per joint; anything else stays as it is."""
        if not isinstance(value, dict):
            return value
        spec = self.robot.spec
        return spec.per_joint(value, spec.joints_of(joints))

    def _tensor(self, path: str, value: Any) -> Any:
        """Keep a float or a tuple of floats as a tensor in `params`; return anything else as it is."""
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(isinstance(number, float) for number in numbers):
            return value
        self.params[path] = torch.tensor(value, dtype=torch.float32, device=self._device)
        return self.params[path]


def needed(page: Page) -> set[str]:
    """Collect what the page's terms ask the scene to measure.

    Raises:
        UserError: a term needs what there is not.
    """
    return {need for need in _asked(page, _Finder(page)) if need not in TRACKERS and not need.startswith(_MODEL)}


def driven(page: Page, robot: RobotSpec) -> dict[str, str]:
    """Find out what the page's action terms control: `position` or `velocity` by joint; joints that none drives are left out.

    Raises:
        UserError: two terms drive the same joint.
    """
    find = _Finder(page)
    kinds: dict[str, str] = {}
    drivers: dict[str, str] = {}
    for name, entry in page.actions.items():
        for joint in robot.joints_of(entry.params.get("joints", "all")):
            if joint in drivers:
                raise UserError(f"{page.name}: actions.{name}: {joint!r} is driven by actions.{drivers[joint]} already")
            drivers[joint] = name
            kinds[joint] = find("actions", entry.term).control
    return kinds


def _asked(page: Page, find: _Finder) -> set[str]:
    """Collect everything that the page's terms, and the trackers that they read, need."""
    asked: set[str] = set()
    for section, entry in _entries(page):
        term = find(section, entry.term)
        for need in getattr(term, "needs", ()):
            known = (*TRACKERS, *NEEDS)
            if ":" not in need and need not in known:
                near = did_you_mean(need, known) or f"; allowed: {', '.join(known)}, contact:GROUP, model:FIELD"
                raise UserError(f"{section}: {entry.term} needs {need!r}, which is nothing that can be measured{near}")
            asked.add(need.format(**entry.params))
    for name in asked & set(TRACKERS):
        asked |= set(TRACKERS[name].needs)
    return asked


def _entries(page: Page) -> Iterator[tuple[str, Entry]]:
    for section in SECTIONS:
        value = getattr(page, section)
        sections = value.values() if section == "observations" else [value]
        for entries in sections:
            for entry in entries.values():
                yield section, entry


class _Finder:
    """Finds the callable of a term; a page's own modules are imported from their files, once."""

    def __init__(self, page: Page) -> None:
        self._terms, _ = find_terms([Path(path) for path in page.terms])

    def __call__(self, section: str, name: str) -> Any:
        signature = self._terms[SECTIONS[section]][name]
        return getattr(_module(signature), name)


def _module(signature: TermSignature) -> ModuleType:
    if signature.module_name.startswith("embodied_rl."):
        return importlib.import_module(signature.module_name)
    path = signature.module_path.resolve()
    # one name for each file: two pages may have a my_terms.py each
    name = f"embodied_rl_terms_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        # torch.compile looks a function's module up there, and so do dataclasses and pickle
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
