"""A mapping becomes a page, or every reason why it cannot."""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import create_model, field_validator

from embodied_rl import family
from embodied_rl.config.learning import check_learning
from embodied_rl.config.misplaced import meant, misplaced, nested
from embodied_rl.config.page import LEARNERS, ROBOT_SECTIONS, SOURCE_PHYSICS, Entry, Model, Page
from embodied_rl.config.terms import EXTRAS, REQUIRED, SECTIONS, TermSignature, find_terms, undeclared
from embodied_rl.config.types import refuse
from embodied_rl.problems import ConfigError, Problem, did_you_mean, quoted, shown
from embodied_rl.robot import RobotError, RobotSpec, load_robot
from embodied_rl.sections import M, check_section
from embodied_rl.strict_yaml import Document, Keys, display, problem_at

#: Terms that are rows of a table now, and what stands in them.
_MOVED = {
    "randomize_friction": "quantity: friction, of: feet, operation: set, range: [0.5, 1.25], when: reset",
    "randomize_base_mass": "quantity: mass, of: base, operation: add, range: [-1.0, 2.0]",
    "randomize_base_com": "quantity: com, of: base, operation: add, range: [-0.03, 0.03]",
    "randomize_armature": "quantity: armature, per: element, operation: scale, range: [1.0, 1.1]",
    "randomize_gains": "quantity: stiffness, per: element, operation: scale, range: [0.9, 1.1]",
}


#: Keys that stand elsewhere now.
_ELSEWHERE = {
    **{f"ppo.{old}": f"train.{new}" for old, new in (("max_iterations", "iterations"), ("num_steps_per_env", "steps"))},
    **{f"ppo.{old}": f"train.{new}" for old, new in (("save_interval", "save_every"), ("class_name", "learner"))},
    **{f"ppo.{name}": f"train.{name}" for name in ("keep_checkpoints", "max_skipped", "logger")},
    **{f"pool.{name}": f"train.{name}" for name in ("device", "importance_clip")},
    "ppo.normalize_advantage_per_mini_batch": "ppo.normalize_advantage (false: rollout, true: minibatch)",
}


class _Named(Model):
    """What runs are called by, which stand in a folder of that name."""

    name: str

    @field_validator("name")
    @classmethod
    def is_a_name(cls, name: str) -> str:
        """Check that a folder can have it."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
            raise refuse(f"{shown(name)} is no name of a run: up to 100 letters, digits, - _ and ., not beginning with - or .")
        return name


class _Head(_Named):
    """The page's keys that are no sections."""

    terms: tuple[str, ...] = ()
    task: str | None = None
    robot: str


class _SourceHead(_Named):
    """The head keys of a page with `env.source`."""


@functools.cache
def entry_model(signature: TermSignature) -> type[Model]:
    """Make the schema of an entry: the term's parameters and what its section adds."""
    fields: dict[str, Any] = {}
    for key in EXTRAS.get(signature.kind, ()):
        info = Entry.model_fields[key]
        default = ... if key == "weight" else info.default
        fields[key] = (Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation, default)
    for name, parameter in signature.parameters.items():
        fields[name] = (parameter.annotation, ... if parameter.default is REQUIRED else parameter.default)
    return create_model(signature.name, __base__=Model, __doc__=signature.doc, **fields)


def validate(document: Document) -> Page:
    """Check a merged page.

    Raises:
        ConfigError: With every problem, those that the document brought along first.
    """
    return _Checker(document).page()


class _Checker:
    def __init__(self, document: Document):
        self.value, self.places, self.problems = document.value, document.places, list(document.problems)
        self.context: dict[str, list[str]] = {}
        self.robot: RobotSpec | None = None
        self.family: family.Family | None = None
        self.own_files: list[Path] = []

    def problem(self, path: Keys, message: str) -> None:
        self.problems.append(problem_at(self.places, path, message))

    def page(self) -> Page:
        for key in self.value:
            if key not in Page.model_fields:
                near = meant(key) or nested(key) or did_you_mean(key, Page.model_fields)
                self.problem((key,), f"no such key{near or f'; allowed are {quoted(Page.model_fields)}'}")
        if self.has_source():
            return self.source_page()
        head = self.model(_Head, {key: one for key, one in self.value.items() if key in _Head.model_fields}, ())
        if isinstance(task := self.value.get("task"), str):
            self.load_family(task)
        self.find_terms(self.value.get("terms", []))
        if isinstance(robot := self.value.get("robot"), str):
            self.load_robot(robot)
        parts = {name: self.section(name) for name in Page.model_fields if name not in _Head.model_fields}
        self.cross_check(parts)
        if self.problems or head is None:
            raise ConfigError(self.problems)
        return Page(**head.model_dump(), **parts)

    def has_source(self) -> bool:
        """Say whether the page's environments are others'."""
        env = self.value.get("env")
        return isinstance(env, dict) and env.get("source") is not None

    def source_page(self) -> Page:
        """Check a page with `env.source`: what a robot's page says of it is absent."""
        source = shown(self.value["env"]["source"])
        why = f"not allowed with env.source ({source}), whose environments bring their own; leave it out"
        for key in ROBOT_SECTIONS:
            if key in self.value:
                self.problem((key,), why)
        physics = self.value.get("physics", {})
        for key in physics if isinstance(physics, dict) else ():
            if key in Page.model_fields["physics"].annotation.model_fields and key not in SOURCE_PHYSICS:  # type: ignore[union-attr]
                self.problem(("physics", key), f"{why} (allowed are {quoted(SOURCE_PHYSICS)})")
        head = self.model(_SourceHead, {"name": self.value.get("name")}, ())
        parts = {name: self.section(name) for name in Page.model_fields if name not in (*_Head.model_fields, *ROBOT_SECTIONS)}
        env = parts["env"]
        if env and env.groups and "actor" not in env.groups:
            self.problem(("env", "groups"), "the group 'actor' is missing: it is what the policy sees")
        for group, keys in env.groups.items() if env else ():
            if not keys or len(set(keys)) < len(keys):
                self.problem(("env", "groups", group), "a key stands twice" if keys else "a group needs at least one key")
            # a learner of one's own may read any
            elif parts["train"] and parts["train"].learner in LEARNERS and group not in ("actor", "critic"):
                self.problem(
                    ("env", "groups", group), f"nothing reads it{did_you_mean(group, ('actor', 'critic'))} (there are both)"
                )
        for group in (one for one in (env.final_obs_groups if env else ()) if one not in (env.groups or ("actor",))):
            self.problem(("env", "final_obs_groups"), f"{shown(group)} is not a group of observations")
        if env:
            self.left_out("env", env, ("episode_s", "reward_floor", "reward_scale_dt", "random_episode_phase"), why)
        if parts["ppo"] and parts["ppo"].symmetry != "none":
            self.problem(("ppo", "symmetry"), f"{shown(parts['ppo'].symmetry)} needs a robot with a mirror; take symmetry: none")
        check_learning(parts, self.problem)
        self.check_evaluation(parts)
        if self.problems or head is None:
            raise ConfigError(self.problems)
        return Page(**head.model_dump(), **parts)

    def check_evaluation(self, parts: Mapping[str, Any]) -> None:
        """Check that a policy which is to be evaluated can be judged."""
        if parts["train"] is None or self.value.get("task") is not None:
            return
        advice = "env.source has none; leave it out" if self.has_source() else "write task: NAME, or leave it out"
        for key in ("evaluate_every", "stop_when"):
            value = getattr(parts["train"], key)
            if value != type(parts["train"]).model_fields[key].default:
                self.problem(("train", key), f"{shown(value)} needs a task family, by whose score the policy is judged; {advice}")

    def find_terms(self, own: Any) -> None:
        """Read the shipped terms, and those of the page's own files and family."""
        own = own if isinstance(own, list | tuple) else [own]
        files = [Path(path) for path in own if isinstance(path, str)]
        for position, path in enumerate(files):
            if not path.is_file():
                self.problem(("terms", position), f"no such file: {display(path)}")
            elif path.suffix != ".py":
                self.problem(("terms", position), f"a file of terms is named NAME.py, not {display(path)}")
        found = self.own_files = [path for path in files if path.is_file() and path.suffix == ".py"]
        self.terms, broken = find_terms(found, self.family.term_files if self.family else ())
        self.problems += broken
        whole = self.family is not None or self.value.get("task") is None
        self.terms_are_known = whole and not broken and len(found) == len(own)

    def load_family(self, task: str) -> None:
        """Find out what the page's score may say."""
        try:
            self.family = family.load_family(task)
        except family.FamilyError as error:
            self.problem(("task",), str(error).removeprefix("task: "))

    def load_robot(self, robot: str) -> None:
        """Find out which names the robot gives to its parts."""
        try:
            spec = load_robot(robot)
        except RobotError as error:
            for line in str(error).splitlines():
                self.problem(("robot",), line.removeprefix("robot: "))
        else:
            self.robot = spec
            self.context["bodies"] = [*spec.bodies, *(["feet"] if spec.feet else [])]
            self.context["groups"] = [*spec.groups, *spec.joint_names]

    def section(self, name: str) -> Any:
        """Check a section and give it back as the page holds it; None where something is wrong with it."""
        value = self.value.get(name, {})
        if not isinstance(value, dict):
            return self.problem((name,), f"{shown(value)} is not a mapping")
        if name == "observations":
            groups = {group: self.entries(name, one, (name, group)) for group, one in value.items()}
            return None if None in groups.values() else groups
        if name in SECTIONS:
            return self.entries(name, value, (name,))
        if name == "score":
            return self.score(value)
        groups = self.value.get("observations")
        if self.has_source():
            groups = value.get("groups") or {} if name == "env" else {}
        if name == "env" and isinstance(groups, dict) and "critic" not in groups:
            value = {"final_obs_groups": ("actor",), **value}  # the critic sees what the policy sees
        for key in [key for key in value if f"{name}.{key}" in _ELSEWHERE]:
            self.problem((name, key), f"is {_ELSEWHERE[f'{name}.{key}']} now")
            value = {other: one for other, one in value.items() if other != key}
        for key, near in misplaced(name, value).items():
            self.problem((name, key), f"no such key{near}")
            value = {other: one for other, one in value.items() if other != key}
        return self.model(Page.model_fields[name].annotation, value, (name,))  # type: ignore[arg-type]

    def score(self, value: dict[str, Any]) -> dict[str, Any] | None:
        """Check the parameters of the family's score; None where something is wrong with them."""
        if self.family is None:
            if value and self.value.get("task") is None:
                self.problem(("score",), "belongs to a task family, and the page names none; write task: NAME, or leave it out")
            return None if value else {}
        model = entry_model(self.family.score)
        parsed = self.model(model, value, ("score",))
        return parsed and {key: getattr(parsed, key) for key in model.model_fields}

    def entries(self, section: str, value: Any, path: Keys) -> dict[str, Entry] | None:
        if not isinstance(value, dict):
            return self.problem(path, f"{shown(value)} is not a mapping of terms")
        entries = {name: self.entry(SECTIONS[section], name, one, (*path, name)) for name, one in value.items()}
        return None if None in entries.values() else typing.cast("dict[str, Entry]", entries)

    def entry(self, kind: str, name: str, value: Any, path: Keys) -> Entry | None:
        if not isinstance(value, dict):
            return self.problem(path, f"{shown(value)} is not a mapping of the term's parameters")
        term = value.get("term", name)
        if not isinstance(term, str):
            return self.problem((*path, "term"), f"{shown(term)} is not a string")
        if (signature := self.terms[kind].get(term)) is None:
            return self.unknown_term(kind, term, (*path, "term") if "term" in value else path)
        model = entry_model(signature)
        if (given := self.without_wrong_defaults(model, signature, value)) is None:
            return None
        parsed = self.model(model, given, path)
        if parsed is None:
            return None
        values = {key: getattr(parsed, key) for key in model.model_fields}
        if not self.joints_have_numbers(values, path):
            return None
        extras = {key: values.pop(key) for key in EXTRAS.get(kind, ())}
        return Entry(term=signature.name, params=values, **extras)

    def without_wrong_defaults(
        self, model: type[Model], signature: TermSignature, value: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Give the entry's parameters; None where a default of the term, which the entry leaves as it is, cannot be."""
        given = {key: one for key, one in value.items() if key != "term"}
        _, told = check_section(model, given, self.context)
        ours = {key for key, one in signature.parameters.items() if one.default is not REQUIRED} - set(given)
        place = f"{display(signature.module_path)}:{signature.lineno}"
        wrong = {where[0]: f"the default {said}" for where, said in told.items() if where[0] in ours}
        self.problems += [Problem(place, f"{signature.name}.{key}", said) for key, said in wrong.items()]
        return None if wrong else given

    def joints_have_numbers(self, values: dict[str, Any], path: Keys) -> bool:
        """Say whether every mapping from joint groups to numbers names each joint once."""
        fine = True
        for key, value in values.items() if self.robot else ():
            if isinstance(value, dict):
                assert self.robot is not None
                try:
                    self.robot.per_joint(value, self.robot.joints_of(values.get("joints", "all")))
                except ValueError as error:
                    fine = False
                    self.problem((*path, key), str(error))
        return fine

    def unknown_term(self, kind: str, term: str, path: Keys) -> None:
        if now := _MOVED.get(term):
            return self.problem(path, f"no such term any more: write {{term: randomize, {now}}} (docs/terms.md)")
        near = did_you_mean(term, self.terms[kind])
        elsewhere = next((section for section, one in SECTIONS.items() if term in self.terms[one]), None)
        if elsewhere:
            self.problem(path, f"no such term here: it belongs to {elsewhere}")
        elif self.terms_are_known and (there := undeclared(term, self.own_files)):
            decorated = f"def or class at the top of the file, under @{kind}()"
            self.problem(path, f"no such term: {there} has one of this name that is not declared; a term is a {decorated}")
        elif near or self.terms_are_known:  # else it may stand in the file that cannot be read
            section = next(section for section, one in SECTIONS.items() if one == kind)
            self.problem(path, f"no such term{near} (`embodied-rl list --terms {section}` shows all)")

    def model(self, model: type[M], value: dict[str, Any], path: Keys) -> M | None:
        """Validate a flat mapping; None where something is wrong with it."""
        parsed, told = check_section(model, value, self.context)
        for where, message in told.items():
            self.problem((*path, *where), message)
        return parsed

    def cross_check(self, parts: Mapping[str, Any]) -> None:
        """Check what no field can know alone."""
        env, physics, ppo = parts["env"], parts["physics"], parts["ppo"]
        if parts["actions"] is not None and not parts["actions"]:
            self.problem(("actions",), "a page needs at least one action term, like joint_position: {scale: 0.5}")
        for name, entry in (parts["actions"] or {}).items() if physics else ():
            latency = entry.params.get("latency", (0, 0))
            if latency[1] > physics.decimation:
                within = f"at most {physics.decimation}, physics.decimation: targets hold for one control step"
                self.problem(("actions", name, "latency"), f"{shown(latency)} is not allowed: {within}")
        for name, entry in (parts["events"] or {}).items():
            when, every = entry.params.get("when"), self.terms["event"][entry.term].parameters.get("interval_s")
            if when not in (None, "interval") and every and entry.params["interval_s"] != every.default:
                self.problem(("events", name, "interval_s"), f"only read with when: interval, and it is {when}; leave it out")
        if parts["observations"] is not None:
            self.check_groups(parts["observations"], env.final_obs_groups if env else ())
        if env and physics and env.episode_s < (control_dt := physics.dt * physics.decimation):
            product = f"physics.dt {physics.dt:g} x decimation {physics.decimation}"
            message = f"{env.episode_s:g} is shorter than one control step of {control_dt:g} s ({product})"
            self.problem(("env", "episode_s"), message)
        if ppo and ppo.symmetry == "mirror_loss" and ppo.mirror_loss_coeff == 0:
            self.problem(("ppo", "mirror_loss_coeff"), "0.0 is not allowed with symmetry: mirror_loss; more than 0")
        if ppo and ppo.symmetry != "none" and ppo.rnn_type != "none":
            message = f"{ppo.symmetry} needs a policy without memory, of which nobody knows the mirror image; take symmetry: none"
            self.problem(("ppo", "symmetry"), f"{message}, or rnn_type: none")
        if env and not env.source:
            self.left_out("env", env, ("source_options", "groups", "reward_scale"), "only allowed with env.source; leave it out")
        if parts["terrain"] and parts["patches"] == {}:
            why = "only read with patches, like {stairs: {}, slope: {}}; leave it out"
            self.left_out("terrain", parts["terrain"], type(parts["terrain"]).model_fields, why)
        check_learning(parts, self.problem)
        self.check_evaluation(parts)

    def left_out(self, section: str, settings: Model, keys: Iterable[str], why: str) -> None:
        """Refuse keys of a section that nothing would read, where they say something."""
        for key in keys:
            if getattr(settings, key) != type(settings).model_fields[key].default:
                self.problem((section, key), why)

    def check_groups(self, groups: dict[str, Any], final: tuple[str, ...]) -> None:
        """Check that the policy's group is there, none is empty, and those of `env.final_obs_groups` exist."""
        if "actor" not in groups:
            self.problem(("observations",), "the group 'actor' is missing: it is what the policy sees")
        for group, entries in groups.items():
            if not entries:
                self.problem(("observations", group), "a group needs at least one term")
        for group in (one for one in final if one not in groups and "actor" in groups):
            near = did_you_mean(group, groups) or f"; there are {quoted(groups)}"
            self.problem(("env", "final_obs_groups"), f"{shown(group)} is not a group of observations{near}")
