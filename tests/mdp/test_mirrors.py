"""How values turn in the mirror, by name and by a function, and what is said of one that cannot be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from embodied_rl.errors import UserError
from embodied_rl.mdp import mirrors, term
from embodied_rl.mdp.mirrors import reflection

#: Three joints, the first two of them partners, and two feet.
ROBOT: Any = cast(
    Any, SimpleNamespace(spec=SimpleNamespace(joint_mirror=lambda: ((1, 0, 2), (-1.0, -1.0, 1.0)), foot_mirror=lambda: (1, 0)))
)


@pytest.mark.parametrize(
    ("mirror", "size", "index", "sign"),
    [
        ("scalar", 5, [0, 1, 2, 3, 4], [1.0] * 5),
        ("vector", 3, [0, 1, 2], [1.0, -1.0, 1.0]),
        ("pseudovector", 3, [0, 1, 2], [-1.0, 1.0, -1.0]),
        ("joints", 3, [1, 0, 2], [-1.0, -1.0, 1.0]),
        ("feet", 2, [1, 0], [1.0, 1.0]),
    ],
)
def test_mirrors_by_name(mirror: str, size: int, index: list[int], sign: list[float]) -> None:
    found = reflection(mirror, ROBOT, {"unused": 1.0}, size, "observations.actor.value")
    assert [list(one) for one in found] == [index, sign]


def test_every_name_is_known_to_both() -> None:
    assert {*mirrors.MIRRORS, "scalar", "actions"} == set(term.MIRRORS)


def test_a_function_is_given_the_robot_and_the_entrys_parameters() -> None:
    def turned(robot: Any, *, axis: int, std: float) -> tuple[list[int], list[float]]:
        assert robot is ROBOT and std == 0.5
        return [0, 1], [-1.0 if one == axis else 1.0 for one in range(2)]

    assert reflection(turned, ROBOT, {"axis": 1, "std": 0.5}, 2, "") == ([0, 1], [1.0, -1.0])
    assert reflection(turned, ROBOT, {"axis": 0, "std": 0.5}, 2, "") == ([0, 1], [-1.0, 1.0])


@pytest.mark.parametrize("declare", [term.observation, term.action])
def test_an_unknown_name_is_refused_where_it_is_written(declare: Any) -> None:
    with pytest.raises(UserError) as error:
        declare(mirror="pseudovectr")
    assert str(error.value) == "a term's mirror: no 'pseudovectr'; did you mean 'pseudovector'?"
    with pytest.raises(UserError, match=r"no 'zzz'; allowed: scalar, vector, .*actions, or a function$"):
        declare(mirror="zzz")


@pytest.mark.parametrize(
    ("mirror", "size", "said"),
    [
        ("vector", 2, "its mirror is of 3 numbers, the value has 2"),
        ("joints", 4, "its mirror is of 3 numbers, the value has 4"),
        (((0, 1), (1.0,)), 2, "its mirror is of 2 numbers, the value has 2"),
        (((0, 0), (1.0, 1.0)), 2, "its mirror is an index, which has each of 0 to 1 once, and a sign, 1 or -1, for each number"),
        (((1, 2, 0), (1.0, 1.0, 1.0)), 3, "its mirror applied twice is not the identity"),
        (((1, 0), (1.0, -1.0)), 2, "its mirror applied twice is not the identity"),
        (((0, 1), (1.0, 2.0)), 2, "its mirror is an index, which has each of 0 to 1 once, and a sign, 1 or -1, for each number"),
        (((1, 0), (2.0, 0.5)), 2, "its mirror is an index, which has each of 0 to 1 once, and a sign, 1 or -1, for each number"),
        (None, 2, "its mirror returns a NoneType, no (index, sign) of whole numbers and signs"),
        (((0.0, 1.0), (1.0, 1.0)), 2, "its mirror returns a tuple, no (index, sign) of whole numbers and signs"),
    ],
)
def test_a_mirror_that_does_not_suit_its_value_is_one_line(mirror: Any, size: int, said: str) -> None:
    given = mirror if isinstance(mirror, str) else lambda robot: mirror
    with pytest.raises(UserError) as error:
        reflection(given, ROBOT, {}, size, "observations.actor.value")
    assert str(error.value) == f"observations.actor.value: {said}"
