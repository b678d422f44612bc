"""What an iteration came to: the sums of its rollout and of the latest episodes, and every rank's clock, by TensorBoard name."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
import torch

from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.rollout import Rollout

#: Up to so many ranks each has its own curves.
_SHOWN_RANKS = 16
#: Reward, length and ends of episodes are means over at least so many, once so many have ended.
_EPISODES = 100


class LatestEpisodes:
    """Sums over the episodes of the latest iterations that together ended at least `_EPISODES` of them.

    Whole iterations, because a rollout brings sums and no episodes; those in which none ended say nothing and are left out.
    """

    def __init__(self) -> None:
        # the oldest first; one by one and not added up, so that a resumed run rounds as one that was never interrupted
        self._iterations: list[dict[str, float]] = []

    def add(self, totals: dict[str, float]) -> None:
        """Take in an iteration, and drop the oldest as long as the others are enough."""
        if not totals["episodes"]:
            return
        iteration = {name: value for name, value in totals.items() if is_of_episodes(name)}
        if self._iterations and self._iterations[-1].keys() != iteration.keys():
            self._iterations.clear()  # a resumed run whose page has other rewards now
        self._iterations.append(iteration)
        while sum(one["episodes"] for one in self._iterations[1:]) >= _EPISODES:
            del self._iterations[0]

    def totals(self) -> dict[str, float]:
        """Return the sums by name; before an episode has ended, only that there are none."""
        names = self._iterations[-1] if self._iterations else ["episodes"]
        return {name: sum(one[name] for one in self._iterations) for name in names}

    def state_dict(self) -> list[dict[str, float]]:
        """Return each iteration's sums, the oldest first."""
        return [dict(one) for one in self._iterations]

    def load_state_dict(self, state: list[dict[str, float]]) -> None:
        """Go on from there."""
        self._iterations = [dict(one) for one in state]


class Metrics:
    """Counts what a run has done, and makes an iteration's metrics of the sums over all ranks.

    Args:
        group: the processes that train.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self.env_steps = 0
        self.seconds = 0.0
        # since the last checkpoint: the sum of finished episodes' rewards, and how many they are
        self._rewards = self._episodes = 0.0
        self._latest = LatestEpisodes()

    def of(self, rollout: Rollout, collection: float, learning: float, gradient_steps: int) -> dict[str, float]:
        """Sum a rollout's totals over all ranks, in place, and say what they and the clocks mean.

        Args:
            rollout: what this rank collected.
            collection: seconds that it took.
            learning: seconds that the update on it took.
            gradient_steps: how many it took, which all ranks take together.
        """
        times = {"collection": collection, "learning": learning, "waiting": self._group.waited()}
        own = {"steps": float(rollout.rewards.numel())} | times | rollout.seconds
        # by name: what there is to tell may differ, as where one rank's step could not be captured
        given = self._group.gather((own, rollout.totals))
        by_rank = _columns([clocks for clocks, _ in given])
        # sums over ranks, never means of means: they may have unequal numbers of robots
        summed = _columns([totals for _, totals in given])
        table = torch.tensor(list(summed.values()), dtype=torch.float64).T.contiguous()
        rollout.totals = dict(zip(summed, table.sum(0).tolist(), strict=True))
        rollout.totals |= {name: max(column) for name, column in summed.items() if name.startswith("largest/")}
        self._rewards += rollout.totals.get("reward/total", 0.0)
        self._episodes += rollout.totals["episodes"]
        self._latest.add(rollout.totals)
        metrics = step_metrics(rollout.totals) | episode_metrics(self._latest.totals())
        metrics |= self._speed(by_rank, [name for name in by_rank if name not in ("steps", *times)])
        return metrics | {"Perf/gradient_steps_per_second": gradient_steps / metrics["Perf/iteration_time"]}

    def mean_reward(self) -> float:
        """Mean reward of the episodes that ended since the last checkpoint; NaN where there were none."""
        return self._rewards / self._episodes if self._episodes else math.nan

    def saved(self) -> None:
        """Note that there is a checkpoint: `mean_reward` begins anew."""
        self._rewards = self._episodes = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and the latest episodes."""
        return {"env_steps": self.env_steps, "seconds": self.seconds, "latest_episodes": self._latest.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from there; what a checkpoint of others lacks begins anew."""
        self.env_steps, self.seconds = int(state.get("env_steps", 0)), float(state.get("seconds", 0.0))
        self._latest.load_state_dict(state.get("latest_episodes", []))

    def _speed(self, by_rank: dict[str, list[float]], phases: list[str]) -> dict[str, float]:
        """Counters and speed of the job from each rank's numbers; all ranks wait for the slowest, so rank 0's clock is theirs."""
        size, steps = self._group.size, sum(by_rank["steps"])
        seconds = by_rank["collection"][0] + by_rank["learning"][0]
        self.env_steps += int(steps)
        self.seconds += seconds
        shares = {name: sum(by_rank[name]) for name in phases}
        shares["update"] = sum(by_rank["learning"]) - sum(by_rank["waiting"])
        if size > 1:
            shares["waiting"] = sum(by_rank["waiting"])
        metrics = {f"Perf/share_{name}": value / (size * seconds) for name, value in shares.items()}
        metrics |= {
            "Perf/total_fps": steps / seconds,
            "Perf/iteration_time": seconds,
            "Perf/collection_time": by_rank["collection"][0],
            "Perf/learning_time": by_rank["learning"][0],
            "Train/env_steps": float(self.env_steps),
            "Train/seconds": self.seconds,
        }
        if size > 1:
            columns = zip(*(by_rank[name] for name in ("steps", "collection", "learning", "waiting")), strict=True)
            # what each would do alone
            speeds = [done / (collecting + learning - waiting) for done, collecting, learning, waiting in columns]
            metrics |= {"Perf/fps_per_rank": steps / seconds / size, "Perf/slowest_rank": float(np.argmin(speeds))}
            if size <= _SHOWN_RANKS:
                metrics |= {f"Perf/rank_{rank}_fps": speed for rank, speed in enumerate(speeds)}
                metrics |= {f"Perf/rank_{rank}_waiting": value / seconds for rank, value in enumerate(by_rank["waiting"])}
        return metrics


def step_metrics(totals: dict[str, float]) -> dict[str, float]:
    """Name what a rollout's sums say of its steps: errors, how episodes ended, faults of the physics and of a pool."""
    steps = max(totals["steps"], 1.0)
    overflow = sum(value for name, value in totals.items() if name.startswith("overflow/"))
    metrics = {"Physics/unstable": totals["unstable"], "Physics/overflow": overflow}
    for name, value in totals.items():
        kind, _, term = name.partition("/")
        if kind == "error":
            metrics[f"Metrics/{term}"] = value / steps
        elif kind == "share" and totals[f"share_of/{term}"]:
            metrics[term] = value / totals[f"share_of/{term}"]
        elif kind == "largest":
            metrics[term] = value
        elif kind == "termination":
            metrics[f"Episode_Termination/{term}"] = value
        elif kind == "pool":
            metrics[f"Pool/{term}"] = value
        elif kind == "policy_mean":
            metrics[f"Policy/{term}"] = value / steps
    return metrics


def episode_metrics(totals: dict[str, float]) -> dict[str, float]:
    """Name the means over episodes of which these are the sums; none where none has ended."""
    episodes = totals["episodes"]
    if not episodes:
        return {}
    metrics = {
        "Train/mean_reward": totals["reward/total"] / episodes,
        "Train/mean_episode_length": totals["episode_length"] / episodes,
        "Train/terminated": totals["terminated"] / episodes,
        "Train/episodes": episodes,
    }
    terms = {name.removeprefix("reward/"): value for name, value in totals.items() if name.startswith("reward/")}
    return metrics | {f"Episode_Reward/{term}": value / episodes for term, value in terms.items() if term != "total"}


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Turn each rank's numbers into one list a name, by rank; 0 where a rank has none of that name."""
    return {name: [row.get(name, 0.0) for row in rows] for name in dict.fromkeys(chain.from_iterable(rows))}


def is_of_episodes(name: str) -> bool:
    """Whether a total is one that `episode_metrics` reads."""
    return name in ("episodes", "terminated", "episode_length") or name.startswith("reward/")
