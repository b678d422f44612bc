"""Training on a GPU: the update as CUDA graphs, a run and its resumption, and what becomes of its policy on the CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from embodied_rl import make_env, runs, training
from embodied_rl.config import Page
from embodied_rl.cuda_graph import CudaGraph
from embodied_rl.learn.copies import plain_copy
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.learn.run import Run

SMALL = ["env.num_envs=64", "env.compile=false", "train.steps=8", "ppo.num_mini_batches=2", "train.save_every=2"]


def page(*overrides: str) -> Page:
    return make_env.resolve("go2_flat", [*SMALL, *overrides], device="cuda", engine="warp")


IMPALA = ["train.learner=impala", "ppo.use_clipped_value_loss=true"]


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [[], ["ppo.optimizer=rmsprop", "ppo.clip_gradient=all"], IMPALA], ids=" ".join)
def test_captured_updates_are_the_eager_ones(tmp_path: Path, changes: list[str]) -> None:
    learners, rollouts = {}, {}
    for graph in (True, False):
        torch.manual_seed(0)
        trainer: Any = training.make_trainer(
            page(f"physics.graph={str(graph).lower()}", *changes), Run.create(page(), tmp_path / str(graph))
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
    given = [f"env.compile={compiled}", f"ppo.rnn_type={memory}"]
    given += ["ppo.symmetry=none", "ppo.rnn_hidden_dim=32"] if memory != "none" else []
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


NATIVE = ["train.device=cuda", "physics.num_threads=2", "ppo.actor_hidden_dims=[32]", "ppo.critic_hidden_dims=[32]"]


def native(*overrides: str) -> Page:
    return make_env.resolve("go2_flat", [*SMALL, *NATIVE, *overrides])


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", ["false", "true"])
@pytest.mark.parametrize("compiled", ["false", "auto"])
def test_robots_on_the_cpu_and_their_learner_on_a_gpu(tmp_path: Path, overlap: str, compiled: str) -> None:
    trainer: Any = training.start(native(f"train.overlap={overlap}", f"env.compile={compiled}"), tmp_path / "run")
    metrics = list(trainer.train(6))
    assert trainer.learner.steps.captures and len(trainer.learner.steps.graphs) >= 2
    assert {parameter.device.type for parameter in trainer.learner.actor.parameters()} == {"cuda"}
    assert all(one["Loss/skipped"] == 0 and one["Physics/unstable"] == 0 for one in metrics)
    assert all(one["Perf/share_transfer"] > 0 for one in metrics)
    inner, there = trainer.collector._robots._rollout, trainer.collector.collect(trainer.learner.policy, 6)
    for name in ("actions", "output", "rewards", "terminated", "truncated", "valid"):
        assert getattr(inner, name).is_pinned() and getattr(there, name).device.type == "cuda"
    assert inner.obs["actor"].is_pinned() and there.obs["actor"].device.type == "cuda"
    assert {value.device.type for pair in trainer.collector.mirrors.values() for value in pair} == {"cuda"}
    trainer.collector.rest()
    resumed: Any = training.resume(str(tmp_path / "run"), "go2_flat")
    assert resumed.iteration == 6 and len(list(resumed.train(8))) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", ["false", "true"])
def test_a_learner_on_a_gpu_learns_what_one_on_the_cpu_does(tmp_path: Path, overlap: str) -> None:
    """Float32 products on both; minibatches are drawn by other generators, so that each is one whole epoch."""
    given = [f"train.overlap={overlap}", "ppo.tf32=false", "ppo.num_mini_batches=1", "ppo.num_learning_epochs=2"]
    metrics, numbers = {}, {}
    for device in ("cpu", "cuda"):
        trainer: Any = training.start(native(*given, f"train.device={device}"), tmp_path / device)
        metrics[device] = list(trainer.train(2))
        numbers[device] = [value.cpu() for net in trainer.learner.networks.values() for value in net.state_dict().values()]
    for one, other in zip(metrics["cpu"], metrics["cuda"], strict=True):
        learned = {name: value for name, value in one.items() if name.startswith(("Loss/", "Policy/"))}
        assert {name: other[name] for name in learned} == pytest.approx(learned, rel=2e-2, abs=2e-3)
    for one, other in zip(numbers["cpu"], numbers["cuda"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", ["false", "true"])
def test_a_rollout_is_copied_before_the_robots_overwrite_it(tmp_path: Path, overlap: str) -> None:
    """A policy that does not change, and a GPU that is busy when the copies are asked for: the bits of robots without a GPU."""
    settings = native(f"train.overlap={overlap}")
    trainer = training.start(settings, tmp_path / "run")
    policy, collector = trainer.learner.policy, trainer.collector
    reference = LocalCollector(make_env.make(settings), settings.train.steps, settings.env.seed)
    acting = plain_copy(policy)
    for iteration in range(4):
        torch.cuda._sleep(10**8)
        there, expected = collector.collect(policy, iteration), reference.collect(acting, iteration)
        collector.rest()  # with overlap the robots have written the next one by now
        for name in ("actions", "rewards", "terminated", "truncated"):
            assert torch.equal(getattr(there, name).cpu(), getattr(expected, name)), name
        assert all(torch.equal(value.cpu(), expected.obs[name]) for name, value in there.obs.items())
        assert all(torch.equal(value.cpu(), expected.last_obs[name]) for name, value in there.last_obs.items())


SOFT = [
    *("train.learner=sac", "env.final_obs_groups=[actor,critic]", "env.num_envs=8", "env.episode_s=0.2"),
    *("train.device=cuda", "physics.num_threads=2", "sac.batch_size=64", "sac.actor_hidden_dims=[32]"),
    *("sac.critic_hidden_dims=[32]", "sac.learning_starts=100", "sac.replay_size=4000", "sac.updates=0.1"),
]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [
        ["sac.symmetry=augmentation", "sac.obs_normalization=true", "sac.actor_interval=2"],
        ["sac.prioritized=true", "sac.n_steps=3"],
        ["sac.critic=mse", "sac.layer_norm=false"],
    ],
    ids=" ".join,
)
def test_soft_updates_from_graphs_are_the_eager_ones(tmp_path: Path, changes: list[str]) -> None:
    """Episodes are so short that the replay makes room for their ends when a draw has been captured: what it reads has moved."""
    trainers, metrics = {}, {}
    for graph in ("true", "false"):
        torch.manual_seed(0)
        settings = make_env.resolve("go2_flat", ["env.compile=false", *SOFT, *changes, f"physics.graph={graph}"])
        trainers[graph] = training.start(settings, tmp_path / graph)
        metrics[graph] = list(trainers[graph].train(10))
    for one, other in zip(metrics["true"][:3], metrics["false"][:3], strict=True):  # then robots have parted by rounding
        learned = {name: value for name, value in one.items() if name.startswith(("Loss/", "Policy/"))}
        assert {name: other[name] for name in learned} == pytest.approx(learned, rel=1e-2, abs=2e-3)
    learner: Any = trainers["true"].learner
    assert learner.replay.moves > 0 and learner.critic_steps.captures and learner.actor_steps.captures
    assert (
        all(isinstance(graph, CudaGraph) for graph in learner._graphs.values()) and {"draw", "follow"} <= learner._graphs.keys()
    )
    batches = learner.batches
    for _ in range(5):
        batches.draw_numbers()
        learner._graphs["draw"]()
        drawn = copy.deepcopy(batches.batch)
        batches.draw()
        for one, other in zip(tree_leaves(vars(drawn)), tree_leaves(vars(batches.batch)), strict=True):
            assert torch.equal(one, other)
