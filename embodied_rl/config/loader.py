"""From a name, a path or a page and `key=value` overrides to a page."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from embodied_rl import family, paths
from embodied_rl.config.misplaced import PLAIN
from embodied_rl.config.page import Page
from embodied_rl.config.terms import SECTIONS
from embodied_rl.config.validate import validate
from embodied_rl.problems import ConfigError, Problem, did_you_mean, shown
from embodied_rl.robot import robot_names
from embodied_rl.strict_yaml import Document, Keys, display, merge, parse, read


def config_names() -> list[str]:
    """List the pages that ship with the package."""
    return sorted(path.stem for path in paths.shipped("configs").glob("*.yaml"))


def load(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Page:
    """Read a page with all it extends, apply overrides, check it.

    Args:
        name_or_path: The name of a shipped page (`go2_flat`) or the path of a YAML file, a run's config.yaml included.
        overrides: Changes, each `key.path=value`: `rewards.action_rate.weight=-0.02`.

    Raises:
        ConfigError: With every problem at once.
    """
    path = _find(str(name_or_path), Path.cwd())
    merged = _read_chain(path, ())
    merged.value.setdefault("name", path.stem)
    return _override(merged, overrides)


def override(page: Page, overrides: Iterable[str]) -> Page:
    """Apply changes to a page, each `key.path=value`.

    Raises:
        ConfigError: With every problem at once.
    """
    return _override(Document(page.to_mapping(), {(): page.name}), overrides)


def _override(document: Document, overrides: Iterable[str]) -> Page:
    for one in overrides:
        layer = _parse_override(one)
        _resolve_paths(layer, Path.cwd())
        document = _merge(document, layer)
    return validate(document)


def _parse_override(text: str) -> Document:
    """Read `a.b=1` as the document `{a: {b: 1}}`."""
    place = f'override "{text}"'
    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        return Document({}, {}, [Problem(place, "", "write key.path=value, like env.num_envs=512")])
    try:
        parsed = parse(value, place, lines=False)
    except ConfigError as error:
        return Document({}, {}, list(error.problems))
    nested = parsed.value
    for name in reversed(keys):
        nested = {name: nested}
    places: dict[Keys, str] = {tuple(keys[:depth]): place for depth in range(1, len(keys) + 1)}
    places |= {(*keys, *path): place for path in parsed.places}
    return Document(nested, places, parsed.problems)


def _find(text: str, folder: Path) -> Path:
    """Find the file that a name or a path (relative to `folder`) means."""
    path = folder / Path(text).expanduser()
    name = text.removesuffix(".yaml")
    if path.is_file() and name != text:
        return path
    if name in config_names():
        return paths.shipped("configs") / f"{name}.yaml"
    if path.is_dir():
        pages = sorted(page.name for page in path.glob("*.yaml") if page.name != "robot.yaml")
        raise ConfigError([Problem(display(path), "", f"a folder, not a page{'; in it: ' * bool(pages)}{', '.join(pages)}")])
    if path.suffix.lower() in (".xml", ".urdf", ".xacro", ".mjcf") and path.exists():
        made = f"a robot's file, not a page; make one of it: embodied-rl new robot {display(path)}"
        raise ConfigError([Problem(display(path), "", made)])
    if path.exists():
        return path
    if name != text or os.sep in text or "/" in text:
        raise ConfigError([Problem(display(path), "", "no such file")])
    known = ", ".join(config_names())
    message = f"no such config{did_you_mean(text, config_names())} (shipped: {known}; a path ends in .yaml)"
    raise ConfigError([Problem(shown(text), "", message)])


def _read_chain(path: Path, below: tuple[Path, ...]) -> Document:
    """Read a page and merge it over the page it extends."""
    document = read(path)
    if not isinstance(document.value, dict):
        raise ConfigError([Problem(display(path), "", f"a page is a mapping, not {shown(document.value)}")])
    if not document.value and not document.problems:
        raise ConfigError([Problem(display(path), "", "the file is empty")])
    _resolve_paths(document, path.parent)
    base = Document({})
    if "extends" in document.value:
        base = _read_base(document, path.parent, (*below, path.resolve()))
        base.value.pop("name", None)
    return _merge(base, document)


def _read_base(document: Document, folder: Path, chain: tuple[Path, ...]) -> Document:
    """Read the page that `extends` names; without it a page lacks nearly everything, so a wrong one is told alone."""
    extends, place = document.value.pop("extends"), document.places[("extends",)]
    try:
        if not isinstance(extends, str):
            raise ConfigError([Problem("", "", f"{shown(extends)} is not a string")])
        path = _find(extends, folder).resolve()
        if path in chain:
            circle = " -> ".join(display(one) for one in (*chain, path))
            raise ConfigError([Problem("", "", f"pages extend each other in a circle: {circle}")])
    except ConfigError as error:
        raise ConfigError([*document.problems, Problem(place, "extends", str(error))]) from None
    return _read_chain(path, chain)


def _resolve_paths(document: Document, folder: Path) -> None:
    """Make the paths of a page, which are relative to its file, absolute."""
    page, terms = document.value, document.value.get("terms")
    for key, shipped in (("robot", robot_names), ("task", family.family_names)):
        given = page.get(key)
        if isinstance(given, str) and given not in shipped():
            path = folder / Path(given).expanduser()
            if path.exists() or "/" in given or os.sep in given:
                page[key] = str(path.resolve())
    if isinstance(terms, list) and all(isinstance(one, str) for one in terms):
        page["terms"] = [str((folder / Path(one).expanduser()).resolve()) for one in terms]


def _merge(base: Document, top: Document) -> Document:
    """Lay `top` over `base`; null takes an inherited term away."""
    return merge(base, top, _removes, "term", (*SECTIONS, *PLAIN), _is_parameter)


def _removes(path: Keys) -> bool:
    """Say whether null at this place means absence: a section of terms, a group of observations, an entry, the whole score."""
    return path == ("score",) or (path[0] in SECTIONS and len(path) <= (3 if path[0] == "observations" else 2))


def _is_parameter(path: Keys) -> bool:
    """Say whether a term's parameter stands at this place: a mapping of numbers by joint replaces the inherited one whole."""
    return path[0] in SECTIONS and not _removes(path)
