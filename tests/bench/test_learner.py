from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from embodied_rl.bench import learner
from embodied_rl.config import load
from embodied_rl.vector_env import ActionSpace


def test_the_learner_beside_rsl_rls(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "COMPARABLE", tiny)
    monkeypatch.setattr(learner, "_ROUNDS", 3)
    monkeypatch.setattr(learner, "_WARMUP", 1)
    result = learner.bench_learner(load("go2_flat", tiny))
    assert set(result) == {"num_envs", "update_s", "rsl_rl_update_s", "speedup", "act_s", "rsl_rl_act_s", "act_speedup"}
    assert min(result.values()) > 0.0


def test_the_learner_is_measured_as_it_trains(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU with graphs: the CPU stands for one here."""
    page = load("go2_flat", tiny)
    still = learner._Still(page, {"actor": 4, "critic": 5}, ActionSpace(3), torch.device("cpu"))
    calls, captured = [], []
    assert still.capture(print) is print
    still.captured = True
    graph = lambda function, device, physics, *, what: captured.append((function, device)) or "a graph"  # noqa: E731
    monkeypatch.setattr("embodied_rl.cuda_graph.CudaGraph", graph)
    function = lambda: calls.append("called")  # noqa: E731
    assert still.capture(function) == "a graph"
    assert captured == [(function, torch.device("cpu"))]
    assert len(calls) == 3  # or what is captured would be compiled meanwhile


@pytest.mark.parametrize("graph", [True, False])
def test_the_learner_is_measured_with_graphs_where_the_page_has_them(tiny: list[str], graph: bool) -> None:
    """Fake tensors need no GPU."""
    page = load("go2_flat", [*tiny, f"physics.graph={str(graph).lower()}"])
    with FakeTensorMode():
        made = {
            device: learner._Still(page, {"actor": 4, "critic": 5}, ActionSpace(3), torch.device(device))
            for device in ("cuda", "cpu")
        }
    assert {device: still.captured for device, still in made.items()} == {"cuda": graph, "cpu": False}
