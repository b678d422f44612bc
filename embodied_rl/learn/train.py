"""The trainer: collect, update, report, save; it sees a collector and a learner, never an environment."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from rsl_rl.models import MLPModel
from torch import Tensor
from torch.optim import Optimizer

from embodied_rl.config import Page
from embodied_rl.errors import UserError
from embodied_rl.learn.checkpoint import CheckpointError, Checkpoints
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.ranks.group import Group, fingerprint
from embodied_rl.learn.report import Report
from embodied_rl.learn.rollout import Collector, Rollout
from embodied_rl.learn.run import Run
from embodied_rl.mdp.curricula import Curricula

log = logging.getLogger("embodied_rl")

#: Up to so many ranks each has its own curves.
_SHOWN_RANKS = 16


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
        """Take up what `state_dict` gave; RuntimeError where the networks have other shapes."""
        ...


class Trainer:
    """Trains one page in one run directory, alone or as one of several ranks, which do everything here at the same time.

    Args:
        page: the task.
        collector: fetches rollouts, of this rank's robots.
        learner: improves the policy on them.
        curricula: move numbers of the page between rollouts; where they stand, the first one begins.
        run: where everything is written, by rank 0.
        group: the processes that train.
    """

    def __init__(
        self, page: Page, collector: Collector, learner: Learner, curricula: Curricula, run: Run, group: Group | None = None
    ) -> None:
        self.page, self.collector, self.learner, self.curricula, self.run = page, collector, learner, curricula, run
        self.group = group or Group()
        self.iteration = 0
        self.env_steps = 0
        self.seconds = 0.0
        counts = self.group.gather(collector.num_envs)
        first = sum(counts[: self.group.rank])
        self.env_ids = range(first, first + collector.num_envs)
        """Global ids of this rank's robots."""
        self.num_envs = sum(counts)
        """Robots of all ranks."""
        self.checkpoints = Checkpoints(run.checkpoints, self.group, page.ppo.keep_checkpoints)
        self._saved: int | None = None
        self._asked = self._stop = False
        # since the last checkpoint: the sum of finished episodes' rewards, and how many they are
        self._rewards = self._episodes = 0.0

    def train(self, iterations: int, report: Report | None = None) -> Generator[dict[str, float]]:
        """Go on until `iterations` in all are done; yields the metrics of each.

        The consumer may stop early; Ctrl-C and SIGTERM, to any rank, stop all after the iteration at hand.  A checkpoint is
        written every `ppo.save_interval` iterations and at the end; where there is no room for it, the run goes on.

        Raises:
            UnstableError: too many robots blew up.
            CheckpointError: the last checkpoint cannot be written.
        """
        with _stop_on_signals(self):
            self.checkpoints.begin(self.iteration)
            self.group.lead(self.run.note_launchers)
            while self.iteration < iterations and not self._agree_to_stop():
                metrics = self._iterate()
                if report:
                    left = (iterations - self.iteration) * metrics["Perf/iteration_time"]
                    report.show(self.iteration, metrics, left)
                if self.iteration % self.page.ppo.save_interval == 0 and self.iteration < iterations:
                    self._try_to_save(report)
                yield metrics
            if self._saved != self.iteration:
                if report:
                    report.flush(self.iteration)
                self.save()

    @property
    def stopped(self) -> bool:
        """Whether a signal, or a call of `stop`, has stopped it."""
        return self._stop

    def stop(self, *_: Any) -> None:
        """Finish the iteration at hand, save, and end: all ranks, if one of them is asked."""
        self._asked = True

    def _agree_to_stop(self) -> bool:
        self._stop = bool(self.group.table([float(self._asked)]).any())
        return self._stop

    def _iterate(self) -> dict[str, float]:
        self.group.waited()
        started = time.perf_counter()
        rollout = self.collector.collect(self.learner.policy, self.iteration, self.curricula.numbers)
        collected = time.perf_counter()
        metrics = self.learner.update(rollout, self.iteration)
        learned = time.perf_counter()
        self.iteration += 1
        times = {"collection": collected - started, "learning": learned - collected, "waiting": self.group.waited()}
        own = {"steps": float(rollout.rewards.numel())} | times | rollout.seconds
        table = self.group.table([*own.values(), *rollout.totals.values()])
        by_rank = dict(zip(own, table.T.tolist(), strict=False))
        # sums over ranks, never means of means: they may have unequal numbers of robots
        rollout.totals = dict(zip(rollout.totals, table[:, len(own) :].sum(0).tolist(), strict=True))
        self.curricula.advance(rollout.totals, self.iteration)
        metrics |= episode_metrics(rollout.totals, self.page) | self._speed(by_rank, list(rollout.seconds))
        self._rewards += rollout.totals.get("reward/total", 0.0)
        self._episodes += rollout.totals["episodes"]
        self.group.settle()
        self._check_stability(rollout)
        self._check_learning(metrics, rollout)
        return metrics

    def _speed(self, by_rank: dict[str, list[float]], phases: list[str]) -> dict[str, float]:
        """Counters and speed of the job from each rank's numbers; all ranks wait for the slowest, so rank 0's clock is theirs."""
        size, steps = self.group.size, sum(by_rank["steps"])
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

    def _check_learning(self, metrics: dict[str, float], rollout: Rollout) -> None:
        page, skipped = self.page.ppo, metrics.get("Loss/skipped", 0.0)
        if skipped > page.max_skipped * page.num_learning_epochs * page.num_mini_batches:
            of = f"_rank_{self.group.rank}" if self.group.size > 1 else ""
            path = self.run.path / "diverged" / f"iteration_{self.iteration:06d}{of}.pt"
            tensors = {name: value for name, value in vars(rollout).items() if name not in ("totals", "seconds")}
            with _if_there_is_room(path) as file:
                torch.save({"rollout": tensors, "learner": self.learner.state_dict()}, file)
            where = path if self.group.size == 1 else path.parent
            networks = (*self.learner.actor.parameters(), *self.learner.critic.parameters())
            if all(bool(parameter.isfinite().all()) for parameter in networks):
                self.save()
            raise UnstableError(
                f"{skipped:.0f} minibatches of iteration {self.iteration} had a loss or gradient that is not finite, more than "
                f"ppo.max_skipped ({page.max_skipped:.0%}) allows; what was learned from lies in {where}; try a smaller "
                "ppo.learning_rate, or look for a reward or observation that explodes"
            )
        wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            raise UnstableError(
                f"{', '.join(wrong[:3])} is not finite after iteration {self.iteration}, so the networks are lost; go on from "
                f"an earlier checkpoint in {self.run.checkpoints} with a smaller ppo.learning_rate or ppo.max_grad_norm"
            )

    def _check_stability(self, rollout: Rollout) -> None:
        dumps = [dump | {"row": self.env_ids[int(dump["row"])]} for dump in self.collector.drain_unstable()]
        if self.group.size > 1:  # rank 0 writes them
            dumps = [*chain(*self.group.gather(dumps))] if rollout.totals["unstable"] else []
        for dump in dumps if self.group.rank == 0 else []:
            path = self.run.path / "unstable" / f"iteration_{self.iteration:06d}_row_{dump['row']}.npz"
            with _if_there_is_room(path) as file:
                np.savez_compressed(file, **dump)  # pyright: ignore[reportArgumentType]
        page = self.page.physics
        for name, rows in rollout.totals.items():
            kind, _, setting = name.partition("/")
            if kind == "overflow" and rows > page.max_overflow * self.num_envs:
                self.save()
                raise UnstableError(
                    f"{rows:.0f} of {self.num_envs} robots ran out of room for contacts in iteration {self.iteration}, "
                    f"more than physics.max_overflow ({page.max_overflow:.0%}) allows, and contacts were lost; raise {setting}"
                )
        unstable, limit = rollout.totals["unstable"], self.page.physics.max_unstable
        if unstable > limit * self.num_envs:
            self.save()
            raise UnstableError(
                f"{unstable:.0f} of {self.num_envs} robots blew up in iteration {self.iteration}, more than "
                f"physics.max_unstable ({limit:.0%}) allows; their last states lie in {self.run.path / 'unstable'}; try a "
                "smaller physics.dt, more physics.iterations, or softer gains"
            )

    def save(self) -> Path:
        """Write a checkpoint of everything that the run's future depends on.

        Raises:
            CheckpointError: it cannot be written; those before are untouched.
            UnstableError: the ranks' networks or curricula are not the same any more.
        """
        self._compare()
        counters = {"env_steps": self.env_steps, "seconds": self.seconds}
        learner = self.learner.state_dict() | {"iter": self.iteration, "infos": counters}
        learner["curricula"] = self.curricula.state_dict()
        mean_reward = self._rewards / self._episodes if self._episodes else math.nan
        path = self.checkpoints.save(learner, self.collector.snapshot(), self.env_ids.start, mean_reward)
        self._saved, self._rewards, self._episodes = self.iteration, 0.0, 0.0
        return path

    def _try_to_save(self, report: Report | None) -> None:
        """Save, or warn that it could not be done."""
        if report:
            report.flush(self.iteration)
        try:
            self.save()
        except CheckpointError as error:
            log.warning("%s; the run goes on, and its last checkpoint is that of iteration %s", error, self._saved or 0)

    def _compare(self) -> None:
        """Whether all ranks have the same networks, optimizer and curricula, to the last bit; each works on by itself if not."""
        if self.group.size == 1:
            return
        prints = self.group.gather([fingerprint(part.state_dict()) for part in (self.learner, self.curricula)])
        faults = {
            "networks": "unequal machines, or one with faulty memory",
            "curricula": "one of them draws random numbers, or reads what lies on one machine",
        }
        for (what, why), found in zip(faults.items(), zip(*prints, strict=True), strict=True):
            common = max(found, key=found.count)
            odd = [str(rank) for rank, one in enumerate(found) if one != common]
            if odd:
                raise UnstableError(
                    f"after iteration {self.iteration} the {what} of rank {', '.join(odd[:4])} differ from the others': {why}; "
                    f"go on from the last checkpoint, of iteration {self._saved or 0}"
                )

    def resume(self, path: Path, state: dict) -> None:
        """Go on from a checkpoint that was read from `path`, by whatever number of ranks.

        Raises:
            CheckpointError: it is of another page, or a shard of it is damaged.
        """
        parts = self.checkpoints.read_envs(path, state, self.env_ids)
        try:
            self.learner.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError):
            raise CheckpointError(f"{path}: its networks have other shapes than the page's") from None
        try:
            self.curricula.load_state_dict(state.get("curricula") or {}, int(state["iter"]))
        except ValueError as error:
            raise CheckpointError(f"{path}: its curricula do not fit the page: {error}; resume without the overrides") from None
        found = sum(len(next(iter(envs.values()))) for _, envs in parts)
        self.group.together(lambda: self._restore(path, parts))
        self.iteration = self._saved = int(state["iter"])
        counters = state.get("infos") or {}
        self.env_steps, self.seconds = int(counters.get("env_steps", 0)), float(counters.get("seconds", 0.0))
        missing = self.num_envs - int(self.group.table([float(found)]).sum())
        if missing and self.group.rank == 0:
            log.warning("%s: holds no state of %d of %d robots; they start fresh", path, missing, self.num_envs)

    def _restore(self, path: Path, parts: list[tuple[int, dict[str, Tensor]]]) -> None:
        """Put saved robots in their places; the others stay as they are."""
        if not parts:
            return
        envs, some = self.collector.snapshot(), parts[0][1]
        # what a policy remembers: nothing, of an episode that begins
        envs |= {n: v.new_zeros(len(self.env_ids), *v.shape[1:]) for n, v in some.items() if n.startswith("policy.memory.")}
        sizes = [{name: value.shape[1:] for name, value in state.items()} for state in (envs, some)]
        odd = sorted(name for name in {*envs, *some} if sizes[0].get(name) != sizes[1].get(name))
        try:
            if odd:
                raise ValueError(f"{', '.join(odd[:3])} differ")
            for first, saved in parts:
                for name, values in saved.items():
                    begin = first - self.env_ids.start
                    envs[name][begin : begin + len(values)] = values
            self.collector.restore(envs)
        except (ValueError, RuntimeError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{path}: the state of its environments does not fit the page: {reason}; resume without the overrides"
            ) from None


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
        elif kind == "pool":
            metrics[f"Pool/{term}"] = value
        elif kind == "pool_mean":
            metrics[f"Pool/{term}"] = value / steps
        elif kind == "reward" and episodes and term != "total":
            metrics[f"Episode_Reward/{term}"] = value / episodes
    if episodes:
        metrics["Train/mean_reward"] = totals["reward/total"] / episodes
        metrics["Train/mean_episode_length"] = totals["episode_length"] / episodes
        metrics["Train/terminated"] = totals["terminated"] / episodes
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


@contextmanager
def _if_there_is_room(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for what helps to find a mistake, but must not end a run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            yield file
    except (OSError, RuntimeError) as error:
        log.warning("%s: not written (%s)", path, error)
