from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from embodied_rl.config import load
from embodied_rl.errors import UserError
from embodied_rl.learn.evaluate import SEEDS, evaluation_page
from embodied_rl.robustness import stress, stresses_of
from embodied_rl.runs import evaluate_policy

ROUGH = ["task=rough", "terrain={rows: 4, size: 2.0, border: 2.0, cell: 0.1}", "env.compile=false", "physics.num_threads=1"]
ROUGH += ["patches={flat: {}, stairs: {platform: 0.4, step: [0.02, 0.04]}}"]
ROUGH += ["score={robots: 4, episode_s: 0.2, easy_rows: 2, hard_row: 2}"]


def stand(obs: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.zeros(len(obs["actor"]), 12)


def test_each_stress_is_what_its_name_says() -> None:
    page = load("go2_flat", ROUGH)
    stresses = stresses_of(page)
    judged = {name: evaluation_page(page, SEEDS[0], changes=changes) for name, changes in stresses.items()}
    assert judged["push_1.0_m/s"].events["score_push"].params["lin_vel"] == 1.0
    assert judged["base_mass_x1.5"].events["score_payload"].params["range"] == (1.5, 1.5)
    assert judged["friction_0.25"].events["foot_friction"].params["range"] == (0.25, 0.25)
    assert all(one.env.num_envs == 4 * 2 * 3 for one in judged.values())  # rows 0, 1 and 2 of 4
    flat = load("go2_flat")
    assert stresses_of(flat).keys() == stresses.keys()
    assert all(evaluation_page(flat, SEEDS[0], changes=changes).env.num_envs == 256 for changes in stresses_of(flat).values())


def test_a_heavier_base_sinks_and_a_push_moves() -> None:
    page = load("go2_flat", ["env.compile=false", "score={episode_s: 6.0}"])
    plain = evaluate_policy(page, stand)
    pushed = evaluate_policy(page, stand, changes=stresses_of(page)["push_1.0_m/s"])
    heavy = evaluate_policy(
        page, stand, changes=["events.heavy={term: randomize, quantity: mass, of: base, operation: scale, range: [3, 3]}"]
    )
    assert pushed["fall_rate"] != plain["fall_rate"] or pushed["lin_vel_error"] > plain["lin_vel_error"]
    assert heavy["reward/pose"] < plain["reward/pose"]


def test_figures_and_a_picture_are_kept_beside_the_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    page = load("go2_flat", ROUGH)
    plain = tmp_path / "evaluations" / "model_000001.training_physics,_seed_1.json"
    loaded = SimpleNamespace(policy=stand, evaluation=lambda seed, reference: plain)
    stresses = {name: changes for name, changes in stresses_of(page).items() if name.startswith("friction")}
    figures = {**evaluate_policy(page, stand), "physics": "training"}
    found = stress(loaded, page, stresses, figures, ["hard_failures"], seed=1, reference=False)  # pyright: ignore[reportArgumentType]
    assert found.keys() == {"friction_0.4", "friction_0.25"} and found["friction_0.4"]["hard_failures"] == 1.0
    assert {f"success/stairs/row_{row}" for row in range(3)} < found["friction_0.4"].keys()
    assert "success/stairs/row_3" not in found["friction_0.4"] and "success/stairs/row_3" in figures
    kept = plain.with_name("model_000001.training_physics,_seed_1.robustness.json")
    assert json.loads(kept.read_text()) == {**figures, "stressed": found}
    assert Image.open(kept.with_suffix(".png")).width > 500
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["friction_0.4", "hard_failures", "1.0000"] and printed[-2:] == [
        str(kept),
        str(kept.with_suffix(".png")),
    ]


def test_a_family_without_stresses_is_told_how() -> None:
    with pytest.raises(UserError, match=r"go2_stand: task: stand: its score has no stresses\(self, page\)"):
        stresses_of(load("go2_stand"))
