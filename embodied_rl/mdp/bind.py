"""From a page's entries to callables with their parameters as tensors."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from embodied_rl.config.page import Entry, Page
from embodied_rl.config.terms import SECTIONS, TermSignature, find_terms
from embodied_rl.errors import UserError
from embodied_rl.family import imported_terms
from embodied_rl.mdp.group import ObservationGroup, ObservationTerm
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.scene import Scene


@dataclass(frozen=True)
class BoundTerm:
    """An entry of the page, ready to be called."""

    name: str
    function: Callable
    params: dict[str, Any]


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
        (self.action,) = self._instances("actions", page.actions, find)
        self.commands = {command.name: command for command in self._instances("commands", page.commands, find)}
        self.rewards = self._bound("rewards", page.rewards, find)
        for name, entry in page.rewards.items():
            self._tensor(f"rewards.{name}.weight", entry.weight)
        self.terminations = self._bound("terminations", page.terminations, find)
        self.events: dict[str, list[BoundTerm]] = {"startup": [], "reset": [], "interval": []}
        for term in self._bound("events", page.events, find):
            self.events[term.function.mode].append(term)
        self._observations = {
            group: self._bound(f"observations.{group}", entries, find) for group, entries in page.observations.items()
        }
        self.curricula = self._bound("curriculum", page.curriculum, find)
        self._check_curricula()
        needs = needed(page)
        self.air_time, self.foot_friction = "foot_air_time" in needs, "foot_friction" in needs
        self.kinematic = "foot_frames" in needs
        """Whether anything reads kinematic quantities, and whether an observation does."""
        observing = (t.function.needs for terms in self._observations.values() for t in terms)
        self.kinematic_obs = any("foot_frames" in n for n in observing)
        self.reset_fields = tuple(sorted({f for t in self.events["reset"] for f in t.function.fields}))
        startup_fields = {f for t in self.events["startup"] for f in t.function.fields}
        friction = {"geom_friction"} if self.foot_friction else set()
        self.model_fields = tuple(sorted(startup_fields | friction | set(self.reset_fields)))

    def groups(self, view: Moment) -> list[ObservationGroup]:
        """Make the page's observation groups; each term is called once, for its size."""
        return [
            ObservationGroup(group, [self._observation(group, term, view) for term in terms])
            for group, terms in self._observations.items()
        ]

    def mirrors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Index and sign of one value of each kind of observation under left-right reflection.

        Raises:
            RobotError: robot.yaml has no `mirror`.
        """
        three = torch.arange(3, device=self._device)
        signs = lambda *values: torch.tensor(values, dtype=torch.float32, device=self._device)  # noqa: E731
        spec = self.robot.spec
        feet = torch.tensor(spec.foot_mirror(), dtype=torch.int64, device=self._device)
        permutation, joint_signs = spec.joint_mirror()
        return {
            "vector": (three, signs(1, -1, 1)),
            "pseudovector": (three, signs(-1, 1, -1)),
            "velocity_command": (three, signs(1, -1, -1)),
            # half a cycle later the other diagonal is in stance
            "phase": (three[:2], signs(-1, -1)),
            "joints": (torch.tensor(permutation, device=self._device), signs(*joint_signs)),
            "feet": (feet, torch.ones(len(feet), device=self._device)),
        }

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

    def _observation(self, group: str, term: BoundTerm, view: Moment) -> ObservationTerm:
        entry: Entry = self._page.observations[group][term.name]
        path = f"observations.{group}.{term.name}"
        value = term.function(view, **term.params)
        if value.dim() != 2 or len(value) != view.num_envs:
            raise UserError(f"{path}: a term returns (num_envs, size), got shape {tuple(value.shape)}")
        return ObservationTerm(
            name=term.name,
            function=term.function,
            params=term.params,
            noise=self._tensor(f"{path}.noise", entry.noise) if entry.noise else None,
            scale=self._tensor(f"{path}.scale", entry.scale),
            clip=entry.clip,
            delay=entry.delay,
            history=entry.history,
            size=value.shape[1],
        )

    def _bound(self, path: str, entries: dict[str, Entry], find: _Finder) -> list[BoundTerm]:
        section = path.partition(".")[0]
        return [
            BoundTerm(name, find(section, entry.term), self._parameters(f"{path}.{name}", entry))
            for name, entry in entries.items()
        ]

    def _instances(self, section: str, entries: dict[str, Entry], find: _Finder) -> list[Any]:
        return [
            find(section, entry.term)(name, **self._parameters(f"{section}.{name}", entry)) for name, entry in entries.items()
        ]

    def _parameters(self, path: str, entry: Entry) -> dict[str, Any]:
        return {key: self._tensor(f"{path}.{key}", value) for key, value in entry.params.items()}

    def _tensor(self, path: str, value: Any) -> Any:
        """Keep a float or a tuple of floats as a tensor in `params`; return anything else as it is."""
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(isinstance(number, float) for number in numbers):
            return value
        self.params[path] = torch.tensor(value, dtype=torch.float32, device=self._device)
        return self.params[path]


def needed(page: Page) -> set[str]:
    """Collect what the page's terms ask the scene to measure."""
    find = _Finder(page)
    needs: set[str] = set()
    for section, entry in _entries(page):
        asked = getattr(find(section, entry.term), "needs", ())
        needs |= {need.format(**entry.params) for need in asked}
    return needs | ({"foot_contact"} if "foot_air_time" in needs else set())


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
        self._terms, _ = find_terms([Path(path) for path in page.terms], imported_terms(page.task))

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
