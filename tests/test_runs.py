from __future__ import annotations

from pathlib import Path

import pytest
import torch

import embodied_rl
from embodied_rl import training
from embodied_rl.config import load
from embodied_rl.learn.run import Run

SMALL = [
    *("env.compile=false", "env.num_envs=4", "physics.num_threads=1", "ppo.num_steps_per_env=4"),
    *("ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    trainer = training.start(load("go2_flat", SMALL), tmp_path_factory.mktemp("run") / "run")
    for _ in trainer.train(2):
        pass
    return trainer.run


def test_a_policy_answers_as_the_trained_actor_does(run: Run) -> None:
    loaded = embodied_rl.load(run.path)
    assert (loaded.iteration, loaded.env_steps, loaded.run.path) == (2, 2 * 4 * 4, run.path)
    trainer = training.resume(str(run.path), "go2_flat")
    obs = trainer.collector.observe()
    actor = trainer.learner.actor
    with torch.no_grad():
        expected = actor.mlp(actor.obs_normalizer(obs["actor"]))
    for given in (obs, obs["actor"]):
        action = loaded.policy(given)
        assert torch.equal(action, expected) and not action.requires_grad


def test_a_policy_does_not_change_by_being_asked(run: Run) -> None:
    loaded = embodied_rl.load(run.path)
    before = {name: value.clone() for name, value in loaded.actor.state_dict().items()}
    loaded.policy(100.0 * torch.randn(64, before["mlp.0.weight"].shape[1]))
    assert all(torch.equal(value, before[name]) for name, value in loaded.actor.state_dict().items())


def test_an_earlier_checkpoint_by_its_path(run: Run, tmp_path: Path) -> None:
    trainer = training.start(load("go2_flat", [*SMALL, "ppo.save_interval=1"]), tmp_path / "run")
    for _ in trainer.train(3):
        pass
    first = trainer.run.checkpoint(1)
    assert embodied_rl.load(first).iteration == 1
    assert training.resume(str(first), "go2_flat").iteration == 1
    assert embodied_rl.load(tmp_path / "run").iteration == 3
