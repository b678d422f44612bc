"""The trainer: collect, update, report, save; it sees a collector and a learner, never an environment."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rsl_rl.models import MLPModel
from torch.optim import Optimizer

from embodied_rl.config import Page
from embodied_rl.errors import UserError
from embodied_rl.learn import checkpoint
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.report import Report
from embodied_rl.learn.rollout import Collector, Rollout
from embodied_rl.learn.run import Run

log = logging.getLogger("embodied_rl")


class UnstableError(UserError):
    """More robots blew up, or ran out of room, than the page allows, or the networks are lost; one line."""


class Learner(Protocol):
    """Improves a policy on rollouts."""

    policy: Policy
    actor: MLPModel
    critic: MLPModel
    optimizer: Optimizer
    critic_group: str
    """The observation group that the values are of."""

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Learn from a rollout; the metrics, by TensorBoard name."""
        ...

    def state_dict(self) -> dict:
        """All that it knows, in rsl_rl's checkpoint layout."""
        ...

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`; RuntimeError where the networks have other shapes."""
        ...


class Trainer:
    """Trains one page in one run directory.

    Args:
        page: the task.
        collector: fetches rollouts.
        learner: improves the policy on them.
        run: where everything is written.
    """

    def __init__(self, page: Page, collector: Collector, learner: Learner, run: Run) -> None:
        self.page, self.collector, self.learner, self.run = page, collector, learner, run
        self.iteration = 0
        self.env_steps = 0
        self.seconds = 0.0
        self._saved: int | None = None
        self._stop = False

    def train(self, iterations: int, report: Report | None = None) -> Iterator[dict[str, float]]:
        """Go on until `iterations` in all are done; yields the metrics of each.

        The consumer may stop early; Ctrl-C and SIGTERM do so after the iteration at hand.  A checkpoint is written every
        `ppo.save_interval` iterations and at the end.

        Raises:
            UnstableError: too many robots blew up.
        """
        with _stop_on_signals(self):
            while self.iteration < iterations and not self._stop:
                metrics = self._iterate()
                if report:
                    left = (iterations - self.iteration) * metrics["Perf/iteration_time"]
                    report.show(self.iteration, metrics, left)
                if self.iteration % self.page.ppo.save_interval == 0 and self.iteration < iterations and not self._stop:
                    self.save()
                yield metrics
            if self._saved != self.iteration:
                self.save()

    @property
    def stopped(self) -> bool:
        """Whether a signal asked to stop."""
        return self._stop

    def stop(self, *_: Any) -> None:
        """Finish the iteration at hand, save, and end."""
        self._stop = True

    def _iterate(self) -> dict[str, float]:
        started = time.perf_counter()
        rollout = self.collector.collect(self.learner.policy, self.iteration)
        collected = time.perf_counter()
        metrics = self.learner.update(rollout, self.iteration)
        learned = time.perf_counter()
        self.iteration += 1
        steps = rollout.rewards.numel()
        self.env_steps += steps
        self.seconds += learned - started
        metrics |= episode_metrics(rollout.totals, self.page)
        seconds = rollout.seconds | {"update": learned - collected}
        metrics |= {f"Perf/share_{name}": value / (learned - started) for name, value in seconds.items()}
        metrics |= {
            "Perf/total_fps": steps / (learned - started),
            "Perf/iteration_time": learned - started,
            "Perf/collection_time": collected - started,
            "Perf/learning_time": learned - collected,
            "Train/env_steps": float(self.env_steps),
            "Train/seconds": self.seconds,
        }
        self._check_stability(rollout)
        self._check_learning(metrics, rollout)
        return metrics

    def _check_learning(self, metrics: dict[str, float], rollout: Rollout) -> None:
        page, skipped = self.page.ppo, metrics.get("Loss/skipped", 0.0)
        if skipped > page.max_skipped * page.num_learning_epochs * page.num_mini_batches:
            folder = self.run.path / "diverged"
            folder.mkdir(exist_ok=True)
            path = folder / f"iteration_{self.iteration:06d}.pt"
            tensors = {name: value for name, value in vars(rollout).items() if name not in ("totals", "seconds")}
            torch.save({"rollout": tensors, "learner": self.learner.state_dict()}, path)
            networks = (*self.learner.actor.parameters(), *self.learner.critic.parameters())
            if all(bool(parameter.isfinite().all()) for parameter in networks):
                self.save()
            raise UnstableError(
                f"{skipped:.0f} minibatches of iteration {self.iteration} had a loss or gradient that is not finite, more than "
                f"ppo.max_skipped ({page.max_skipped:.0%}) allows; what was learned from lies in {path}; try a smaller "
                "ppo.learning_rate, or look for a reward or observation that explodes"
            )
        wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            raise UnstableError(
                f"{', '.join(wrong[:3])} is not finite after iteration {self.iteration}, so the networks are lost; go on from "
                f"an earlier checkpoint in {self.run.checkpoints} with a smaller ppo.learning_rate or ppo.max_grad_norm"
            )

    def _check_stability(self, rollout: Rollout) -> None:
        for dump in self.collector.drain_unstable():
            folder = self.run.path / "unstable"
            folder.mkdir(exist_ok=True)
            np.savez_compressed(folder / f"iteration_{self.iteration:06d}_row_{dump['row']}.npz", **dump)
        page = self.page.physics
        for name, rows in rollout.totals.items():
            kind, _, setting = name.partition("/")
            if kind == "overflow" and rows > page.max_overflow * self.collector.num_envs:
                self.save()
                raise UnstableError(
                    f"{rows:.0f} of {self.collector.num_envs} robots ran out of room for contacts in iteration {self.iteration}, "
                    f"more than physics.max_overflow ({page.max_overflow:.0%}) allows, and contacts were lost; raise {setting}"
                )
        unstable, limit = rollout.totals["unstable"], self.page.physics.max_unstable
        if unstable > limit * self.collector.num_envs:
            self.save()
            raise UnstableError(
                f"{unstable:.0f} of {self.collector.num_envs} robots blew up in iteration {self.iteration}, more than "
                f"physics.max_unstable ({limit:.0%}) allows; their last states lie in {self.run.path / 'unstable'}; try a "
                "smaller physics.dt, more physics.iterations, or softer gains"
            )

    def save(self) -> Path:
        """Write a checkpoint of everything that the run's future depends on."""
        path = self.run.checkpoint(self.iteration)
        counters = {"env_steps": self.env_steps, "seconds": self.seconds}
        envs = self.collector.snapshot()
        checkpoint.save(path, self.learner.state_dict() | {"iter": self.iteration, "infos": counters, "envs": envs})
        self._saved = self.iteration
        return path

    def resume(self, path: Path, state: dict) -> None:
        """Go on from a checkpoint that was read from `path`.

        Raises:
            CheckpointError: it is of another page.
        """
        try:
            self.learner.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError):
            raise checkpoint.CheckpointError(f"{path}: its networks have other shapes than the page's") from None
        self.iteration = self._saved = int(state["iter"])
        counters = state.get("infos") or {}
        self.env_steps, self.seconds = int(counters.get("env_steps", 0)), float(counters.get("seconds", 0.0))
        envs = state.get("envs")
        if envs is not None and len(next(iter(envs.values()))) == self.collector.num_envs:
            try:
                self.collector.restore(envs)
            except (ValueError, RuntimeError, KeyError) as error:
                reason = str(error).partition("\n")[0]
                raise checkpoint.CheckpointError(
                    f"{path}: the state of its environments does not fit the page: {reason}; resume without the overrides"
                ) from None
        else:
            log.warning("%s: holds no state of %d environments; they start fresh", path, self.collector.num_envs)


def episode_metrics(totals: dict[str, float], page: Page) -> dict[str, float]:
    """Means by TensorBoard name from the sums of a rollout."""
    steps, episodes = max(totals["steps"], 1.0), totals["episodes"]
    overflow = sum(value for name, value in totals.items() if name.startswith("overflow/"))
    metrics = {"Physics/unstable": totals["unstable"], "Physics/overflow": overflow}
    for name, value in totals.items():
        kind, _, term = name.partition("/")
        if kind == "error":
            metrics[f"Metrics/{term}"] = value / steps
        elif kind == "termination":
            metrics[f"Episode_Termination/{term}"] = value
        elif kind == "reward" and episodes and term != "total":
            metrics[f"Episode_Reward/{term}"] = value / episodes
    if episodes:
        metrics["Train/mean_reward"] = totals["reward/total"] / episodes
        metrics["Train/mean_episode_length"] = totals["episode_length"] / episodes
        metrics["Train/fall_rate"] = totals["falls"] / episodes
    return metrics


@contextmanager
def _stop_on_signals(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the trainer to stop; a second Ctrl-C interrupts at once."""

    def stop(number: int, frame: Any) -> None:
        trainer.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: its owner stops the trainer
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
