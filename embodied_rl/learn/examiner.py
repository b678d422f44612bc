"""The examiner: evaluates the policy while it is trained, on the side, and says when it has passed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from embodied_rl.config import Page
from embodied_rl.learn.evaluate import SEEDS, evaluation_page
from embodied_rl.learn.learner import Learner, learner_class, naming_own
from embodied_rl.learn.policy import Player
from embodied_rl.learn.ranks.group import Group
from embodied_rl.mdp.curricula import Moved
from embodied_rl.mdp.score import judged, score_of

log = logging.getLogger("embodied_rl")

#: Iterations between evaluations where the page says none; then only where one may pass.
_EVERY = 10
#: After a failed evaluation the next one waits until its figures are expected within so many times the limits, or for so
#: many iterations, however little the training's own metrics have moved.
_SLACK, _AT_MOST = 1.2, 50
#: Iterations in which a figure halves: an error that a metric of training tells of too, and one that none does (falls).
_ERROR_HALVES, _OTHERS_HALVE = 40, 10


class Measure(Protocol):
    """Measures a policy: the figures of `embodied_rl.learn.evaluate.evaluate`."""

    def __call__(self, policy: Player, moved: Moved, *, seed: int, reference: bool) -> dict[str, float]:
        """Run an evaluation, in training or in reference physics, with what curricula had moved for the policy."""
        ...


class Evaluation(NamedTuple):
    """What a policy came to."""

    figures: dict[str, float]
    """Those of training physics; where they pass and it was asked for, reference physics' limited ones too, `reference_NAME`."""
    margin: float
    """1 - the worst figure / limit of training physics: from 0 up every limit holds, and larger is better."""
    passed: bool
    """In all physics that were asked for."""
    sentence: str


class Passed(NamedTuple):
    """The policy that a training has passed with."""

    iteration: int
    env_steps: int
    seconds: float
    """What collecting and learning had taken by then."""
    sentence: str
    figures: dict[str, float]
    """On seeds that it was not chosen by."""


class _Candidate(NamedTuple):
    """A policy that has passed once."""

    iteration: int
    env_steps: int
    seconds: float


class _Wait(NamedTuple):
    """When the next evaluation is worth its time, after one that failed."""

    until: int
    """The iteration from which on it is, whatever the metrics."""
    metrics: dict[str, float]
    """Or once none of these is above its value: almost as far below what they were as the figures must come down."""
    least: int
    """The iteration before which it is not."""


class Examiner:
    """Evaluates the policy on seeds that training never meets; training goes the same way with it and without, to the last bit.

    A training has passed once two evaluations in a row have, and the first one's policy has again, in training and in reference
    physics, on seeds that it was not chosen by.  With `evaluate_every` each evaluation that passes in training physics goes on
    in reference physics; without it, evaluations serve the verdict alone, and are made where they may pass.

    Args:
        page: the task, with a family.
        group: the processes that train; rank 0 evaluates for all.
        measure: what rank 0 measures a policy with.

    Raises:
        UserError: the page has no task to be judged by, or is none of its family.
    """

    def __init__(self, page: Page, group: Group, measure: Measure) -> None:
        self._page, self._group, self._measure, self._score = page, group, measure, score_of(page)
        # what is wrong with it shows before the training and not in its middle
        group.lead(lambda: [evaluation_page(page, SEEDS[0], reference=reference) for reference in (False, True)])
        self._candidate: _Candidate | None = None
        # its own, which learns no more, and what curricula had moved for it; on rank 0
        self._policy: tuple[Player, Moved] | None = None
        self._latest: tuple[int, Evaluation] | None = None
        self._wait: _Wait | None = None
        self.seconds = 0.0
        """What evaluations have taken."""
        self.passed: Passed | None = None

    def due(self, iteration: int, metrics: dict[str, float]) -> bool:
        """Whether the policy is evaluated after this iteration, with these metrics; the same on all ranks."""
        every = self._page.train.evaluate_every
        if iteration % (every or _EVERY):
            return False
        return every is not None or self._group.lead(lambda: self._may_pass(iteration, metrics))

    def examine(self, iteration: int, learner: Learner, moved: Moved, metrics: dict[str, float]) -> dict[str, float]:
        """Evaluate the policy as it is after an iteration with these metrics; the score's, by TensorBoard name."""
        started, device = time.perf_counter(), learner.policy.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            curve = self._page.train.evaluate_every is not None
            evaluation = self._evaluate((Player(learner.policy), moved), SEEDS[0], reference=curve)
            self._latest = iteration, evaluation
            self._wait = None if curve else self._wait_after(iteration, metrics, evaluation)
            self._say(f"evaluated after iteration {iteration}", evaluation)
            if self._page.train.stop_when == "passed":
                self._follow(iteration, learner, moved, metrics, evaluation)
        self.seconds += time.perf_counter() - started
        shown = self._limited(evaluation) | {"margin": evaluation.margin, "passed": float(evaluation.passed)}
        return {f"Score/{name}": value for name, value in shown.items()}

    def infos(self, iteration: int) -> dict[str, Any]:
        """Tell what a checkpoint of this iteration keeps: its evaluation, if any, whose policy has passed once, when to go on."""
        infos: dict[str, Any] = {"candidate": self._candidate.iteration} if self._candidate else {}
        infos |= {"wait": self._wait._asdict()} if self._wait else {}
        if self._latest is not None and self._latest[0] == iteration:
            evaluation = self._latest[1]
            infos["score"] = {
                "figures": self._limited(evaluation),
                "margin": evaluation.margin,
                "passed": evaluation.passed,
            }
        return infos

    def resume(self, infos: dict[str, Any], read: Callable[[int], dict]) -> None:
        """Go on from what `infos` gave, with the checkpoint of the policy that has passed once: `read` is given its iteration.

        Raises:
            CheckpointError: it is gone, or damaged.
        """
        if self._page.train.stop_when != "passed":
            return
        self._wait = _Wait(**infos["wait"]) if "wait" in infos else None
        if "candidate" not in infos:
            return

        def found() -> _Candidate:
            state = read(int(infos["candidate"]))
            self._policy = self._copy(state, torch.device("cpu")), state.get("curricula") or {}
            return _Candidate(int(state["iter"]), int(state["infos"]["env_steps"]), float(state["infos"]["seconds"]))

        self._candidate = self._group.lead(found)

    def _may_pass(self, iteration: int, metrics: dict[str, float]) -> bool:
        """Whether an evaluation is worth its time, by the training's own metrics and how the latest one failed."""
        if not self._score.near(metrics):
            return False
        if self._wait is None or iteration >= self._wait.until:
            return True
        return iteration >= self._wait.least and all(
            metrics.get(name, value) <= value for name, value in self._wait.metrics.items()
        )

    def _wait_after(self, iteration: int, metrics: dict[str, float], evaluation: Evaluation) -> _Wait | None:
        """Take a figure to come down in proportion to the training's own metric of its name, without one by half at a time."""
        figures, limits = evaluation.figures, self._score.limits(False)
        # a figure of 0 comes down to nothing
        above = [name for name, limit in limits.items() if figures[name] > max(limit, 0.0)]
        told = [name for name in above if f"Metrics/{name}" in metrics]
        scaled = {f"Metrics/{name}": metrics[f"Metrics/{name}"] * _SLACK * limits[name] / figures[name] for name in told}

        def halved(names: list[str], halving: int) -> int:
            times = max((figures[name] / limits[name] for name in names if limits[name] > 0.0), default=1.0)
            return iteration + round(min(halving * math.log2(times), _AT_MOST) / _EVERY) * _EVERY

        least = halved([name for name in above if name not in told], _OTHERS_HALVE)
        return _Wait(max(halved(told, _ERROR_HALVES), least), scaled, least) if above else None

    def _evaluate(self, policy: tuple[Player, Moved] | None, seed: int, *, reference: bool) -> Evaluation:
        """Evaluate on rank 0, where training physics pass in reference physics too if they are asked for; known to all."""

        def measured() -> Evaluation:
            assert policy is not None
            figures = self._measure(*policy, seed=seed, reference=False)
            verdict, limits = judged(self._score, figures, False)
            found = margin(figures, limits)
            if verdict.passed and reference:
                others = self._measure(*policy, seed=seed, reference=True)
                verdict, _ = judged(self._score, others, True)
                figures |= {f"reference_{name}": others[name] for name in limits}
            return Evaluation(figures, found, *verdict)

        return self._group.lead(measured)

    def _follow(self, iteration: int, learner: Learner, moved: Moved, metrics: dict[str, float], evaluation: Evaluation) -> None:
        """Count passes in a row, and try the first one's policy on other seeds."""
        first, self._candidate = self._candidate, None
        if evaluation.passed and first is not None:
            unseen = self._evaluate(self._policy, SEEDS[1], reference=True)
            self._say(f"that of iteration {first.iteration} on seeds that it was not chosen by", unseen)
            if unseen.passed:
                self.passed = Passed(*first, unseen.sentence, unseen.figures)
        elif evaluation.passed:
            self._group.lead(lambda: self._keep(learner, moved))
            self._candidate = _Candidate(iteration, int(metrics["Train/env_steps"]), metrics["Train/seconds"])

    def _keep(self, learner: Learner, moved: Moved) -> None:
        self._policy = self._copy(learner.state_dict(), learner.policy.device), moved

    def _copy(self, state: dict, device: torch.device) -> Player:
        """Make a policy of a learner's state, which stays as it is."""
        learner = learner_class(self._page)
        with torch.random.fork_rng([]), naming_own(self._page, learner.load_policy):  # networks draw their first weights
            return Player(learner.load_policy(self._page, state, device))

    def _limited(self, evaluation: Evaluation) -> dict[str, float]:
        """Pick the figures that have limits, and those of reference physics."""
        names = self._score.limits(False)
        names = [*names, *(f"reference_{name}" for name in names)]
        return {name: float(evaluation.figures[name]) for name in names if name in evaluation.figures}

    def _say(self, what: str, evaluation: Evaluation) -> None:
        """Log an evaluation's figures beside their limits, in one line."""
        if self._group.rank:
            return
        limits = self._score.limits(False)
        limits = limits | {f"reference_{name}": limit for name, limit in self._score.limits(True).items()}
        figures = [
            f"{name} {value:.3f}" + (f" (limit {limits[name]:.3f})" if name in limits else "")
            for name, value in self._limited(evaluation).items()
        ]
        log.info("%s: %s: %s", what, "  ".join(figures), evaluation.sentence)


def margin(figures: dict[str, float], limits: dict[str, float]) -> float:
    """1 - the worst figure / limit; of a limit of 0, -figure; -inf where a figure is not finite."""
    # beyond a limit below 0, too, more is worse
    margins = [(limit - figures[name]) / (abs(limit) or 1.0) for name, limit in limits.items()]
    return min(margins, default=0.0) if all(map(math.isfinite, margins)) else -math.inf
