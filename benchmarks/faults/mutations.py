"""Mistakes in documents: of values (a page, robot.yaml), of the text that says them (YAML), of model files (MJCF, URDF).

Each function makes one mistake that `draw` chooses, and says what it was and which words stand at its place: a refusal that has
none of them tells nobody where to look.
"""

from __future__ import annotations

import copy
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

#: What stands in place of a value.
ODD: tuple[Any, ...] = (
    *(0, -1, 1, 1e30, -1e-40, float("nan"), float("inf"), 10**30, 0.5, 1e5),
    *("", "x", "1.0", "1e-3", "0,5", "yes", "on", "All", "../x", "a b", "é", "{x}"),
    *(None, True, False, [], {}, [1, 2], [[1]], {"x": 1}),
)
#: The same in a model file, and in place of one of the numbers of an attribute.
ODD_TEXT = ("", "0", "-1", "1e30", "nan", "inf", "x", "0 0 0", "1 2", "true", "0 0 0 0", "1,5")
ODD_NUMBERS = (0.0, -1.0, 1e-12, 1e6, 1e30, math.nan, math.inf)
#: Factors of a wrong unit: a sign, millimetres, grams, degrees, percent.
UNITS = (-1.0, 0.001, 1000.0, 180.0 / math.pi, math.pi / 180.0, 100.0, 0.01)

#: Model elements that break something where they are added, by parent.
ADDED = {
    "mujoco": (
        '<option timestep="0.1" gravity="0 0 0"/>',
        '<option integrator="RK4" cone="elliptic"/>',
        '<compiler angle="degree"/>',
        '<compiler autolimits="false"/>',
        '<compiler inertiafromgeom="true"/>',
        '<compiler meshdir="nowhere"/>',
        '<keyframe><key name="home" qpos="0 0 1"/></keyframe>',
        '<include file="nothing.xml"/>',
        '<sensor><gyro site="nothing"/></sensor>',
        '<actuator><motor joint="nothing"/></actuator>',
        '<contact><exclude body1="base" body2="nothing"/></contact>',
        '<equality><joint joint1="nothing"/></equality>',
        '<default><default class="extra"/></default>',
        '<worldbody><geom type="plane" size="1 1 1" pos="0 0 0.2"/></worldbody>',
        '<worldbody><body name="ball" pos="0 0 2"><freejoint/><geom size="0.1"/></body></worldbody>',
        "<nonsense/>",
    ),
    "body": (
        "<freejoint/>",
        '<joint type="ball"/>',
        '<joint name="extra" type="hinge"/>',
        '<body><geom size="0.01"/></body>',
        '<body name="loose"><joint/></body>',
        '<geom size="0.5" mass="100"/>',
        '<inertial pos="0 0 0" mass="1" diaginertia="1 0.1 0.1"/>',
    ),
    "robot": ('<link name="loose"/>', '<gazebo reference="x"/>', '<transmission name="t"/>', "<nonsense/>"),
    "joint": (
        '<mimic joint="nothing"/>',
        '<dynamics damping="-1" friction="5"/>',
        '<limit lower="1" upper="-1"/>',
        '<axis xyz="0 0 0"/>',
    ),
    "link": (
        '<inertial><mass value="-1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>',
        '<collision><geometry><mesh filename="gone.stl"/></geometry></collision>',
        '<collision><geometry><sphere radius="-1"/></geometry></collision>',
    ),
}


@dataclass(frozen=True)
class Mutation:
    """A broken document."""

    document: Any
    """What it is now: a mapping, or a text."""
    said: str
    """What was done, in a line."""
    words: tuple[str, ...]
    """What a refusal may name: keys, names, lines."""


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Find the places of all values in nested mappings and lists."""
    if isinstance(value, (dict, list)):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from leaves(one, (*path, key))


def _at(document: Any, path: tuple) -> Any:
    for key in path:
        document = document[key]
    return document


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def mutate(document: Any, draw: random.Random) -> Mutation:
    """Make one mistake in the values of a document."""
    changed = copy.deepcopy(document)
    places = sorted(leaves(changed), key=str)
    while True:
        path, kind = draw.choice(places), draw.choice(sorted(_VALUES))
        parent, key = _at(changed, path[:-1]), path[-1]
        said = _VALUES[kind](changed, parent, key, draw, places)
        if said is not None and changed != document:
            words = tuple(str(one) for one in (*path, *re.findall(r"[\w./-]{3,}", said)) if isinstance(one, str))
            return Mutation(changed, f"{'.'.join(map(str, path))}: {kind}: {said}"[:160], words)
        changed = copy.deepcopy(document)


def _odd(_: Any, parent: Any, key: Any, draw: random.Random, __: Any) -> str:
    old, parent[key] = parent[key], draw.choice(ODD)
    return f"{old!r} -> {parent[key]!r}"


def _unit(_: Any, parent: Any, key: Any, draw: random.Random, __: Any) -> str | None:
    if not _is_number(old := parent[key]):
        return None
    parent[key] = type(old)(old * draw.choice(UNITS))
    return f"{old!r} -> {parent[key]!r}"


def _drop(_: Any, parent: Any, key: Any, *__: Any) -> str:
    del parent[key]
    return "left out"


def _rename(parent: dict, key: str, word: str) -> str | None:
    if word in parent:
        return None
    items = [(word if name == key else name, one) for name, one in parent.items()]
    parent.clear()
    parent.update(items)
    return f"now {word}"


def _misspell(_: Any, parent: Any, key: Any, draw: random.Random, __: Any) -> str | None:
    if not isinstance(key, str):
        return None
    at = draw.randrange(len(key))
    words = [key[:-1], key[:at] + key[at + 1 :], key[:at] + "x" + key[at:], key.upper(), key.replace("_", "-"), f" {key}"]
    return _rename(parent, key, draw.choice(words))


def _misspell_value(_: Any, parent: Any, key: Any, draw: random.Random, __: Any) -> str | None:
    if not isinstance(old := parent[key], str) or len(old) < 2:
        return None
    parent[key] = draw.choice((old[:-1], old + "s", old.upper(), old.swapcase(), f"{old} ", old.replace("_", "-")))
    return f"{old!r} -> {parent[key]!r}" if parent[key] != old else None


def _other(changed: Any, parent: Any, key: Any, draw: random.Random, places: list[tuple]) -> str | None:
    """Put another value of the document here: of the same type, so that it is a name or a number that has a meaning elsewhere."""
    old = parent[key]
    others = [one for path in places if type(one := _at(changed, path)) is type(old) and one != old]
    if not others or isinstance(old, (dict, bool)) or old is None:
        return None
    parent[key] = copy.deepcopy(draw.choice(others))
    return f"{old!r} -> {parent[key]!r}"


def _exchange(_: Any, parent: Any, key: Any, draw: random.Random, __: Any) -> str | None:
    """Exchange two neighbours' values."""
    keys = [one for one in (parent if isinstance(parent, dict) else range(len(parent))) if one != key]
    if not keys:
        return None
    other = draw.choice(keys)
    parent[key], parent[other] = parent[other], parent[key]
    return f"exchanged with {other}"


def _list(_: Any, parent: Any, key: Any, draw: random.Random, __: Any) -> str | None:
    """Shorten or lengthen a list, write one of its items twice, or turn it round."""
    if not isinstance(old := parent[key], list) or not old:
        return None
    kinds: tuple[Callable[[list], list], ...] = (
        lambda items: items[:-1],
        lambda items: [*items, items[-1]],
        lambda items: items[::-1],
        lambda items: items[:1],
        lambda items: [*items, None],
    )
    parent[key] = draw.choice(kinds)(old)
    return f"{old!r} -> {parent[key]!r}"


def _type(_: Any, parent: Any, key: Any, draw: random.Random, __: Any) -> str | None:
    """Write a value in another type: quoted, in a list, as a mapping; a list's only item bare."""
    old = parent[key]
    choices: list[Any] = [[old], {"value": old}]
    choices += [str(old), str(old).replace(".", ",")] if _is_number(old) or isinstance(old, bool) else []
    choices += [old[0], ", ".join(map(str, old))] if isinstance(old, list) and old else []
    choices += [dict.fromkeys(old, 1.0)] if isinstance(old, list) and all(isinstance(one, str) for one in old) else []
    parent[key] = draw.choice(choices)
    return f"{old!r} -> {parent[key]!r}"


def _move(changed: Any, parent: Any, key: Any, draw: random.Random, places: list[tuple]) -> str | None:
    """Move a key into another mapping, or out of its own."""
    mappings = [one for path in [(), *places] if isinstance(one := _at(changed, path), dict) and one is not parent]
    if not isinstance(key, str) or not mappings:
        return None
    value = parent.pop(key)
    place = draw.choice(mappings)
    inside = isinstance(value, (dict, list)) and any(one is place for one in (value, *(_at(value, p) for p in leaves(value))))
    if inside or key in place:
        return None
    place[key] = value
    return f"moved beside {', '.join(map(str, list(place)[:2]))}"


def _add(_: Any, parent: Any, key: Any, draw: random.Random, __: Any) -> str | None:
    """Add a key that is not there."""
    if not isinstance(parent, dict):
        return None
    word = draw.choice(("extra", "lr", "seed", "weight", "scale", "device", "note", "term", "std"))
    return None if word in parent else (parent.__setitem__(word, draw.choice(ODD)) or f"beside it {word}: {parent[word]!r}")


_VALUES: dict[str, Callable[..., str | None]] = {
    "odd": _odd,
    "odd too": _odd,
    "unit": _unit,
    "unit too": _unit,
    "left out": _drop,
    "misspelt": _misspell,
    "value misspelt": _misspell_value,
    "another's value": _other,
    "exchanged": _exchange,
    "list": _list,
    "type": _type,
    "moved": _move,
    "added": _add,
}


def mutate_text(text: str, draw: random.Random) -> Mutation:
    """Make one mistake in a YAML text, as an editor or a hand leaves it."""
    while True:
        lines = text.splitlines()
        at, kind = draw.randrange(len(lines)), draw.choice(sorted(_TEXTS))
        old = lines[at]
        _TEXTS[kind](lines, at, draw)
        broken = "\n".join(lines) + "\n"
        if broken != text:
            lost = text.splitlines()[at:] if kind == "file ends here" else [old]
            words = tuple(re.findall(r"[\w.-]+", " ".join(lost))) + tuple(f":{at + 1 + off}" for off in range(-1, 3))
            return Mutation(broken, f"line {at + 1}, {old.strip()!r}: {kind}"[:160], words)


def _line(change: Callable[[str], str]) -> Callable[[list[str], int, random.Random], None]:
    def apply(lines: list[str], at: int, _: random.Random) -> None:
        lines[at] = change(lines[at])

    return apply


def _twice(lines: list[str], at: int, _: random.Random) -> None:
    lines.insert(at, lines[at])


def _gone(lines: list[str], at: int, _: random.Random) -> None:
    del lines[at]


def _end(lines: list[str], at: int, _: random.Random) -> None:
    del lines[at + 1 :]


def _value(line: str, change: Callable[[str], str]) -> str:
    head, colon, value = line.partition(": ")
    return f"{head}{colon}{change(value)}" if value else line


_TEXTS: dict[str, Callable[[list[str], int, random.Random], None]] = {
    "written twice": _twice,
    "line lost": _gone,
    "file ends here": _end,
    "tab": _line(lambda line: "\t" + line.lstrip()),
    "indented more": _line(lambda line: " " + line),
    "indented less": _line(lambda line: line.removeprefix(" ")),
    "no space after the colon": _line(lambda line: line.replace(": ", ":", 1)),
    "no colon": _line(lambda line: line.replace(":", "", 1)),
    "equals for colon": _line(lambda line: line.replace(":", " =", 1)),
    "comma decimal": _line(lambda line: re.sub(r"(\d)\.(\d)", r"\1,\2", line)),
    "quotes": _line(lambda line: _value(line, lambda value: f'"{value}"')),
    "quote left open": _line(lambda line: _value(line, lambda value: f'"{value}')),
    "bracket left open": _line(lambda line: _value(line, lambda value: f"[{value}")),
    "yes": _line(lambda line: _value(line, lambda _: "yes")),
    "with its unit": _line(lambda line: _value(line, lambda value: f"{value} m/s")),
    "percent": _line(lambda line: _value(line, lambda value: f"%{value}")),
    "tag": _line(lambda line: _value(line, lambda value: f"!!str {value}")),
    "alias": _line(lambda line: _value(line, lambda value: f"*{value}")),
    "merge key": _line(lambda line: re.sub(r"[^ ].*", "<<: {x: 1}", line)),
    "number as a key": _line(lambda line: re.sub(r"\w+(?=:)", "1", line)),
    "list dash": _line(lambda line: re.sub(r"(?=[^ ])", "- ", line, count=1)),
    "sum": _line(lambda line: _value(line, lambda value: f"{value}*2")),
    "degrees": _line(lambda line: _value(line, lambda value: f"{value}deg")),
    "value on the next line": _line(lambda line: line.replace(": ", ":\n", 1)),
}


def mutate_model(text: str, draw: random.Random) -> Mutation:
    """Make one mistake in a model file."""
    while True:
        tree = ElementTree.fromstring(text)
        elements = [one for one in tree.iter() if one is not tree]
        element, kind = draw.choice(elements), draw.choice(sorted(_MODELS))
        name = f"<{element.tag} {element.get('name', '')}>"
        around = (element, _parent(tree, element), *element.iter())
        words = [element.tag, *(one for other in around for one in other.attrib.values())]
        if (said := _MODELS[kind](tree, element, draw)) is not None:
            words += [*re.findall(r"[\w./-]{2,}", said), *element.attrib.values()]
            broken = ElementTree.tostring(tree, encoding="unicode")
            if broken != ElementTree.tostring(ElementTree.fromstring(text), encoding="unicode"):
                return Mutation(broken, f"{name}: {kind}: {said}"[:160], (*words, ", line "))


def _parent(tree: ElementTree.Element, element: ElementTree.Element) -> ElementTree.Element:
    return next(one for one in tree.iter() if element in list(one))


def _attribute(tree: Any, element: ElementTree.Element, draw: random.Random) -> str | None:
    if not element.attrib:
        return None
    key = draw.choice(sorted(element.attrib))
    old = element.attrib[key]
    element.set(key, draw.choice(ODD_TEXT))
    return f"{key} {old!r} -> {element.get(key)!r}"


def _number(tree: Any, element: ElementTree.Element, draw: random.Random) -> str | None:
    """Change one of the numbers of an attribute, and leave as many."""
    keys = [key for key, value in element.attrib.items() if re.fullmatch(r"[-+.\deE ]+", value) and value.strip()]
    if not keys:
        return None
    key = draw.choice(sorted(keys))
    old = element.attrib[key]
    numbers = old.split()
    at = draw.randrange(len(numbers))
    number = float(numbers[at])
    changed = draw.choice((*ODD_NUMBERS, *(number * unit for unit in UNITS)))
    numbers[at] = f"{changed:g}"
    element.set(key, " ".join(numbers))
    return f"{key} {old!r} -> {element.get(key)!r}" if changed != number else None


def _attribute_gone(tree: Any, element: ElementTree.Element, draw: random.Random) -> str | None:
    if not element.attrib:
        return None
    key = draw.choice(sorted(element.attrib))
    return f"{key} {element.attrib.pop(key)!r}"


def _gone_element(tree: ElementTree.Element, element: ElementTree.Element, _: random.Random) -> str:
    _parent(tree, element).remove(element)
    return "gone"


def _twice_element(tree: ElementTree.Element, element: ElementTree.Element, _: random.Random) -> str:
    _parent(tree, element).append(copy.deepcopy(element))
    return "twice"


def _names(tree: ElementTree.Element, element: ElementTree.Element, draw: random.Random) -> str | None:
    """Give an attribute that names something the value that another element has there: names exchanged, classes, references."""
    keys = [key for key, value in element.attrib.items() if re.fullmatch(r"[A-Za-z_]\w*", value)]
    if not keys:
        return None
    key = draw.choice(sorted(keys))
    old = element.attrib[key]
    others = [one for one in tree.iter() if one.get(key, old) != old]
    if not others:
        return None
    other = draw.choice(others)
    element.set(key, other.get(key, ""))
    if draw.random() < 0.5:
        other.set(key, old)
    return f"{key} {old!r} -> {element.get(key)!r}"


def _moved(tree: ElementTree.Element, element: ElementTree.Element, draw: random.Random) -> str | None:
    """Hang an element on another parent of the same kind."""
    parent = _parent(tree, element)
    others = [one for one in tree.iter(parent.tag) if one is not parent and one not in list(element.iter())]
    if not others:
        return None
    parent.remove(element)
    other = draw.choice(others)
    other.append(element)
    return f"moved into {other.get('name', other.tag)}"


def _added(tree: ElementTree.Element, _: Any, draw: random.Random) -> str | None:
    places = [one for one in tree.iter() if one.tag in ADDED and not (one.tag == "joint" and tree.tag == "mujoco")]
    place = draw.choice(places)
    text = draw.choice(ADDED[place.tag])
    place.append(ElementTree.fromstring(text))
    return f"{text} in {place.get('name', place.tag)}"


def _set(tree: ElementTree.Element, element: ElementTree.Element, draw: random.Random) -> str | None:
    """Write an attribute that is seldom written."""
    allowed: dict[str, Sequence[tuple[str, str]]] = {
        "geom": (("contype", "0"), ("conaffinity", "4"), ("condim", "7"), ("priority", "9"), ("margin", "0.1"), ("mass", "-1")),
        "robot joint": [("type", one) for one in ("fixed", "continuous", "prismatic", "floating", "planar", "hinge")],
        "joint": (("type", "slide"), ("type", "ball"), ("axis", "0 0 0"), ("range", "1 -1"), ("range", "-90 90"), ("ref", "1")),
        "body": (("gravcomp", "1"), ("mocap", "true"), ("childclass", "nothing"), ("euler", "90 0 0"), ("quat", "0 0 0 0")),
        "site": (("pos", "9 9 9"), ("name", "")),
        "compiler": (("angle", "degree"), ("coordinate", "global"), ("balanceinertia", "true"), ("boundmass", "1")),
        "inertial": (("mass", "0"), ("mass", "-1"), ("mass", "nan"), ("diaginertia", "1 0.1 0.1"), ("pos", "1 1 1")),
        "limit": (("lower", "9"), ("effort", "0"), ("effort", "-1"), ("velocity", "0")),
        "mass": (("value", "0"), ("value", "-1"), ("value", "1e6")),
        "origin": (("rpy", "90 0 0"), ("xyz", "1000 0 0")),
    }
    choices = allowed.get("robot joint" if (tree.tag, element.tag) == ("robot", "joint") else element.tag)
    if choices is None:
        return None
    key, value = draw.choice(choices)
    old = element.get(key)
    element.set(key, value)
    return f"{key} {old!r} -> {value!r}"


_MODELS: dict[str, Callable[..., str | None]] = {
    "odd": _attribute,
    "number": _number,
    "number too": _number,
    "attribute left out": _attribute_gone,
    "removed": _gone_element,
    "twice": _twice_element,
    "names": _names,
    "moved": _moved,
    "added": _added,
    "written": _set,
}
