"""Training on a GPU: the update as CUDA graphs, a run and its resumption, and what becomes of its policy on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embodied_rl import make_env, runs, training
from embodied_rl.config import Page
from embodied_rl.learn.run import Run

SMALL = ["env.num_envs=64", "env.compile=false", "train.steps=8", "ppo.num_mini_batches=2", "train.save_every=2"]


def page(*overrides: str) -> Page:
    return make_env.resolve("go2_flat", [*SMALL, *overrides], device="cuda", engine="warp")


@pytest.mark.gpu
def test_captured_updates_are_the_eager_ones(tmp_path: Path) -> None:
    learners, rollouts = {}, {}
    for graph in (True, False):
        torch.manual_seed(0)
        trainer: Any = training.make_trainer(
            page(f"physics.graph={str(graph).lower()}"), Run.create(page(), tmp_path / str(graph))
        )
        learner = learners[graph] = trainer.learner
        assert learner.steps.captures is graph
        rollouts[graph] = trainer.collector.collect(learner.policy, 0)
    learners[True].load_state_dict(learners[False].state_dict())
    for iteration in range(2):  # the first captures, the second replays
        metrics = {graph: learner.update(rollouts[False], iteration) for graph, learner in learners.items()}
        assert metrics[True] == pytest.approx(metrics[False], rel=1e-3, abs=1e-5)
    assert learners[True].steps.captures and len(learners[True].steps.graphs) >= 2
    for one, other in zip(learners[True].actor.parameters(), learners[False].actor.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["false", "auto"])
@pytest.mark.parametrize("memory", ["none", "gru"])
def test_a_run_and_its_resumption(tmp_path: Path, compiled: str, memory: str) -> None:
    given = [f"env.compile={compiled}", f"ppo.rnn_type={memory}", "ppo.rnn_hidden_dim=32"]
    given += ["ppo.symmetry=none"] if memory != "none" else []
    trainer: Any = training.start(page(*given), tmp_path / "run")
    metrics = list(trainer.train(4))
    assert trainer.collector._env.captured and trainer.learner.steps.captures
    assert all(one["Loss/skipped"] == 0 and one["Physics/overflow"] == 0 for one in metrics)
    resumed: Any = training.resume(str(tmp_path / "run"), "go2_flat", device="cuda")
    assert resumed.iteration == 4
    assert len(list(resumed.train(6))) == 2


@pytest.mark.gpu
def test_a_checkpoint_of_an_optimizer_that_is_not_fused(tmp_path: Path) -> None:
    """Its counts of steps lie on the CPU: a fused optimizer's kernel would read them there."""
    trainer: Any = training.start(page(), tmp_path / "run")
    next(trainer.train(1))
    state = trainer.learner.state_dict()
    optimizer = state["optimizer_state_dict"]
    for one in optimizer["state"].values():
        one["step"] = one["step"].cpu()
    (group,) = optimizer["param_groups"]
    trainer.learner.load_state_dict(state | {"optimizer_state_dict": optimizer | {"param_groups": [group | {"fused": None}]}})
    metrics = list(trainer.train(3))
    assert all(one["Loss/skipped"] == 0 for one in metrics)
    assert all(parameter.isfinite().all() for parameter in trainer.learner.actor.parameters())


@pytest.mark.gpu
def test_a_policy_answers_robots_of_another_device(tmp_path: Path) -> None:
    trainer = training.start(page(), tmp_path / "run")
    next(trainer.train(1))
    trainer.save()
    for device in ("cpu", "cuda"):
        policy = runs.load(tmp_path / "run", device=device).policy
        with torch.no_grad():
            for there, engine in (("cuda", "warp"), ("cpu", "native")):
                env = make_env.make("go2_flat", ["env.compile=false"], num_envs=8, device=there, engine=engine)
                for _ in range(2):
                    done = env.step(policy(env.obs))
                policy.forget(done.terminated)
                assert env.obs["actor"].isfinite().all()
                env.close()
