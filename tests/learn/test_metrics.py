from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from embodied_rl.learn.metrics import Metrics
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.rollout import Rollout

Ranks = Callable[[int, Callable[[Group], Any]], list[Any]]


def rollout(episodes: float, reward: float = 0.0, **others: float) -> Rollout:
    """What is collected when so many episodes end, each of this reward, a fifth of them before their time."""
    nothing: Any = None
    of_episodes = {
        "terminated": 0.2,
        "episode_length": 50.0,
        "reward/track": reward + 1.0,
        "reward/slip": -1.0,
        "reward/total": reward,
    }
    totals = {"steps": 8.0, "unstable": 0.0, "episodes": episodes, "error/lin_vel_error": 4.0, "termination/tilt": 1.0}
    totals |= {name: each * episodes for name, each in of_episodes.items()} | others
    seconds = {"physics": 0.5}
    return Rollout(*[nothing] * 4, torch.zeros(2, 4), *[nothing] * 5, totals=totals, seconds=seconds)  # pyright: ignore


def after(metrics: Metrics, *rollouts: Rollout) -> dict[str, float]:
    """The metrics of the last one."""
    return [metrics.of(each, 1.0, 0.5, 18) for each in rollouts][-1]


def test_episodes_are_those_of_the_latest_iterations_that_hold_a_hundred() -> None:
    metrics = Metrics(Group())
    seen = [after(metrics, each) for each in (rollout(60, 1.0), rollout(50, 2.0), rollout(60, 3.0), rollout(49, 4.0))]
    assert [one["Train/episodes"] for one in seen] == [60, 110, 110, 109]
    assert [one["Train/mean_reward"] for one in seen] == [1.0, 160 / 110, 280 / 110, 376 / 109]
    assert [one["Episode_Reward/track"] for one in seen] == pytest.approx([2.0, 270 / 110, 390 / 110, 485 / 109])
    assert seen[-1]["Episode_Reward/slip"] == -1.0 and "Episode_Reward/total" not in seen[-1]
    assert seen[-1]["Train/terminated"] == pytest.approx(0.2) and seen[-1]["Train/mean_episode_length"] == 50.0
    assert after(metrics, rollout(400, 5.0))["Train/mean_reward"] == 5.0  # enough by itself


def test_iterations_in_which_no_episode_ends_change_nothing_and_are_not_kept() -> None:
    metrics = Metrics(Group())
    assert not [name for name in after(metrics, rollout(0)) if name.startswith(("Train/mean", "Train/term", "Episode_Reward"))]
    before = after(metrics, rollout(3, 7.0))
    later = after(metrics, *[rollout(0) for _ in range(200)])
    assert later["Train/mean_reward"] == before["Train/mean_reward"] == 7.0
    assert len(metrics.state_dict()["latest_episodes"]) == 1


def test_errors_and_counts_are_the_iterations_own() -> None:
    metrics = Metrics(Group())
    after(metrics, rollout(3, **{"error/lin_vel_error": 80.0, "termination/tilt": 9.0}))
    now = after(metrics, rollout(3))
    assert (now["Metrics/lin_vel_error"], now["Episode_Termination/tilt"]) == (0.5, 1.0)


def test_curricula_and_the_best_checkpoint_go_by_their_own_sums() -> None:
    metrics, first, second = Metrics(Group()), rollout(10, 1.0), rollout(10, 3.0)
    after(metrics, first)
    assert metrics.mean_reward() == metrics.mean_reward() == 1.0  # until there is a checkpoint
    metrics.saved()
    after(metrics, second)
    assert second.totals["episodes"] == 10 and second.totals["reward/total"] == 30.0
    assert metrics.mean_reward() == 3.0


def test_a_resumed_run_has_the_metrics_of_one_that_was_not_interrupted(tmp_path: Path) -> None:
    history = [rollout(7.0 + step, 0.1 * step) for step in range(30)]
    whole, half, rest = Metrics(Group()), Metrics(Group()), Metrics(Group())
    expected = after(whole, *history)
    after(half, *history[:17])
    torch.save(half.state_dict(), tmp_path / "infos.pt")
    rest.load_state_dict(torch.load(tmp_path / "infos.pt", weights_only=True))
    after(half, rollout(500))  # what was saved has a life of its own
    assert after(rest, *history[17:]) == expected


def test_ranks_may_tell_of_different_things(ranks: Ranks) -> None:
    """As where the step of rank 1 could not be captured, or only it counts overflows: what one does not tell is 0."""

    def of(group: Group) -> tuple[dict[str, float], dict[str, float]]:
        own = rollout(10, 1.0 + group.rank, **({"overflow/physics.njmax": 4.0} if group.rank else {}))
        own.seconds = {"physics": 0.25, "env": 0.5} if group.rank else {"rollout": 0.75}
        found = Metrics(group).of(own, 1.0, 0.5, 18)
        return found, own.totals

    (first, totals), other = ranks(2, of)
    assert (first, totals) == other and totals["overflow/physics.njmax"] == first["Physics/overflow"] == 4.0
    assert (first["Train/mean_reward"], first["Train/episodes"]) == (1.5, 20.0)
    # of two ranks' 1.5 seconds
    shares = {name: first[f"Perf/share_{name}"] for name in ("rollout", "physics", "env", "update", "waiting")}
    assert shares == pytest.approx({"rollout": 0.25, "physics": 0.25 / 3, "env": 0.5 / 3, "update": 1 / 3, "waiting": 0.0})


def test_infos_of_others_have_no_latest_episodes() -> None:
    for infos in ({}, {"env_steps": 5, "seconds": 2.0, "mean_reward": 1.0}):
        metrics = Metrics(Group())
        metrics.load_state_dict(infos)
        assert "Train/mean_reward" not in after(metrics, rollout(0))


def test_a_page_with_other_rewards_begins_anew() -> None:
    metrics = Metrics(Group())
    after(metrics, rollout(10, 1.0))
    found = after(metrics, rollout(10, 3.0, **{"reward/new": 20.0}))
    assert (found["Train/episodes"], found["Train/mean_reward"], found["Episode_Reward/new"]) == (10, 3.0, 2.0)


def test_gradient_steps_a_second() -> None:
    found = after(Metrics(Group()), rollout(0))
    assert found["Perf/gradient_steps_per_second"] == 18 / 1.5
