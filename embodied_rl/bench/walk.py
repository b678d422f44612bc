"""Seconds until a policy passes its family's evaluation: until it walks."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from embodied_rl import runs, training
from embodied_rl.config import Page
from embodied_rl.errors import UserError
from embodied_rl.learn.evaluate import SEEDS
from embodied_rl.mdp.score import Score, score_of

log = logging.getLogger("embodied_rl")

#: Iterations between evaluations, which begin once the family's score finds the training metrics near its limits.
_EVALUATE_EVERY = 10


def bench_walk(page: Page) -> dict[str, float]:
    """Train the page as it is until its policy passes.

    Every few iterations the policy is evaluated on the side, which is not counted; compile time is.  The first of two
    evaluations in a row that pass, in training and in reference physics, is the one that counts, if it passes again on seeds
    that it was not chosen by.  Of several processes, started by torchrun, the first evaluates.

    Returns:
        seconds_to_walk, of which seconds_to_start until the first iteration was over, with all that is compiled;
        env_steps_to_walk, and the figures of that policy on the unseen seeds; `inf` where it never passed.

    Raises:
        UserError: a signal stopped it, or the page has no task to be judged by.
    """
    score = score_of(page)
    started, aside = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.start(page, Path(folder) / "run")
        examine = lambda policy, seed: trainer.group.lead(lambda: _passes(page, score, policy, seed))  # noqa: E731
        candidate: dict | None = None
        to_start = float("inf")
        for metrics in trainer.train(page.train.iterations):
            to_start = min(to_start, time.perf_counter() - started)
            if trainer.iteration % _EVALUATE_EVERY or not score.near(metrics):
                continue
            seconds, paused = time.perf_counter() - started - aside, time.perf_counter()
            path = trainer.save()
            policy = runs.load(path).policy if trainer.group.rank == 0 else None
            figures, passed = examine(policy, SEEDS[0])
            log.info("%4.0f s, %s steps: %s", seconds, f"{trainer.env_steps:,}", _brief(figures, score))
            if passed and candidate:
                unseen, passed = examine(candidate["policy"], SEEDS[1])
                if passed:
                    found = {"seconds_to_walk": candidate["seconds"], "env_steps_to_walk": candidate["steps"]}
                    return found | {"seconds_to_start": to_start} | unseen
            candidate = {"policy": policy, "seconds": seconds, "steps": trainer.env_steps} if passed else None
            aside += time.perf_counter() - paused
        if trainer.stopped:
            raise UserError(f"stopped after {trainer.iteration} iterations, before it passed")
    return {"seconds_to_walk": float("inf"), "env_steps_to_walk": float("inf"), "seconds_to_start": to_start}


def _passes(page: Page, score: Score, policy: Callable[[dict[str, Tensor]], Tensor], seed: int) -> tuple[dict[str, float], bool]:
    """Figures in training physics, and in reference physics where those pass."""
    figures = runs.evaluate_policy(page, policy, seed=seed)
    if not score.verdict(figures, False).passed:
        return figures, False
    reference = runs.evaluate_policy(page, policy, seed=seed, reference=True)
    figures |= {f"reference_{name}": reference[name] for name in score.limits(False)}
    return figures, score.verdict(reference, True).passed


def _brief(figures: dict[str, float], score: Score) -> str:
    names = score.limits(False)
    return "  ".join(
        f"{name} {figures[name]:.3f}" for name in (*names, *(f"reference_{name}" for name in names)) if name in figures
    )
