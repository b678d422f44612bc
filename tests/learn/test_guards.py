"""Numbers that are not finite, from a page's terms or its numbers: named, kept out of everything that is learned and saved."""

from __future__ import annotations

import functools
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from embodied_rl import sections, training
from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn import checkpoint
from embodied_rl.learn.guards import UnstableError
from embodied_rl.learn.train import Trainer

SMALL = [
    *(
        "env.compile=false",
        "env.num_envs=16",
        "env.episode_s=0.5",
        "physics.num_threads=1",
        "train.steps=8",
        "train.save_every=2",
    ),
    *("ppo.actor_hidden_dims=[16]", "ppo.critic_hidden_dims=[16]", "ppo.num_learning_epochs=2", "ppo.num_mini_batches=2"),
]
#: An observation and a reward of nothing, but for robot 3 from the tenth step of its life on.
TERMS = """
import torch
from embodied_rl.mdp.term import observation, reward


def never(env):
    odd = (torch.arange(env.num_envs) == 3) & (env.episode.age >= 10)
    return torch.where(odd, float("nan"), 0.0)


@observation(mirror="scalar")
def odd_observation(env):
    "0, or nothing"
    return never(env)[:, None]


@reward()
def odd_reward(env):
    "0, or nothing"
    return never(env)
"""
FAULTS = {
    "observations.actor.odd_observation": "observations.actor.odd_observation={}",
    "rewards.odd_reward": "rewards.odd_reward={weight: 1.0}",
}


@pytest.fixture
def odd(tmp_path: Path) -> Any:
    """Load go2_flat with the terms above."""
    (tmp_path / "odd.py").write_text(TERMS)
    (tmp_path / "odd.yaml").write_text("extends: go2_flat.yaml\nname: odd\nterms: [odd.py]\n")
    return lambda *overrides: load(str(tmp_path / "odd.yaml"), [*SMALL, *overrides])


@functools.cache
def page(*overrides: str) -> Page:
    return load("go2_flat", [*SMALL, *overrides])


def sound(trainer: Trainer) -> list[int]:
    """The iterations of its checkpoints, each of which can be read, robots and all."""
    found = []
    for path in trainer.run.newest_checkpoints():
        state = checkpoint.read(path)
        ((_, envs),) = trainer.checkpoints.read_envs(path, state, trainer.env_ids)
        assert all(value.isfinite().all() for name, value in envs.items() if name.startswith(("obs.", "physics.")))
        found.append(state["iter"])
    return found[::-1]


@pytest.mark.parametrize("name", FAULTS)
def test_a_robot_without_numbers_is_named_once_and_learned_from_never(
    name: str, odd: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = training.start(odd(FAULTS[name], "physics.max_unstable=1.0"), tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        history = list(trainer.train(4))
    said = [record.message for record in caplog.records if name in record.message]
    assert said == [f"{name} is nan, in step 10 of robot 3; the robot begins anew, and is counted in Physics/unstable"]
    unstable = [metrics["Physics/unstable"] for metrics in history]
    # a reward is lost with the step, an observation with the one after it
    assert unstable == ([0.0, 7.0, 8.0, 8.0] if name.startswith("rewards") else [0.0, 6.0, 8.0, 8.0])
    assert all(metrics["Loss/skipped"] == 0.0 for metrics in history)
    assert sound(trainer) == [2, 4]
    # the normalizer has seen all others, and nothing of what was not valid
    lost = sum(unstable) if name.startswith("rewards") else sum(unstable) + 1
    assert int(trainer.learner.networks["actor"].obs_normalizer.count) == 4 * 8 * 16 - lost  # pyright: ignore


@pytest.mark.parametrize("name", FAULTS)
def test_too_many_of_them_end_the_run_by_name_and_it_goes_on_once_mended(name: str, odd: Any, tmp_path: Path) -> None:
    trainer = training.start(odd(FAULTS[name], "physics.max_unstable=0.1"), tmp_path / "run")
    with pytest.raises(UnstableError) as caught:
        list(trainer.train(6))
    count = 7 if name.startswith("rewards") else 6
    assert str(caught.value) == (
        f"{name} is nan, in step 10 of robot 3; {count} times in iteration 2 a robot had such a number or blew up, of 16 robots, "
        "more than physics.max_unstable (10%) allows; mend what gives it"
    )
    assert sound(trainer) == [2]
    (tmp_path / "odd.py").write_text(TERMS.replace('float("nan")', "0.0"))
    for module in [name for name in sys.modules if name.startswith("embodied_rl_terms_odd_")]:
        del sys.modules[module]  # another process would read the file anew
    mended = training.resume(str(tmp_path / "run"), str(tmp_path / "odd.yaml"))
    assert [metrics["Physics/unstable"] for metrics in mended.train(4)] == [1.0 if name.startswith("obs") else 0.0, 0.0]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("observations.actor.base_ang_vel.scale=1e12", "observations.actor.base_ang_vel[0] is "),
        ("observations.critic.joint_pos.scale=1e12", "observations.critic.joint_pos[0] is "),
        ("observations.actor.base_ang_vel.noise=1e12", "observations.actor.base_ang_vel[0] is "),
        ("events.push={interval_s: 0.1, lin_vel: 1e12}", "what events.push draws is "),
        (
            "events.foot_friction.range=[1e12, 1e12]",
            "what events.foot_friction draws is 1e+12, beyond 1e+10, in step 0 of robot 0",
        ),
        ("commands.velocity.lin_vel_x=[1e12, 1e12]", "commands.velocity[0] is 1e+12, beyond 1e+10, in step 0 of robot 0"),
        ("rewards.action_rate.weight=-1e12", "rewards.action_rate is "),
    ],
)
def test_numbers_of_the_page_that_poison_are_named(
    override: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_inspected", lambda page: page)  # which refuses them before there is a folder
    trainer = training.start(page(override, "env.reward_floor=null"), tmp_path / "run")
    with pytest.raises(UnstableError) as caught:
        list(trainer.train(4))
    assert str(caught.value).startswith(named) and "beyond 1e+10" in str(caught.value) and "\n" not in str(caught.value)
    assert sound(trainer) == [trainer.iteration]


@pytest.mark.parametrize("override", ["ppo.learning_rate=1e30", "ppo.entropy_coef=1e30", "ppo.value_loss_coef=1e38"])
def test_what_the_learner_loses_is_not_saved(override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "LARGEST", 1e39)  # no page may say so
    trainer = training.start(page(override), tmp_path / "run")
    with pytest.raises(UnstableError, match=r"of iteration 1's updates had a loss or gradient that is not finite"):
        list(trainer.train(4))
    # where every minibatch was skipped the networks are those of before
    assert sound(trainer) == ([] if "learning_rate" in override else [1])


@pytest.mark.parametrize("std", ["1e39", "1e-46", "0.0"])
def test_a_deviation_that_no_policy_can_have_is_refused(std: str) -> None:
    with pytest.raises(UserError, match=r"ppo.init_std: .* is not allowed: at (least 1e-06|most 1e\+06)$"):
        page(f"ppo.init_std={std}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e19])
def test_lost_networks_are_never_saved(value: float, tmp_path: Path) -> None:
    trainer = training.start(page("train.save_every=1", "train.max_skipped=1.0"), tmp_path / "run")
    with pytest.raises(UnstableError) as caught:
        for _ in trainer.train(4):
            if trainer.iteration == 2:
                network = trainer.learner.networks["critic"]
                assert isinstance(network, nn.Module)
                with torch.no_grad():
                    next(network.parameters())[0, 0] = value
                trainer.save()
    assert str(caught.value).startswith("after iteration 2, not saved: critic_state_dict.mlp.0.weight: ")
    assert str(caught.value).endswith("; go on from the last checkpoint, of iteration 2") and "\n" not in str(caught.value)
    assert sound(trainer) == [1, 2]
