from __future__ import annotations

import functools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl import cli, runs, training
from embodied_rl.config import Page, load
from embodied_rl.errors import UserError
from embodied_rl.learn import checkpoint
from embodied_rl.learn import evaluate as protocol
from embodied_rl.learn.evaluate import SEEDS
from embodied_rl.learn.guards import UnstableError
from embodied_rl.learn.policy import Player
from embodied_rl.learn.report import Report
from embodied_rl.learn.rollout import LocalCollector, Rollout
from embodied_rl.learn.train import Trainer

ENVS = 16
SMALL = [
    *("env.compile=false", f"env.num_envs={ENVS}", "env.episode_s=0.5", "physics.num_threads=1"),
    *("train.steps=8", "ppo.actor_hidden_dims=[16]", "ppo.critic_hidden_dims=[16]", "train.save_every=4"),
    *("ppo.num_learning_epochs=2", "ppo.num_mini_batches=2"),
]
#: Metrics of the clock.
CLOCK = ("Perf/", "Train/seconds")


@functools.cache
def page(*overrides: str) -> Page:
    return load("go2_flat", [*SMALL, *overrides])


def train(trainer: Trainer, iterations: int, report: Report | None = None) -> list[dict[str, float]]:
    """The metrics of every iteration, those of the clock left out."""
    history = list(trainer.train(iterations, report))
    return [{name: value for name, value in metrics.items() if not name.startswith(CLOCK)} for metrics in history]


def weights(trainer: Trainer) -> list[torch.Tensor]:
    models = trainer.learner.networks.values()
    return [value.clone() for model in models for value in model.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def names(folder: Path) -> list[str]:
    """The checkpoints; each has its robots beside it."""
    models = sorted(path.name for path in (folder / "checkpoints").glob("model_*"))
    shards = sorted(path.name for path in (folder / "checkpoints").glob("envs_*"))
    assert shards == [f"envs_{name[6:12]}_0_of_1.pt" for name in models]
    return models


def robots(folder: Path, iteration: int) -> dict[str, torch.Tensor]:
    """Their saved states."""
    return torch.load(folder / "checkpoints" / f"envs_{iteration:06d}_0_of_1.pt", weights_only=True)["envs"]


def equal(one: object, other: object) -> bool:
    """Whether two checkpoints are the same to the last bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(9.0), other.nan_to_num(9.0))
    return one == other


def test_half_a_run_and_the_rest_are_the_whole(tmp_path: Path) -> None:
    """10 iterations = 5 + resume 5, bit for bit: networks, optimizer, normalizers, robots, metrics."""
    whole = training.start(page(), tmp_path / "whole")
    history = train(whole, 10)
    first = training.start(page(), tmp_path / "half")
    halves = train(first, 5)
    second = training.resume(str(tmp_path / "half"), "go2_flat")
    assert (second.iteration, second.env_steps) == (5, 5 * 8 * ENVS)
    halves += train(second, 10)
    assert halves == history
    states = [checkpoint.read(tmp_path / run / "checkpoints" / "model_000010.pt") for run in ("whole", "half")]
    for state in states:
        state["infos"].pop("seconds")
    assert equal(*states)  # the hashes of the robots' states among it
    assert any(metrics["Train/terminated"] for metrics in history if "Train/terminated" in metrics)


#: Asks for more whenever episodes were worth enough, and writes down what it was told.
GROW = """
from embodied_rl.mdp.term import curriculum

TOLD = []

@curriculum()
def grow(params, statistics, iteration, *, reward: float, factor: float):
    TOLD.append((iteration, dict(statistics)))
    if statistics and statistics["reward/total"] > reward * statistics["episodes"]:
        params["commands.velocity.lin_vel_x"] *= factor
"""


def growing(folder: Path, *overrides: str) -> Page:
    """The small page with a curriculum that goes by the iteration and one that goes by the rewards."""
    (folder / "grow.py").write_text(GROW)
    text = "extends: go2_flat.yaml\nterms: [grow.py]\ncurriculum:\n  grow: {reward: 0.02, factor: 1.1}\n"
    ramp = "{term: linear, parameter: rewards.pose.weight, start: [0.0], end: [1.0], iterations: [2, 18]}"
    (folder / "growing.yaml").write_text(f"{text}  ramp: {ramp}\n")
    return load(str(folder / "growing.yaml"), [*SMALL, *overrides])


def told(trainer: Trainer) -> list[tuple[int, dict[str, float]]]:
    """What the curriculum of `growing` was told since it was loaded."""
    (grow,) = [term.function for term in trainer.curricula._terms if term.name == "grow"]
    return sys.modules[grow.__module__].TOLD


def moving(trainer: Trainer) -> list[torch.Tensor]:
    """The numbers that its robots have."""
    params = trainer.collector._env.params  # pyright: ignore[reportAttributeAccessIssue]
    return [params[path].clone() for path in ("rewards.pose.weight", "commands.velocity.lin_vel_x")]


def test_curricula_move_between_rollouts_by_what_the_last_one_came_to(tmp_path: Path) -> None:
    trainer = training.start(growing(tmp_path), tmp_path / "run")
    assert told(trainer).pop(0) == (0, {})  # when the page was checked
    seen, collect = [], trainer.collector.collect

    def collected(*arguments: Any) -> Rollout:
        rollout = collect(*arguments)
        seen.append(moving(trainer))
        return rollout

    trainer.collector.collect = collected  # pyright: ignore[reportAttributeAccessIssue]
    history = train(trainer, 8)
    assert [iteration for iteration, _ in told(trainer)] == list(range(9)) and told(trainer)[0][1] == {}
    expected, grown, rewards, episodes = torch.tensor([-1.0, 1.0]), 0, 0.0, 0.0
    for iteration, (weight, velocities) in enumerate(seen):
        assert weight.item() == pytest.approx(min(max((iteration - 2) / 16, 0.0), 1.0))
        statistics = told(trainer)[iteration][1]
        if statistics and statistics["reward/total"] > 0.02 * statistics["episodes"]:
            expected, grown = expected * 1.1, grown + 1
        assert torch.equal(velocities, expected)
        # an iteration's own sums, of which the metrics are the latest hundred episodes'
        if statistics.get("episodes"):
            rewards, episodes = rewards + statistics["reward/total"], episodes + statistics["episodes"]
            assert rewards / episodes == history[iteration - 1]["Train/mean_reward"]
    assert 0 < grown < 8


def test_half_a_run_with_curricula_and_the_rest_are_the_whole(tmp_path: Path) -> None:
    """Bit for bit, by the iteration and by statistics; where the curriculum is gone, the page's own number is back."""
    task = growing(tmp_path)
    whole = training.start(task, tmp_path / "whole")
    history = train(whole, 10)
    halves = train(training.start(task, tmp_path / "half"), 5)
    second = training.resume(str(tmp_path / "half"), str(tmp_path / "growing.yaml"))
    half = second.curricula.params["commands.velocity.lin_vel_x"].clone()
    assert half[1] > 1.0
    halves += train(second, 10)
    assert halves == history
    states = [checkpoint.read(tmp_path / run / "checkpoints" / "model_000010.pt") for run in ("whole", "half")]
    for state in states:
        state["infos"].pop("seconds")
    assert equal(*states)
    assert states[0]["curricula"]["grow"]["commands.velocity.lin_vel_x"][1] > half[1]  # it went on
    without = training.resume(str(tmp_path / "half"), str(tmp_path / "growing.yaml"), ["curriculum.grow=null"])
    list(without.train(11))
    weight, velocities = moving(without)
    assert velocities.tolist() == [-1.0, 1.0] and weight == (10 - 2) / 16


def test_curricula_reach_the_learner(tmp_path: Path) -> None:
    """Its numbers, and no robot's: a ramp that stands is the page's own number, one that moves goes on after a resumption."""
    ramp = "curriculum.{}={{term: linear, parameter: ppo.{}, start: [{}], end: [{}], iterations: [0, 8]}}".format
    still = training.start(page(ramp("bonus", "entropy_coef", 0.5, 0.5)), tmp_path / "still")
    own = training.start(page("ppo.entropy_coef=0.5"), tmp_path / "own")
    assert train(still, 2) == train(own, 2) and same(weights(still), weights(own))

    moving = (
        ramp("bonus", "entropy_coef", 0.5, 0.0),
        ramp("rate", "learning_rate", 1e-3, 0.0),
        "ppo.schedule=constant",
        "curriculum.gate=null",
    )
    whole = training.start(page(*moving), tmp_path / "whole")
    given, collect = [], whole.collector.collect
    whole.collector.collect = lambda *arguments: given.append(arguments[2]) or collect(*arguments)  # pyright: ignore
    history = train(whole, 6)
    assert given == [{}] * 6
    bonuses = [metrics["Loss/entropy_coef"] for metrics in history]
    assert bonuses == pytest.approx([0.5, 0.4375, 0.375, 0.3125, 0.25, 0.1875])
    assert [metrics["Loss/learning_rate"] for metrics in history][::4] == pytest.approx([1e-3, 5e-4])
    halves = train(training.start(page(*moving), tmp_path / "half"), 4)
    second = training.resume(str(tmp_path / "half"), "go2_flat")
    assert halves + train(second, 6) == history and same(weights(second), weights(whole))


def test_a_checkpoint_whose_curricula_are_of_another_page(tmp_path: Path) -> None:
    task = growing(tmp_path)
    train(training.start(task, tmp_path / "run"), 4)
    path = tmp_path / "run" / "checkpoints" / "model_000004.pt"
    state = checkpoint.read(path)
    state["curricula"]["grow"]["rewards.waltz.weight"] = torch.tensor(1.0)
    checkpoint.save(path, state)
    with pytest.raises(checkpoint.CheckpointError) as caught:
        training.resume(str(tmp_path / "run"), str(tmp_path / "growing.yaml"))
    said = "its curricula do not fit the page: curriculum.grow: rewards.waltz.weight differs; resume without the overrides"
    assert str(caught.value) == f"{path}: {said}"


@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
def test_what_a_recurrent_policy_remembers_outlives_the_process(tmp_path: Path, rnn_type: str) -> None:
    recurrent = page(f"ppo.rnn_type={rnn_type}", "ppo.rnn_hidden_dim=8", "ppo.symmetry=none")
    whole = training.start(recurrent, tmp_path / "whole")
    history = train(whole, 4)
    halves = train(training.start(recurrent, tmp_path / "half"), 2)
    halves += train(training.resume(str(tmp_path / "half"), "go2_flat"), 4)
    assert halves == history
    states = [robots(tmp_path / run, 4) for run in ("whole", "half")]
    assert equal(*states)
    assert states[0]["policy.memory.0"].abs().max() > 0.0
    run = runs.load(tmp_path / "whole")
    obs = torch.randn(3, run.policy.policy.obs_size)
    first, second = run.policy(obs), run.policy(obs)
    assert not torch.equal(first, second)  # it remembers the first
    run.policy.forget(torch.tensor([True, False, False]))
    third = run.policy(obs)
    assert torch.equal(third[0], first[0]) and not torch.equal(third[1:], first[1:])


def test_too_many_minibatches_that_are_not_finite_end_the_run_with_what_they_were_of(tmp_path: Path) -> None:
    trainer = training.start(page("train.max_skipped=0.4"), tmp_path / "run")
    train(trainer, 1)
    collect = trainer.collector.collect

    def spoiled(*arguments: Any) -> Rollout:
        rollout = collect(*arguments)
        rollout.rewards[3, 5] = torch.inf
        return rollout

    trainer.collector.collect = spoiled  # pyright: ignore[reportAttributeAccessIssue]
    before = weights(trainer)
    with pytest.raises(UnstableError, match=r"^100% of .* 2's updates .*train.max_skipped \(40%\).*iteration_000002.pt; try"):
        train(trainer, 2)
    networks = [value for value in weights(trainer) if value.is_floating_point()]
    assert all(value.isfinite().all() for value in networks) and len(before) == len(weights(trainer))
    dump = torch.load(tmp_path / "run" / "diverged" / "iteration_000002.pt", weights_only=True)
    assert dump["rollout"]["rewards"][3, 5] == torch.inf and dump["learner"]["actor_state_dict"]


def test_a_seed_makes_a_run_and_the_number_of_threads_does_not(tmp_path: Path) -> None:
    runs = {"one": [], "again": [], "threads": ["physics.num_threads=2"], "other": ["env.seed=2"]}
    trained = {}
    for name, overrides in runs.items():
        trainer = training.start(page(*overrides), tmp_path / name)
        trained[name] = (train(trainer, 2), weights(trainer))
    history, one = trained["one"]
    for name in ("again", "threads"):
        assert trained[name][0] == history
        assert same(trained[name][1], one)
    assert not same(trained["other"][1], one)


def test_checkpoints_at_the_interval_and_at_the_end(tmp_path: Path) -> None:
    train(training.start(page(), tmp_path / "run"), 10)
    assert names(tmp_path / "run") == ["model_000004.pt", "model_000008.pt", "model_000010.pt"]


#: An evaluation of a moment, which everybody passes.
EASY = [
    *(
        "train.stop_when=passed",
        "train.evaluate_every=1",
        "score.episode_s=0.2",
        "score.unscored_s=0.0",
        "score.fall_rate=1.0",
        "score.lin_vel_error=99.0",
    ),
    *("score.ang_vel_error=99.0", "score.reference_fall_rate=1.0", "score.reference_lin_vel_error=99.0"),
    *("score.shortfall=1.0", "score.heading_drift=99.0", "score.shuffling=1.0"),
]


@pytest.mark.parametrize(
    "other",
    [[], ["ppo.rnn_type=gru", "ppo.symmetry=none"], ["train.learner=rsl_rl.algorithms:PPO"]],
    ids=["ppo", "gru", "rsl_rl"],
)
def test_evaluations_leave_no_trace_in_a_training_and_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, other: list[str]
) -> None:
    """In both physics and on other seeds; networks, robots and metrics are those of a training without, to the last bit."""
    caplog.set_level("INFO")
    monkeypatch.setattr(protocol, "EPISODES", 2)
    alone = training.start(page(*other), tmp_path / "alone")
    history = train(alone, 2)
    threads = torch.get_num_threads()
    evaluated = training.start(page(*other, *EASY), tmp_path / "evaluated")
    found = train(evaluated, 9)
    assert torch.get_num_threads() == threads and evaluated.iteration == 2 and not evaluated.stopped
    assert evaluated.passed is not None and evaluated.passed.iteration == 1
    scores = [{name: one.pop(name) for name in list(one) if name.startswith("Score/")} for one in found]
    assert found == history and same(weights(alone), weights(evaluated))
    assert equal(alone.collector.snapshot(), evaluated.collector.snapshot())
    assert scores[0]["Score/passed"] == 1.0 and "Score/reference_ang_vel_error" in scores[0] and scores[0] != scores[1]
    assert names(tmp_path / "evaluated") == ["model_000001.pt", "model_000002.pt"]
    infos = [checkpoint.read(evaluated.run.checkpoint(iteration))["infos"] for iteration in (1, 2)]
    assert "verified" not in infos[1] and evaluated.run.best_checkpoint() == evaluated.run.checkpoint(1)
    kept = [one["score"] for one in infos]
    figures = [{f"Score/{name}": value for name, value in score["figures"].items()} for score in kept]
    found = [figures | {"Score/margin": s["margin"], "Score/passed": 1.0} for figures, s in zip(figures, kept, strict=True)]
    assert found == scores
    if other:
        return
    # who goes on wants more, whatever learns
    caplog.clear()
    resumed = training.resume(str(tmp_path / "evaluated"))
    said = "its policy has passed; the run goes on until two evaluations in a row pass again"
    assert caplog.messages == [f"{evaluated.run.checkpoint(2)}: {said}"]
    train(resumed, 9)
    assert resumed.iteration == 4
    further = training.resume(str(tmp_path / "evaluated"), "go2_flat", ["train.stop_when=end"])
    train(further, 6)
    assert further.iteration == 6


@pytest.mark.parametrize("kept", [True, False])
def test_half_a_training_until_it_passes_and_the_rest_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kept: bool
) -> None:
    """A policy that has passed once is not forgotten, as long as its checkpoint is there."""
    asked = []

    def measure(policy: Player, moved: Any, *, seed: int, reference: bool) -> dict[str, float]:
        (weight, *_) = policy.policy.network.parameters()
        asked.append((weight.detach().sum().item(), seed, reference))
        return dict.fromkeys(("fall_rate", "lin_vel_error", "ang_vel_error", "shortfall", "heading_drift"), 0.0)

    monkeypatch.setattr(training, "Evaluations", lambda page, skip: measure)
    task = page("train.stop_when=passed", "train.evaluate_every=2")
    whole = training.start(task, tmp_path / "whole")
    train(whole, 9)
    once = list(asked)
    half = training.start(task, tmp_path / "half")
    for _ in half.train(9):
        if half.iteration == 3:
            half.stop()
    assert half.passed is None
    if not kept:
        half.run.checkpoint(2).unlink()
    second = training.resume(str(tmp_path / "half"), "go2_flat")
    train(second, 9)
    assert whole.passed is not None and second.passed is not None
    if kept:
        assert asked == 2 * once and second.iteration == 4 and not caplog.messages[1:]
        assert second.passed._replace(seconds=0.0) == whole.passed._replace(seconds=0.0)
        assert second.passed.seconds < half.seconds
    else:
        assert (second.iteration, second.passed.iteration) == (6, 4)
        said = "no such checkpoint; two evaluations in a row have to pass from here on"
        assert caplog.messages[1:] == [f"{half.run.checkpoint(2)}: {said}"]


def test_the_time_of_evaluations_is_not_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(policy: Any, moved: Any, *, seed: int, reference: bool) -> dict[str, float]:
        time.sleep(0.5)
        return dict.fromkeys(("fall_rate", "lin_vel_error", "ang_vel_error", "shortfall", "heading_drift"), 100.0)

    monkeypatch.setattr(training, "Evaluations", lambda page, skip: measure)
    trainer = training.start(page("train.evaluate_every=1"), tmp_path / "run")
    started = time.perf_counter()
    train(trainer, 2)
    assert trainer.examiner is not None and trainer.examiner.seconds >= 1.0
    assert trainer.seconds + trainer.examiner.seconds <= time.perf_counter() - started
    assert trainer.passed is None


def test_a_run_that_is_done_has_nothing_to_resume(tmp_path: Path) -> None:
    train(training.start(page(), tmp_path / "run"), 2)
    assert train(training.resume(str(tmp_path / "run"), "go2_flat"), 2) == []
    assert names(tmp_path / "run") == ["model_000002.pt"]


def test_stop_ends_after_the_iteration_at_hand(tmp_path: Path) -> None:
    trainer = training.start(page(), tmp_path / "run")
    for _ in trainer.train(10):
        if trainer.iteration == 3:
            trainer.stop()
    assert trainer.stopped and trainer.iteration == 3
    assert names(tmp_path / "run") == ["model_000003.pt"]


def test_training_outside_the_main_thread(tmp_path: Path) -> None:
    trainer = training.start(page(), tmp_path / "run")
    thread = threading.Thread(target=lambda: train(trainer, 1))
    thread.start()
    thread.join()
    assert trainer.iteration == 1 and names(tmp_path / "run") == ["model_000001.pt"]


def test_signal_handlers_are_given_back(tmp_path: Path) -> None:
    trainer = training.start(page(), tmp_path / "run")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    interrupts = signal.getsignal(signal.SIGINT)  # ignored where the tests run in a shell's background
    try:
        for _ in trainer.train(3):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert trainer.stopped and trainer.iteration == 1
    assert signal.getsignal(signal.SIGINT) == interrupts


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_resume(fork: Callable[..., Any], tmp_path: Path, number: signal.Signals) -> None:
    arguments = ["train", "go2_flat", *SMALL, "--run-dir", str(tmp_path / "run"), "--iterations", "100000"]
    started = fork(f"import sys; from embodied_rl import cli; sys.exit(cli.main({arguments!r}))")
    while not re.search("^2/", started.output.read_text() if started.output.exists() else "", re.MULTILINE):
        assert started.process.is_alive(), "it ended by itself"
        time.sleep(0.02)
    os.kill(started.process.pid, number)
    code, output, errors = started.outcome()
    assert code == 0 and "Traceback" not in errors
    (name,) = names(tmp_path / "run")[-1:]
    done = checkpoint.read(tmp_path / "run" / "checkpoints" / name)["iter"]
    last = output.splitlines()[-1]
    assert last == f"stopped after {done} iterations; go on with: embodied-rl train --resume {tmp_path / 'run'}"


def test_a_second_ctrl_c_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def collect(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        print("once")
        signal.raise_signal(signal.SIGINT)
        print("twice")

    monkeypatch.setattr(LocalCollector, "collect", collect)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["train", "go2_flat", *SMALL, "--run-dir", str(tmp_path / "run")]) == 130
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "once" and err == ""
    assert names(tmp_path / "run") == [] and signal.getsignal(signal.SIGINT) == before


def test_tensorboard_has_the_names_of_rsl_rl_and_more(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = training.start(page(), tmp_path / "run")
    with Report(tmp_path / "run", 6, 0) as report:
        train(trainer, 4, report)
        for _ in trainer.train(6, report):
            break  # killed after the fifth iteration, which no checkpoint holds
    trainer = training.resume(str(tmp_path / "run"), "go2_flat")
    assert trainer.iteration == 4
    with Report(tmp_path / "run", 6, trainer.iteration) as report:
        train(trainer, 6, report)

    events = EventAccumulator(str(tmp_path / "run")).Reload()
    expected = {
        *("Loss/value", "Loss/surrogate", "Loss/entropy", "Loss/learning_rate", "Policy/mean_std"),
        *("Perf/total_fps", "Perf/gradient_steps_per_second", "Perf/collection_time", "Perf/learning_time"),
        *("Train/mean_reward", "Train/mean_episode_length", "Train/terminated", "Train/episodes"),
        *("Loss/kl", "Loss/clip_fraction", "Loss/explained_variance", "Loss/grad_norm", "Physics/unstable"),
        *(f"Episode_Reward/{name}" for name in trainer.page.rewards),
        *(f"Episode_Termination/{name}" for name in trainer.page.terminations),
        *("Metrics/lin_vel_error", "Metrics/ang_vel_error"),
    }
    assert expected <= set(events.Tags()["scalars"])
    # every iteration once: the interrupted run's fifth is forgotten, its fourth is not
    assert [event.step for event in events.Scalars("Loss/value")] == [1, 2, 3, 4, 5, 6]


def blow_up(trainer: Trainer, rows: list[int]) -> None:
    """Give robots a velocity that no simulation survives."""
    physics = trainer.collector._env.physics  # pyright: ignore[reportAttributeAccessIssue]
    mask = torch.zeros(ENVS, dtype=torch.bool)
    mask[rows] = True
    physics.write(mask, qvel=torch.full_like(physics.qvel, float("nan")))


def test_few_robots_that_blow_up_are_counted_and_dumped(tmp_path: Path) -> None:
    trainer = training.start(page("physics.max_unstable=0.2"), tmp_path / "run")
    history = []
    for metrics in trainer.train(3):
        history.append(metrics["Physics/unstable"])
        if trainer.iteration == 1:
            blow_up(trainer, [2, 5, 7])
    assert history == [0.0, 3.0, 0.0]
    assert all(value.isfinite().all() for value in weights(trainer))
    dumps = sorted((tmp_path / "run" / "unstable").iterdir())
    assert [path.name for path in dumps] == [f"iteration_000002_row_{row}.npz" for row in (2, 5, 7)]
    for path, row in zip(dumps, (2, 5, 7), strict=True):
        dump = np.load(path, allow_pickle=False)
        assert dump["row"] == row
        assert dump["states"].ndim == 2 and np.isnan(dump["states"][-1]).any() and not np.isnan(dump["states"][0]).any()
        assert dump["ctrl"].shape == (len(dump["states"]), trainer.page.physics.decimation, 12)


def test_many_robots_that_blow_up_end_the_run(tmp_path: Path) -> None:
    trainer = training.start(page("physics.max_unstable=0.2"), tmp_path / "run")
    with pytest.raises(UnstableError) as caught:
        for _ in trainer.train(3):
            blow_up(trainer, [0, 1, 2, 3])
    assert str(caught.value).startswith("4 of 16 robots blew up in iteration 2, more than physics.max_unstable (20%)")
    assert "\n" not in str(caught.value) and isinstance(caught.value, UserError)
    assert names(tmp_path / "run") == ["model_000002.pt"]


def test_what_ends_a_run_is_said_where_it_cannot_be_saved_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = training.start(page(), tmp_path / "run")

    def full(*_: Any) -> None:
        raise checkpoint.CheckpointError("no room")

    monkeypatch.setattr(trainer.checkpoints, "save", full)
    with pytest.raises(UnstableError, match=r"^16 of 16 robots blew up in iteration 2"):
        for _ in trainer.train(3):
            blow_up(trainer, list(range(ENVS)))
    assert caplog.messages == ["no room"]


def test_robots_that_run_out_of_room_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = training.start(page("physics.max_overflow=0.2"), tmp_path / "run")
    overflows = iter([{"physics.njmax": 0, "physics.nconmax": 3}, {"physics.njmax": 4, "physics.nconmax": 0}])
    physics = trainer.collector._env.physics  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(physics, "drain_overflow", lambda: next(overflows))
    seen = []
    with pytest.raises(UnstableError) as caught:
        for metrics in trainer.train(3):
            seen += [metrics["Physics/overflow"]]
    assert seen == [3.0]
    said = str(caught.value)
    assert said.startswith("4 of 16 robots ran out of room for contacts in iteration 2") and said.endswith("raise physics.njmax")
    assert names(tmp_path / "run") == ["model_000002.pt"]


def test_a_resumed_run_goes_by_the_page_it_was_started_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(training.start(page("ppo.gamma=0.9"), tmp_path / "run"), 1)
    resumed = training.resume(str(tmp_path / "run"), "go2_flat", ["ppo.lam=0.8"])
    assert f"{tmp_path / 'run'} goes on with its own page, and go2_flat differs in env.num_envs, " in caplog.messages[0]
    assert caplog.messages[0].endswith("write as key.path=value")
    assert (resumed.page.ppo.gamma, resumed.page.ppo.lam, resumed.page.env.num_envs) == (0.9, 0.8, ENVS)


def test_what_is_drawn_otherwise_at_startup_is_drawn_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def masses(trainer: Trainer) -> torch.Tensor:
        env = trainer.collector._env  # pyright: ignore
        return env.fields.values["body_mass"][:, env.scene.base_body] - env.scene.model.body_mass[env.scene.base_body]

    event = "events.payload={term: randomize, quantity: mass, of: base, operation: add, range: [%s], when: startup}"
    trainer = training.start(page(event % "0.0, 0.1"), tmp_path / "run")
    train(trainer, 1)
    before = masses(trainer).clone()
    same_draw = training.resume(str(tmp_path / "run"), "go2_flat", ["rewards.pose.weight=0.4"])
    assert torch.equal(masses(same_draw), before)
    assert not [message for message in caplog.messages if "start fresh" in message]
    other = training.resume(str(tmp_path / "run"), "go2_flat", [event % "3.0, 3.1"])
    assert (masses(other) >= 3.0 - 1e-5).all()
    assert caplog.messages[-1].endswith("is drawn of it at startup, is another now; the robots start fresh, and it is drawn anew")


def test_another_robot_does_not_begin_as_the_one_before_stood(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(training.start(page(), tmp_path / "run"), 1)
    training.resume(str(tmp_path / "run"), overrides=["robot=go1"])
    assert "the robot, or what is drawn of it at startup, is another now; the robots start fresh" in caplog.messages[-1]


@pytest.mark.parametrize("rnn_type", ["none", "gru"])
def test_of_more_robots_the_new_ones_start_fresh(tmp_path: Path, caplog: pytest.LogCaptureFixture, rnn_type: str) -> None:
    train(
        training.start(
            page(f"ppo.rnn_type={rnn_type}", *(["ppo.rnn_hidden_dim=4"] if rnn_type != "none" else []), "ppo.symmetry=none"),
            tmp_path / "run",
        ),
        1,
    )
    saved = robots(tmp_path / "run", 1)
    trainer = training.resume(str(tmp_path / "run"), num_envs=ENVS + 4)
    assert caplog.messages == [f"{tmp_path}/run/checkpoints/model_000001.pt: holds no state of 4 of 20 robots; they start fresh"]
    state = trainer.collector.snapshot()
    assert all(torch.equal(value[:ENVS], saved[name]) for name, value in state.items())
    assert state["age"].tolist() == [8] * ENVS + [0] * 4
    train(trainer, 2)
    assert trainer.env_steps == 8 * (ENVS + ENVS + 4)
    remembered = robots(tmp_path / "run", 2).get("policy.memory.0")
    assert rnn_type == "none" or (remembered is not None and len(remembered) == ENVS + 4)


def test_fewer_robots_are_the_first_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(training.start(page(), tmp_path / "run"), 1)
    trainer = training.resume(str(tmp_path / "run"), num_envs=8)
    saved = robots(tmp_path / "run", 1)
    assert all(torch.equal(value, saved[name][:8]) for name, value in trainer.collector.snapshot().items())
    assert not caplog.messages
    train(trainer, 2)
    assert trainer.env_steps == 8 * (ENVS + 8)


def test_a_run_goes_on_without_room_for_checkpoints_until_it_needs_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, fsync, full = training.start(page("train.save_every=2"), tmp_path / "run"), os.fsync, False
    episodes = {}

    def sync(handle: int) -> None:
        if full:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(checkpoint.CheckpointError, match=r"envs_000007_0_of_1.pt: not written \(No space left on device\)"):
        for _ in trainer.train(7):
            full = trainer.iteration not in (1, 4, 5)
            episodes[trainer.iteration] = trainer.metrics._episodes
    assert trainer.iteration == 7 and names(tmp_path / "run") == ["model_000002.pt", "model_000006.pt"]
    assert [message.partition("; ")[2] for message in caplog.messages] == [
        "the run goes on, and its last checkpoint is that of iteration 2"
    ]
    # those that ended since a checkpoint that could not be written count in the next one's reward
    assert episodes[2] < episodes[3] <= episodes[4] < episodes[5] and episodes[6] < episodes[5]
    full = False
    assert train(training.resume(str(tmp_path / "run"), "go2_flat"), 7)
    assert names(tmp_path / "run") == ["model_000002.pt", "model_000006.pt", "model_000007.pt"]


def test_a_checkpoint_of_another_page_is_refused(tmp_path: Path) -> None:
    train(training.start(page(), tmp_path / "run"), 1)
    for overrides, said in (
        (["ppo.actor_hidden_dims=[8]"], "its networks have other shapes than the page's"),
        (["ppo.critic_hidden_dims=[16, 16]"], "its networks have other shapes than the page's"),
        (["rewards.pose=null"], "the state of its environments does not fit the page"),
        (["scene.collisions=full", "rewards.contact={term: undesired_contacts, weight: -1.0}"], "does not fit the page"),
    ):
        with pytest.raises(checkpoint.CheckpointError) as caught:
            training.resume(str(tmp_path / "run"), "go2_flat", overrides)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_seeds_of_evaluation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluation's; take a smaller one"):
        training.start(page(f"env.seed={SEEDS[0]}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(training.start(page(), tmp_path / "run"), 1)
    with pytest.raises(UserError, match="evaluation's; take a smaller one"):
        training.resume(str(tmp_path / "run"), "go2_flat", seed=SEEDS[1])


def test_networks_that_are_lost_end_the_run_unsaved(tmp_path: Path) -> None:
    trainer = training.start(page(), tmp_path / "run")
    with pytest.raises(UnstableError, match=r"of iteration 4's updates had a loss or gradient that is not finite"):
        for _ in trainer.train(10):
            if trainer.iteration == 3:
                next(trainer.learner.networks["critic"].parameters()).data.fill_(float("nan"))
    assert names(tmp_path / "run") == []
