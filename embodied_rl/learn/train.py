"""The trainer: collect, update, report, save; it sees a collector and a learner, never an environment."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.errors import UserError
from embodied_rl.learn.checkpoint import CheckpointError, Checkpoints, damaged, merit, read
from embodied_rl.learn.damage import find_damage, find_misfit
from embodied_rl.learn.examiner import Examiner, Passed
from embodied_rl.learn.guards import Guards, UnstableError
from embodied_rl.learn.learner import Learner, naming_own
from embodied_rl.learn.metrics import Metrics
from embodied_rl.learn.policy import MEMORY
from embodied_rl.learn.progress import Progress
from embodied_rl.learn.ranks.group import Group, LostError, fingerprint
from embodied_rl.learn.replay import Replay
from embodied_rl.learn.report import Report
from embodied_rl.learn.rollout import Collector, Rollout
from embodied_rl.learn.run import Run
from embodied_rl.mdp.curricula import Curricula
from embodied_rl.mdp.score import score_of

log = logging.getLogger("embodied_rl")

#: What a robot's lane of the replay is called in a checkpoint, among the robot's own state.
_REPLAY = "replay."


class Trainer:
    """Trains one page in one run directory, alone or as one of several ranks, which do everything here at the same time.

    Args:
        page: the task.
        collector: fetches rollouts, of this rank's robots.
        learner: improves the policy on them.
        curricula: move numbers of the page between rollouts; where they stand, the first one begins.
        run: where everything is written, by rank 0.
        group: the processes that train.
        examiner: evaluates the policy on the way, where the page wants it.
    """

    def __init__(
        self,
        page: Page,
        collector: Collector,
        learner: Learner,
        curricula: Curricula,
        run: Run,
        group: Group | None = None,
        examiner: Examiner | None = None,
    ) -> None:
        self.examiner = examiner
        self.page, self.collector, self.learner, self.curricula, self.run = page, collector, learner, curricula, run
        self.group = group or Group()
        self.iteration = 0
        counts = self.group.gather(collector.num_envs)
        first = sum(counts[: self.group.rank])
        self.env_ids = range(first, first + collector.num_envs)
        """Global ids of this rank's robots."""
        self.num_envs = sum(counts)
        """Robots of all ranks."""
        self.checkpoints = Checkpoints(run.checkpoints, self.group, page.train.keep_checkpoints)
        self.metrics = Metrics(self.group)
        self.guards = Guards(page, run, self.group, self.env_ids, self.num_envs)
        self.progress = Progress(page.name, getattr(score_of(page), "progress", None) if page.task else None)
        self._saved: int | None = None
        self._asked = self._stop = False

    def train(self, iterations: int, report: Report | None = None) -> Generator[dict[str, float]]:
        """Go on until `iterations` in all are done; yields the metrics of each.

        The consumer may stop early; Ctrl-C and SIGTERM, to any rank, stop all after the iteration at hand, and so does having
        passed.  A checkpoint is written every `train.save_every` iterations, after each evaluation, and at the end; where there
        is no room for it, the run goes on.

        Raises:
            UnstableError: too many robots blew up.
            CheckpointError: the last checkpoint cannot be written.
        """
        with _stop_on_signals(self), _at_rest(self.collector):
            self.checkpoints.begin(self.iteration)
            self.group.lead(self.run.note_launchers)
            while self.iteration < iterations and not self.passed and not self._agree_to_stop():
                self.group.waited()
                started = time.perf_counter()
                rollout = self.collector.collect(self.learner.policy, self.iteration, self.curricula.numbers)
                collected = time.perf_counter()
                metrics = self.learner.update(rollout, self.iteration, self.curricula.learner_numbers)
                learned = time.perf_counter()
                self.iteration += 1
                steps = self.learner.gradient_steps
                metrics |= self.metrics.of(rollout, collected - started, learned - collected, steps)
                self.curricula.advance(rollout.totals, self.iteration)
                if self.group.rank == 0:
                    self.progress.look(iterations, metrics)
                self.group.settle()
                self._guard(rollout, metrics)
                evaluated = self._examine(metrics)
                if report:
                    report.show(self.iteration, metrics, (iterations - self.iteration) * metrics["Perf/iteration_time"])
                if evaluated or (self.iteration % self.page.train.save_every == 0 and self.iteration < iterations):
                    self._try_to_save(report)
                yield metrics
            if self._saved != self.iteration:
                if report:
                    report.flush(self.iteration)
                self.save()

    @property
    def env_steps(self) -> int:
        """Steps of all robots so far."""
        return self.metrics.env_steps

    @property
    def seconds(self) -> float:
        """What collecting and learning have taken so far."""
        return self.metrics.seconds

    @property
    def passed(self) -> Passed | None:
        """The policy that it has passed with, where it stops for that."""
        return self.examiner.passed if self.examiner else None

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

    def _guard(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """End an iteration that went wrong, with a checkpoint where one is worth it."""
        try:
            self.guards.check(self.iteration, self.collector, self.learner, rollout, metrics)
        except UnstableError as error:
            if error.worth_saving:
                self._save_before_the_end()
            raise

    def _examine(self, metrics: dict[str, float]) -> bool:
        """Evaluate the policy where its time has come, and put what it came to among the metrics; whether it was evaluated."""
        if self.examiner is None or not self.examiner.due(self.iteration, metrics):
            return False
        try:
            metrics |= self.examiner.examine(self.iteration, self.learner, self.curricula.state_dict(), metrics)
        except Exception as error:
            # a rank that is lost saves nothing, and what is no UserError only one of several knows of
            if not isinstance(error, LostError) and (isinstance(error, UserError) or self.group.size == 1):
                self._save_before_the_end()
            raise
        if self.passed:
            try:
                self.checkpoints.note_verified(self.passed.iteration)
            except CheckpointError as error:
                log.warning("%s; so the policy that has passed is not RUN/best", error)
        return True

    def save(self) -> Path:
        """Write a checkpoint of everything that the run's future depends on.

        Where the robots are lost, it is written without them, and what lost them is raised.

        Raises:
            CheckpointError: it cannot be written; those before are untouched.
            UnstableError: it would be damaged, or the ranks' networks or curricula are not the same any more.
        """
        self._compare()
        infos = self.metrics.state_dict() | (self.examiner.infos(self.iteration) if self.examiner else {})
        learner = self.learner.state_dict() | {"iter": self.iteration, "infos": infos}
        learner["curricula"] = self.curricula.state_dict()
        if fault := find_damage(learner):
            last = f"the last checkpoint, of iteration {self._saved or 0}"
            raise UnstableError(f"after iteration {self.iteration}, not saved: {fault}; go on from {last}")
        envs, failure = {}, None
        try:
            envs = self.collector.snapshot()
            if self._replay:
                envs |= {f"{_REPLAY}{name}": value for name, value in self._replay.snapshot().items()}
        except Exception as error:
            failure = error
        path = self.checkpoints.save(learner, envs, self.env_ids.start, self.metrics.mean_reward())
        self._saved = self.iteration
        self.metrics.saved()
        if failure is not None:
            raise failure
        return path

    def _try_to_save(self, report: Report | None) -> None:
        """Save, or warn that it could not be done."""
        if report:
            report.flush(self.iteration)
        try:
            self.save()
        except CheckpointError as error:
            log.warning("%s; the run goes on, and its last checkpoint is that of iteration %s", error, self._saved or 0)

    def _save_before_the_end(self) -> None:
        """Save what an error is about to end, which is the one to say."""
        try:
            self.save()
        except Exception as second:
            log.warning("%s", second)

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

    def resume(self, path: Path, state: dict, *, robots: bool = True) -> None:
        """Go on from a checkpoint that was read from `path`, by whatever number of ranks, with its robots or fresh ones.

        Raises:
            DamagedError: what it holds cannot be, or a shard of it is damaged.
            CheckpointError: it is of another page.
            UserError: a learner of one's own goes wrong in taking it up.
        """
        fault, is_damage = find_misfit(self.learner.networks, state)
        if is_damage:
            raise damaged(path, fault)
        if fault:
            raise CheckpointError(f"{path}: its networks have other shapes than the page's: {fault}")
        parts = self.checkpoints.read_envs(path, state, self.env_ids) if robots else []
        try:
            with naming_own(self.page, self.learner.load_state_dict):
                self.learner.load_state_dict(state)
        except UserError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            # the networks fit: it is something beside them
            reason = str(error).partition("\n")[0]
            raise damaged(path, f"its learner cannot be set to it ({type(error).__name__}: {reason})") from None
        try:
            self.curricula.load_state_dict(state.get("curricula") or {}, int(state["iter"]))
        except ValueError as error:
            raise CheckpointError(f"{path}: its curricula do not fit the page: {error}; resume without the overrides") from None
        found = sum(len(next(iter(envs.values()))) for _, envs in parts)
        self.group.together(lambda: self._restore(path, parts))
        self.iteration = self._saved = int(state["iter"])
        self.metrics.load_state_dict(state.get("infos") or {})
        self._resume_examiner(path, state)
        missing = self.num_envs - int(self.group.table([float(found)]).sum())
        if not robots and self.group.rank == 0:
            log.warning(
                "%s: the robot, or what is drawn of it at startup, is another now; the robots start fresh, and it is drawn anew",
                path,
            )
        elif missing and self.group.rank == 0:
            log.warning("%s: holds no state of %d of %d robots; they start fresh", path, missing, self.num_envs)

    def _resume_examiner(self, path: Path, state: dict) -> None:
        """Let the examiner go on counting passes, and say so where they had been enough."""
        infos = state.get("infos") or {}
        if self.examiner is None or self.page.train.stop_when != "passed":
            return
        try:
            self.examiner.resume(infos, lambda iteration: read(self.checkpoints.path(iteration)))
        except CheckpointError as error:
            log.warning("%s; two evaluations in a row have to pass from here on", error)
        if merit(state).passed and "candidate" not in infos and self.group.rank == 0:
            log.info("%s: its policy has passed; the run goes on until two evaluations in a row pass again", path)

    @property
    def _replay(self) -> Replay | None:
        """What a learner keeps of each robot, where it has a replay and the page wants it kept."""
        return getattr(self.learner, "replay", None) if self.page.sac.save_replay else None

    def _restore(self, path: Path, parts: list[tuple[int, dict[str, Tensor]]]) -> None:
        """Put saved robots in their places, with their lanes of the replay; the others stay as they are."""
        if not parts:
            return
        if not self._replay:
            parts = [(first, {n: v for n, v in part.items() if not n.startswith(_REPLAY)}) for first, part in parts]
        envs, some = self.collector.snapshot(), parts[0][1]
        # of others' robots nothing is remembered, and their lanes of the replay are empty
        anew = {name: value for name, value in some.items() if name.startswith((MEMORY, _REPLAY))}
        envs |= {name: value.new_zeros(len(self.env_ids), *value.shape[1:]) for name, value in anew.items()}
        kinds = [{name: (value.shape[1:], value.dtype) for name, value in state.items()} for state in (envs, some)]
        odd = sorted(name for name in {*envs, *some} if kinds[0].get(name) != kinds[1].get(name))
        try:
            if odd:
                raise ValueError(f"{', '.join(odd[:3])} differ")
            for first, saved in parts:
                for name, values in saved.items():
                    begin = first - self.env_ids.start
                    envs[name][begin : begin + len(values)] = values
            lanes = {name.removeprefix(_REPLAY): envs.pop(name) for name in list(envs) if name.startswith(_REPLAY)}
            self.collector.restore(envs)
            if self._replay and lanes:
                self._replay.restore(lanes)
        except (ValueError, RuntimeError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{path}: the state of its environments does not fit the page: {reason}; resume without the overrides"
            ) from None


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
def _at_rest(collector: Collector) -> Iterator[None]:
    """Leave nothing behind that steps: a consumer that stops early waits for the rollout under way, an error cuts it short."""
    try:
        yield
    except GeneratorExit:
        collector.rest()
        raise
    except BaseException:
        collector.rest(at_once=True)
        raise
