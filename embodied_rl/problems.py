"""What can be wrong with a page, said in one line each."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from embodied_rl.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `place: path: message`."""

    place: str
    """Where it was written: `file:line`, or `override "key=value"`."""
    path: str
    """The dotted path inside the page; empty when the file as a whole is meant."""
    message: str
    """What was given, what is allowed, the nearest name."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.path, self.message) if part)


class ConfigError(UserError):
    """A page cannot be used; `str()` is one line per problem."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)  # by default what is pickled is the message alone


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """`"; did you mean 'x'?"` for the nearest of `known`, or the one with these initials (lr), or nothing when none is near."""
    names = [str(one) for one in known]
    short = [one for one in names if "_" in one and "".join(word[:1] for word in one.split("_")) == str(name)]
    near = short or difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def lacking(brought: object, names: Iterable[str]) -> list[str]:
    """List the public ones among the names of a protocol's parts that an object or class does not have."""
    return [name for name in names if not name.startswith("_") and not hasattr(brought, name)]


def article(noun: str) -> str:
    """Write `an action`, `a reward`."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def quoted(names: Iterable[object]) -> str:
    """Write the allowed values as the page would: `'feet', 'full', true`."""
    return ", ".join(f"'{name}'" if isinstance(name, str) else shown(name) for name in names)


def shown(value: object) -> str:
    """Write a value as it may stand in a page, cut to a line's length."""
    text = json.dumps(value, ensure_ascii=False).replace("NaN", "nan").replace("Infinity", "inf")
    return text if len(text) <= 60 else text[:57] + "..."
