"""A page's own modules of terms: each file is a module of its own, and one as others are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from embodied_rl import make_env
from embodied_rl.config import config_names, load
from embodied_rl.errors import UserError
from embodied_rl.mdp.bind import Terms, needed
from embodied_rl.mdp.finder import Finder

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
    with pytest.raises(UserError, match=r"^terms: .*my_terms\.py:\d+: ZeroDivisionError: division by zero$"):
        Finder(load(str(tmp_path / "broken" / "page.yaml")))("rewards", "mine")
    assert not [name for name in set(sys.modules) - before if "my_terms" in name]


NEEDY = """
from embodied_rl.config.types import BodyGroup
from embodied_rl.mdp.term import reward

@reward(needs=({need!r},))
def mine(env, *, group: BodyGroup = "thighs"):
    return env.robot.heading
"""


def asked(folder: Path, need: str) -> set[str]:
    (folder / "my_terms.py").write_text(NEEDY.format(need=need))
    text = "robot: go2\nterms: [my_terms.py]\nactions: {joint_position: {}}\nobservations: {actor: {joint_pos: {}}}\n"
    (folder / "page.yaml").write_text(text + "rewards: {mine: {weight: 1.0}}\n")
    return set(needed(load(str(folder / "page.yaml"))))


@pytest.mark.parametrize(
    ("need", "expected"),
    [
        ("foot_frames", {"foot_frames"}),
        ("contact:{group}", {"contact:thighs"}),
        ("air_time", {"foot_contact"}),  # a tracker's needs are those of its terms
        ("model:geom_friction", set()),
        ("model:opt.gravity", set()),
    ],
)
def test_needs_that_there_are(tmp_path: Path, need: str, expected: set[str]) -> None:
    assert asked(tmp_path, need) == expected


@pytest.mark.parametrize(
    ("need", "said"),
    [
        ("foot_contcat", ", which is nothing that can be measured; did you mean 'foot_contact'?"),
        ("air_tiem", ", which is nothing that can be measured; did you mean 'air_time'?"),
        ("model:geom_frictoin", ", which is nothing that can be measured; did you mean 'model:geom_friction'?"),
        ("model:opt.gravty", ", which is nothing that can be measured; did you mean 'model:opt.gravity'?"),
        ("zzz", ", which is nothing that can be measured; allowed: air_time, previous_joint_vel, foot_contact, foot_touchdown, "
         "foot_frames, foot_orientation, joint_torque, contact:GROUP, model:FIELD"),
        ("contact:{groop}", ": in braces stands a parameter of the term; did you mean 'group'?"),
        ("contact:{}", ": in braces stands a parameter of the term; it has group"),
    ],
)  # fmt: skip
def test_a_need_that_there_is_not_is_one_line(tmp_path: Path, need: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        asked(tmp_path, need)
    assert str(error.value) == f"rewards.mine: needs {need!r}{said}"


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in sorted(config_names()) if load(name).env.source is None])
def test_the_terms_of_every_page_are_made_on_a_gpu(name: str) -> None:
    """A constant that was left on the CPU, or a parameter there beside one that is not, fails."""
    page = load(name)
    terms = Terms(page, make_env.make_scene(page), torch.device("cuda"))
    assert terms.actions
