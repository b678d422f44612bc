from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from embodied_rl import training
from embodied_rl.bench import learner, step
from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.run import Run
from embodied_rl.vector_env import ActionSpace


class Trainer:
    """Yields metrics far from walking until it is told to stop."""

    def __init__(self, page: Page, run: Run, group: Group) -> None:
        self.iteration, self.stopped, self.group = 0, False, group

    def train(self, iterations: int) -> Iterator[dict[str, float]]:
        for self.iteration in range(1, iterations + 1):
            yield {"Metrics/lin_vel_error": 1.0, "Metrics/ang_vel_error": 1.0}
            if self.stopped:
                return


def test_a_training_that_never_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "make_trainer", Trainer)
    assert step.bench_walk(load("go2_flat", ["ppo.max_iterations=20"]))["seconds_to_walk"] == float("inf")


def test_a_training_that_is_stopped_has_no_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Stopped(Trainer):
        def train(self, iterations: int) -> Iterator[dict[str, float]]:
            self.stopped = True
            return super().train(iterations)

    monkeypatch.setattr(training, "make_trainer", Stopped)
    with pytest.raises(UserError, match="stopped after 1 iterations, before it walked"):
        step.bench_walk(load("go2_flat"))


#: A page that trains in no time.
TINY = [
    *("env.compile=false", "env.num_envs=16", "physics.num_threads=1", "ppo.num_steps_per_env=4"),
    *("ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]", "ppo.num_learning_epochs=1", "ppo.num_mini_batches=2"),
]


#: The same for the size at which learners are compared.
SMALL = [*TINY[1:2], *TINY[3:], "ppo.symmetry=none"]


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tape is driven by a robot that stands, and a round is short."""
    monkeypatch.setattr(step, "_trained_policy", lambda page, run: lambda obs: torch.zeros(len(obs["actor"]), 12))
    monkeypatch.setattr(step, "COMPARABLE", SMALL)
    for name, value in {"_TAPE": 3, "_ROUNDS": 3, "_TRAIN_WARMUP": 1, "_TRAIN_ITERATIONS": 1}.items():
        monkeypatch.setattr(step, name, value)


@pytest.mark.usefixtures("untrained")
def test_training_beside_its_physics() -> None:
    result = step.bench_train(load("go2_flat", TINY))
    for prefix in ("", "shipped_"):
        shares = [result[f"{prefix}share_{name}"] for name in ("physics", "env", "policy", "update")]
        assert 0.0 < result[f"{prefix}ratio"] < 1.0
        assert result[f"{prefix}physics_steps_per_s"] > result[f"{prefix}train_steps_per_s"] > 0.0
        assert min(shares) > 0.0 and sum(shares) == pytest.approx(1.0, abs=0.1)


@pytest.mark.usefixtures("untrained")
def test_the_environment_beside_its_physics() -> None:
    result = step.bench_env(load("go2_flat", TINY))
    assert 0.0 < result["ratio"] < 1.0 and result["bare_steps_per_s"] > 0.0


def test_the_learner_beside_rsl_rls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "COMPARABLE", SMALL)
    monkeypatch.setattr(learner, "_ROUNDS", 3)
    monkeypatch.setattr(learner, "_WARMUP", 1)
    result = learner.bench_learner(load("go2_flat", TINY))
    assert set(result) == {"num_envs", "update_s", "rsl_rl_update_s", "speedup", "act_s", "rsl_rl_act_s", "act_speedup"}
    assert min(result.values()) > 0.0


def test_the_learner_is_measured_as_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU with graphs: the CPU stands for one here."""
    page = load("go2_flat", TINY)
    still = learner._Still(page, {"actor": 4, "critic": 5}, ActionSpace(3), torch.device("cpu"))
    calls, captured = [], []
    assert still.capture(print) is print
    still.captured = True
    monkeypatch.setattr(learner, "CudaGraph", lambda function, device: captured.append((function, device)) or "a graph")
    function = lambda: calls.append("called")  # noqa: E731
    assert still.capture(function) == "a graph"
    assert captured == [(function, torch.device("cpu"))]
    assert len(calls) == 3  # or what is captured would be compiled meanwhile


@pytest.mark.parametrize("graph", [True, False])
def test_the_learner_is_measured_with_graphs_where_the_page_has_them(graph: bool) -> None:
    """Fake tensors need no GPU."""
    page = load("go2_flat", [*TINY, f"physics.graph={str(graph).lower()}"])
    with FakeTensorMode():
        made = {
            device: learner._Still(page, {"actor": 4, "critic": 5}, ActionSpace(3), torch.device(device))
            for device in ("cuda", "cpu")
        }
    assert {device: still.captured for device, still in made.items()} == {"cuda": graph, "cpu": False}
