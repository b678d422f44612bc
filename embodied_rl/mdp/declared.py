"""Whether what a file has under a term's name is what its source declares, and has the parts that its kind needs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, get_args

from torch import Tensor

from embodied_rl.config.terms import CALLED_WITH, SECTIONS, TermSignature
from embodied_rl.errors import UserError
from embodied_rl.mdp.fields import model_field_names
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import EventMode
from embodied_rl.problems import article, did_you_mean, lacking
from embodied_rl.strict_yaml import display

#: What the methods of any section's class are called with.
_METHODS = {"update": ("env",), "resample": ("env", "done"), "settle": ("env",), "shares": ("env",)}
#: What else a term of a kind has: its methods, with what they are called with, and its other parts.
_PARTS: dict[str, tuple[dict[str, Sequence[str]], Sequence[str]]] = {
    "command": (
        {"resample": ("env", "done"), "errors": ("env",), "hold": ("values",), "contract": ()},
        ("size", "names", "state"),
    ),
    "action": (
        {"controls": ("env", "actions", "previous_actions"), "contract": ()},
        ("control", "mirror", "joints", "clip"),
    ),
}


def check_declared(found: Any, signature: TermSignature) -> None:
    """Check what a file has, once it is imported, under the name of a term that its source declares.

    Raises:
        UserError: it is something else: defined again, or changed by another decorator; one line.
    """
    place = f"{display(signature.module_path)}:{signature.lineno}: {signature.name}"
    kind = getattr(found, "term_kind", None)
    if kind != signature.kind or not callable(found):
        now = (
            article(kind)
            if kind
            else "nothing"
            if found is None
            else f"{article(type(found).__name__)} that no decorator declares"
        )
        raise UserError(
            f"{place}: declared {article(signature.kind)}, and once the file is imported it stands for {now}; a name is one "
            f"thing's, and @{signature.kind}() stands above all other decorators"
        )
    if not inspect.isclass(found) and inspect.isgeneratorfunction(found):
        raise UserError(f"{place}: yields; a term returns its value")
    taken = _keywords(found.__init__ if inspect.isclass(found) else found)
    if taken is not None and taken != set(signature.parameters):
        odd = ", ".join(sorted(taken ^ set(signature.parameters)))
        holder = "its own __init__(self, robot, *, ...)" if inspect.isclass(found) else "its own def, after a star"
        raise UserError(
            f"{place}: {odd}: the parameters of a term are those that are written in {holder}, none that are inherited"
        )
    if inspect.isclass(found) and found.__new__ is not object.__new__:
        raise UserError(f"{place}: has a __new__; a term's class is made by __init__(self, robot, *, ...)")
    for key in ("needs", "fields"):
        given = getattr(found, key, ())
        if not isinstance(given, tuple | list) or not all(isinstance(one, str) for one in given):
            raise UserError(f"{place}: {key}={given!r} is no tuple of strings; write {key}=(NAME,)")


def check_made(path: str, section: str, made: Any, joints: int) -> None:
    """Check that an instance of a term's class has the parts that its kind needs.

    Args:
        path: the entry's.
        section: of the page.
        made: the instance.
        joints: that the robot has.

    Raises:
        UserError: it lacks some, or one is called with something else; one line.
    """
    kind = SECTIONS[section]
    methods, parts = _PARTS.get(kind, ({}, ()))
    if kind in CALLED_WITH:
        methods = {"__call__": CALLED_WITH[kind]}
    missing = [name for name in methods if not callable(getattr(made, name, None))] + lacking(made, parts)
    if missing:
        written = ", ".join(f"{name}(self, {', '.join(methods[name])})" if name in methods else name for name in missing)
        raise UserError(
            f"{path}: {type(made).__name__} lacks {written.replace(', )', ')')}; {article(kind)} has it (docs/terms.md)"
        )
    for name, wanted in (_METHODS | methods).items():
        if callable(method := getattr(made, name, None)) and not isinstance(method, Tensor) and not _takes(method, wanted):
            raise UserError(
                f"{path}: {name} is called with ({', '.join(wanted)}); write def {name}({', '.join(('self', *wanted))})"
            )
    if kind not in ("command", "event") and callable(getattr(made, "shares", None)):
        raise UserError(f"{path}: has shares, and commands and events alone are asked for them; rename it")
    _check_state(path, made)
    if kind == "action":
        _check_action(path, made, joints)
    elif kind == "command":
        _check_command(path, made)


def check_event(path: str, event: Any) -> None:
    """Check that an event says when it happens, and changes what there is.

    Raises:
        UserError: it does not; one line.
    """
    modes, mode = get_args(EventMode), getattr(event, "mode", None)
    if mode not in modes:
        said = f"no mode {mode!r}{did_you_mean(mode, modes)}" if mode is not None else "has no mode"
        raise UserError(f"{path}: {said}; write @event(mode=...) with one of {', '.join(modes)}")
    known = model_field_names()
    for field in event.fields:
        if field not in known:
            near = did_you_mean(field, known) or "; MjModel has it, or opt.NAME"
            raise UserError(f"{path}: fields: no {field!r} in MuJoCo's model{near}")


def _check_state(path: str, made: Any) -> None:
    state = getattr(made, "state", {})
    if not isinstance(state, dict):
        raise UserError(f"{path}: its state is a {type(state).__name__}; write state = {{NAME: State()}}")
    for name, part in state.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"{path}: its state {name!r} is no name of an attribute")
        if not isinstance(part, State):
            raise UserError(f"{path}: its state {name!r} is a {type(part).__name__}; write {{{name!r}: State(...)}}")
        if not isinstance(part.shape, tuple) or not all(type(size) is int and size >= 0 for size in part.shape):
            raise UserError(f"{path}: its state {name!r} has the shape {part.shape!r}, no tuple; write State((3,)) for (N, 3)")
        if part.fresh not in ("zero", "keep"):
            raise UserError(f"{path}: its state {name!r}: no fresh={part.fresh!r}; allowed: 'zero', 'keep'")


def _check_command(path: str, made: Any) -> None:
    part = made.state.get("command")
    if part is None or len(part.shape) != 1:
        raise UserError(f"{path}: its state has no 'command' of (N, size); write state = {{'command': State(({made.size},))}}")
    if part.shape[0] != made.size or len(made.names) != made.size:
        raise UserError(
            f"{path}: its size is {made.size}, its command has {part.shape[0]} numbers, its names are {len(made.names)}"
        )


def _check_action(path: str, made: Any, joints: int) -> None:
    driven = list(made.joints)
    if len(set(driven)) != len(driven) or not all(type(one) is int and 0 <= one < joints for one in driven):
        raise UserError(f"{path}: its joints are {driven}; each is a whole number from 0 to {joints - 1}, and stands there once")


def _keywords(function: Any) -> set[str] | None:
    """Name the parameters of a page that a function takes; None where it takes whatever comes."""
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(one.kind is one.VAR_KEYWORD for one in given):
        return None
    return {one.name for one in given if one.kind is one.KEYWORD_ONLY}


def _takes(method: Any, wanted: Sequence[str]) -> bool:
    """Say whether a method can be called with so many arguments."""
    try:
        inspect.signature(method).bind(*wanted)
    except TypeError:
        return False
    except ValueError:
        pass
    return True
