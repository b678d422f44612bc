"""Who learns: which class a page names, and what is asked of one of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from embodied_rl import runs, training
from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn import checkpoint
from embodied_rl.learn.damage import find_damage
from embodied_rl.learn.guards import UnstableError
from embodied_rl.learn.train import Trainer
from embodied_rl.paths import PACKAGE

DOCS = PACKAGE.parent / "docs" / "learners.md"

SMALL = [
    *("env.compile=false", "env.num_envs=8", "env.episode_s=0.5", "physics.num_threads=1", "train.steps=8"),
    *("ppo.actor_hidden_dims=[16]", "ppo.critic_hidden_dims=[16]", "ppo.num_learning_epochs=2", "ppo.num_mini_batches=2"),
]

#: A learner that learns nothing.
LAZY = """
from embodied_rl.learn.ppo import PPO


class Lazy(PPO):
    def update(self, rollout, iteration, numbers):
        return {"Loss/laziness": 1.0}

    def skipped(self, metrics):
        return 0.0

    def panel(self, metrics):
        return "lazy"
"""

#: One that looks at nothing that curricula move, and whose networks are lost at once.
DEAF = """
from embodied_rl.learn.ppo import PPO


class Deaf(PPO):
    numbers = ("ppo.entropy_coef",)

    def update(self, rollout, iteration, numbers):
        return super().update(rollout, iteration, numbers) | {"Loss/q": float("nan")}
"""

#: One that has no policy.
HASTY = """
from embodied_rl.learn.ppo import PPO


class Hasty(PPO):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        del self.policy
"""

#: One with a Q-function and two optimizers.
SOFT = """
import torch
from embodied_rl.learn.ppo import PPO


class Soft(PPO):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.networks = {"actor": self.actor, "q1": self.critic}
        self.optimizers = {name: torch.optim.Adam(one.parameters()) for name, one in self.networks.items()}

    def state_dict(self):
        weights = {f"{name}_state_dict": one.state_dict() for name, one in self.networks.items()}
        return weights | {f"{name}_optimizer_state_dict": one.state_dict() for name, one in self.optimizers.items()}

    def load_state_dict(self, state):
        for name, one in self.networks.items():
            one.load_state_dict(state[f"{name}_state_dict"])
            self.optimizers[name].load_state_dict(state[f"{name}_optimizer_state_dict"])
"""


#: One that is mistaken in what it saves.
WRONG = """
from embodied_rl.learn.ppo import PPO


class Wrong(PPO):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.sigma = state["sigm"]

    @classmethod
    def load_policy(cls, page, state, device):
        return state["sigm"]
"""


def page(*overrides: str) -> Page:
    return load("go2_flat", [*SMALL, *overrides])


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [value.clone() for model in trainer.learner.networks.values() for value in model.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_rsl_rls_learner_is_one_line_away(tmp_path: Path) -> None:
    stock = page("train.learner=rsl_rl.algorithms:PPO", "ppo.symmetry=augmentation")
    trainer = training.start(stock, tmp_path / "run")
    before = weights(trainer)
    (metrics,) = list(trainer.train(1))
    assert metrics["Loss/value"] > 0.0 and not same(before, weights(trainer))
    resumed = training.resume(str(tmp_path / "run"), "go2_flat")
    assert same(weights(resumed), weights(trainer))
    own = training.resume(str(tmp_path / "run"), "go2_flat", ["train.learner=ppo"])
    assert same(weights(own), weights(trainer))
    list(own.train(2))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.at.all:PPO", "No module named 'nowhere'"),
        ("embodied_rl.learn.ppo:PPOO", "module 'embodied_rl.learn.ppo' has no attribute 'PPOO'; did you mean 'PPO'?"),
    ],
)
def test_a_learner_that_is_not_there(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UserError) as raised:
        training.start(page(f"train.learner={name}"), tmp_path / "run")
    advice = "write ppo, impala, sac, or module:Class, like rsl_rl.algorithms:PPO"
    assert str(raised.value) == f"train.learner: {name}: {reason}; {advice}"


@pytest.mark.parametrize("text", ["raise SystemExit(0)", "1 / 0", "class PPO(:", "import nowhere"])
def test_a_learner_whose_module_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "own_broken.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as raised:
        training.start(page("train.learner=own_broken:PPO"), tmp_path / "run")
    line = str(raised.value)
    assert line.startswith("train.learner: own_broken:PPO: importing own_broken raised ") and "\n" not in line
    assert line.endswith(f"({tmp_path / 'own_broken.py'}:1)")


def test_what_is_no_learner(tmp_path: Path) -> None:
    lacks = "numbers, make, load_policy, skipped, panel, state_dict, load_state_dict"
    with pytest.raises(UserError, match=rf"^train.learner: collections:OrderedDict: is no learner, for it lacks {lacks} \("):
        training.start(page("train.learner=collections:OrderedDict"), tmp_path / "run")


def test_what_a_made_learner_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hasty.py").write_text(HASTY)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"^train.learner: hasty:Hasty: lacks policy, as it was made; embodied_rl/learn/learner.py"
    ):
        training.start(page("train.learner=hasty:Hasty"), tmp_path / "run")


def test_a_learner_with_other_networks_and_optimizers_is_saved_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "soft.py").write_text(SOFT)
    monkeypatch.syspath_prepend(tmp_path)
    trainer = training.start(page("train.learner=soft:Soft", "ppo.obs_normalization=false"), tmp_path / "run")
    list(trainer.train(1))
    state = checkpoint.read(trainer.run.checkpoint(1))
    assert {"q1_state_dict", "q1_optimizer_state_dict"} < state.keys() and "critic_state_dict" not in state
    resumed = training.resume(str(tmp_path / "run"), "go2_flat")
    assert resumed.iteration == 1 and same(weights(resumed), weights(trainer))
    assert find_damage(state | {"q1_optimizer_state_dict": {"param_groups": None}}).startswith(
        "q1_optimizer_state_dict.param_groups"
    )
    state["q1_state_dict"]["mlp.0.weight"][0, 0] = torch.nan
    assert find_damage(state).startswith("q1_state_dict.mlp.0.weight: 1 of ")


def test_rsl_rls_learner_refuses_what_it_would_not_read(tmp_path: Path) -> None:
    odd = page("train.learner=rsl_rl.algorithms:PPO", "ppo.stop_kl=0.1", "ppo.reshuffle=true")
    with pytest.raises(
        UserError, match=r"^ppo.reshuffle: true, ppo.stop_kl: 0.1: rsl_rl's PPO has no such setting; leave it out, "
    ):
        training.start(odd, tmp_path / "run")


def test_a_learner_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that a page names by module trains, resumes, and answers as any other."""
    (tmp_path / "lazy.py").write_text(LAZY)
    monkeypatch.syspath_prepend(tmp_path)
    trainer = training.start(page("train.learner=lazy:Lazy"), tmp_path / "run")
    (metrics,) = trainer.train(1)
    assert metrics["Loss/laziness"] == 1.0 and trainer.learner.panel(metrics) == "lazy"
    assert training.resume(str(tmp_path / "run"), "go2_flat").iteration == 1
    obs = trainer.collector.observe()
    assert torch.equal(runs.load(tmp_path / "run").policy(obs), trainer.learner.policy(obs["actor"])[0].mode)


def test_a_mistake_in_a_learner_of_ones_own_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    trainer = training.start(page("train.learner=wrong:Wrong", "train.save_every=1"), tmp_path / "run")
    list(trainer.train(2))
    line = r"^train.learner: wrong:Wrong\.{}: KeyError: 'sigm' \(wrong.py:{}\)$"
    with pytest.raises(UserError, match=line.format("load_state_dict", 8)):
        training.resume(str(tmp_path / "run"), "go2_flat")
    with pytest.raises(UserError, match=line.format("load_policy", 12)):
        runs.load(tmp_path / "run")
    assert not any("earlier checkpoint" in line for line in caplog.messages)


def test_a_learner_of_ones_own_follows_what_it_says_and_is_told_nothing_of_ppo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    monkeypatch.syspath_prepend(tmp_path)
    moved = "curriculum.ramp={term: linear, parameter: ppo.%s, start: [0.01], end: [0.0], iterations: [0, 9]}"
    deaf = ("train.learner=deaf:Deaf", "ppo.schedule=constant")
    said = r"'ppo.learning_rate' is not followed by train.learner: deaf:Deaf \(its `numbers`: ppo.entropy_coef\)$"
    with pytest.raises(UserError, match=said):
        training.start(page(*deaf, moved % "learning_rate"), tmp_path / "refused")
    trainer = training.start(page(*deaf, moved % "entropy_coef"), tmp_path / "run")
    with pytest.raises(UnstableError, match=r"^Loss/q is not finite .*; go on from an earlier checkpoint in \S+$"):
        list(trainer.train(1))


@pytest.mark.skipif(not DOCS.is_file(), reason="needs a source checkout")
def test_the_learner_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "reinforce.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    trainer = training.start(page("train.learner=reinforce:Reinforce"), tmp_path / "run")
    before = weights(trainer)
    list(trainer.train(2))
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
    resumed = training.resume(str(tmp_path / "run"), "go2_flat")
    assert resumed.iteration == 2 and same(weights(resumed), weights(trainer))
    obs = trainer.collector.observe()
    assert torch.equal(runs.load(tmp_path / "run").policy(obs), trainer.learner.policy(obs["actor"])[0].mode)


@pytest.mark.parametrize("learner", ["ppo", "rsl_rl.algorithms:PPO"])
def test_every_learner_follows_the_pages_schedules(learner: str, tmp_path: Path) -> None:
    ends = ("ppo.schedule=hold", "ppo.final_learning_rate=2e-4", "ppo.hold=0.5", "ppo.final_entropy_coef=0.001")
    trainer = training.start(
        page(f"train.learner={learner}", "ppo.learning_rate=1e-3", "train.iterations=4", *ends), tmp_path / "r"
    )
    history = list(trainer.train(4))
    # 1e-3 until half of the training is over, then 1e-3 - 8e-4 (3/4 - 1/2) / (1/2); 0.005 - 0.004 i/4
    assert [metrics["Loss/learning_rate"] for metrics in history] == pytest.approx([1e-3, 1e-3, 1e-3, 6e-4])
    assert [metrics["Loss/entropy_coef"] for metrics in history] == pytest.approx([0.005, 0.004, 0.003, 0.002])
