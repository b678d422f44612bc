from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embodied_rl import training
from embodied_rl.cli import main
from embodied_rl.config import load
from embodied_rl.errors import UserError
from embodied_rl.inspection import inspect, warnings_of
from embodied_rl.make_env import make
from embodied_rl.sections import LARGEST
from embodied_rl.vector_env import LARGEST as LOST

OWN = """
import torch

from embodied_rl.mdp.term import observation, reward, termination


@reward()
def column(env):
    return torch.zeros(env.num_envs, 1)


@reward()
def nothing(env):
    return None


@reward()
def lost(env):
    return env.robot.no_such_thing


@observation(mirror="scalar")
def flat(env):
    return torch.zeros(env.num_envs)


@termination()
def maybe(env):
    return torch.zeros(env.num_envs)


@reward(needs=("joint_torqe",))
def wrong(env):
    return torch.zeros(env.num_envs)


@reward(needs=("contact:elbows",))
def elbows(env):
    return torch.zeros(env.num_envs)
"""


def test_a_page_that_is_right_is_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "go2_flat", "observations.actor.joint_pos.history=3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "robot         go2: 12 joints, 4 feet, 15.21 kg"
    assert said[2].startswith("actor         71 = base_ang_vel 3 + ") and "joint_pos 12 x 3" in said[2]
    assert "256 x 24 x 400 = 2,457,600 steps" in said and said[-1] == "go2_flat: ok"


@pytest.mark.parametrize(
    ("change", "most", "advice"),
    [
        ("env.num_envs=1000000000", "rollout", "fewer env.num_envs or train.steps"),
        ("observations.actor.joint_pos.history=1000000", "rollout", "fewer env.num_envs"),
        ("observations.actor.joint_pos.delay=[0, 1000000000]", "robots", "fewer env.num_envs, shorter histories and delays"),
        ("train.steps=1000000000", "rollout", "fewer env.num_envs or train.steps"),
        ("ppo.actor_hidden_dims=[1000000, 1000000]", "networks", "smaller networks"),
    ],
)
def test_what_no_memory_holds_is_refused_before_it_is_asked_for(change: str, most: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^go2_flat: training takes about [\d.,]+ [TG]iB \({most} .*{advice}") as refused:
        training.start(load("go2_flat", [change]), tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("rnn", ["none", "gru"])
def test_an_empty_minibatch_is_refused(rnn: str) -> None:
    changes = ["env.num_envs=16", "ppo.symmetry=none", f"ppo.rnn_type={rnn}", "ppo.num_mini_batches=385"]
    with pytest.raises(UserError, match=r"^go2_flat: ppo\.num_mini_batches: 385 is more than an iteration's (384 t|16 r)"):
        inspect(load("go2_flat", changes))


@pytest.mark.parametrize(
    ("key", "given", "default"), [("mode", "async", "sync"), ("inference", "central", "local"), ("lag", "2", "0")]
)
def test_what_only_a_pool_reads_is_refused_without_one(key: str, given: str, default: str) -> None:
    page = load("pool_go2_flat", [f"pool.{key}={given}", "pool.workers=null"])
    with pytest.raises(UserError) as refused:
        inspect(page)
    said = (
        f"pool_go2_flat: pool.{key}: {given} is only read with a pool, and pool.workers: null is none; take pool.workers: 0, or "
    )
    assert str(refused.value) == f"{said}pool.{key}: {default}"


def test_the_estimates_count_what_is_made() -> None:
    page = load("go2_flat", ["env.compile=false", "env.num_envs=64"])
    env = make(page)
    state = sum(one.numel() * one.element_size() for one in env.snapshot(torch.arange(64)).values())
    assert state <= inspect(page).memory["robots"] <= 8 * state


def test_an_iteration_that_takes_long_is_warned_of() -> None:
    page = load("go2_flat", ["ppo.num_learning_epochs=1000", "ppo.actor_hidden_dims=[1024, 1024]"])
    (line,) = warnings_of(page, inspect(page))
    assert line.startswith("go2_flat: an iteration takes about ") and line.endswith("(6,144 steps); is that meant?")


def test_mistakes_of_all_terms_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    own = f"terms=[{tmp_path / 'own.py'}]"
    names = {"column": "float32 (16, 1)", "nothing": "None", "lost": "AttributeError"}
    terms = [f"rewards.{name}={{weight: 1.0}}" for name in names]
    with pytest.raises(UserError) as refused:
        inspect(load("go2_flat", [own, *terms, "terminations.maybe={}"]))
    lines = str(refused.value).splitlines()
    assert len(lines) == 4
    for name, said in names.items():
        assert any(line.startswith(f"rewards.{name}") and said in line for line in lines), (name, lines)
    assert any(line.startswith("terminations.maybe: a term returns bool (16,), got float32 (16,)") for line in lines)
    with pytest.raises(UserError, match=r"needs 'joint_torqe', .*did you mean 'joint_torque'\?") as refused:
        inspect(load("go2_flat", [own, "rewards.wrong={weight: 1.0}", "rewards.elbows={weight: 1.0}"]))


@pytest.mark.parametrize("where", ["reward", "curriculum"])
def test_code_that_ends_the_process_is_no_success(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = {"reward": "env", "curriculum": "params, statistics, iteration"}[where]
    source = f"import sys\nfrom embodied_rl.mdp.term import {where}\n@{where}()\ndef mine({taken}): sys.exit(0)\n"
    (tmp_path / "own.py").write_text(source)
    entry = {"reward": "rewards.mine={weight: 1.0}", "curriculum": "curriculum.mine={}"}[where]
    assert main(["check", "go2_flat", f"terms=[{tmp_path / 'own.py'}]", entry]) == 2
    assert "own.py:4: ends the process (SystemExit 0)" in capsys.readouterr().err


LATE = """
import torch
from embodied_rl.mdp.term import observation, reward, termination

CALLS = []


def late(right, wrong):
    CALLS.append(1)
    return right if len(CALLS) < 4 else wrong


@reward()
def paid(env):
    return late(torch.zeros(env.num_envs), torch.zeros(1))


@termination()
def over(env):
    return late(torch.zeros(env.num_envs).bool(), torch.zeros(env.num_envs))


@observation(mirror="scalar")
def seen(env):
    return late(torch.zeros(env.num_envs, 1), torch.zeros(1, 1))
"""


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("rewards.paid={weight: 1.0}", r"^rewards\.paid: a term returns float32 \(2,\), got float32 \(1,\)$"),
        ("terminations.over={}", r"^terminations\.over: a term returns bool \(2,\), got float32 \(2,\)$"),
        ("observations.actor.seen={}", r"^observations\.actor\.seen: a term returns float32 \(2, 1\), got float32 \(1, 1\)$"),
    ],
)
def test_an_answer_that_is_wrong_later_is_named(entry: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(LATE)  # whose wrong answers would all be spread over the robots without a word
    with pytest.raises(UserError, match=said):
        env = make(load("go2_flat", [f"terms=[{tmp_path / 'own.py'}]", entry, "env.compile=false"]), num_envs=2)
        for _ in range(8):
            env.step(torch.zeros(2, 12))


def test_robots_that_are_lost_in_their_first_step_are_no_task(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\nfrom embodied_rl.mdp.term import reward\n\n\n@reward()\ndef odd(env):\n"
        "    return torch.full((env.num_envs,), float('nan'))\n"
    )
    changes = [f"terms=[{tmp_path / 'own.py'}]", "rewards.odd={weight: 1.0}"]
    with pytest.raises(UserError, match=r"^go2_flat: rewards\.odd is nan, in the first step: 100 % of the robots are lost, and"):
        inspect(load("go2_flat", changes))
    assert inspect(load("go2_flat", [*changes, "physics.max_unstable=1.0"])).steps_per_s


def test_what_is_hardly_meant_is_asked_about() -> None:
    weights = [f"rewards.{name}.weight=0.0" for name in load("go2_stand").rewards]
    page = load("go2_stand", [*weights, "terminations.height.minimum=3.0"])
    assert [*warnings_of(page, inspect(page))] == [
        "go2_stand: terminations.height ends every episode in its first step; is that meant?",
        "go2_stand: rewards: none, or all of weight 0: the policy is asked for nothing; is that meant?",
    ]
    page = load("go2_stand", ["terminations={time_out: null, tilt: null, height: null}"])
    (line,) = warnings_of(page, inspect(page))
    assert line.startswith("go2_stand: terminations: none: no episode ever ends")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ["rewards.stand_still.command=velocty"],
            "rewards.stand_still: reads the command 'velocty', which the page has not",
        ),
        (
            ["rewards.touch={term: undesired_contacts, weight: -1.0}"],
            "rewards.touch: reads the contacts of 'thighs', but 'FL_thigh' cannot touch anything: set scene.collisions: full",
        ),
        (["terms=[{own}]", "observations.actor.odd={}"], "terms: {own}:4: a term's mirror: no 'vectr'; did you mean 'vector'?"),
    ],
)
def test_what_a_term_cannot_have_is_told_with_its_place(changes: list[str], said: str, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import torch\nfrom embodied_rl.mdp.term import observation\n\n@observation(mirror='vectr')\ndef odd(env):\n"
        "    return torch.zeros(env.num_envs, 3)\n"
    )
    with pytest.raises(UserError) as refused:
        inspect(load("go2_flat", [one.replace("{own}", str(own)) for one in changes]))
    assert str(refused.value).startswith(said.replace("{own}", str(own))) and "\n" not in str(refused.value)


def test_what_a_term_does_wrong_later_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\nfrom embodied_rl.mdp.term import reward\n\nCALLS = []\n\n\n@reward()\ndef tires(env):\n"
        "    CALLS.append(1)\n    return torch.zeros(env.num_envs) / len(CALLS) if len(CALLS) < 4 else [][0]\n"
    )
    env = make(
        load("go2_flat", [f"terms=[{tmp_path / 'own.py'}]", "rewards.tires={weight: 1.0}", "env.compile=false"]), num_envs=2
    )
    with pytest.raises(UserError, match=r"^go2_flat: .*own\.py:10: IndexError: list index out of range$"):
        for _ in range(10):
            env.step(torch.zeros(2, 12))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import sys; sys.exit(3)", r"own\.py:1: ends the process \(SystemExit 3\)"),
        ("raise SystemExit", r"own\.py:1: ends the process \(SystemExit None\)"),
        ("import no_such_package", r"own\.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told_in_one_line(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import torch\nfrom embodied_rl.mdp.term import reward\n\n\n@reward()\ndef mine(env):\n"
    text += "    return torch.zeros(env.num_envs)\n"
    (tmp_path / "own.py").write_text(f"{line}\n{text}")
    assert main(["check", "go2_flat", f"terms=[{tmp_path / 'own.py'}]", "rewards.mine={weight: 1.0}"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"terms: .*{said}", told)


def test_a_wrong_learner_and_mirror_are_told_before_a_run_begins(tmp_path: Path) -> None:
    for change, message in (
        ("train.learner=os:system", r"^train\.learner: os:system: is no learner"),
        ("observations.actor.odd={term: odd}", "odd"),
    ):
        (tmp_path / "own.py").write_text(
            "import torch\nfrom embodied_rl.mdp.term import observation\n\n\n"
            "@observation(mirror='joints')\ndef odd(env):\n    return torch.zeros(env.num_envs, 5)\n"
        )
        with pytest.raises(UserError, match=message):
            training.start(load("go2_flat", [f"terms=[{tmp_path / 'own.py'}]", change]), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_what_a_page_may_say_reaches_beyond_where_a_robot_counts_as_lost() -> None:
    assert LOST < LARGEST < 1e13


def test_text_is_checked_before_anything_heavy_is_loaded() -> None:
    code = "import sys; from embodied_rl import cli; cli.main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code, "check", "go2_flat", "env.num_envs=0"], capture_output=True).returncode == 0
    )


def test_what_a_curriculum_goes_by_is_counted_or_refused() -> None:
    earned = (
        "curriculum.wider={term: earned, parameter: commands.velocity.lin_vel_x, start: [-0.2, 0.2], end: [-1, 1], share: %s}"
    )
    changes = ["env.compile=false", "physics.num_threads=1"]
    inspect(load("go2_flat", [*changes, earned % "Tracking/lin_vel"]))
    with pytest.raises(UserError, match=r"curriculum\.wider\.share: 'Tracking/lin_val' .* did you mean 'Tracking/lin_vel'\?$"):
        inspect(load("go2_flat", [*changes, earned % "Tracking/lin_val"]))
