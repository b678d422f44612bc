from __future__ import annotations

import io
from pathlib import Path

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
    "Train/fall_rate": 0.25,
}


def shown(tmp_path: Path, metrics: dict[str, float], *, terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, color_system=None)
    with Report(tmp_path, 300, 0, console=console) as report:
        report.show(7, metrics, 3725.0)
    return text.getvalue()


def test_a_line_for_every_iteration(tmp_path: Path) -> None:
    line = shown(tmp_path, METRICS, terminal=False)
    assert line == (
        "7/300  eta 1:02:05  51234 steps/s  reward 12.35  lin_vel_error 0.123  ang_vel_error 0.200  falls 25 %  "
        "physics 60 % env 20 % policy 5 % update 15 %\n"
    )


def test_a_panel_on_a_terminal(tmp_path: Path) -> None:
    panel = shown(tmp_path, METRICS, terminal=True)
    for said in ("7 of 300", "eta 1:02:05", "1,234,567", "51,234 per second", "12.35", "25.0 %", "0.123", "physics 60 %"):
        assert said in panel
    for said in ("kl 0.0123", "rate 3.0e-04", "std 0.77"):
        assert said in panel


def test_before_an_episode_has_ended(tmp_path: Path) -> None:
    metrics = {name: value for name, value in METRICS.items() if name not in ("Train/mean_reward", "Train/fall_rate")}
    for terminal in (False, True):
        assert "7" in shown(tmp_path, metrics, terminal=terminal)
