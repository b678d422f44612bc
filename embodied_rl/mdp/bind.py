"""From a page's entries to callables with their parameters as tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from embodied_rl.config.page import Entry, Page
from embodied_rl.config.terms import SECTIONS
from embodied_rl.errors import Faults, UserError
from embodied_rl.mdp.declared import check_event, check_made
from embodied_rl.mdp.draft import Draft
from embodied_rl.mdp.fields import drawn_by, model_field_names
from embodied_rl.mdp.finder import Finder, naming_own
from embodied_rl.mdp.group import ActionGroup, ObservationGroup, ObservationTerm
from embodied_rl.mdp.mirrors import reflection, tensors
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.term import Action, check_answer
from embodied_rl.mdp.totals import Told, shares_of
from embodied_rl.mdp.trackers import TRACKERS, Trackers
from embodied_rl.physics.protocol import Physics, tensors_of
from embodied_rl.problems import did_you_mean
from embodied_rl.robot import RobotSpec, load_robot
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

    def answer(self, section: str, moment: Moment, dtype: torch.dtype) -> Tensor:
        """Ask for a value per robot of this type, (N,).

        Raises:
            UserError: the term returns something else, perhaps for the first time; one line.
        """
        value = self.function(moment, **self.params)
        check_answer(f"{section}.{self.name}", value, moment.num_envs, dtype)
        return value

    def happen(self, moment: Moment, draft: Draft) -> Any:
        """Let an event change a draft; what it returns.

        Raises:
            UserError: it leaves a draft that is none, or, of an interval, does not say which rows changed; one line.
        """
        changed, path = self.function(moment, draft, **self.params), f"events.{self.name}"
        draft.check(path)
        if self.function.mode == "interval":
            check_answer(path, changed, moment.num_envs, torch.bool)
        return changed


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
        self.params = {path: number.to(device) for path, number in numbers(page).items()}
        """Every number that may change during a run, by dotted path of the page."""
        self._device, self._page, self._faults = device, page, Faults()
        find = Finder(page)
        asked = _asked(page, find)
        self.trackers = Trackers((name, kind(self.robot)) for name, kind in TRACKERS.items() if name in asked)
        actions = self._bound("actions", page.actions, find)
        self.actions = ActionGroup([(term.name, cast("Action", term.function)) for term in actions], self.robot)
        self.commands = {term.name: term.function for term in self._bound("commands", page.commands, find)}
        self.rewards = self._bound("rewards", page.rewards, find)
        self.terminations = self._bound("terminations", page.terminations, find)
        self.events: dict[str, list[BoundTerm]] = {mode: [] for mode in ("startup", "reset", "interval", "iteration")}
        events = self._bound("events", page.events, find)
        for term in events:
            with self._faults.noted():
                check_event(f"events.{term.name}", term.function)
                self.events[term.function.mode].append(term)
        self._observations = {
            group: self._bound(f"observations.{group}", entries, find) for group, entries in page.observations.items()
        }
        self._faults.tell()
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
        self.kinematic = bool(_FRAMES & asked.keys())
        """Whether anything reads kinematic quantities, and whether an observation, or what settles before it, does."""
        late = [term.function for terms in self._observations.values() for term in terms]
        late += [owner for owner in self.owners.values() if hasattr(owner, "settle")]
        self.kinematic_obs = any(_FRAMES & set(getattr(one, "needs", ())) for one in late)
        named = {mode: [(term.name, term.function) for term in terms] for mode, terms in self.events.items()}
        self.drawn = drawn_by(named, self.robot, page.name)
        """What the events of each mode draw."""
        read = {need.removeprefix(_MODEL) for need in asked if need.startswith(_MODEL)}
        self.model_fields = tuple(sorted(read.union(*self.drawn.values())))

    def groups(self, moment: Moment) -> list[ObservationGroup]:
        """Make the page's observation groups; each term is called once, for its size."""
        found: dict[str, list[ObservationTerm]] = {group: [] for group in self._observations}
        for group, terms in self._observations.items():
            for term in terms:
                with self._faults.noted():
                    found[group].append(self._observation(group, term, moment))
        self._faults.tell()
        return [ObservationGroup(group, terms) for group, terms in found.items()]

    def check(self, moment: Moment, physics: Physics, tensors: dict[str, Tensor]) -> None:
        """Call every term that returns something once, so that what it does wrong is named here.

        Args:
            moment: of all environments.
            physics: its simulations.
            tensors: what else terms see, and may not change where it is not their own memory, by name.

        Raises:
            UserError: a reward or a termination returns something else than a number, or a flag, per robot, or a term writes
                into what it is given.
        """
        moment.terminated = moment.episode.terminated
        tensors = tensors | tensors_of(physics)
        sections: list[tuple[str, list[BoundTerm], torch.dtype | None]]
        sections = [(f"observations.{group}", terms, None) for group, terms in self._observations.items()]
        sections += [("rewards", self.rewards, torch.float32), ("terminations", self.terminations, torch.bool)]
        for section, terms, wanted in sections:
            for term in terms:
                with self._faults.noted():
                    _called(f"{section}.{term.name}", term, wanted, moment, tensors)
        self._faults.tell()

    def told(self, moment: Moment) -> Told:
        """Ask commands and reset events what they tell of the robots: how far they are from a command, and shares.

        Raises:
            UserError: a term gives something else, or a name that another has; one line.
        """
        errors: dict[str, Tensor] = {}
        for name, command in self.commands.items():
            given = command.errors(moment)
            if not isinstance(given, dict):
                raise UserError(f"commands.{name}: errors returns a {type(given).__name__}, no dict of (N,) by name")
            for error, value in given.items():
                check_answer(f"commands.{name}.errors[{error!r}]", value, moment.num_envs, torch.float32)
                if error in errors:
                    raise UserError(f"commands.{name}: another command has an error {error!r} already; rename one of them")
                errors[error] = value
        tellers = {f"commands.{name}": command for name, command in self.commands.items()}
        tellers |= {f"events.{event.name}": event.function for events in self.events.values() for event in events}
        shares = [one for path, teller in tellers.items() if hasattr(teller, "shares") for one in shares_of(path, teller, moment)]
        names = [name for share in shares for name in share.names]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"two commands or events have a share {twice!r}; rename one of them")
        numbers = [*errors.values(), *(part for share in shares for part in (share.number, share.whole))]
        nobody = moment.episode.actions[:, 0]
        cells = [torch.zeros_like(nobody, dtype=torch.int64) if share.at is None else share.at for share in shares]
        return Told(
            list(errors),
            [share.names for share in shares],
            torch.stack(numbers, dim=-1) if numbers else nobody[:, None][:, :0],
            torch.stack(cells, dim=-1) if cells else torch.zeros_like(nobody[:, None][:, :0], dtype=torch.int64),
        )

    def set_numbers(self, numbers: dict[str, Tensor]) -> None:
        """Set numbers of the page, by dotted path, in place.

        Raises:
            ValueError: they are of another page.
        """
        own = self.params
        if odd := [name for name, value in numbers.items() if name not in own or value.shape != own[name].shape]:
            raise ValueError(f"the numbers are of another page: {', '.join(odd[:3])} differ")
        for name, value in numbers.items():
            own[name].copy_(value)

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

    def _observation(self, group: str, term: BoundTerm, moment: Moment) -> ObservationTerm:
        entry: Entry = self._page.observations[group][term.name]
        path = f"observations.{group}.{term.name}"
        with naming_own(path):
            value = term.function(moment, **term.params)
        check_answer(path, value, moment.num_envs, torch.float32, -1)
        if not value.shape[1]:
            raise UserError(f"{path}: has no numbers, {tuple(value.shape)}; take the entry off the page")
        _check_place(path, value, self._device)
        if isinstance(entry.noise, dict) and term.function.mirror != "joints":
            raise UserError(f"{path}.noise: numbers by joint are for values with one number a joint; write one number")
        if term.function.coarse and 0.0 < entry.dropout < 1 / 256:
            raise UserError(f"{path}.dropout: {entry.dropout:g} is less than the 1/256 that it is drawn in here; take 0.004")
        return ObservationTerm(
            name=term.name,
            path=path,
            function=term.function,
            params=term.params,
            noise=self.params.get(f"{path}.noise"),
            offset=float(entry.offset),
            dropout=float(entry.dropout),
            scale=self.params[f"{path}.scale"],
            clip=entry.clip,
            delay=entry.delay,
            history=entry.history,
            size=value.shape[1],
            coarse=term.function.coarse,
        )

    def _bound(self, path: str, entries: dict[str, Entry], find: Finder) -> list[BoundTerm]:
        bound = []
        for term in bind(path, entries, find, self.params):
            kind: Any = term.function
            if inspect.isclass(kind):
                make = kind if kind.__init__ is object.__init__ else partial(kind, self.robot)
                with self._faults.noted():
                    try:
                        with naming_own(f"{path}.{term.name}"):
                            made = make(**term.params)
                    except UserError as error:  # of a parameter, or with its own place
                        own = f"{path}.{term.name}"
                        said = str(error) if str(error).startswith(own) else f"{own}.{error}"
                        raise UserError(f"{self._page.name}: {said}") from None
                    bound.append(BoundTerm(term.name, cast("Callable", made), {}))
                    check_made(f"{path}.{term.name}", path.partition(".")[0], made, len(self.robot.joint_names))
            else:
                bound.append(term)
        return bound


def _called(own: str, term: BoundTerm, wanted: torch.dtype | None, moment: Moment, tensors: dict[str, Tensor]) -> None:
    """Call a term once.

    Raises:
        UserError: it returns something else than a value per robot of the `wanted` type, where one is, or writes elsewhere.
    """
    # torch counts what is written into each tensor, by whichever view
    versions = {name: tensor._version for name, tensor in tensors.items()}
    with naming_own(own):
        value = term.function(moment, **term.params)
    for name, tensor in tensors.items():
        if tensor._version != versions[name] and not name.startswith(f"{own}."):
            raise UserError(f"{own}: the term writes into {name}; what it is given is not its own: change a clone()")
    if wanted is not None:
        check_answer(own, value, moment.num_envs, wanted)
        _check_place(own, value, moment.episode.age.device)


def _check_place(own: str, value: Tensor, device: torch.device) -> None:
    """Check that an answer lies where the robots do, as other tensors lie there.

    Raises:
        UserError: it does not; one line.
    """
    if value.device.type != device.type or value.layout != torch.strided:
        given = f"{value.device.type}, {str(value.layout).removeprefix('torch.')}"
        raise UserError(f"{own}: its value is on {given}; the robots' is on {device.type}, strided: make it on env.done.device")


def bind(path: str, entries: dict[str, Entry], find: Finder, params: dict[str, Tensor]) -> list[BoundTerm]:
    """Find the callables of the entries that stand under `path`; their numbers are the tensors of `params`."""
    section = path.partition(".")[0]
    return [
        BoundTerm(
            name,
            find(section, entry.term),
            {key: params.get(f"{path}.{name}.{key}", value) for key, value in entry.params.items()},
        )
        for name, entry in entries.items()
    ]


def numbers(page: Page) -> dict[str, Tensor]:
    """Collect every number of the page that may change during a run, by dotted path, on the CPU."""
    found: dict[str, Tensor] = {}
    robot: RobotSpec | None = None
    for section, path, entry in _entries(page):
        values = dict(entry.params)
        if section == "rewards":
            values["weight"] = entry.weight
        if section == "observations":
            values |= {"scale": entry.scale} | ({"noise": entry.noise} if entry.noise else {})
        for key, value in values.items():
            if isinstance(value, dict):  # numbers by group: one for each joint
                robot = robot or load_robot(page.robot)
                value = robot.per_joint(value, robot.joints_of(entry.params.get("joints", "all")))
            if (number := _number(value)) is not None:
                found[f"{path}.{key}"] = number
    return found


def _number(value: Any) -> Tensor | None:
    """Turn a float or a tuple of floats into a float32 tensor; anything else cannot change during a run."""
    parts = value if isinstance(value, tuple) else (value,)
    if not parts or not all(isinstance(part, float) for part in parts):
        return None
    return torch.tensor(value, dtype=torch.float32)


def needed(page: Page) -> dict[str, str]:
    """Collect what the page's terms ask the scene to measure, and of each the path of the first term that does.

    Raises:
        UserError: a term needs what there is not.
    """
    asked = _asked(page, Finder(page))
    return {need: path for need, path in asked.items() if need not in TRACKERS and not need.startswith(_MODEL)}


def driven(page: Page, robot: RobotSpec) -> dict[str, str]:
    """Find out what the page's action terms control: `position` or `velocity` by joint; joints that none drives are left out.

    Raises:
        UserError: two terms drive the same joint.
    """
    find = Finder(page)
    kinds: dict[str, str] = {}
    drivers: dict[str, str] = {}
    faults = Faults()
    for name, entry in page.actions.items():
        for joint in robot.joints_of(entry.params.get("joints", "all")):
            if joint in drivers:
                faults.note(f"{page.name}: actions.{name}: {joint!r} is driven by actions.{drivers[joint]} already")
            drivers[joint] = name
            kinds[joint] = find("actions", entry.term).control
    faults.tell()
    return kinds


def startup_draws(page: Page) -> dict[str, Entry]:
    """Collect the page's events that draw once, at startup."""
    find = Finder(page)
    mode = lambda entry: entry.params.get("when") or getattr(find("events", entry.term), "mode", None)  # noqa: E731
    return {name: entry for name, entry in page.events.items() if mode(entry) == "startup"}


def _asked(page: Page, find: Finder) -> dict[str, str]:
    """Collect everything that the page's terms, and the trackers that they read, need; of each the first term's path."""
    asked: dict[str, str] = {}
    faults = Faults()
    for section, path, entry in _entries(page):
        with faults.noted():
            term = find(section, entry.term)
        for need in getattr(term, "needs", ()):
            with faults.noted():
                asked.setdefault(_named(need, f"{path}: needs {need!r}", entry.params), path)
    faults.tell()
    for name, path in [(name, path) for name, path in asked.items() if name in TRACKERS]:
        asked = dict.fromkeys(TRACKERS[name].needs, path) | asked
    return asked


def _named(need: str, said: str, params: dict[str, Any]) -> str:
    """Write a need with the entry's parameters in it.

    Raises:
        UserError: there is no such thing.
    """
    try:
        named = need.format(**params)
    except (KeyError, IndexError) as error:
        near = did_you_mean(error.args[0], params) or f"; it has {', '.join(params) or 'none'}"
        raise UserError(f"{said}: in braces stands a parameter of the term{near}") from None
    known: tuple[str, ...] = (*TRACKERS, *NEEDS)
    if named.startswith(_MODEL):
        known = tuple(_MODEL + field for field in model_field_names())
    if named not in known and (":" not in named or named.startswith(_MODEL)):
        several = ", ".join((*TRACKERS, *NEEDS, "contact:GROUP", "model:FIELD"))
        near = did_you_mean(named, known) or f"; allowed: {several}"
        raise UserError(f"{said}, which is nothing that can be measured{near}")
    return named


def _entries(page: Page) -> Iterator[tuple[str, str, Entry]]:
    """Section, dotted path and entry of every term of the page."""
    for section in SECTIONS:
        if section == "patches":  # made before anything moves: nothing measures for them, and no curriculum moves them
            continue
        value = getattr(page, section)
        parts = (
            {f"{section}.{group}": entries for group, entries in value.items()} if section == "observations" else {section: value}
        )
        for path, entries in parts.items():
            for name, entry in entries.items():
                yield section, f"{path}.{name}", entry
