"""A small world for pages: a robot, terms and a page; no shipped terms, whose names would change messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from embodied_rl.config import terms

OWN_TERMS = '''
from typing import Literal

from embodied_rl.config.types import BodyGroup, NonNegative, Positive, Range
from embodied_rl.mdp.term import action, command, curriculum, event, observation, reward, termination


@action()
class joint_target:
    """target = default + scale * action"""

    def __init__(self, name, *, scale: Positive = 0.5, clip: float | None = None): ...


@observation(mirror="scalar")
def height(env, *, group: BodyGroup = "feet"):
    """z of a group

    More about it.
    """


@command()
class speed:
    def __init__(self, name, *, forward: Range = (-1, 1)): ...


@reward()
def effort(env, *, std: Positive, norm: Literal["l1", "l2"] = "l2", each: tuple[float, ...] = (), signed: bool = False):
    """sum_j tau_j^2"""


@reward()
def alive(env): ...


@termination()
def tilt(env, *, limit: NonNegative = 1.0): ...


@event(mode="reset")
def reset(env, draft, *, steps: int = 1): ...


@curriculum()
def widen(params, statistics, iteration): ...


@curriculum()
def ramp(params, statistics, iteration, *, parameter: str, start: tuple[float, ...] = (), end: tuple[float, ...] = ()): ...
'''

ROBOT = """
name: dog
model: dog.xml
base: trunk
base_height: 0.3
joints:
  hip: {default: 0.0, stiffness: 20.0, damping: 0.5, effort_limit: 10.0}
feet:
  paw: {geoms: [paw], site: paw}
bodies: {thighs: [thigh]}
"""

PAGE = """\
terms: [own_terms.py]
robot: dog
actions: {joint_target: {}}
observations:
  actor: {height: {}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `page.yaml`, `own_terms.py` and the robot `dog`."""
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "robot.yaml").write_text(ROBOT)
    (tmp_path / "dog" / "dog.xml").write_text("<mujoco/>")
    (tmp_path / "own_terms.py").write_text(OWN_TERMS)
    (tmp_path / "page.yaml").write_text(PAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terms, "shipped_modules", list)
    return tmp_path
