"""What judges a policy: the protocol of a task family's score, and what it sees of an environment."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.errors import UserError
from embodied_rl.family import FamilyError, check_parts, family_names, load_family
from embodied_rl.mdp.part import Part
from embodied_rl.physics.protocol import Physics
from embodied_rl.problems import did_you_mean
from embodied_rl.scene import Scene
from embodied_rl.strict_yaml import display


class Environment(Protocol):
    """What a family's score and demo see of an `Env`."""

    page: Page
    num_envs: int
    device: torch.device
    step_dt: float
    """Time between two actions [s]."""
    robot: Part
    scene: Scene
    """The robot in its world: `scene.terrain.height(xy)` is the ground."""
    physics: Physics
    terms: Any
    """The page's terms: `commands` by name among them."""
    buffers: dict[str, Tensor]
    """Every tensor that a step changes, by name, (N, ...)."""


class Verdict(NamedTuple):
    """Whether a policy does what its family asks for."""

    passed: bool
    sentence: str
    """For people: `it walks`."""


class SettledCommand:
    """What robots were asked for, and whether for long enough to be judged by it.

    Args:
        env: the environment, which has just been reset.
        command: a command term with `command` (N, size) and `time_left` (N,) [s].
        unscored_s: time after each resampling that is not scored [s].
    """

    asked: Tensor
    """What was asked for before the step, (N, size)."""

    def __init__(self, env: Environment, command: Any, unscored_s: float) -> None:
        self._command, self._wait = command, round(unscored_s / env.step_dt)
        self._since = torch.zeros(env.num_envs, device=env.device)
        self._look()

    def step(self, going: Tensor) -> Tensor:
        """Count a step; the rows among `going` (N,) that are to be judged by `asked`, bool (N,)."""
        self._since += 1
        return going & (self._since > self._wait)

    def next(self) -> None:
        """Take note of what the next actions will be asked to follow."""
        self._since = torch.where(self._command.time_left > self._before, 0.0, self._since)
        self._look()

    def _look(self) -> None:
        self.asked, self._before = self._command.command.clone(), self._command.time_left.clone()


class Score(Protocol):
    """Judges policies of a task family; an instance serves one evaluation.

    The class in the family's score.py under `@score()`, constructed with the page's section `score` as keywords.  The loop,
    its seeds and the figures that every task has are `embodied_rl.learn.evaluate`'s.
    """

    needs: tuple[str, ...]
    """What the scene must measure for it, as of a term; the decorator says it."""
    wants: tuple[str, ...]
    """What it measures where it can; the decorator says it."""
    failure: str
    """The family's word for an episode that ends other than by time, in the singular: `fall` gives the figure `fall_rate`."""

    def overrides(self, page: Page, reference: bool) -> list[str]:
        """Change a page to how it is judged, each `key.path=value`: no page eases its own evaluation.

        Raises:
            UserError: it is no page of this family.
        """
        ...

    def begin(self, env: Environment) -> None:
        """Take note of an environment that has just been reset."""
        ...

    def step(self, env: Environment, going: Tensor) -> None:
        """Take note of a step; `going`, bool (N,), marks the rows that are still in their first episode."""
        ...

    def figures(self) -> dict[str, float]:
        """Measure what was seen, by name."""
        ...

    def limits(self, reference: bool) -> dict[str, float]:
        """List the greatest values that figures may have, by name, in training or in reference physics."""
        ...

    def verdict(self, figures: dict[str, float], reference: bool) -> Verdict:
        """Judge the figures of an evaluation, in training or in reference physics."""
        ...

    def near(self, metrics: dict[str, float]) -> bool:
        """Whether an iteration's metrics, by TensorBoard name, make an evaluation worth its time."""
        ...

    # It may have `tabled`, what the names of some figures begin with, and table(self, figures) -> lines that `eval` prints for
    # them; and `progress`, the metric of how much of what is asked for robots do, by its TensorBoard name: `train` warns where it
    # does not rise with the reward.


def score_of(page: Page) -> Score:
    """Make the score of a page's family.

    Raises:
        UserError: the page has no task, or its family is broken; one line.
    """
    if page.task is None:
        known = ", ".join(family_names())
        raise UserError(f"{page.name}: task: the page names none to judge its policy by; write task: NAME ({known}, or a folder)")
    family = load_family(page.task)
    score = family.score_class()
    check_parts(score, Score, family.folder / "score.py")
    return score(**page.score)


def figures_of(score: Score) -> dict[str, float]:
    """Take a score's figures, a tensor of one number as that number.

    Raises:
        FamilyError: one is no number.
    """
    figures = {}
    for name, value in score.figures().items():
        if (number := _number(value)) is None:
            raise FamilyError(f"{_file(score)}: figures() gives {name!r} as {type(value).__name__}, and one number is needed")
        figures[name] = number
    return figures


def judged(score: Score, figures: dict[str, float], reference: bool) -> tuple[Verdict, dict[str, float]]:
    """Judge the figures of an evaluation; the verdict and the limits.

    Raises:
        FamilyError: a limit is of no figure or no number, or what judges gives no verdict.
    """
    limits = score.limits(reference)
    for name, limit in limits.items():
        if name not in figures:
            near = did_you_mean(name, figures)
            raise FamilyError(f"{_file(score)}: figures() has no {name!r}, which limits() names{near}")
        if _number(limit) is None:
            raise FamilyError(f"{_file(score)}: limits() gives {name!r} as {type(limit).__name__}, and one number is needed")
    verdict = score.verdict(figures, reference)
    if not isinstance(verdict, Verdict) or not isinstance(verdict.passed, bool) or not isinstance(verdict.sentence, str):
        raise FamilyError(f"{_file(score)}: verdict() gives {verdict!r}, and Verdict(True or False, 'a sentence') is needed")
    return verdict, {name: float(limit) for name, limit in limits.items()}


def report_lines(score: Score, figures: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """Lay out the figures of an evaluation: one a line with its limit, but those that the score's table shows in its place."""
    tabled = getattr(score, "tabled", None)
    lines = []
    for name, value in figures.items():
        if tabled is None or not name.startswith(tabled):
            bound = f"   (limit {limits[name]:g})" if name in limits else ""
            lines.append(f"{name:32s} {value:.4f}{bound}" if isinstance(value, float) else f"{name:32s} {value}")
    numbers = {name: value for name, value in figures.items() if isinstance(value, float)}
    return lines + (cast("Any", score).table(numbers) if tabled is not None else [])


def _number(value: Any) -> float | None:
    """Return what is one number as a float; None of anything else."""
    try:
        return None if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _file(score: Score) -> str:
    return f"task: {display(Path(inspect.getfile(type(score))))}"


def failures_of(page: Page) -> str:
    """Return the page's word for episodes that end other than by time: `falls`, or `terminated` where it has no task."""
    return f"{score_of(page).failure}s" if page.task else "terminated"
