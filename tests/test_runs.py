from __future__ import annotations

from pathlib import Path

import pytest
import torch

import embodied_rl
from embodied_rl import training
from embodied_rl.config import load
from embodied_rl.learn.run import Run

SMALL = [
    *("env.compile=false", "env.num_envs=4", "physics.num_threads=1", "train.steps=4"),
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
    learnt = trainer.learner.policy
    with torch.no_grad():
        expected = learnt.network(learnt.normalizer(obs["actor"]))
    for given in (obs, obs["actor"]):
        action = loaded.policy(given)
        assert torch.equal(action, expected) and not action.requires_grad


def test_a_policy_does_not_change_by_being_asked(run: Run) -> None:
    loaded = embodied_rl.load(run.path)
    acting = loaded.policy.policy
    known = lambda: [*acting.network.state_dict().values(), *acting.normalizer.state_dict().values()]  # noqa: E731
    before = [value.clone() for value in known()]
    loaded.policy(100.0 * torch.randn(64, acting.obs_size))
    assert all(torch.equal(value, one) for value, one in zip(known(), before, strict=True))


def test_an_earlier_checkpoint_by_its_path(run: Run, tmp_path: Path) -> None:
    trainer = training.start(load("go2_flat", [*SMALL, "train.save_every=1"]), tmp_path / "run")
    for _ in trainer.train(3):
        pass
    first = trainer.run.checkpoint(1)
    assert embodied_rl.load(first).iteration == 1
    assert training.resume(str(first), "go2_flat").iteration == 1
    assert embodied_rl.load(tmp_path / "run").iteration == 3
