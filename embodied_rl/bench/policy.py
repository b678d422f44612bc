"""The policy that drives while a step is measured."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from embodied_rl import make_env, runs, training
from embodied_rl.config import Page, override
from embodied_rl.learn.run import RUNS, Run
from embodied_rl.paths import policy_names, shipped
from embodied_rl.vector_env import Obs

log = logging.getLogger("embodied_rl")


def driving_policy(page: Page) -> Callable[[Obs], Tensor]:
    """Load the policy of the page's newest run; else that which ships for it, or a new one of a short training.

    The one that ships drives a page that says of robot, actions and observations what it said when that was trained.
    """
    device = make_env.device_of(page)
    checkpoints = sorted((RUNS / page.name).glob("*/checkpoints/model_*.pt"), key=lambda path: path.stat().st_mtime)
    if checkpoints:
        loaded = runs.load(checkpoints[-1], device=str(device))
        log.info("driven by the policy of %s", loaded.checkpoint)
        return loaded.policy
    if page.name in policy_names():
        packed = shipped("policies") / page.name
        if not any(key.startswith(runs.POLICY_KEYS) for key in page.differing(Run(packed).page)):
            return runs.load(packed, device=str(device)).policy
    log.info("no run of %s under %s: training one for 200 iterations of 256 robots first", page.name, RUNS)
    page = override(page, ["env.num_envs=256"])  # however many are measured: these learn soonest
    if device.type == "cpu":  # where the others take hours
        page = override(page, ["physics.engine=native"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(page, Run.create(page, Path(folder) / "run"))
        for _ in trainer.train(200):
            pass
        return runs.load(trainer.run.path, device=str(device)).policy
