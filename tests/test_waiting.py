from __future__ import annotations

import time

import pytest

from embodied_rl import waiting
from embodied_rl.waiting import Waiting


def until(caplog: pytest.LogCaptureFixture, lines: int) -> None:
    """Wait until so many lines were said."""
    deadline = time.monotonic() + 10.0
    while len(caplog.messages) < lines and time.monotonic() < deadline:
        time.sleep(0.005)


def test_what_takes_long_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(waiting, "_FIRST_S", 0.02)
    monkeypatch.setattr(waiting, "_NEXT_S", 0.02)
    with Waiting("filming", "leave it out") as film:
        until(caplog, 1)
        film.far = "3 of 10 s"
        until(caplog, 3)
        with Waiting("compiling"):
            said = len(caplog.messages)
            until(caplog, said + 2)
            assert {line.split(",")[0] for line in caplog.messages[said + 1 :]} == {"compiling"}
    assert caplog.messages[0] == "filming, 0 s (leave it out)"
    assert caplog.messages[2] == "filming: 3 of 10 s, 0 s"  # the way around is said once
    said = len(caplog.messages)
    time.sleep(0.1)
    assert len(caplog.messages) <= said + 1  # one may have been on its way


def test_what_is_soon_done_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with Waiting("compiling"):
        pass
    assert not caplog.messages and not waiting._open
