"""Robots of a pool, with a learner on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embodied_rl import make_env, training

pytest.importorskip("ray", reason="needs Ray: an extra, ray")

SMALL = ["train.device=cuda", "env.num_envs=16", "env.compile=false", "train.steps=8", "ppo.num_mini_batches=2"]
POOL = ["pool.workers=2", "pool.shard_size=8", "pool.spares=0", "physics.num_threads=1"]
SOFT = ["train.learner=sac", "env.final_obs_groups=[actor,critic]", "sac.batch_size=32", "sac.learning_starts=100"]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["pool.inference=central"],
        ["pool.mode=overlap"],
        ["pool.mode=async", "train.correction=vtrace"],
        ["pool.mode=async", "pool.inference=central"],
        ["train.learner=impala", "ppo.use_clipped_value_loss=true"],
        [*SOFT, "sac.symmetry=augmentation"],
        [*SOFT, "pool.mode=apex", "sac.prioritized=true", "sac.replay_size=4000"],
    ],
    ids=lambda changes: " ".join(one for one in changes if not one.startswith(("sac.", "env."))) or "sync",
)
def test_a_pool_feeds_a_learner_on_a_gpu(tmp_path: Path, changes: list[str]) -> None:
    trainer: Any = training.start(make_env.resolve("pool_go2_flat", [*SMALL, *POOL, *changes]), tmp_path / "run")
    try:
        metrics = list(trainer.train(4))
        assert {parameter.device.type for parameter in trainer.learner.actor.parameters()} == {"cuda"}
        assert all(one["Loss/skipped"] == 0 for one in metrics)
        assert any(one.get("Loss/kl", one.get("Loss/critic", 1.0)) for one in metrics)
        trainer.save()
    finally:
        trainer.collector.close()
