"""Seconds until a policy passes its family's evaluation: until it walks."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from embodied_rl import training
from embodied_rl.config import Page, override
from embodied_rl.errors import UserError
from embodied_rl.mdp.score import score_of


def bench_walk(page: Page) -> dict[str, float]:
    """Train the page as it is, with `train.stop_when: passed`.

    The policy that counts is the first of the two in a row that passed.  Evaluations are not counted; compile time is.

    Returns:
        seconds_to_walk, of which seconds_to_start until the first iteration was over, with all that is compiled;
        env_steps_to_walk, and the figures of that policy on the unseen seeds; `inf` where it never passed.

    Raises:
        UserError: a signal stopped it, or the page has no task to be judged by.
    """
    score_of(page)
    page = override(page, ["train.stop_when=passed"])
    started, seconds = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.start(page, Path(folder) / "run")
        for _ in trainer.train(page.train.iterations):
            aside = trainer.examiner.seconds if trainer.examiner else 0.0
            seconds[trainer.iteration] = time.perf_counter() - started - aside
    if trainer.stopped:
        raise UserError(f"stopped after {trainer.iteration} iterations, before it passed")
    start = {"seconds_to_start": min(seconds.values())}
    if (passed := trainer.passed) is None:
        return {"seconds_to_walk": float("inf"), "env_steps_to_walk": float("inf")} | start
    found = {"seconds_to_walk": seconds[passed.iteration], "env_steps_to_walk": passed.env_steps}
    return found | start | passed.figures
