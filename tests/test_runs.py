from __future__ import annotations

from pathlib import Path

import pytest
import torch

import embodied_rl
from embodied_rl import runs, training
from embodied_rl.config import load
from embodied_rl.deploy.contract import read_contract
from embodied_rl.learn.evaluate import SEEDS, evaluation_page
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


OWN = """
from embodied_rl.mdp.term import curriculum


@curriculum()
def own(params, statistics, iteration, *, level: float = 0.0):
    "a scale that grows, by a level that is remembered"
    params["curriculum.own.level"] += 1.0
    params["observations.actor.joint_vel.scale"].fill_(0.1 * float(params["curriculum.own.level"]))
"""
RAMPS = f"""
extends: go2_flat.yaml
name: ramps
terms: [own_terms.py]
observations: {{actor: {{joint_pos: {{noise: {{hips: 0.1, thighs: 0.2, calves: 0.3}}}}}}}}
curriculum:
  gate: null
  own: {{}}
  reach: {{term: linear, parameter: actions.joint_position.scale, start: [0.5], end: [0.9], iterations: [0, 2]}}
  noise: {{term: linear, parameter: observations.actor.joint_pos.noise, start: {[0.0] * 12}, end: {[0.01 * j for j in range(12)]},
    iterations: [0, 2]}}
  wide: {{term: linear, parameter: commands.velocity.lin_vel_x, start: [-0.1, 0.1], end: [-3.0, 3.0], iterations: [0, 2]}}
  bonus: {{term: linear, parameter: ppo.entropy_coef, start: [0.01], end: [0.0], iterations: [0, 2]}}
"""


def test_what_curricula_had_moved_is_the_policys_from_then_on(tmp_path: Path) -> None:
    """A policy that was trained with an action scale of 0.9 is played, judged and deployed with it."""
    (tmp_path / "own_terms.py").write_text(OWN)
    (tmp_path / "ramps.yaml").write_text(RAMPS)
    trainer = training.start(load(str(tmp_path / "ramps.yaml"), SMALL), tmp_path / "run")
    list(trainer.train(2))
    loaded = embodied_rl.load(tmp_path / "run")
    env = embodied_rl.make(loaded.page)
    moved = trainer.curricula.numbers
    assert len(moved) == 5 and not loaded.page.curriculum  # one of them is what `own` remembers
    for path in moved.keys() - {"curriculum.own.level"}:
        assert torch.equal(env.params[path], moved[path]), path
    assert env.params["actions.joint_position.scale"] == torch.tensor(0.9)
    # its third time comes with the iteration that nobody has collected yet
    assert env.params["observations.actor.joint_vel.scale"] == pytest.approx(0.3)
    env.close()

    with_score = evaluation_page(loaded.page, SEEDS[0])
    assert with_score.commands["velocity"].params["lin_vel_x"] == (-1.0, 1.0)
    assert with_score.actions["joint_position"].params["scale"] == pytest.approx(0.9)

    contract = read_contract(runs.export_run(tmp_path / "run", episodes=0) / "policy.onnx")
    (action,) = contract["actions"]
    assert action["scale"] == pytest.approx([0.9] * 12)
