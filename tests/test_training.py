from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embodied_rl import machine, make_env, runs, training
from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.learn.run import Run

SMALL = [
    *("env.compile=false", "env.num_envs=4", "physics.num_threads=1", "train.steps=4"),
    *("ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]"),
]


def test_training_needs_the_last_observation_of_an_episode(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        training.start(load("go2_flat", [*SMALL, "env.final_obs_groups=[actor]"]), tmp_path / "run")
    assert str(caught.value).startswith("env.final_obs_groups: [actor]: ") and "'critic'" in str(caught.value)


@pytest.mark.parametrize(
    ("page", "change", "said"),
    [
        ("go2_flat", "train.logger=wandb", r'^train\.logger: wandb: wandb is not installed; pip install -e "\.\[wandb\]"'),
        ("pool_walker_dmc", "pool.address=none", r"^env\.source: dm_control:\S+: dm_control is not installed; pip"),
        ("pool_walker_dmc", "pool.address=local", r"^pool\.address: ray is not installed; pip .* take pool\.address: none$"),
    ],
)
def test_what_is_not_installed_is_said_before_a_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, change: str, said: str
) -> None:
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=said):
        training.start(load(page, [change]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overrides_of_a_resume_stay_with_the_run(tmp_path: Path):
    small = ["env.compile=false", "env.num_envs=8", "train.steps=4", "ppo.schedule=constant", "curriculum=null"]
    trainer = training.start(load("go2_flat", small), tmp_path / "run")
    assert len(list(trainer.train(1))) == 1
    resumed = training.resume(str(tmp_path / "run"), "go2_flat", ["ppo.learning_rate=1e-4", "rewards.pose.weight=0.25"])
    assert resumed.learner.state_dict()["optimizer_state_dict"]["param_groups"][0]["lr"] == pytest.approx(1e-4)
    assert runs.load(tmp_path / "run").page == resumed.page != trainer.page


@pytest.mark.parametrize("graph", [True, False])
def test_a_page_without_graphs_has_none_in_its_learner(monkeypatch: pytest.MonkeyPatch, graph: bool) -> None:
    page = load("go2_flat", [*SMALL, f"physics.graph={str(graph).lower()}"])
    given = {}

    class Learner(PPO):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            given.update(settings)

    env = make_env.make(page)
    monkeypatch.setattr("embodied_rl.learn.learner.learner_class", lambda page: Learner)
    training.make_learner(page, LocalCollector(env, 4, 1, symmetry=True), torch.device("cpu"))
    assert given["graph"] is graph
    env.close()


@pytest.mark.parametrize(
    ("gpus", "overrides", "said"),
    [
        (0, ["train.device=cuda"], r"^train.device: cuda: .*; take cpu$"),
        (2, ["train.device=cuda:2"], r"^train.device: cuda:2: this machine has 2; take cpu$"),
        (2, ["train.device=cpu"], r"^train.device: cpu: the robots are on cuda, .*, or take physics.engine: native"),
        (2, ["physics.device=cuda:1", "train.device=cuda:0"], r"^train.device: cuda:0: the robots are on cuda:1, "),
        (2, ["train.overlap=true"], r"^train.overlap: true: the robots are on cuda, .*, or take physics.engine: native"),
    ],
)
def test_devices_that_are_not_there_or_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, overrides: list[str], said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    engine = [] if said.endswith("take cpu$") else ["physics.engine=warp"]
    with pytest.raises(UserError, match=said):
        training.start(load("go2_flat", [*SMALL, *engine, *overrides]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_learner_is_where_its_robots_are_unless_the_page_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    warp = ["physics.engine=warp", "physics.device=cuda:1"]
    for given, robots, learner in (
        ([], "cpu", "cpu"),
        (["train.device=cuda:1"], "cpu", "cuda:1"),
        (warp, "cuda:1", "cuda:1"),
        ([*warp, "train.device=cuda"], "cuda:1", "cuda:1"),
        (["physics.engine=warp", "train.device=cuda:0"], "cuda", "cuda"),
        (["pool.workers=1"], "cpu", "cuda"),
        (["pool.workers=1", "pool.address=none"], "cpu", "cpu"),
        (["pool.workers=1", "train.device=cpu"], "cpu", "cpu"),
    ):
        page = load("go2_flat", given)
        assert [str(make_env.device_of(page)), str(make_env.learner_device(page))] == [robots, learner], given


class _MadeError(Exception):
    """What a rank was about to make: its page, and the ids of its robots."""


def second_of_two(page: Page, monkeypatch: pytest.MonkeyPatch) -> tuple[Page, range]:
    """What the second of two ranks, on a machine of two GPUs and 8 cores, makes of the page."""

    def made(page: Page, *arguments: Any) -> None:
        raise _MadeError(page, arguments[-1].tolist())

    monkeypatch.setattr(training, "make_vector", made)
    monkeypatch.setattr(training, "_make_pooled", made)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    group = Group()
    group.rank = group.local_rank = 1
    group.size = group.local_size = 2
    with pytest.raises(_MadeError) as caught:
        training._make_parts(page, group, Run(Path("run")))
    own, rows = caught.value.args
    assert rows == list(range(rows[0], rows[-1] + 1))
    return own, range(rows[0], rows[-1] + 1)


@pytest.mark.parametrize(
    ("given", "robots", "ids", "factor", "threads"),
    [
        (["train.device=cuda"], "auto", range(3, 6), 1, 4),  # shares of robots and cores, as ranks without GPUs have them
        (["physics.engine=warp"], "cuda:1", range(6, 12), 2, 4),
        (["physics.engine=warp", "train.device=cuda"], "cuda:1", range(6, 12), 2, 4),
        (["physics.engine=warp", "distributed.num_envs_scope=global"], "cuda:1", range(3, 6), 1, 4),
        (["distributed.num_envs_scope=per_rank", "train.device=cuda"], "auto", range(6, 12), 2, 4),
        (["pool.workers=2"], "auto", range(3, 6), 1, 0),
        (["pool.workers=2", "pool.address=none", "train.device=cuda"], "auto", range(3, 6), 1, 4),
    ],
)
def test_a_rank_has_its_own_gpu_robots_and_cores_and_the_jobs_learning_rate(
    monkeypatch: pytest.MonkeyPatch, given: list[str], robots: str, ids: range, factor: int, threads: int
) -> None:
    task = load("go2_flat", ["env.num_envs=6", "distributed.learning_rate_rule=linear", "ppo.learning_rate=1e-3", *given])
    own, rows = second_of_two(task, monkeypatch)
    assert (own.physics.device, own.train.device, rows) == (robots, "cuda:1", ids)
    assert (own.ppo.learning_rate, own.physics.num_threads) == (factor * 1e-3, threads)
    key = "train" if robots == "auto" else "physics"
    with pytest.raises(UserError, match=rf"^{key}.device: cuda:0: one GPU for several ranks"):
        second_of_two(load("go2_flat", [*given, f"{key}.device=cuda:0", "train.device=cuda:0"]), monkeypatch)


@pytest.mark.parametrize(
    ("begun", "repeated", "missing"),
    [
        (["distributed.timeout_s=77.0"], [], "distributed.timeout_s=77.0"),
        (["physics.engine=warp", "distributed.backend=gloo"], [], "physics.engine=warp distributed.backend=gloo"),
        (["train.device=cuda", "distributed.timeout_s=77.0"], ["train.device=cuda"], "distributed.timeout_s=77.0"),
        (["train.device=cuda"], ["train.device=cuda"], ""),
        (["physics.device=cpu"], [], ""),  # which says what is so without it
    ],
)
def test_ranks_that_met_in_another_way_than_the_run_says_are_told_what_to_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: list[str], repeated: list[str], missing: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    run, group = Run.create(load("go2_flat", begun), tmp_path / "run"), Group()
    monkeypatch.setattr(training, "join", lambda *arguments: group)

    def said() -> str:
        with pytest.raises(UserError) as caught:  # there is no checkpoint: the first thing to say after how they met
            training.resume(str(run.path), "go2_flat", repeated)
        return str(caught.value)

    assert said() == f"{run.path}: no checkpoint yet"  # alone it met nobody
    group.size = 2
    line = f"--resume {run.path}: its 2 processes met before its page was known, which differs from go2_flat's in how they meet"
    assert said() == (f"{line}; add to the command line: {missing}" if missing else f"{run.path}: no checkpoint yet")
