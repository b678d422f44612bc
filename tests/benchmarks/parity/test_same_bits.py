"""The gate of refactorings: what counts as the same, and that it finds what is not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from embodied_rl.config import load

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("same_bits", ROOT / "benchmarks/parity/same_bits.py")
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (torch.tensor([0.0, torch.nan, 1.0]), torch.tensor([-0.0, torch.nan, 1.0]), ""),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 2**-22]), "1 of 2 differ, by 2.4e-07 at most"),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), "1 of 2 differ"),
        (torch.zeros(2), torch.zeros(3), "torch.float32 (2,) and torch.float32 (3,)"),
        (torch.zeros(2), torch.zeros(2).double(), "torch.float32 (2,) and torch.float64 (2,)"),
        (float("nan"), float("nan"), ""),
        (1.0, 1.5, "1.0 and 1.5"),
        (None, torch.zeros(1), "None and "),
    ],
)
def test_what_counts_as_the_same(gate: ModuleType, old: object, new: object, said: str) -> None:
    assert gate.difference(old, new).startswith(said) and bool(gate.difference(old, new)) == bool(said)


def test_every_difference_is_named(gate: ModuleType, tmp_path: Path) -> None:
    states = {
        "old": {"learner": {"a": torch.zeros(2), "b": [1, 2]}},
        "new": {"learner": {"a": torch.ones(2), "b": [1, 2], "c": 3}},
    }
    assert gate.compare(tmp_path, tmp_path) == ["nothing was kept"]
    for name, state in states.items():
        (tmp_path / name).mkdir()
        torch.save(state, tmp_path / name / "iteration_01_rank_0.pt")
    torch.save({}, tmp_path / "new" / "iteration_10_rank_0.pt")
    assert gate.compare(tmp_path / "old", tmp_path / "old") == []
    assert gate.compare(tmp_path / "old", tmp_path / "new") == [
        "iteration_01_rank_0: learner.a: 2 of 2 differ, by 1 at most",
        "iteration_01_rank_0: learner.c: None and 3",
        "iteration_10_rank_0.pt: only one side has it",
    ]


def test_pages_of_the_gate_exist(gate: ModuleType) -> None:
    for case in gate.CASES.values():
        page = case.page if (ROOT / "configs" / f"{case.page}.yaml").is_file() else str(ROOT / "tests" / f"{case.page}.yaml")
        assert load(page, case.overrides).env.num_envs > 0


def test_everything_uses_what_no_shipped_page_does() -> None:
    page = load(str(ROOT / "tests" / "everything.yaml"))
    actor = page.observations["actor"]
    assert page.actions["joint_position"].params["latency"] == (0, 4)
    assert any(entry.history > 1 for entry in actor.values()) and any(entry.delay != (0, 0) for entry in actor.values())
    assert page.commands["velocity"].params["heading"] and page.curriculum and page.ppo.rnn_type == "gru"
    assert {"feet_air_time", "undesired_contacts"} <= page.rewards.keys()
    drawn = [entry.params for entry in page.events.values() if entry.term == "randomize"]
    assert {one["when"] for one in drawn} == {"startup", "reset", "interval", "iteration"}
    assert {one["distribution"] for one in drawn} == {"uniform", "log_uniform", "normal"}
