"""Packed policies: what is in them, what acts, and that nothing goes on from them; then the ones that ship."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embodied_rl import make_env, paths, runs, training
from embodied_rl.config import config_names, load
from embodied_rl.learn import checkpoint
from embodied_rl.learn.packing import MOST_BYTES, pack
from embodied_rl.learn.run import Run, RunError, find_run
from embodied_rl.view.play import playback_page

SMALL = [
    *("env.compile=false", "env.num_envs=4", "physics.num_threads=1", "train.steps=4"),
    *("ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]"),
]
RAMP = "curriculum.reach={term: linear, parameter: actions.joint_position.scale, start: [0.5], end: [0.9], iterations: [0, 2]}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two iterations of a small go2_flat, whose curriculum has moved a number; with an evaluation."""
    trainer = training.start(load("go2_flat", [*SMALL, RAMP]), tmp_path_factory.mktemp("run") / "run")
    list(trainer.train(2))
    made = runs.load(trainer.run.path).evaluation(2, False)
    made.parent.mkdir()
    made.write_text(json.dumps({"fall_rate": 0.5, "checkpoint": "/home/somebody/run"}))
    made.with_name(f"{made.stem}.robustness.json").write_text("{}")
    return trainer.run


@pytest.fixture
def ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`ships(page)`: where a page's policy would ship; of the real ones none does."""
    monkeypatch.chdir(tmp_path)
    real = paths.shipped
    monkeypatch.setattr(paths, "shipped", lambda kind: tmp_path / "policies" if kind == "policies" else real(kind))
    (tmp_path / "policies").mkdir()
    return lambda page: tmp_path / "policies" / page


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_packed_acts_as_the_run_does(run: Run, tmp_path: Path) -> None:
    (newest,) = run.newest_checkpoints()
    (tmp_path / "go2_flat").mkdir()
    (tmp_path / "go2_flat" / "of_before").touch()
    packed = pack(newest, tmp_path / "go2_flat")
    place = "evaluations/model_000002.training_physics,_seed_2.json"
    assert set(files(packed.path)) == {
        *("policy.json", "config.yaml", "environment.txt", "checkpoints/model_000002.pt", place),
    }
    assert set(checkpoint.read(packed.checkpoint(2))) == {"actor_state_dict", "iter", "infos", "curricula"}
    ours, theirs = runs.load(packed.path), runs.load(run.path)
    obs = torch.randn(16, theirs.policy.policy.obs_size)
    assert torch.equal(ours.policy(obs), theirs.policy(obs))
    assert (ours.iteration, ours.env_steps, ours.run.git_commit) == (2, 2 * 4 * 4, run.git_commit)
    assert ours.page.actions == theirs.page.actions
    assert ours.page.actions["joint_position"].params["scale"] == pytest.approx(0.9)
    assert [json.loads(path.read_text()) for path in ours.evaluations()] == [{"fall_rate": 0.5, "checkpoint": "model_000002.pt"}]
    text = b"".join(files(packed.path).values())
    assert str(run.path).encode() not in text and b"/home/" not in text and b"diff --git" not in text


def test_it_acts_on_any_machine(run: Run, tmp_path: Path) -> None:
    """Wherever it was trained."""
    there = tmp_path / "run"
    shutil.copytree(run.path, there)
    wanted = {"engine": ("native", "warp"), "device": ("auto", "cuda:1")}
    text = (there / "config.yaml").read_text()
    for key, (ours, theirs) in wanted.items():
        assert f"  {key}: {ours}\n" in text
        text = text.replace(f"  {key}: {ours}\n", f"  {key}: {theirs}\n", 1)
    (there / "config.yaml").write_text(text)
    assert (Run(there).page.physics.engine, Run(there).page.physics.device) == ("warp", "cuda:1")
    page = pack(there / "checkpoints" / "model_000002.pt", tmp_path / "go2_flat").page
    assert (page.physics.engine, page.physics.device, page.physics.num_threads) == ("native", "auto", 0)


def test_what_cannot_ship_is_not_packed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "run"
    shutil.copytree(run.path, there)
    (there / "own_terms.py").touch()
    (there / "config.yaml").write_text((there / "config.yaml").read_text().replace("terms: []", "terms: [own_terms.py]"))
    newest = there / "checkpoints" / "model_000002.pt"
    with pytest.raises(RunError, match="its page has terms of its own, which does not ship"):
        pack(newest, tmp_path / "go2_flat")
    monkeypatch.setattr("embodied_rl.learn.packing.MOST_BYTES", 1000)
    with pytest.raises(RunError, match=r"packed, [\d,]+ bytes, and at most 1,000 are shipped"):
        pack(run.checkpoint(2), tmp_path / "go2_flat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_run_of_ones_own_goes_first(run: Run, ships: Callable[[str], Path]) -> None:
    pack(run.checkpoint(2), ships("go2_flat"))
    assert paths.policy_names() == ["go2_flat"]
    assert find_run("go2_flat", packed=True)[0].path == ships("go2_flat")
    with pytest.raises(RunError, match=r"^latest: no run under .*, or name a page whose policy ships: go2_flat$"):
        find_run("latest", packed=True)
    for name in ("latest", "go2_stand"):
        with pytest.raises(RunError, match=r"^latest: no run"):
            find_run(name, packed=name != "latest")
    own = Run.create(load("go2_flat", SMALL))  # which has no checkpoint yet
    assert find_run("go2_flat", packed=True)[0].path == ships("go2_flat")
    shutil.copy(run.checkpoint(2), own.checkpoints)
    assert find_run("go2_flat", packed=True)[0].path == own.path


def test_nothing_goes_on_from_it(run: Run, ships: Callable[[str], Path]) -> None:
    pack(run.checkpoint(2), ships("go2_flat"))
    before = files(ships("go2_flat"))
    shutil.copytree(ships("go2_flat"), "elsewhere")
    names = ["go2_flat", str(ships("go2_flat")), str(ships("go2_flat") / "checkpoints" / "model_000002.pt"), "elsewhere"]
    refused = r"a policy alone, without the optimizer .*; train one of your own: embodied-rl train go2_flat$"
    for name in names:
        for config in (None, "go2_flat"):
            with pytest.raises(RunError, match=refused):
                training.resume(name, config)
    with pytest.raises(RunError, match=refused):
        training.resume("auto", "go2_flat", path=ships("go2_flat"))
    with pytest.raises(RunError, match="holds a run already"):
        training.start(load("go2_flat", SMALL), ships("go2_flat"))
    assert files(ships("go2_flat")) == before


def test_a_page_that_has_changed_since(run: Run, ships: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    """It plays on the page that it was trained on, and says in what that differs; one that nobody reads any more is refused."""
    pack(run.checkpoint(2), ships("go2_flat"))
    with caplog.at_level("INFO", "embodied_rl"):
        runs.load("go2_flat")
    (line,) = caplog.messages
    assert line.startswith("go2_flat: the policy that ships, 32 steps, trained on 20") and line.endswith("goes before it")
    assert f"at commit {run.git_commit[:7] or 'unknown'}" in line
    place = ships("go2_flat") / "config.yaml"
    text = place.read_text()
    place.write_text(text.replace("    gait_phase:", "    base_height: {}\n    gait_phase:", 1))
    caplog.clear()
    with caplog.at_level("INFO", "embodied_rl"):
        page = runs.load("go2_flat").page
    assert "base_height" in page.observations["actor"]
    (line,) = caplog.messages
    assert line.endswith("; its page then said otherwise of observations.actor.base_height, which holds here")
    place.write_text(text.replace("    gait_phase:", "    phase_of_gait:", 1))
    with pytest.raises(RunError) as caught:
        runs.load("go2_flat")
    assert str(caught.value).startswith("go2_flat: the policy that ships was trained on 20") and "\n" not in str(caught.value)
    assert "phase_of_gait" in str(caught.value) and str(caught.value).endswith("embodied-rl train go2_flat")


# ------------------------------------------------------------------------------------------------------ what ships


def test_what_ships_is_small_and_holds_nothing_else() -> None:
    known = {"policy.json", "config.yaml", "environment.txt"}
    for folder in (path for path in paths.shipped("policies").iterdir() if path.is_dir() and path.name != "__pycache__"):
        held = files(folder)
        assert folder.name in config_names() and Run(folder).page.name == folder.name
        assert sum(map(len, held.values())) <= MOST_BYTES, folder
        (model,) = (name for name in held if name.startswith("checkpoints/"))
        assert known | {model} <= set(held) and all(name.startswith("evaluations/") for name in set(held) - known - {model})


def test_policies_that_ship_fit_their_pages_today() -> None:
    for name in paths.policy_names():
        acting = runs.load(paths.shipped("policies") / name).policy.policy
        env = make_env.make(playback_page(load(name)))
        try:
            assert acting.obs_size == env.obs["actor"].shape[1], name
            distribution, _ = acting(env.obs["actor"], acting.start(1, "cpu"))
            assert distribution.mode.shape == (1, env.num_actions), name
        finally:
            env.close()
