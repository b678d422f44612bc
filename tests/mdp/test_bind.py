"""A page's own modules of terms: each file is a module of its own, and one as others are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import embodied_rl
from embodied_rl.config import load
from embodied_rl.errors import UserError
from embodied_rl.mdp.bind import Finder

TERMS = """
from __future__ import annotations
from dataclasses import dataclass
from embodied_rl.mdp.term import reward

@dataclass
class Memory:
    value: float = {value}

@reward()
def mine(env, *, std: float = 1.0):
    \"\"\"{value}.\"\"\"
    return Memory().value
"""


def term(folder: Path, value: float):
    folder.mkdir()
    (folder / "my_terms.py").write_text(TERMS.format(value=value))
    (folder / "page.yaml").write_text("extends: go2_flat.yaml\nterms: [my_terms.py]\nrewards:\n  mine: {weight: 1.0}\n")
    return Finder(load(str(folder / "page.yaml")))("rewards", "mine")


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    one, other = (term(tmp_path / f"folder_{number}", float(number)) for number in (1, 2))
    assert (one(None), other(None)) == (1.0, 2.0)
    for function in (one, other):
        assert sys.modules[function.__module__].mine is function


def test_a_file_that_fails_leaves_no_half_module(tmp_path: Path) -> None:
    before = set(sys.modules)
    (tmp_path / "broken").mkdir()
    source = TERMS.format(value=0.0).replace("\n@reward", "\n1 / 0\n\n@reward")
    (tmp_path / "broken" / "my_terms.py").write_text(source)
    page = "extends: go2_flat.yaml\nterms: [my_terms.py]\nrewards:\n  mine: {weight: 1.0}\n"
    (tmp_path / "broken" / "page.yaml").write_text(page)
    with pytest.raises(ZeroDivisionError):
        Finder(load(str(tmp_path / "broken" / "page.yaml")))("rewards", "mine")
    assert not [name for name in set(sys.modules) - before if "my_terms" in name]


@pytest.mark.parametrize(
    ("need", "message"),
    [
        (
            "model:geom_frction",
            "mine: a term needs model:geom_frction, which is no field of MuJoCo's model; did you mean 'geom_friction'?",
        ),
        ("air_tme", "rewards: mine needs 'air_tme', which is nothing that can be measured; did you mean 'air_time'?"),
        ("foot_frame", "rewards: mine needs 'foot_frame', which is nothing that can be measured; did you mean 'foot_frames'?"),
    ],
)
def test_a_need_that_there_is_not_is_one_line(need: str, message: str, tmp_path: Path) -> None:
    source = TERMS.format(value=0.0).replace("@reward()", f"@reward(needs=({need!r},))")
    (tmp_path / "my_terms.py").write_text(source)
    (tmp_path / "mine.yaml").write_text("extends: go2_flat\nterms: [my_terms.py]\nrewards:\n  mine: {weight: 1.0}\n")
    with pytest.raises(UserError) as caught:
        embodied_rl.make(str(tmp_path / "mine.yaml"), ["env.compile=false"], num_envs=2)
    assert str(caught.value) == message
