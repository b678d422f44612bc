"""Keys that were written in another section than theirs, or in none."""

from __future__ import annotations

from collections.abc import Iterable

from embodied_rl.config.page import Model, Page
from embodied_rl.problems import did_you_mean

#: The page's sections of plain keys, with their keys.
PLAIN = {
    name: tuple(info.annotation.model_fields)
    for name, info in Page.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Model)
}


def meant(key: str, section: str = "") -> str:
    """`"; did you mean 'env.num_envs'?"` for a key that another section than the one it stands in has, or has initials of.

    Nothing where no section has it, or its own has one of nearly that name.
    """
    if did_you_mean(key, PLAIN.get(section, ())):
        return ""
    paths = [f"{name}.{one}" for name, keys in PLAIN.items() for one in keys if one == key]
    paths = paths or [f"{name}.{one}" for name, keys in PLAIN.items() for one in keys if _initials(one) == key]
    return f"; did you mean {' or '.join(map(repr, paths))}?" if paths else ""


def nested(key: str) -> str:
    """`"; write env: {num_envs: ...}"` for a path that stands where a key does, and for `extends` on the command line."""
    if key == "extends":
        return "; a page extends another in its own file, and no override does"
    *sections, name = key.split(".")
    if not sections or sections[0] not in Page.model_fields:
        return ""
    return f"; a page nests: write {': {'.join(sections)}: {{{name}: ...{'}' * len(sections)}"


def misplaced(section: str, written: Iterable[str]) -> dict[str, str]:
    """Say of the keys written in a section which ones are another's: `"; did you mean ..."` of each."""
    known = PLAIN.get(section, ())
    found = {key: meant(key, section) for key in written if known and key not in known}
    return {key: said for key, said in found.items() if said}


def _initials(name: str) -> str:
    """Return the first letters of a name of several words: lr of learning_rate."""
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""
