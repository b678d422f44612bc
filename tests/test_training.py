from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embodied_rl import make_env, runs, training
from embodied_rl.config import load
from embodied_rl.errors import UserError
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.rollout import LocalCollector

SMALL = [
    *("env.compile=false", "env.num_envs=4", "physics.num_threads=1", "train.steps=4"),
    *("ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]"),
]


def test_training_needs_the_last_observation_of_an_episode(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        training.start(load("go2_flat", [*SMALL, "env.final_obs_groups=[actor]"]), tmp_path / "run")
    assert str(caught.value).startswith("env.final_obs_groups: [actor]: ") and "'critic'" in str(caught.value)


def test_overrides_of_a_resume_stay_with_the_run(tmp_path: Path):
    small = ["env.compile=false", "env.num_envs=8", "train.steps=4", "ppo.schedule=fixed"]
    trainer = training.start(load("go2_flat", small), tmp_path / "run")
    assert len(list(trainer.train(1))) == 1
    resumed = training.resume(str(tmp_path / "run"), "go2_flat", ["ppo.learning_rate=1e-4", "rewards.pose.weight=0.25"])
    assert resumed.learner.state_dict()["optimizer_state_dict"]["param_groups"][0]["lr"] == pytest.approx(1e-4)
    assert runs.load(tmp_path / "run").page == resumed.page != trainer.page


@pytest.mark.parametrize("graph", [True, False])
def test_a_page_without_graphs_has_none_in_its_learner(monkeypatch: pytest.MonkeyPatch, graph: bool) -> None:
    page = load("go2_flat", [*SMALL, f"physics.graph={str(graph).lower()}"])
    given = {}

    class Learner(PPO):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            given.update(settings)

    env = make_env.make(page)
    monkeypatch.setattr("embodied_rl.learn.learner.learner_class", lambda page: Learner)
    training.make_learner(page, LocalCollector(env, 4, 1, symmetry=True), torch.device("cpu"))
    assert given["graph"] is graph
    env.close()


def test_a_learner_in_this_process_is_where_its_robots_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^train.device: cuda: the robots are on cpu, and in one process the learner is"):
        training.start(load("go2_flat", [*SMALL, "train.device=cuda"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
