"""Named groups of joints, which may hold each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from embodied_rl.problems import did_you_mean
from embodied_rl.strict_yaml import Keys

#: The group that every robot has.
ALL = "all"


def expand(name: str, groups: Mapping[str, Sequence[str]], joints: Sequence[str]) -> set[str]:
    """List the joints that a name means: a joint, a group, the groups within it; unknown names mean none."""
    found: set[str] = set()
    seen: set[str] = set()
    ahead = [name]
    while ahead:
        one = ahead.pop()
        if one in joints:
            found.add(one)
        elif one == ALL:
            found.update(joints)
        elif one not in seen:
            seen.add(one)
            ahead += groups.get(one, ())
    return found


def mistakes(groups: Mapping[str, Sequence[str]], joints: Sequence[str]) -> Iterator[tuple[Keys, str]]:
    """Find names that are taken, names of nothing, and groups that hold themselves."""
    known = (*joints, *groups, ALL)
    for group, members in groups.items():
        if group in joints:
            yield ("groups", group), "is the name of a joint; call the group otherwise"
        if group == ALL:
            yield ("groups", group), f"{ALL!r} is always there and means every joint; call the group otherwise"
        for index, member in enumerate(members):
            if member not in known:
                yield ("groups", group, index), unknown(member, known)
    for circle in _circles({group: members for group, members in groups.items() if group not in joints}):
        yield ("groups", circle[0]), f"groups hold each other in a circle: {' -> '.join(circle)}"


def unknown(name: str, known: Sequence[str]) -> str:
    """Say that a name is neither a joint's nor a group's, with the nearest that is."""
    return f"no joint or group {name!r}{nearest(name, known)}"


def nearest(name: object, allowed: Iterable[str]) -> str:
    """Suggest the nearest name if one is near, else all of them."""
    allowed = list(allowed)
    return did_you_mean(name, allowed) or (f"; allowed: {', '.join(allowed)}" if allowed else "; there are none")


def _circles(groups: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Find each circle once, from the first of its groups on."""
    circles: dict[frozenset[str], list[str]] = {}

    def follow(path: list[str]) -> None:
        for member in groups.get(path[-1], ()):
            if member in path:
                circle = [*path[path.index(member) :], member]
                circles.setdefault(frozenset(circle), circle)
            elif member in groups:
                follow([*path, member])

    for group in groups:
        follow([group])
    return list(circles.values())
