"""Terms, read from their source with `ast` and never imported: what a page may say, known without torch."""

from __future__ import annotations

import ast
import functools
import math
import threading
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, TypeAdapter
from pydantic_core import SchemaError

from embodied_rl import paths
from embodied_rl.config import types as config_types
from embodied_rl.problems import Problem, article
from embodied_rl.strict_yaml import display

#: The sections of a page that hold terms, and the kind of their terms.
SECTIONS = {
    "patches": "patch",
    "actions": "action",
    "observations": "observation",
    "commands": "command",
    "rewards": "reward",
    "terminations": "termination",
    "events": "event",
    "curriculum": "curriculum",
}

#: Kinds of what a decorator of `embodied_rl.mdp.term` declares: terms, and what judges a family's policies.
_KINDS = (*SECTIONS.values(), "score")

#: Keys of an entry that belong to its section, by kind of term; no parameter may bear their names.
EXTRAS = {"reward": ("weight",), "observation": ("noise", "offset", "dropout", "scale", "clip", "delay", "history")}

#: What a term is called with, by kind; the others are classes.
CALLED_WITH = {kind: ("env",) for kind in ("observation", "reward", "termination")}
CALLED_WITH |= {"event": ("env", "draft"), "curriculum": ("params", "statistics", "iteration"), "patch": ("patch", "difficulty")}

#: The default of a parameter that has none.
REQUIRED = object()

#: CPython 3.11 counts the depth of a tree for all threads together (gh-106905), and fails where two parse at once.
_PARSING = threading.Lock()
_MODULES = ("patches", "actions", "observations", "rewards", "terminations", "events", "randomize", "curricula")
_NAMES = {name: getattr(config_types, name) for name in config_types.__all__}
_NAMESPACE = {
    "float": float, "int": int, "bool": bool, "str": str, "tuple": tuple, "Literal": Literal, "Annotated": Annotated,
    **_NAMES,
}  # fmt: skip
_BOUNDS = ("Ge", "Gt", "Le", "Lt")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_LEAVES = (ast.Name, ast.Load, ast.Constant, ast.BitOr, ast.USub)
_NODES = (*_LEAVES, ast.Subscript, ast.Tuple, ast.BinOp, ast.UnaryOp, ast.Call)


@dataclass(frozen=True)
class Parameter:
    """One keyword-only parameter of a term: one key of its entry."""

    annotation: Any
    default: Any
    """A Python literal, or `REQUIRED`."""


@dataclass(frozen=True, eq=False)
class TermSignature:
    """What the source of a term says about it."""

    name: str
    kind: str
    """One of the kinds of `SECTIONS`; or `score`, which is no term."""
    module_path: Path
    module_name: str
    """`embodied_rl.mdp.rewards` for a shipped term; the file's stem for a page's own."""
    lineno: int
    parameters: dict[str, Parameter]
    doc: str
    """The first line of the docstring."""
    privileged: bool = False
    """Whether it observes what no robot measures."""


#: Terms by kind and name.
Terms = dict[str, dict[str, TermSignature]]


def find_terms(own: Sequence[Path] = (), family: Sequence[tuple[Path, str]] = ()) -> tuple[Terms, list[Problem]]:
    """Read the shipped terms and a page's own; a term that cannot be read is a problem, not a term.

    Args:
        own: the page's own files.
        family: files of the page's own task family, with the names of their modules.
    """
    found: Terms = {kind: {} for kind in SECTIONS.values()}
    problems: list[Problem] = []
    for path, module_name in [*shipped_modules(), *family, *((path, path.stem) for path in own)]:
        for one in read_terms(path, module_name):
            if isinstance(one, Problem):
                problems.append(one)
            elif one.kind not in found:
                continue
            elif first := found[one.kind].get(one.name):
                there = f"{display(first.module_path)}:{first.lineno}"
                message = f"there is a {one.kind} of this name already, at {there}; rename it"
                problems.append(Problem(f"{display(path)}:{one.lineno}", one.name, message))
            else:
                found[one.kind][one.name] = one
    return found, problems


def undeclared(name: str, own: Sequence[Path]) -> str:
    """Find what bears a term's name in a page's own files and is declared by none: `file:line`; empty where nothing does."""
    for path in own:
        try:
            with _PARSING:
                tree = ast.parse(path.read_bytes(), str(path))
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else ()
            if getattr(node, "name", None) == name or any(getattr(one, "id", None) == name for one in targets):
                return f"{display(path)}:{getattr(node, 'lineno', 1)}"
    return ""


def shipped_modules() -> list[tuple[Path, str]]:
    """File and module name of every shipped module that may hold terms."""
    generic = [(paths.PACKAGE / "mdp" / f"{name}.py", f"embodied_rl.mdp.{name}") for name in _MODULES]
    families = [
        (path, f"embodied_rl.tasks.{path.parent.name}.{path.stem}") for path in sorted(paths.shipped("tasks").glob("*/*.py"))
    ]
    return [(path, name) for path, name in [*generic, *families] if path.is_file()]


def read_terms(path: Path, module_name: str) -> Iterator[TermSignature | Problem]:
    """Read the terms that a file declares at its top level, and what is wrong with it."""
    try:
        source = path.read_bytes()
    except OSError as error:
        yield Problem(display(path), "", f"cannot be read: {error.strerror}")
    else:
        yield from _declared(source, path, display(path), module_name)


@functools.cache
def _declared(source: bytes, path: Path, place: str, module_name: str) -> tuple[TermSignature | Problem, ...]:
    """Read the terms of a file's source: once, for a page is checked several times on its way to a training."""
    try:
        with _PARSING:
            body = ast.parse(source, str(path)).body
    except (RecursionError, MemoryError):
        return (Problem(place, "", "not valid Python: nested too deeply"),)
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        return (Problem(place + line, "", f"not valid Python: {error.args[0]}"),)
    nodes = [node for node in body if isinstance(node, _DEFINITIONS)]
    kinds = [(node, kind, one) for node in nodes for one in node.decorator_list if (kind := _kind(one))]
    return tuple(
        found
        for node, kind, decorator in kinds
        for found in (
            *(Problem(f"{place}:{line}", node.name, message) for line, message in _misdeclared(node, kind, decorator)),
            *(() if isinstance(node, ast.AsyncFunctionDef) else _read_term(node, kind, path, place, module_name)),
        )
    )


def _kind(decorator: ast.expr) -> str | None:
    """`reward` for `@reward(...)` and `@term.reward(...)`."""
    callee = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", None)
    return name if name in _KINDS else None


def _misdeclared(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, kind: str, decorator: ast.expr
) -> Iterator[tuple[int, str]]:
    """Find what is wrong with a term beside its parameters: the line, and what to write."""
    if not isinstance(decorator, ast.Call):
        yield decorator.lineno, f"write @{ast.unparse(decorator)}()"
        return
    for word in decorator.keywords:
        if word.arg in ("needs", "fields") and isinstance(word.value, ast.Constant):
            text = repr(word.value.value)
            yield decorator.lineno, f"{word.arg}={text} is no tuple; write {word.arg}=({text},)"
    if isinstance(node, ast.AsyncFunctionDef):
        yield node.lineno, "nobody awaits a term; write def, not async def"
        return
    if isinstance(node, ast.FunctionDef):
        if (wanted := CALLED_WITH.get(kind)) is None:
            yield node.lineno, f"{article(kind)} is a class (docs/terms.md)"
        elif not _takes(node.args, wanted):
            yield node.lineno, f"is called with ({', '.join(wanted)}); write def {node.name}({_written(node.args, wanted)})"
        return
    if kind == "curriculum":
        yield node.lineno, "a curriculum is a function, and what it remembers a float parameter of its own (docs/terms.md)"
        return
    methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
    for name, wanted in (("__init__", ("robot",)), ("__call__", CALLED_WITH.get(kind))):
        method = methods.get(name)
        if method and wanted and kind != "score":
            wanted = ("self", *wanted)
            if not _takes(method.args, wanted) or (name == "__call__" and method.args.kwonlyargs):
                shown = _written(method.args, wanted) if name == "__init__" else ", ".join(wanted)
                yield method.lineno, f"{name} is called with ({', '.join(wanted[1:])}); write def {name}({shown})"


def _takes(arguments: ast.arguments, wanted: Sequence[str]) -> bool:
    """Say whether a function can be called with so many arguments, and has no others but keyword-only ones."""
    positional = [*arguments.posonlyargs, *arguments.args]
    return len(positional) == len(wanted) and not arguments.vararg and not arguments.kwarg


def _written(arguments: ast.arguments, wanted: Sequence[str]) -> str:
    """Write the arguments as they should be: those of a page, which are all others, after a star."""
    others = [*[*arguments.posonlyargs, *arguments.args][len(wanted) :], *arguments.kwonlyargs]
    named = [ast.unparse(one) + ("" if one.annotation else ": float") for one in others]
    return ", ".join((*wanted, *(("*", *named) if named else ())))


def _read_term(
    node: ast.FunctionDef | ast.ClassDef, kind: str, path: Path, place: str, module_name: str
) -> Iterator[TermSignature | Problem]:
    function = node
    if isinstance(node, ast.ClassDef):
        function = next((one for one in node.body if getattr(one, "name", "") == "__init__"), None)
    parameters, wrong = {}, False
    if isinstance(function, ast.FunctionDef):
        for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
            try:
                parameters[argument.arg] = _parameter(argument, default, kind)
            except ValueError as error:
                wrong = True
                yield Problem(f"{place}:{argument.lineno}", f"{node.name}.{argument.arg}", str(error))
    if not wrong:
        doc = (ast.get_docstring(node) or "").partition("\n")[0]
        yield TermSignature(node.name, kind, path, module_name, node.lineno, parameters, doc, _is_privileged(node))


def _is_privileged(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a decorator says `privileged=True`."""
    said = (word for one in node.decorator_list if isinstance(one, ast.Call) for word in one.keywords)
    return any(word.arg == "privileged" and getattr(word.value, "value", None) is True for word in said)


def _parameter(argument: ast.arg, default: ast.expr | None, kind: str) -> Parameter:
    taken = argument.arg in ("term", *EXTRAS.get(kind, ())) or hasattr(BaseModel, argument.arg)
    if taken or argument.arg.startswith("_"):
        raise ValueError(f"a parameter of a {kind} cannot have this name; rename it")
    if argument.annotation is None:
        raise ValueError("has no type; write one, like `std: float`")
    annotation = _annotation(argument.annotation)
    if default is None:
        return Parameter(annotation, REQUIRED)
    text = ast.unparse(default)
    try:
        return Parameter(annotation, ast.literal_eval(text.replace("math.pi", repr(math.pi))))
    except (ValueError, TypeError):
        raise ValueError(f"the default {text} is not a literal (math.pi is)") from None


def _annotation(node: ast.expr) -> Any:
    """Evaluate a type: among known names only, and no call but that of a bound."""
    text = ast.unparse(node)
    for part in ast.walk(node):
        call = isinstance(part, ast.Call) and getattr(part.func, "id", "") not in _BOUNDS
        if call or not isinstance(part, _NODES) or (isinstance(part, ast.Name) and part.id not in _NAMESPACE):
            raise ValueError(f"the type {text} cannot be read; {_allowed()}")
    try:
        annotation = eval(compile(ast.Expression(node), "<annotation>", "eval"), {"__builtins__": {}}, _NAMESPACE)
        if "(" in text:
            TypeAdapter(annotation)  # refuses a bound that does not suit its type
    except (TypeError, SchemaError):
        annotation = None
    if not _is_allowed(annotation):
        raise ValueError(f"the type {text} is not allowed; {_allowed()}")
    return annotation


def _allowed() -> str:
    return "allowed are float, int, bool, str, Literal, tuples of these, `| None`, Annotated and " + ", ".join(_NAMES)


def _is_allowed(annotation: Any) -> bool:
    if annotation in (float, int, bool, str):
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return len(arguments) == 2 and arguments[1] is type(None) and _is_allowed(arguments[0])
    if origin is tuple:
        return bool(arguments) and all(one is ... or _is_allowed(one) for one in arguments)
    if origin is Annotated and any(isinstance(one, config_types.ByJoint) for one in arguments):
        return _is_allowed(typing.get_args(arguments[0])[0])
    if origin is Annotated:
        bounded = any(isinstance(one, (Ge, Gt, Le, Lt)) for one in arguments[1:])
        return _is_allowed(arguments[0]) and (not bounded or arguments[0] in (float, int))
    return origin is Literal
