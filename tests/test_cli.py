from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from embodied_rl import __version__, cli, config, paths, runs, waiting
from embodied_rl.bench import learner
from embodied_rl.config import Page, config_names, load, override
from embodied_rl.deploy import rehearsal
from embodied_rl.errors import UserError
from embodied_rl.family import family_names
from embodied_rl.learn import checkpoint
from embodied_rl.learn import evaluate as protocol
from embodied_rl.learn.packing import pack
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.run import Run

SMALL = [
    *("env.compile=false", "env.num_envs=8", "physics.num_threads=1", "train.steps=4"),
    *("ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]"),
]
#: The whole command line.  Whoever changes it, changes what people have typed into their scripts.
FLAGS = {
    "train": "config overrides --iterations --num-envs --device --engine --seed --run-dir --resume",
    "play": "run overrides --video --command --seconds --num-envs --agent",
    "eval": "run --json --reference --seed --engine --robustness",
    "export": "run --output --checkpoint",
    "sim2sim": "export --model --keep-motors --golden --episodes --video --json",
    "list": "--terms",
    "view": "what --report --png",
    "new": "kind file --output --png",
    "check": "config overrides --print",
    "audit": "config overrides --json",
    "schema": "kind",
    "doctor": "",
    "pool": "what run",
    "bench": "what config overrides --num-envs --device --engine --seed --json",
}


def brief_evaluation(page: Page, seed: int, *, reference: bool = False, changes: Iterable[str] = ()) -> Page:
    """Episodes of a second."""
    return override(protocol.evaluation_page(page, seed, reference=reference, changes=changes), ["env.episode_s=1.0"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_flags_of_every_verb() -> None:
    (verbs,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    found = {
        name: [
            flag
            for action in parser._actions
            for flag in (action.option_strings or [action.dest])
            if flag not in ("-h", "--help")
        ]
        for name, parser in verbs.choices.items()
    }
    assert {name: sorted(flags) for name, flags in found.items()} == {name: sorted(text.split()) for name, text in FLAGS.items()}


def test_the_program_without_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out = capsys.readouterr().out
    assert all(f"    {name} " in out for name in FLAGS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"{__version__}\n"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    pages, tasks, robots, policies, terms = capsys.readouterr().out.splitlines()
    assert pages.removeprefix("pages:").split() == config_names()
    assert tasks.removeprefix("tasks:").split() == family_names() and "go2" in robots and "rewards" in terms
    assert policies.removeprefix("policies, trained:").split() == (paths.policy_names() or ["none"])


def test_list_terms(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--terms", "rewards"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("rewards:\n") and "observations:" not in out
    assert "  track_linear_velocity(std=0.5, command=velocity)\n      exp(-|v_xy - command|^2 / std^2)" in out
    assert cli.main(["list", "--terms"]) == 0
    assert "observations:" in capsys.readouterr().out


def test_check_prints_a_page_that_loads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--print", "go2_flat", "env.num_envs=7", "rewards.pose=null"]) == 0
    printed = capsys.readouterr()
    assert printed.err.endswith("go2_flat: ok\n")
    (here / "page.yaml").write_text(printed.out)
    assert load("page.yaml") == load("go2_flat", ["env.num_envs=7", "rewards.pose=null"])


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert "rewards" in json.loads(capsys.readouterr().out)["properties"]
    assert cli.main(["schema", "robot"]) == 0
    assert "joints" in json.loads(capsys.readouterr().out)["properties"]


def test_what_needs_no_torch_imports_none() -> None:
    code = "import sys; from embodied_rl import cli; cli.main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for arguments in (["list"], ["check", "go2_flatt"], ["train", "go2_flatt"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=60)
        assert done.returncode == 0, arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "go2_flatt"], "\"go2_flatt\": no such config; did you mean 'go2_flat'?"),
        (["train", "nowhere/page.yaml"], "page.yaml: no such file"),
        (["train", "go2_flat", "ppo.learning_rat=1"], "did you mean 'learning_rate'?"),
        (["train", "go2_flat", "ppo.learning_rate"], "write key.path=value"),
        (["train", "go2_flat", "--num-envs", "0"], "env.num_envs"),
        (["train", "go2_flat", "--seed", "-1"], "env.seed"),
        (["train", "go2_flat", "--seed", str(2**31)], "seeds from 2147483648 up are evaluation's"),
        (["train", "go2_flat", "--iterations", "0"], "--iterations 0: at least 1"),
        (["train", "go2_flat", "--engine", "isaacgym"], "EMBODIED_RL_ISAACGYM_PYTHON is not set: install Isaac Gym Preview 4"),
        (["train", "go2_flat", "--engine", "bullet"], "physics.engine"),
        (["train", "go2_flat", "--device", "cuda"], "take --device cpu"),
        (["train", "--resume", "latest"], "latest: no run under "),
        (["train", "--resume", "latest", "env.num_envs=3"], "latest: no run under "),
        (["play", "--video", "f.gif"], "--video f.gif: a film is .mp4, .mkv, .mov, and this ends in .gif"),
        (["sim2sim", "--video", "f.avi"], "--video f.avi: a film is .mp4, .mkv, .mov, and this ends in .avi"),
        (["train", "go2_flat", "--resume", "latest"], "latest: no run of go2_flat under "),
        (["train", "go2_flat", "--resume", "runs/x"], "runs/x: no run here"),
        (["train", "go2_flat", "--resume", "latest", "--run-dir", "x"], "leave out one of --resume and --run-dir"),
        (["eval"], "latest: no run under "),
        (["eval", "runs/x"], "runs/x: no run here"),
        (["play", "pool_ant"], "latest: no run of pool_ant under"),  # no task judges it, and no policy of it ships
        (["train", "folder"], "folder: a folder, not a page; in it: page.yaml"),
        (["train", "dog.urdf"], "dog.urdf: a robot's file, not a page; make one of it: embodied-rl new robot dog.urdf"),
        (["export", "runs/x"], "runs/x: no run here"),
        (["play", "runs/x"], "runs/x: no run here"),
        (["check", "go2_flat", "rewards.pose.weight=.nan"], "rewards.pose.weight"),
        (["list", "--terms", "reward"], "curriculum; did you mean 'rewards'?"),
        (["eval", "--json", "dog.urdf/e.json"], "--json dog.urdf/e.json: cannot be written (File exists)"),
        (["play", "--video", "folder"], "--video folder: cannot be written (Is a directory)"),
        (["new", "robot", "dog.urdf", "--output", "dog.urdf/o"], "--output dog.urdf/o: cannot be written (Not a directory)"),
        (["new", "robot", "dog.urdf", "--png", "new/dog.txt"], "--png new/dog.txt: a picture is a .png"),
        (["new", "robot", "folder"], "folder: a folder; name an MJCF (.xml) or a URDF (.urdf)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_a_line(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    Path("folder").mkdir()
    for name in ("folder/page.yaml", "folder/robot.yaml", "dog.urdf"):
        Path(name).write_text("<robot/>")
    assert cli.main(arguments) == 2
    out, line = capsys.readouterr()
    assert out == "" and said in line and line.count("\n") == 1
    assert sorted(path.name for path in here.iterdir()) == ["dog.urdf", "folder"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "'bench'); did you mean 'train'?"),
        (["play", "--seconds", "0"], "argument --seconds: 0: a number of seconds, more than 0"),
        (["play", "--seconds", "nan"], "argument --seconds: nan: a number of seconds, more than 0"),
        (["schema", "robt"], "did you mean 'robot'?"),
        (["train"], "the following arguments are required: CONFIG"),
        (["train", "--resume", "auto"], "the following arguments are required: CONFIG"),
        (["train", "go2_flat", "--itterations", "3"], "unrecognized arguments: --itterations; did you mean '--iterations'?"),
        (["train", "go2_flat", "--iterations", "many"], "invalid int value: 'many'"),
        (["eval", "latest", "env.num_envs=3"], "unrecognized arguments: env.num_envs=3"),
        (["eval", "--seed", "9"], "argument --seed: invalid choice: 9"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_from_training_to_export(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Overrides before, between and after options; then a resumption, an evaluation and a file to deploy."""
    monkeypatch.setattr(protocol, "EPISODES", 4)
    monkeypatch.setattr(runs, "evaluation_page", brief_evaluation)
    half = len(SMALL) // 2
    arguments = ["train", "go2_flat", *SMALL[:half], "--iterations", "2", *SMALL[half:], "--seed", "5", "env.episode_s=1.0"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    (run,) = (here / "runs" / "go2_flat").iterdir()
    run = run.relative_to(here)
    assert out.startswith(f"go2_flat: 8 robots, 2 iterations, in {run}\n1/2  elapsed 0:0")
    assert "done: 64 steps in" in out and f"next: embodied-rl eval {run}\n" in out
    page = load(run / "config.yaml")
    assert (page.env.num_envs, page.env.seed, page.env.episode_s, page.train.steps) == (8, 5, 1.0, 4)

    rates, update = [], PPO.update

    def updated(learner: PPO, *arguments: Any) -> dict[str, float]:
        metrics = update(learner, *arguments)
        rates.append(metrics["Loss/learning_rate"])
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPO, "update", updated)
        assert cli.main(["train", "--resume", "latest", "--iterations", "3"]) == 0  # the run knows its page
    assert rates == [pytest.approx(7e-4 / 3)]  # the page's linear schedule goes over as many: a third is left
    assert load(run / "config.yaml").train.iterations == 3
    out = capsys.readouterr().out
    assert "\n3/3  elapsed" in out and "\n2/3" not in out and "done: 96 steps" in out

    assert cli.main(["eval", str(run), "--json", "out/eval.json", "--seed", "2"]) == 0
    printed, result = capsys.readouterr().out, json.loads((here / "out" / "eval.json").read_text())
    assert {"episodes", "fall_rate", "lin_vel_error", "ang_vel_error", "mean_reward", "mean_episode_s"} <= set(result)
    assert (result["episodes"], result["seed"], result["env_steps"]) == (4, 2, 96)
    assert result["checkpoint"] == str(run / "checkpoints" / "model_000003.pt")
    assert "fall_rate                        " in printed and "(limit 0.01)" in printed
    assert printed.splitlines()[-1].startswith(("it walks", "it does not walk yet"))

    assert cli.main(["eval", "latest", "--reference"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("physics                          reference: engine native, dt 2 ms, collisions full\n")
    assert "(limit 0.05)" in printed and "seed                             1\n" in printed

    monkeypatch.setattr(rehearsal, "evaluation_page", brief_evaluation)
    assert cli.main(["export", str(run), "--checkpoint", "7"]) == 2
    assert capsys.readouterr().err == f"{run}: no checkpoint of iteration 7; there are 2, 3\n"
    assert cli.main(["export", "latest", "--output", "deployed"]) == 0
    assert capsys.readouterr().out == "deployed; next: embodied-rl sim2sim deployed\n"
    assert (here / "deployed" / "policy.onnx").is_file()
    columns = "|  | training physics, seed 2 | reference physics, seed 1 | rehearsal, without noise |"
    assert columns in (here / "deployed" / "README.md").read_text()
    assert cli.main(["sim2sim", "deployed", "--golden"]) == 0


def test_a_page_without_runs_has_the_policy_that_ships(
    here: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embodied_rl.view import viewer

    shipped, seen = here / "package" / "policies", []
    real = paths.shipped
    monkeypatch.setattr(paths, "shipped", lambda kind: shipped if kind == "policies" else real(kind))
    monkeypatch.setattr(viewer, "view_env", lambda env, policy, **options: seen.append(policy(env.obs).shape))
    monkeypatch.setattr(protocol, "EPISODES", 4)
    monkeypatch.setattr(runs, "evaluation_page", brief_evaluation)
    monkeypatch.setattr(rehearsal, "evaluation_page", brief_evaluation)
    assert cli.main(["train", "go2_flat", *SMALL, "--iterations", "1", "--run-dir", "run"]) == 0
    shipped.mkdir(parents=True)
    pack(Run(Path("run")).checkpoint(1), shipped / "go2_flat")
    held = {path: path.read_bytes() for path in shipped.rglob("*") if path.is_file()}
    capsys.readouterr()

    def told(*arguments: str) -> str:
        """What a verb prints, which says in one line that the policy is the one that ships."""
        caplog.clear()
        with caplog.at_level("INFO", "embodied_rl"):
            assert cli.main(list(arguments)) == 0
        ships = [line for line in caplog.messages if line.startswith("go2_flat: the policy that ships, 32 steps, trained on 20")]
        assert len(ships) == 1
        return capsys.readouterr().out

    told("play", "go2_flat", "--num-envs", "2")
    assert seen == [(2, 12)]
    assert told("eval", "go2_flat").splitlines()[-1] == "it does not walk yet"
    assert told("export", "go2_flat").startswith("runs/go2_flat/shipped/exported; next: ")
    assert cli.main(["sim2sim", "go2_flat", "--golden"]) == 0
    capsys.readouterr()
    assert cli.main(["train", "--resume", "go2_flat"]) == 2
    line = capsys.readouterr().err
    assert "a policy alone" in line and line.endswith("embodied-rl train go2_flat\n") and line.count("\n") == 1
    assert {path: path.read_bytes() for path in shipped.rglob("*") if path.is_file()} == held

    assert cli.main(["train", "go2_flat", *SMALL, "--iterations", "1"]) == 0
    caplog.clear()
    assert cli.main(["play", "go2_flat"]) == 0
    assert len(seen) == 2 and not any("ships" in line for line in caplog.messages)


@pytest.mark.parametrize("falls", [0.0, 0.5])
def test_training_until_it_walks(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, falls: float
) -> None:
    from embodied_rl import training

    figures = {"fall_rate": falls, "lin_vel_error": 0.1, "ang_vel_error": 0.1, "shortfall": 0.1, "heading_drift": 0.1}
    monkeypatch.setattr(training, "Evaluations", lambda page, skip: lambda policy, moved, *, seed, reference: dict(figures))
    arguments = ["train", "go2_flat", *SMALL, "train.stop_when=passed", "train.evaluate_every=2", "--iterations", "6"]
    assert cli.main([*arguments, "--run-dir", "run"]) == 0
    *_, last, _ = capsys.readouterr().out.splitlines()
    told = "; next: embodied-rl eval run" + ("" if falls else "/best")
    if falls:
        assert last.startswith("done: 192 steps in ") and last.endswith(f"; it has not passed{told}")
        # nothing to do, and so nothing that could pass
        assert cli.main(["train", "go2_flat", "--resume", "run", "--iterations", "6"]) == 0
        assert "has not passed" not in capsys.readouterr().out
    else:
        assert last.startswith("it walks: passed after 64 steps, ") and last.endswith(f" s{told}")


def test_a_page_of_ones_own_is_resumed_as_the_line_says(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its name is not that of its file, and no page of that name ships."""
    (here / "mine.yaml").write_text("extends: go2_flat\nname: my_walk\n")
    from embodied_rl.learn.rollout import LocalCollector

    collect = LocalCollector.collect

    def once(self: LocalCollector, *arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return collect(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalCollector, "collect", once)
        assert cli.main(["train", "mine.yaml", *SMALL, "--run-dir", "run"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    said, _, command = line.partition("; go on with: embodied-rl ")
    assert said == "stopped after 1 iterations"
    assert cli.main([*command.split(), "--iterations", "2"]) == 0
    assert cli.main(["train", "mine.yaml", "--resume", "run", "--iterations", "3"]) == 0
    assert checkpoint.read(here / "run" / "checkpoints" / "model_000003.pt")["iter"] == 3
    capsys.readouterr()
    assert cli.main(["train", "go2_flat", "--resume", "run"]) == 2
    assert capsys.readouterr().err == "--resume run: that run is of the page my_walk, not of go2_flat\n"


def test_a_run_directory_is_not_written_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "go2_flat", *SMALL, "--run-dir", "run", "--iterations", "1"]
    assert cli.main(arguments) == 0
    capsys.readouterr()
    assert cli.main(arguments) == 2
    assert "run: holds a run already; continue it with --resume run" in capsys.readouterr().err


def test_ctrl_c_before_the_first_iteration(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "load", interrupt)
    assert cli.main(["check", "go2_flat"]) == 130
    assert capsys.readouterr() == ("", "")


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "embodied_rl", "check", "go2_flatt"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "embodied_rl", "list", "--terms"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0


def test_the_page_of_a_benchmark_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(learner, "bench_learner", lambda page: measured.append((page.name, page.env.num_envs)) or {})
    for arguments in ([], ["env.num_envs=8"], ["go1_flat"], ["go1_flat", "env.num_envs=8"]):
        assert cli.main(["bench", "learner", *arguments]) == 0
    assert [name for name, _ in measured] == ["go2_flat", "go2_flat", "go1_flat", "go1_flat"]
    assert measured[1][1] == measured[3][1] == 8 != measured[0][1]


@pytest.mark.parametrize("verb", ["eval", "play", "export"])
def test_opening_a_run_says_so_where_it_takes_long(
    verb: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*arguments: object, **options: object) -> None:
        time.sleep(0.3)
        raise UserError("it is not there")

    monkeypatch.setattr(waiting, "_FIRST_S", 0.1)
    monkeypatch.setattr(runs, "load", load)
    monkeypatch.setattr(runs, "export_run", load)
    assert cli.main([verb, "my_run"]) == 2
    assert caplog.messages[0].startswith("opening my_run, 0 s") and "it is not there" in capsys.readouterr().err
