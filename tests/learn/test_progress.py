"""A reward that rises while robots do no more of what is asked for is told, once, and no other."""

from __future__ import annotations

import pytest

from embodied_rl.learn.progress import Progress


def said(
    rewards: list[float], done: list[float], *, iterations: int = 100, measure: str | None = "Tracking/lin_vel"
) -> list[str]:
    lines: list[str] = []
    progress = Progress("mine", measure, lines.append)
    for reward, share in zip(rewards, done, strict=True):
        progress.look(iterations, {"Train/mean_reward": reward, "Tracking/lin_vel": share})
    return lines


RISING, STILL = [10.0 + k for k in range(25)], [0.02] * 25


def test_standing_that_pays_is_told_after_a_fifth_of_the_run():
    (line,) = said(RISING, STILL)
    assert line == (
        "mine: in the last 20 iterations the reward has risen from 12.0 to 27.0, and robots do no more of what is asked for "
        "(Tracking/lin_vel 0.02): it pays for something else; `embodied-rl audit mine` says what standing still earns"
    )
    assert said(RISING[:19], STILL[:19]) == []
    assert len(said(RISING + RISING, STILL + STILL)) == 2  # again after another fifth


def test_the_first_iterations_in_which_falls_become_fewer_are_no_news():
    assert said(RISING[:19], STILL[:19], iterations=40) == []


@pytest.mark.parametrize(
    ("rewards", "done"),
    [
        (RISING, [0.02 * k for k in range(25)]),  # who walks more and more
        (RISING, [0.7] * 25),  # who walks, and gets steadier
        ([20.0] * 25, STILL),
        (RISING[::-1], STILL),
        ([-30.0 + 0.1 * k for k in range(25)], STILL),  # noise
    ],
)
def test_nothing_else_is_told(rewards: list[float], done: list[float]):
    assert said(rewards, done) == []


def test_a_family_without_a_measure_says_nothing():
    assert said(RISING, STILL, measure=None) == []


def test_iterations_without_an_episode_are_no_news():
    lines: list[str] = []
    progress = Progress("mine", "Tracking/lin_vel", lines.append)
    for _ in range(50):
        progress.look(50, {"Tracking/lin_vel": 0.0})
    assert lines == []
