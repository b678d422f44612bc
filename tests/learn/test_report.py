from __future__ import annotations

import errno
import io
import os
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from embodied_rl.learn.report import Report

METRICS = {
    "Perf/total_fps": 51234.0,
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
    "Train/mean_reward": 12.345,
    "Train/terminated": 0.25,
}


def shown(tmp_path: Path, metrics: dict[str, float], *, terminal: bool, **options: str) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, color_system=None)
    with Report(tmp_path, 300, 0, console=console, **options) as report:  # pyright: ignore[reportArgumentType]
        report.show(7, metrics, 3725.0)
    return text.getvalue()


def test_a_line_for_every_iteration(tmp_path: Path) -> None:
    line = shown(tmp_path, METRICS, terminal=False)
    assert line == (
        "7/300  eta 1:02:05  51234 steps/s  reward 12.35  lin_vel_error 0.123  ang_vel_error 0.200  terminated 25 %  "
        "physics 60 % env 20 % policy 5 % update 15 %\n"
    )


def test_a_panel_on_a_terminal(tmp_path: Path) -> None:
    panel = shown(tmp_path, METRICS, terminal=True)
    for said in ("7 of 300", "eta 1:02:05", "1,234,567", "51,234 per second", "12.35", "25.0 %", "0.123", "physics 60 %"):
        assert said in panel
    for said in ("kl 0.0123", "rate 3.0e-04", "std 0.77"):
        assert said in panel


@pytest.mark.parametrize("terminal", [False, True])
def test_ends_have_the_word_of_the_task(tmp_path: Path, terminal: bool) -> None:
    said = shown(tmp_path, METRICS, terminal=terminal, failures="falls")
    assert "falls 25" in said and "terminated" not in said


def test_before_an_episode_has_ended(tmp_path: Path) -> None:
    metrics = {name: value for name, value in METRICS.items() if name not in ("Train/mean_reward", "Train/terminated")}
    for terminal in (False, True):
        assert "7" in shown(tmp_path, metrics, terminal=terminal)


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
