from __future__ import annotations

from pathlib import Path

import pytest

from embodied_rl.cli import main
from embodied_rl.config import load
from embodied_rl.config.privileged import warnings_of


def test_what_no_robot_measures_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert warnings_of(load("go2_flat")) == []  # its critic sees it
    assert main(["check", "go2_flat", "observations.actor.base_lin_vel={}", "observations.actor.up={term: base_height}"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "go2_flat: observations.actor.base_lin_vel: no robot measures base_lin_vel; leave it to the critic, or estimate it there",
        "go2_flat: observations.actor.up: no robot measures base_height; leave it to the critic, or estimate it there",
    ]
    assert captured.out.endswith("go2_flat: ok\n")


def test_a_term_of_ones_own_says_so_itself(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from embodied_rl.mdp.term import observation\n\n\n"
        "@observation(mirror='scalar', privileged=True)\ndef secret(env):\n    'x'\n"
    )
    page = load("go2_flat", [f"terms=[{tmp_path / 'own.py'}]", "observations.actor.secret={}"])
    assert warnings_of(page) == [
        "go2_flat: observations.actor.secret: no robot measures secret; leave it to the critic, or estimate it there"
    ]
