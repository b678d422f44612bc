"""The suite: what is done is not done again, what was interrupted goes on, what failed does not ship; the page is all records."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from embodied_rl import machine, paths, runs, training
from embodied_rl.config import config_names
from embodied_rl.learn.evaluate import SEEDS
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.learn.run import Run

SMALL = [
    *(
        "env.compile=false",
        "env.num_envs=4",
        "physics.num_threads=1",
        "train.steps=4",
        "train.iterations=3",
        "train.save_every=1",
    ),
    *("ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]", "ppo.num_learning_epochs=1", "ppo.num_mini_batches=1"),
]
WALKS = {"fall_rate": 0.0, "lin_vel_error": 0.1, "ang_vel_error": 0.1, "shortfall": 0.1, "heading_drift": 0.1}
PLACE = Path("runs/suite/go2_flat/seed_1")


@pytest.fixture(scope="module")
def real() -> ModuleType:
    """The script as it is, with the repository's own records."""
    spec = importlib.util.spec_from_file_location("suite", Path(__file__).parents[3] / "benchmarks/learning/suite.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def suite(real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose records, table and shipped policies lie in the test's folder; policies are judged to walk."""
    shipped = paths.shipped
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "shipped", lambda kind: tmp_path / "policies" if kind == "policies" else shipped(kind))
    monkeypatch.setattr(real, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(real, "TABLE", tmp_path / "results.md")
    monkeypatch.setattr(machine, "processor", lambda: "Model|T")
    monkeypatch.setattr(machine, "cores", lambda: 2)  # also where the tests have one
    judge(monkeypatch, WALKS, WALKS)
    (tmp_path / "policies").mkdir()
    return real


def judge(monkeypatch: pytest.MonkeyPatch, in_training: dict[str, float], in_reference: dict[str, float]) -> None:
    """Have policies come to these figures."""

    def evaluate(page: Any, policy: Any, *, seed: int, reference: bool) -> dict[str, float]:
        assert seed == SEEDS[1]
        return dict(in_reference if reference else in_training)

    monkeypatch.setattr(runs, "evaluate_policy", evaluate)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The iterations that were collected; a negative one is yet to come, and is interrupted."""
    iterations, collect = [], LocalCollector.collect

    def noted(self: LocalCollector, policy: Any, iteration: int, *rest: Any) -> Any:
        if -iteration in iterations:
            iterations.remove(-iteration)
            signal.raise_signal(signal.SIGINT)
        iterations.append(iteration)
        return collect(self, policy, iteration, *rest)

    monkeypatch.setattr(LocalCollector, "collect", noted)
    return iterations


def rows(suite: ModuleType) -> dict[str, list[str]]:
    """The rows of the table, by page: the cells after it."""
    found = (re.split(r" (?<!\\)\| ", line.strip("| ")) for line in suite.TABLE.read_text().splitlines() if line.startswith("| "))
    return {page.partition(" ")[0]: cells for page, *cells in found if page not in ("page", "---")}


def test_results_are_what_the_records_give(real: ModuleType) -> None:
    """Of this repository: whoever edits the page by hand, edits it in vain."""
    records = [json.loads(path.read_text()) for path in sorted(real.RESULTS.glob("*.json"))]
    assert real.TABLE.read_text(encoding="utf-8") == real.table(records)


def record(**changes: Any) -> dict[str, Any]:
    figures = {"fall_rate": 0.00390625, "lin_vel_error": 0.1491234, "mean_reward": 80.0}
    training = {"physics": "", "figures": figures, "limits": {"fall_rate": 0.01, "lin_vel_error": 0.15}, "passed": True}
    reference = training | {"figures": figures | {"lin_vel_error": 0.25}, "limits": {"lin_vel_error": 0.2}, "passed": False}
    made = {"page": "go2_flat", "robot": "go2", "seed": 1, "overrides": [], "engine": "native", "ended": "passed"}
    made |= {"machine": {"cores": 2, "processor": "A"}, "env_steps": 1044480, "seconds": 90.0, "commit": "abc1234, dirty"}
    return made | {"training": training, "reference": reference, "date": "2026-11-28"} | changes


def test_the_table(suite: ModuleType) -> None:
    """Of records of two machines; a page that failed on one of them and was trained on the other was trained."""
    gpu = {"machine": {"cores": 16, "processor": "B", "gpu": "H100"}, "engine": "warp", "overrides": ["env.num_envs=4096"]}
    walks = record(**gpu, ended="minutes", reference=record()["training"])
    failed = {key: value for key, value in record(reason="ray is not installed").items() if key in ("page", "machine", "date")}
    failed |= {"reason": "it | blew up", "seed": 1}
    records = [walks, record(seed=2), record(), failed | {"page": "a1_flat"}, failed, record(page="is_gone")]
    suite.RESULTS.mkdir()
    for index, one in enumerate(records):
        (suite.RESULTS / f"{index}.json").write_text(json.dumps(one))
    assert suite.main(["--report"]) == 0
    lines = [line for line in suite.TABLE.read_text().splitlines() if line.startswith("| ")]
    figures = "fall_rate 0.003906 <= 0.01, lin_vel_error 0.1491 <= 0.15"
    end = f"1,044,480 | 1.5 | passing | {figures} | lin_vel_error 0.25 > 0.2 | in training physics alone | abc1234, dirty"
    assert [line for line in lines if line.startswith(("| go2_flat ", "| a1_flat", "| is_gone"))] == [
        "| a1_flat | a1 | native | - | - | - | - | - | - | - | it \\| blew up (2 cores, A, 2026-11-28) | - | - |",
        "| go2_flat `env.num_envs=4096` | go2 | warp | 16 cores, B, H100 | 1 | 1,044,480 | 1.5 | `--minutes` "
        f"| {figures} | {figures} | met | abc1234, dirty | 2026-11-28 |",
        *(f"| go2_flat | go2 | native | 2 cores, A | {seed} | {end} | 2026-11-28 |" for seed in (1, 2)),
        f"| is_gone | go2 | native | 2 cores, A | 1 | {end} | 2026-11-28 |",
    ]
    found = rows(suite)
    assert set(found) == {*config_names(), "is_gone"}
    assert found["go1_flat"][9:] == ["not trained yet", "-", "-"] and found["pool_ant"][1] == "gymnasium"
    assert found["pool_ant"][9] == "no task judges it: env.source: gymnasium:Ant-v5"


def test_an_interrupted_training_goes_on_and_what_is_done_is_done(
    suite: ModuleType, collected: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    collected.append(-1)  # the second one
    assert suite.main(["go2_flat", *SMALL, "--ship"]) == 130
    assert collected == [0, 1] and not (PLACE / "record.json").exists() and paths.policy_names() == []
    assert suite.main(["go2_flat", *SMALL, "--minutes", "1000"]) == 0
    assert collected == [0, 1, 2]
    made = json.loads((PLACE / "record.json").read_text())
    assert (made["ended"], made["iteration"], made["env_steps"], made["checkpoint"]) == ("iterations", 3, 48, "model_000003.pt")
    (kept,) = suite.RESULTS.iterdir()
    assert json.loads(kept.read_text()) == made and suite.TABLE.read_text() == suite.table([made])
    cells = rows(suite)["go2_flat"]
    assert cells[2].endswith("2 cores, Model\\|T") and cells[3:5] == ["1", "48"] and cells[9] == "met"
    limits = "fall_rate 0 <= 0.01, lin_vel_error 0.1 <= 0.15, ang_vel_error 0.1 <= 0.2"
    assert cells[7] == f"{limits}, shortfall 0.1 <= 0.5, heading_drift 0.1 <= 0.785"
    assert suite.main(["go2_flat", *SMALL, "--full"]) == 0
    assert collected == [0, 1, 2] and "done before, met" in capsys.readouterr().out
    assert suite.main(["go2_flat", *SMALL, "ppo.gamma=0.9"]) == 2
    assert "differs in ppo.gamma; remove it, or name another --output" in capsys.readouterr().err


def test_minutes_bound_a_training(suite: ModuleType, collected: list[int]) -> None:
    """Which goes on where it may take longer, and no longer than that."""
    for minutes, iterations in ((["--minutes", "1e-9"], 1), (["--minutes", "1e-9"], 1), ([], 3)):
        assert suite.main(["go2_flat", *SMALL, *minutes]) == 0
        made = json.loads((PLACE / "record.json").read_text())
        assert made["ended"] == ("minutes" if iterations == 1 else "iterations")
        assert made["iteration"] == iterations == len(collected)


def test_what_met_its_criterion_ships(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In both physics; what did not ships neither when it is tried again."""
    falls = WALKS | {"fall_rate": 0.5}
    for figures in ((falls, WALKS), (WALKS, falls)):
        judge(monkeypatch, *figures)
        for _ in range(2):
            assert suite.main(["go2_flat", *SMALL, "train.iterations=1", "--ship"]) == 0
            assert paths.policy_names() == [] and "none ships" in capsys.readouterr().out
        (PLACE / "record.json").unlink()  # for it to be judged again
    judge(monkeypatch, WALKS, WALKS)
    assert suite.main(["go2_flat", *SMALL, "train.iterations=1", "--ship", "--seeds", "2"]) == 0
    assert paths.policy_names() == ["go2_flat"]
    ships = runs.load("go2_flat")
    assert ships.run.path == paths.shipped("policies") / "go2_flat" and ships.iteration == 1
    assert len(ships.evaluations()) == 2 and all(json.loads(path.read_text())["seed"] == 2 for path in ships.evaluations())


def test_the_verified_policy_is_judged(suite: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no training goes on that has passed, unless all of its iterations are asked for; then the newest counts."""
    monkeypatch.setattr(training, "Evaluations", lambda page, skip: lambda policy, moved, *, seed, reference: dict(WALKS))
    small = [*SMALL, "train.evaluate_every=1"]
    assert suite.main(["go2_flat", *small]) == 0
    made = json.loads((PLACE / "record.json").read_text())
    assert (made["ended"], made["iteration"], made["trained"]["iterations"]) == ("passed", 1, 2)
    (PLACE / "record.json").unlink()  # as if it had been killed while it was judged
    assert suite.main(["go2_flat", *small]) == 0
    assert json.loads((PLACE / "record.json").read_text()) == made
    assert len(Run(PLACE).newest_checkpoints()) == 2


def test_a_page_that_cannot_be_trained_here_has_its_reason(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "find_spec", lambda module: None if module == "ray" else module)
    assert suite.main(["pool_go2_flat", "go2_flat", *SMALL]) == 0  # the one after it is trained
    found = rows(suite)
    assert found["pool_go2_flat"][9].startswith("pool.address: ray is not installed; ") and found["go2_flat"][9] == "met"
    assert not Path("runs/suite/pool_go2_flat/seed_1/config.yaml").exists()
    for page, said in (
        ("pool_ant", "no task judges it"),
        ("go2_flatt", "did you mean 'go2_flat'"),
        ("mine.yaml", "does not ship"),
    ):
        Path("mine.yaml").write_text("extends: go2_flat\n")
        capsys.readouterr()
        assert suite.main([page]) == 2
        line = capsys.readouterr().err
        assert said in line and line.count("\n") == 1
