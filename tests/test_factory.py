from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import embodied_rl
from embodied_rl import build, factory
from embodied_rl.config import ConfigError, load
from embodied_rl.errors import UserError
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.learn.run import Run

SMALL = [
    *("env.compile=false", "env.num_envs=4", "physics.num_threads=1", "ppo.num_steps_per_env=4"),
    *("ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    trainer = factory.start(load("go2_flat", SMALL), tmp_path_factory.mktemp("run") / "run")
    for _ in trainer.train(2):
        pass
    return trainer.run


def test_options_go_over_overrides() -> None:
    page = factory.resolve("go2_flat", ["env.num_envs=3", "env.seed=4"], num_envs=5, engine="native", device="cpu", seed=6)
    assert (page.env.num_envs, page.env.seed, page.physics.engine) == (5, 6, "native")
    expected = load("go2_flat", ["env.num_envs=5", "env.seed=7", "physics.device=cpu"])
    assert factory.resolve(page, ["env.seed=7"]) == expected


@pytest.mark.parametrize(
    ("options", "engine", "device"),
    [
        ({}, "native", "auto"),
        ({"device": "cuda"}, "warp", "cuda"),
        ({"device": "cuda:1", "engine": "mjx"}, "mjx", "cuda:1"),
        ({"engine": "warp"}, "warp", "auto"),
    ],
)
def test_a_device_picks_its_engine(options: dict, engine: str, device: str) -> None:
    page = factory.resolve("go2_flat", **options)
    assert (page.physics.engine, page.physics.device) == (engine, device)
    # a run on a GPU is played in C on the CPU
    there = factory.resolve(page, engine="native")
    assert (there.physics.engine, there.physics.device) == ("native", "auto")
    assert factory.device_of(there).type == "cpu"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda", "engine": "native"}, "the engine native runs on the CPU"),
        ({"device": "gpu"}, "physics.device"),
        ({"engine": "warp", "overrides": ["physics.solver=pgs"]}, "the engine warp has no such solver"),
        ({"engine": "mjx", "overrides": ["physics.integrator=implicit"]}, "the engine mjx has no such integrator"),
        ({"engine": "isaacgym"}, "is planned; what works now: native"),
        ({"num_envs": 0}, "env.num_envs"),
    ],
)
def test_what_cannot_be_asked_for(options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        embodied_rl.make("go2_flat", **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_training_needs_the_last_observation_of_an_episode(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        factory.start(load("go2_flat", [*SMALL, "env.final_obs_groups=[actor]"]), tmp_path / "run")
    assert str(caught.value).startswith("env.final_obs_groups: [actor]: ") and "'critic'" in str(caught.value)


def test_every_mistake_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        embodied_rl.make("go2_flat", ["env.num_env=3", "physics.dt=-1.0"])
    assert len(str(caught.value).splitlines()) == 2


def test_make_measures_what_is_asked_for() -> None:
    env = factory.make("go2_flat", SMALL, measure=("joint_torque",))
    env.step(torch.zeros(4, 12))
    assert env.physics.joint_torque.abs().sum() > 0
    env.close()


def test_the_step_is_compiled_where_it_can_be(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def compiles(setting: str) -> bool:
        function: Callable = lambda: None  # noqa: E731
        return factory.compiler(load("go2_flat", [f"env.compile={setting}"]), torch.device("cpu"))(function) is not function

    monkeypatch.setattr(build.doctor, "cpp_error", lambda: None)
    assert compiles("auto") and compiles("true") and not compiles("false")
    monkeypatch.setattr(build.doctor, "cpp_error", lambda: "no C++ compiler")
    with pytest.raises(UserError, match=r"env\.compile: true: no C"):
        compiles("true")
    assert not caplog.records
    assert not compiles("auto")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].startswith("no C++ compiler: ")


def test_a_policy_answers_as_the_trained_actor_does(run: Run) -> None:
    loaded = embodied_rl.load(run.path)
    assert (loaded.iteration, loaded.env_steps, loaded.run.path) == (2, 2 * 4 * 4, run.path)
    trainer = factory.resume(str(run.path), "go2_flat")
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
    trainer = factory.start(load("go2_flat", [*SMALL, "ppo.save_interval=1"]), tmp_path / "run")
    for _ in trainer.train(3):
        pass
    first = trainer.run.checkpoint(1)
    assert embodied_rl.load(first).iteration == 1
    assert factory.resume(str(first), "go2_flat").iteration == 1
    assert embodied_rl.load(tmp_path / "run").iteration == 3


def test_overrides_of_a_resume_stay_with_the_run(tmp_path: Path):
    small = ["env.compile=false", "env.num_envs=8", "ppo.num_steps_per_env=4", "ppo.schedule=fixed"]
    trainer = factory.start(load("go2_flat", small), tmp_path / "run")
    assert len(list(trainer.train(1))) == 1
    resumed = factory.resume(str(tmp_path / "run"), "go2_flat", ["ppo.learning_rate=1e-4", "rewards.pose.weight=0.25"])
    assert resumed.learner.optimizer.param_groups[0]["lr"] == 1e-4
    assert factory.load(tmp_path / "run").page == resumed.page != trainer.page


@pytest.mark.parametrize("graph", [True, False])
def test_a_page_without_graphs_has_none_in_its_learner(monkeypatch: pytest.MonkeyPatch, graph: bool) -> None:
    page = load("go2_flat", [*SMALL, f"physics.graph={str(graph).lower()}"])
    given = {}

    class Learner(PPO):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            given.update(settings)

    env = factory.make(page)
    monkeypatch.setattr(factory, "_class", lambda name: Learner)
    factory.make_learner(page, LocalCollector(env, 4, 1, symmetry=True))
    assert given["graph"] is graph
    env.close()
