"""Strict YAML: what a page says is what it means.

PyYAML parses; the meaning of a plain word is decided here.  Only `true` and `false` are booleans, `1e-3` and `.5` are
numbers, `on`, `12:30` and dates are strings.  Duplicate keys, keys that are not strings, tags and merge keys are
refused.  A key with nothing after it holds an empty mapping; `null` and `~` are null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from embodied_rl.problems import ConfigError, Problem, did_you_mean, shown

#: A place in a document: the keys and list positions that lead to it.
Keys = tuple[str | int, ...]

_CONSTANTS = {"true": True, "false": False, "null": None, "~": None}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,300})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*")


class _Loader(yaml.SafeLoader):
    """Leaves scalars alone: no implicit types, and tags of our own so that any written tag stands out."""

    yaml_implicit_resolvers: ClassVar = {}
    DEFAULT_SCALAR_TAG, DEFAULT_SEQUENCE_TAG, DEFAULT_MAPPING_TAG = "scalar", "sequence", "mapping"


@dataclass
class Document:
    """A parsed document with the place of each of its values."""

    value: Any
    places: dict[Keys, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def display(path: Path) -> str:
    """Write the path as a person would type it: relative to the working folder where it lies inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read(path: Path) -> Document:
    """Parse a file.

    Raises:
        ConfigError: The file cannot be read or is not YAML.  Problems that leave the rest readable are in `problems`.
    """
    name = display(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(name, "", f"not UTF-8 text (byte {error.start})")]) from None
    except IsADirectoryError:
        raise ConfigError([Problem(name, "", "a folder, not a file")]) from None
    except FileNotFoundError:
        raise ConfigError([Problem(name, "", "no such file")]) from None
    except OSError as error:
        raise ConfigError([Problem(name, "", f"cannot be read: {error.strerror}")]) from None
    return parse(text, name)


def parse(text: str, place: str, *, lines: bool = True) -> Document:
    """Parse a text; places are `place:line`, or `place` alone without `lines`.

    Raises:
        ConfigError: The text is not YAML.
    """
    document = Document({})
    try:
        node = _composed(text)
        if node is not None:
            document.value = _Reader(document, place, lines).value(node, (), ())
    except yaml.MarkedYAMLError as error:
        said, mark, begun = str(error.problem), error.problem_mark, error.context_mark
        if begun and mark and begun.line != mark.line and re.search("scanning|flow", str(error.context)):
            # what is left open is found out where the file ends
            said, mark = f"{error.context}: {said} before line {mark.line + 1}", begun
        where = f"{place}:{mark.line + 1}" if lines and mark else place
        hint = " (indent with spaces)" if "'\\t'" in said else ""
        raise ConfigError([Problem(where, "", f"not valid YAML: {said}{hint}")]) from None
    except yaml.YAMLError as error:
        raise ConfigError([Problem(place, "", f"not valid YAML: {str(error).splitlines()[0]}")]) from None
    except RecursionError:
        raise ConfigError([Problem(place, "", "nested too deeply")]) from None
    return document


@lru_cache(maxsize=256)
def _composed(text: str) -> yaml.Node | None:
    """Read a text's nodes, which nobody changes; a page names the same files again and again."""
    return yaml.compose(text, _Loader)


class _Reader:
    """Turns nodes into values and notes where each was written."""

    def __init__(self, document: Document, place: str, lines: bool):
        self.document, self.place, self.lines = document, place, lines

    def where(self, node: yaml.Node) -> str:
        return f"{self.place}:{node.start_mark.line + 1}" if self.lines else self.place

    def problem(self, node: yaml.Node, path: Keys, message: str) -> None:
        self.document.problems.append(Problem(self.where(node), dotted(path), message))

    def value(self, node: yaml.Node, path: Keys, above: tuple[int, ...]) -> Any:
        self.document.places.setdefault(path, self.where(node))
        if id(node) in above:
            self.problem(node, path, "an alias that contains itself")
        elif node.tag not in ("scalar", "sequence", "mapping"):
            self.problem(node, path, f"tags like {node.tag.replace('tag:yaml.org,2002:', '!!')} are not allowed")
        elif isinstance(node, yaml.ScalarNode):
            return _word(node)
        elif isinstance(node, yaml.SequenceNode):
            above = (*above, id(node))
            return [self.value(item, (*path, i), above) for i, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, (*above, id(node)))
        return None

    def mapping(self, node: yaml.MappingNode, path: Keys, above: tuple[int, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        before: int | None = None
        for key_node, value_node in node.value:
            key = _word(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if isinstance(key, int) and before is not None and value_node.value == "":  # {scale: 0,5}
                self.problem(
                    key_node, path, f"{before},{key_node.value} is no number; a decimal has a point: {before}.{key_node.value}"
                )
            elif not isinstance(key, str):
                self.problem(key_node, path, "a key must be a string; put it in quotes")
            elif key == "<<":
                self.problem(key_node, path, "merge keys (<<) are not supported; `extends` merges pages")
            elif key in values:
                self.problem(key_node, (*path, key), f"written twice, first at {self.document.places[(*path, key)]}")
            else:
                self.document.places[(*path, key)] = self.where(key_node)
                values[key] = self.value(value_node, (*path, key), above)
            before = values[key] if isinstance(key, str) and type(values.get(key)) is int else None
        return values


def _word(node: yaml.ScalarNode) -> Any:
    return scalar(node.value) if node.style is None else node.value


def scalar(text: str) -> Any:
    """Give the value of a plain (unquoted) word."""
    if text == "":
        return {}
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def dotted(path: Keys) -> str:
    """Write `('rewards', 'pose', 'std', 0)` as `rewards.pose.std[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def problem_at(places: Mapping[Keys, str], path: Keys, message: str) -> Problem:
    """Make a problem of a value, placed where it was written, or what it stands in."""
    where = path
    while where and where not in places:
        where = where[:-1]
    return Problem(places.get(where, ""), dotted(path), message)


def merge(
    base: Document,
    top: Document,
    removes: Callable[[Keys], bool],
    entry: str,
    sections: Container[str],
    replaces: Callable[[Keys], bool] = lambda path: False,
) -> Document:
    """Lay `top` over `base`: mappings key by key; all else replaces; null takes an inherited entry away.

    What is no mapping where a section or an entry stands is a problem, though a mapping is laid over it.

    Args:
        base: what is inherited.
        top: what is written over it.
        removes: whether null at a place means absence.
        entry: what such a place holds, for the message about one that is not there.
        sections: keys at the top that hold mappings.
        replaces: whether a mapping at a place takes the inherited one's place whole.
    """
    merged = Document({}, {**base.places, **top.places}, [*base.problems, *top.problems])

    def laid(below: dict[str, Any], above: dict[str, Any], path: Keys) -> dict[str, Any]:
        result = dict(below)
        for key, value in above.items():
            here = (*path, key)
            if value is None and removes(here):
                if key not in result and path:
                    message = f"null, but there is no inherited {entry} to remove{did_you_mean(key, result)}"
                    merged.problems.append(Problem(merged.places[here], dotted(here), message))
                result.pop(key, None)
            elif isinstance(value, dict) and not replaces(here):
                inherited = result.get(key)
                mapping = removes(here) if path else key in sections
                if mapping and inherited is not None and not isinstance(inherited, dict):
                    merged.problems.append(problem_at(base.places, here, f"{shown(inherited)} is not a mapping"))
                result[key] = laid(inherited if isinstance(inherited, dict) else {}, value, here)
            else:
                result[key] = value
        return result

    merged.value = laid(base.value, top.value, ())
    return merged


def dump(mapping: dict[str, Any], indent: str = "") -> str:
    """Write a mapping so that `parse` gives it back: sections as blocks, what fits on a line on one line."""
    lines: list[str] = []
    for key, value in mapping.items():
        line = f"{indent}{_flow(key)}: {_flow(value)}"
        nested = isinstance(value, dict) and value
        if nested and (not indent or len(line) > 120 or any(isinstance(one, dict) for one in value.values())):
            line = f"{indent}{_flow(key)}:\n{dump(value, indent + '  ')}".rstrip("\n")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and scalar(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
