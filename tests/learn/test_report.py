from __future__ import annotations

import errno
import io
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from embodied_rl.learn.report import Report

METRICS = {
    "Perf/total_fps": 51234.0,
    "Perf/gradient_steps_per_second": 48.26,
    "Perf/share_physics": 0.6,
    "Perf/share_env": 0.2,
    "Perf/share_policy": 0.05,
    "Perf/share_update": 0.15,
    "Metrics/lin_vel_error": 0.123,
    "Metrics/ang_vel_error": 0.2,
    "Loss/kl": 0.0123,
    "Loss/learning_rate": 3e-4,
    "Policy/mean_std": 0.77,
    "Train/env_steps": 1234567.0,
    "Train/seconds": 81.4,
    "Train/mean_reward": 12.345,
    "Train/mean_episode_length": 812.4,
    "Train/terminated": 0.25,
    "Train/episodes": 1104.0,
    "Episode_Reward/track": 9.5,
    "Episode_Reward/pose": 0.5,
    "Episode_Reward/gait": 11.25,
    "Episode_Reward/alive": 2.0,
    "Episode_Reward/slip": -0.5,
    "Episode_Reward/unused": 0.0,
    "Episode_Reward/termination": -12.0,
}
#: What there is not before an episode has ended.
OF_EPISODES = ("Train/mean_reward", "Train/mean_episode_length", "Train/terminated", "Train/episodes", "Episode_Reward/")


def shown(tmp_path: Path, metrics: dict[str, float], *, terminal: bool, **options: Any) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, color_system=None)
    with Report(tmp_path, 300, 0, console=console, **options) as report:  # pyright: ignore[reportArgumentType]
        report.show(7, metrics, 3725.0)
    return text.getvalue()


def test_a_line_for_every_iteration(tmp_path: Path) -> None:
    line = shown(tmp_path, METRICS, terminal=False)
    assert line == (
        "7/300  elapsed 1:21  eta 1:02:05  51234 steps/s  reward 12.35  lin_vel_error 0.123  ang_vel_error 0.200  "
        "terminated 25 %  physics-bound 60 % (env 20, policy 5, update 15)\n"
    )


def test_a_panel_on_a_terminal(tmp_path: Path) -> None:
    panel = shown(tmp_path, METRICS, terminal=True, panel=lambda metrics: f"kl {metrics['Loss/kl']:.4f}")
    for said in (
        *("7 of 300   elapsed 1:21   eta 1:02:05", "1,234,567   51,234 per second", "48.3 per second", "0.123"),
        *("reward 12.35   terminated 25.0 %   length 812 steps", "means of the latest 1,104 episodes"),
        "physics-bound 60 % (env 20, policy 5, update 15)",
    ):
        assert said in panel
    assert "kl 0.0123" in panel  # the learner's own words


def test_the_panel_keeps_the_latest_evaluation(tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, color_system=None)
    score = {"fall_rate": 0.004, "reference_fall_rate": 0.02, "margin": -0.125, "passed": 0.0}
    with Report(tmp_path, 300, 0, console=console) as report:
        report.show(6, METRICS, 1.0)
        assert report._score == ""
        report.show(7, METRICS | {f"Score/{name}": value for name, value in score.items()}, 1.0)
        report.show(8, METRICS, 1.0)
    panel = text.getvalue().rpartition("8 of 300")[2]
    assert "after iteration 7: not passed, margin -0.125" in panel
    assert "fall rate 0.004" in panel and "reference fall rate 0.020" in panel


def test_what_is_logged_goes_above_the_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        isatty = lambda self: True  # noqa: E731

    errors, text = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    handler, log = logging.StreamHandler(), logging.getLogger()
    log.addHandler(handler)
    try:
        console = Console(file=text, force_terminal=True, width=100, color_system=None)
        with Report(tmp_path, 300, 0, console=console) as report:
            report.show(7, METRICS, 1.0)
            log.warning("it was said")
        log.warning("and after that")
    finally:
        log.removeHandler(handler)
    assert "it was said" in text.getvalue() and errors.getvalue() == "and after that\n"


def test_the_panel_names_the_three_largest_rewards_and_penalties(tmp_path: Path) -> None:
    rows = [row.split() for row in shown(tmp_path, METRICS, terminal=True).splitlines()]
    terms = [(row[-2], row[-3]) for row in rows if len(row) > 3 and row[-3][0] in "+-"]
    assert terms == [("gait", "+11.25"), ("track", "+9.50"), ("alive", "+2.00"), ("termination", "-12.00"), ("slip", "-0.50")]


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ({"rollout": 0.8, "update": 0.2}, "rollout-bound 80 % (update 20)"),
        ({"wait": 0.1, "update": 0.9}, "update-bound 90 % (pool 10)"),
        ({"wait": 0.7, "update": 0.3}, "pool-bound 70 % (update 30)"),
        (
            {"physics": 0.3, "env": -0.001, "policy": 0.0, "slowest": 0.1, "transfer": 0.4, "update": 0.2},
            "transfer-bound 40 % (physics 30, env 0, policy 0, stragglers 10, update 20)",
        ),
        ({"physics": 0.3, "update": 0.2, "waiting": 0.5}, "ranks-bound 50 % (physics 30, update 20)"),
    ],
    ids=["graph", "pool", "slow pool", "lockstep pool", "ranks"],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_verdict_on_the_time_however_it_is_split(
    tmp_path: Path, shares: dict[str, float], verdict: str, terminal: bool
) -> None:
    metrics = {name: value for name, value in METRICS.items() if "share_" not in name}
    metrics |= {f"Perf/share_{name}": share for name, share in shares.items()}
    assert verdict in shown(tmp_path, metrics, terminal=terminal)


@pytest.mark.parametrize("terminal", [False, True])
def test_ends_have_the_word_of_the_task(tmp_path: Path, terminal: bool) -> None:
    said = shown(tmp_path, METRICS, terminal=terminal, failures="falls")
    assert "falls 25" in said and "terminated" not in said


def test_before_an_episode_has_ended(tmp_path: Path) -> None:
    metrics = {name: value for name, value in METRICS.items() if not name.startswith(OF_EPISODES)}
    assert "  reward -  " in shown(tmp_path, metrics, terminal=False)
    assert "  terminated -  " in shown(tmp_path, metrics, terminal=False)
    panel = shown(tmp_path, metrics, terminal=True)
    assert "reward -   terminated -   length -" in panel and "latest" not in panel


def recorded(path: Path) -> list[int]:
    """The steps that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.step for event in EventAccumulator(str(path)).Reload().Scalars("Loss/kl")]


def test_what_stands_in_a_checkpoint_is_on_the_disk(tmp_path: Path) -> None:
    """A killed process takes along what it has not flushed."""
    report = Report(tmp_path, 300, 0, console=Console(file=io.StringIO()))
    for iteration in (1, 2, 3):
        report.show(iteration, METRICS, 0.0)
    report.flush(3)
    assert recorded(tmp_path) == [1, 2, 3]


def test_a_run_that_begins_again_forgets_what_was_written_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.summary.writer import event_file_writer

    # files are read by name: a second, a process, a counter, of which the tenth comes before the ninth
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    for start in (0, 0, 2):
        with Report(tmp_path, 300, start, console=Console(file=io.StringIO())) as report:
            for iteration in range(start + 1, start + 4):
                report.show(iteration, METRICS, 0.0)
    assert recorded(tmp_path) == [1, 2, 3, 4, 5]


def test_a_full_disk_costs_records_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, full, text = RecordWriter.write, False, io.StringIO()

    def written(self: RecordWriter, data: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", written)
    before = threading.excepthook
    with Report(tmp_path, 300, 0, console=Console(file=text)) as report:
        report.show(1, METRICS, 0.0)
        report.flush(1)
        full = True
        for iteration in (2, 3, 4):
            report.show(iteration, METRICS, 0.0)
            time.sleep(0.05)
        report.flush(4)
        full = False
        time.sleep(1.0)  # TensorBoard reads files in the order of the seconds that they began in
        report.flush(4)
        report.show(5, METRICS, 0.0)
    assert threading.excepthook is before
    assert len(text.getvalue().splitlines()) == 5
    assert recorded(tmp_path) == [1, 5]
    line = f"{tmp_path}: no TensorBoard events for now (No space left on device); tried again at every checkpoint"
    assert set(caplog.messages) == {line}  # twice at most: a dying thread may look alive for a moment
    assert "Traceback" not in capfd.readouterr().err


def test_a_log_file_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Report(tmp_path, 300, 0, console=Console(file=Full())) as report:
        report.show(1, METRICS, 0.0)
    assert caplog.messages == ["progress not shown (No space left on device)"]
