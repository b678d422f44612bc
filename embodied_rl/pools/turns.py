"""The protocol with workers whose policy is elsewhere: observations come, actions go, each worker counts its own steps.

Workers stand in groups that take turns: while the robots of one are simulated, the other's observations are answered, which is
the double buffering of Sample Factory (Petrenko et al., arXiv:2006.11751).  A group is answered once all of it has asked, or
once the first has waited for `pool.inference_wait_s`.  A lost worker's replacement gets the newest known state, and the actions
since are acted out again.

Legend: T steps, N environments of the pool, n of a worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.learn.rollout import Rollout
from embodied_rl.pools.crew import Crew, Worker
from embodied_rl.pools.errors import PoolError
from embodied_rl.pools.inference import Inference, Question
from embodied_rl.pools.records import FLAGS, Records, pack_actions

log = logging.getLogger("embodied_rl")

#: Seconds between two looks at who is late.
_TICK_S = 0.05
#: Seconds without an answer that are told of.
_SILENT_S = 30.0

Numbers = dict[str, Tensor]


@dataclass(eq=False)
class Seat:
    """A worker, where its rollout stands, and what it has been asked."""

    worker: Worker
    group: int
    iteration: int = 0
    numbers: Numbers = field(default_factory=dict)
    step: int = 0
    """Steps of the present rollout that are done."""
    running: bool = False
    """Whether it is in a rollout."""
    acted: list[tuple[int, np.ndarray | None]] = field(default_factory=list)
    """Version and standard deviation, (A,), of the policy that answered each step of it."""
    waits_since: float | None = None
    """When it asked what to do next, where it has not been told."""
    ref: Any = None
    """Of the answer that it owes."""
    retraced: Any = None
    """Of what a replacement does before it answers."""
    question: Callable[[Any], Any] | None = None
    """What it was asked, of an actor."""
    accept: Callable[[Any], None] | None = None
    """Who takes the answer."""
    sent: float = 0.0
    patience: float = 0.0
    """Seconds without an answer that make the worker a lost one."""
    told: bool = False
    """Whether it was told that it takes long."""
    state: dict[str, np.ndarray] | None = None
    """The newest known state of its environments; None: as built."""
    tape: list[tuple[int, Numbers, np.ndarray]] = field(default_factory=list)
    """Iteration, numbers and actions (T, n, ...) of each whole rollout since then."""


class Turns:
    """Asks workers step by step, writes down what they say, and lets a policy answer.

    Args:
        crew: the workers.
        board: the rollout that is written, on the host, (T, N, ...); with `log_prob`.
        finished: is told of each worker whose rollout is whole, with its `totals`, and `unstable` by the pool's rows.
    """

    def __init__(self, crew: Crew, board: Rollout, finished: Callable[[Seat, dict[str, Any]], None]) -> None:
        self.inference: Inference | None = None
        self.restarts = 0
        """Since it was last set to 0."""
        self.seconds = {"wait": 0.0, "policy": 0.0}
        """Spent waiting for workers, and answering them, likewise."""
        self._crew, self._ray, self._board, self._finished = crew, crew.connection.ray, board, finished
        self._records = Records(crew.described["obs"], crew.described["final_obs"])
        self._looked = 0.0
        half = -(-len(crew.workers) // 2)
        self.seats = [Seat(worker, worker.index // half) for worker in crew.workers]
        self._groups = [[seat for seat in self.seats if seat.group == group] for group in range(self.seats[-1].group + 1)]

    # ------------------------------------------------------------------------------------------------------------ questions

    def begin(self, seat: Seat, iteration: int, numbers: Numbers) -> None:
        """Let a worker begin a rollout."""
        seat.iteration, seat.numbers, seat.step = iteration, {name: number.clone() for name, number in numbers.items()}, 0
        # of a rollout more and its whole tape, or of a state: what a replacement begins with
        wants_state = self._replays and len(seat.tape) >= self._crew.settings.snapshot_interval
        given = iteration, seat.numbers, wants_state
        self._ask(seat, lambda actor: actor.begin.remote(*given), partial(self._begun, seat))

    def ask_all(self, question: Callable[[Seat, Any], Any]) -> list[Any]:
        """Ask every worker what needs no policy, between steps; the answers, in order.

        Raises:
            PoolError: see `receive`.
        """
        self.settle()
        answers: dict[int, Any] = {}
        for seat in self.seats:
            self._ask(seat, partial(question, seat), partial(answers.__setitem__, seat.worker.index))
        self.settle()
        return [answers[seat.worker.index] for seat in self.seats]

    def restore(self, parts: list[dict[str, np.ndarray]]) -> None:
        """Set each worker's environments to a state; the rollouts that are under way are abandoned.

        Raises:
            PoolError: see `receive`.
        """
        self.abandon()
        for seat, part in zip(self.seats, parts, strict=True):
            seat.state, seat.tape = part, []
        self.ask_all(lambda seat, actor: actor.restore.remote(seat.state))

    def _ask(self, seat: Seat, question: Callable[[Any], Any], accept: Callable[[Any], None], *, starting: bool = False) -> None:
        settings = self._crew.settings
        seat.question, seat.accept, seat.told, seat.sent = question, accept, False, time.monotonic()
        seat.patience = settings.timeout_s + (settings.start_timeout_s if starting else 0.0)
        seat.ref = question(seat.worker.actor)

    def abandon(self) -> None:
        """End the rollouts that are under way, which nobody gets.

        Raises:
            PoolError: see `receive`.
        """
        self.settle()
        for seat in self.seats:
            if seat.running:
                self._end(seat)
            seat.waits_since = None

    # -------------------------------------------------------------------------------------------------------------- answers

    @property
    def idle(self) -> bool:
        """Whether no worker owes an answer, and none waits for one."""
        return all(seat.ref is None and seat.waits_since is None for seat in self.seats)

    def once(self) -> None:
        """Take the answers that are there, or the first to come, and tell what to do whom it is the turn of.

        Raises:
            PoolError: see `receive`.
        """
        # a batch that closes by the clock is not waited beyond
        now = time.monotonic()
        self.receive(min([_TICK_S, *(max(0.0, when - now) for when in map(self._closes, self._groups) if when is not None)]))
        now = time.monotonic()
        for group in self._groups:
            if (when := self._closes(group)) is not None and when <= now:
                self._answer([seat for seat in group if seat.waits_since is not None])

    def settle(self) -> None:
        """Take the answers that are owed; nobody is told what to do next.

        Raises:
            PoolError: see `receive`.
        """
        while any(seat.ref is not None for seat in self.seats):
            self.receive(_TICK_S)

    def receive(self, timeout: float) -> None:
        """Take the answers that are there, or the first to come within so many seconds.

        Raises:
            PoolError: a worker's code raised, or a worker was lost that the page does not allow to lose.
        """
        started = time.perf_counter()
        # whoever was asked first is heard first: a quick one would be served for ever
        asked = sorted((seat for seat in self.seats if seat.ref is not None), key=lambda seat: seat.sent)
        owed = {seat.ref: seat for seat in asked}
        ready, _ = self._ray.wait(list(owed), num_returns=1, timeout=timeout, fetch_local=True) if owed else ([], None)
        self.seconds["wait"] += time.perf_counter() - started
        for ref in ready:
            seat = owed[ref]
            try:
                if seat.retraced is not None:
                    self._ray.get(seat.retraced, timeout=self._crew.settings.grace_s)
                answer = self._ray.get(ref, timeout=self._crew.settings.grace_s)
            except self._ray.exceptions.RayError as error:
                self._replace(seat, self._crew.blame(seat.worker, error), error)
                continue
            seat.ref = seat.retraced = None
            assert seat.accept is not None
            seat.accept(answer)
        if time.monotonic() - self._looked > _TICK_S:
            self._look_after_the_late()

    def _closes(self, group: list[Seat]) -> float | None:
        """When a group is answered: at once where all of it has asked; None: not before somebody else asks."""
        waiting = [seat.waits_since for seat in group if seat.waits_since is not None]
        if not waiting:
            return None
        if all(seat.ref is None for seat in group):
            return min(waiting)
        patience = self._crew.settings.inference_wait_s
        return None if patience is None else min(waiting) + patience

    def _answer(self, seats: list[Seat]) -> None:
        """Let the policy answer some workers, which are sent what to do."""
        assert self.inference is not None and self._board.log_prob is not None
        board = self._board
        questions = [Question(seat.step, seat.worker.rows) for seat in seats]
        started = time.perf_counter()
        answers = self.inference.answer(questions, [board.obs["actor"][step, rows] for step, rows in questions])
        self.seconds["policy"] += time.perf_counter() - started
        at = 0
        for seat in seats:
            end = at + len(seat.worker.env_ids)
            for buffer, values in zip((board.actions, board.output, self._board.log_prob), answers, strict=True):
                buffer.numpy()[seat.step, seat.worker.rows] = values[at:end]
            seat.acted.append((self.inference.version, self.inference.std))
            self._send(seat, pack_actions(answers.actions[at:end]))
            at = end

    def _send(self, seat: Seat, actions: bytes) -> None:
        """Let a worker do a step."""
        seat.waits_since = None
        if seat.step + 1 < len(self._board.rewards):
            self._ask(seat, lambda actor: actor.act.remote(actions), partial(self._stepped, seat))
        else:
            self._ask(seat, lambda actor: actor.act_last.remote(actions), partial(self._ended, seat))

    def _begun(self, seat: Seat, answer: dict[str, Any]) -> None:
        """Take note of where a rollout begins."""
        assert self.inference is not None
        rows, board = seat.worker.rows, self._board
        if answer["state"] is not None:
            # a copy: a view would hold Ray's memory
            seat.state, seat.tape = {name: np.array(value) for name, value in answer["state"].items()}, []
        for name, value in answer["obs"].items():
            board.obs[name].numpy()[0, rows] = value
        for kept, present in zip(board.memory, self.inference.memory, strict=True):
            kept[:, rows] = present[:, rows]
        self.inference.begin(rows, torch.from_numpy(np.array(answer["age"])))
        seat.running, seat.acted, seat.waits_since = True, [], time.monotonic()

    def _stepped(self, seat: Seat, packed: bytes) -> None:
        """Write down what a step led to."""
        assert self.inference is not None
        board, step, where = self._board, seat.step, seat.worker.rows
        rows, finals = self._records.unpack(packed, len(seat.worker.env_ids))
        board.rewards.numpy()[step, where] = rows["rewards"]
        for name in FLAGS:
            getattr(board, name).numpy()[step, where] = rows[name]
        if len(finals):
            ended = where.start + rows["truncated"].nonzero()[0]
            for name, value in board.final_obs.items():
                value.numpy()[step, ended] = finals[name]
        self.inference.forget(where, rows["terminated"] | rows["truncated"])
        seat.step += 1
        last = seat.step == len(board.rewards)
        for name, value in board.obs.items():
            (board.last_obs[name].numpy() if last else value.numpy()[seat.step])[where] = rows[f"obs:{name}"]
        seat.waits_since = None if last else time.monotonic()

    def _ended(self, seat: Seat, answer: tuple[bytes, dict[str, Any]]) -> None:
        """Hand over a whole rollout of a worker."""
        packed, rest = answer
        self._stepped(seat, packed)
        self._end(seat)
        first = seat.worker.rows.start
        rest["unstable"] = [dump | {"row": dump["row"] + first} for dump in rest["unstable"]]
        self._finished(seat, rest)

    def _end(self, seat: Seat) -> None:
        """End a worker's rollout, whose actions stay known."""
        seat.running = False
        if self._replays:
            seat.tape.append(self._done(seat))

    def _done(self, seat: Seat) -> tuple[int, Numbers, np.ndarray]:
        """Copy what there is to act out again of the present rollout."""
        return seat.iteration, seat.numbers, self._board.actions.numpy()[: seat.step, seat.worker.rows].copy()

    # ----------------------------------------------------------------------------------------------------- when things fail

    @property
    def _replays(self) -> bool:
        return self._crew.settings.on_crash == "replay"

    def _look_after_the_late(self) -> None:
        """Say who is silent, and give up who is silent for too long."""
        self._looked = now = time.monotonic()
        for seat in self.seats:
            silent = now - seat.sent
            if seat.ref is None or silent < min(_SILENT_S, seat.patience) or (seat.told and silent < seat.patience):
                continue
            where = self._crew.where(seat.worker)
            if silent > seat.patience:
                self._replace(seat, f"{seat.worker.name}: no answer for {silent:.1f} s; it is {where}")
            else:
                seat.told, left = True, seat.patience - silent
                log.warning("pool: %s: no answer for %.0f s; it is %s; lost in %.0f s", seat.worker.name, silent, where, left)

    def _replace(self, seat: Seat, why: str, error: BaseException | None = None) -> None:
        """Put a new process in a lost one's place, and ask it what the lost one owed.

        Raises:
            PoolError: the page says so, the environment itself raised, or it has happened too often.
        """
        crew, worker = self._crew, seat.worker
        seat.ref = None
        own = error is not None and crew.is_its_own(error)
        # a UserError says in a line all that there is to say, and so does a state of another page
        if own and seat.running and not isinstance(getattr(error, "cause", None), UserError):
            log.error("%s", error)
        if own or not self._replays:
            place = f"iteration {seat.iteration}, step {seat.step}, env.seed {crew.page.env.seed}"
            raise PoolError(f"pool: {why}; {place}" + ("" if own else "; pool.on_crash: raise")) from None
        if error is not None:
            crew.note_node(worker, error)
        self.restarts += 1
        crew.replace(worker, why)
        tape = [*seat.tape, self._done(seat)] if seat.running else seat.tape
        seat.retraced = worker.actor.retrace.remote(seat.state, tape)
        assert seat.question is not None and seat.accept is not None
        self._ask(seat, seat.question, seat.accept, starting=True)
