"""Sections of a page or of robot.yaml: what pydantic finds wrong with one, in the words of the page."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from embodied_rl.problems import did_you_mean, quoted, shown
from embodied_rl.strict_yaml import Keys, scalar

M = TypeVar("M", bound=BaseModel)

_SINGULAR = {float: "a number", int: "an integer", bool: "true or false", str: "a string"}
_PLURAL = {float: "numbers", int: "integers", bool: "booleans", str: "strings"}
_TYPES = {"float_type": float, "int_type": int, "bool_type": bool, "string_type": str}
_FLAGS = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


#: Bounds of numbers, either way: no simulation means more than the first; float32 has hardly any nearer to 0 than the second.
LARGEST, SMALLEST = 1e12, 1e-30
#: What an unsigned int32 holds, as env.seed is one.
LARGEST_INTEGER = 2**32 - 1

#: Which of its two forms a number by joint has; pydantic puts it into the path of an error.
FORMS = ("one number", "numbers by joint")


@dataclass(frozen=True)
class ByJoint:
    """A number, or a mapping from joint groups or joints of robot.yaml to numbers; a page's check sees that each has one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        number = handler.generate_schema(typing.get_args(source)[0])
        choices = {FORMS[0]: number, FORMS[1]: core_schema.dict_schema(core_schema.str_schema(), number, min_length=1)}
        return core_schema.tagged_union_schema(choices, discriminator=lambda value: FORMS[isinstance(value, dict)])


def check_section(
    model: type[M], value: Mapping[str, Any], context: Mapping[str, Any] | None = None
) -> tuple[M | None, dict[Keys, str]]:
    """Validate a flat mapping: the section, or None and what is wrong, by place inside it."""
    value = {key: _tuples(one) for key, one in value.items()}
    told: dict[Keys, str] = {}
    try:
        parsed: M | None = model.model_validate(value, context=context)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            where, message = _explain(model, value, one)
            if not any(first[: len(where)] == where for first in told):  # a list that fails for one of its items
                told[where] = message
        parsed = None
    for where, number in _numbers(value):
        info = model.model_fields.get(str(where[0]))
        if info and info.annotation != dict[str, Any] and where not in told and (why := _meaningless(number)):
            told[where] = f"{shown(number)} is not allowed: {why}"
    return (None if told else parsed), told


def _numbers(value: Any, where: Keys = ()) -> Iterator[tuple[Keys, int | float]]:
    """Find every number of nested mappings and lists, with its place."""
    if isinstance(value, Mapping | tuple):
        for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _numbers(one, (*where, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield where, value


def _meaningless(number: int | float) -> str:
    """Say why a number is none that a simulation can mean; empty where it may be one."""
    if isinstance(number, int):
        return f"at most {LARGEST_INTEGER}, either way" if abs(number) > LARGEST_INTEGER else ""
    if math.isfinite(number) and abs(number) > LARGEST:
        return f"at most {LARGEST:g}, either way"
    return f"0, or at least {SMALLEST:g}, either way" if 0.0 < abs(number) < SMALLEST else ""


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _explain(model: type[BaseModel], value: Mapping[str, Any], error: Any) -> tuple[Keys, str]:
    """Say where in the mapping, and what, one of pydantic's errors means."""
    kind, context = error["type"], error.get("ctx", {})
    where: Any = tuple(part for part in error["loc"] if part not in FORMS)
    if kind == "extra_forbidden":
        allowed = f"allowed are {quoted(model.model_fields)}" if model.model_fields else "there are none"
        return where, f"no such key{did_you_mean(where[0], model.model_fields) or '; ' + allowed}"
    info = model.model_fields[where[0]]
    if kind == "missing" and len(where) == 1:
        return where, f"is missing; it must be {describe(info.annotation)}"
    given = "nothing" if error["input"] == {} else shown(error["input"])
    if kind == "refused":
        return where, context["message"]
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return where, f"{given} is not allowed: {words} {context[key]:g}"
    if kind == "string_pattern_mismatch" and info.description:
        return where, f"{given} is not allowed: {info.description}"
    if kind == "finite_number":
        return where, f"{given} is not a finite number"
    if kind == "too_short" and context["field_type"] == "Tuple":
        return where, f"{given} is not allowed: at least {context['min_length']} value"
    if len(where) > 1 and kind in _TYPES:
        return where, f"{given} is not {_SINGULAR[_TYPES[kind]]}{_meant(error['input'], _TYPES[kind])}"
    given = "nothing" if value.get(where[0]) == {} else shown(value.get(where[0], info.default))
    near = did_you_mean(value.get(where[0]), _choices(info.annotation)) if kind == "literal_error" else ""
    return where[:1], f"{given} is not {describe(info.annotation)}{near or _meant(value.get(where[0]), info.annotation)}"


def _meant(given: object, wanted: Any) -> str:
    """`"; leave out the quotes"` and the like, for a string that stands where a value of the `wanted` type does."""
    if not isinstance(given, str):
        return ""
    if typing.get_origin(wanted) is Annotated:
        return _meant(given, typing.get_args(wanted)[0])
    if typing.get_origin(wanted) is tuple:
        parts = given.strip("()[] ").split(",")
        numbers = len(parts) > 1 and all(isinstance(scalar(part.strip()), int | float) for part in parts)
        return f"; write [{', '.join(part.strip() for part in parts)}]" if numbers else ""
    if (word := given.lower()) in _FLAGS and wanted not in (float, int, str):
        return f"; write {_FLAGS[word]}" if word != given or word not in ("true", "false") else "; leave out the quotes"
    if re.fullmatch(r"[-+]?\d+,\d+", given):
        return f"; a decimal has a point: {given.replace(',', '.')}"
    return "; leave out the quotes" if isinstance(scalar(given), int | float) else ""


def describe(annotation: Any) -> str:
    """Say what a value of this type is: `a number or null`, `a list of 2 numbers`, `one of 'feet', 'full'`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if any(isinstance(one, ByJoint) for one in arguments):
        return "a number, or a mapping from joint groups to numbers"
    if origin is Annotated:
        return describe(arguments[0])
    if origin is Literal:
        return f"one of {quoted(arguments)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if one is type(None) else describe(one) for one in arguments)
    if origin is dict:
        return "a mapping"
    if origin is tuple:
        count = "" if ... in arguments else f"{len(arguments)} "
        return f"a list of {count}{_plural(arguments[0])}"
    return _SINGULAR[annotation]


def _plural(annotation: Any) -> str:
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return _PLURAL.get(annotation, "values")


def _choices(annotation: Any) -> Iterable[Any]:
    """List the values of a Literal, wherever in the type it stands."""
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    return (choice for one in typing.get_args(annotation) for choice in _choices(one))
