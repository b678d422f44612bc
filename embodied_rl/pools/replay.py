"""Replay: a lost worker's replacement does what the lost one did, so that its fragments are the same to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from embodied_rl.pools.crew import Crew, Worker


@dataclass
class Request:
    """One fragment that a worker owes, and all that it takes to ask for it again."""

    iteration: int
    weights: Any
    """Reference of the weights it is to be collected with."""
    version: int
    """Theirs."""
    ref: Any
    """Reference of the fragment."""
    sent: float
    """When it was, or when the one before it was answered."""
    patience: float
    """Seconds without an answer that make the worker a lost one."""
    away: float = 0.0
    """Seconds since `sent` in which nobody looked for answers."""
    told: bool = False
    """Whether it was told that it takes long."""
    hurried: float | None = None
    """When it was told to stop."""


class Replay:
    """The newest known state of each worker's environments, and the requests that were answered since.

    Args:
        crew: the workers.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        # None: as built
        self._states: dict[int, dict[str, np.ndarray] | None] = {worker.index: None for worker in crew.workers}
        self._since: dict[int, list[Request]] = {worker.index: [] for worker in crew.workers}

    @property
    def enabled(self) -> bool:
        """Whether replacements go on where the lost ones stood; else they begin anew."""
        settings = self._crew.settings
        # what `async` collected hangs on when new weights came: it cannot be had again; and an old gradient nobody wants again
        return settings.on_crash == "replay" and settings.mode in ("sync", "overlap")

    def wants_state(self, iteration: int) -> bool:
        """Whether this iteration's fragments are to bring the state of their environments along."""
        return self.enabled and (iteration + 1) % self._crew.settings.snapshot_interval == 0

    def begin_with(self, worker: Worker, state: dict[str, np.ndarray]) -> None:
        """Take a worker's environments to be in this state now."""
        # a copy: a view would hold the whole fragment in the object store
        self._states[worker.index] = {name: np.array(value) for name, value in state.items()}
        self._since[worker.index] = []

    def add(self, worker: Worker, request: Request, state: dict[str, np.ndarray] | None) -> None:
        """Take note that a request was answered, and of the state that came along."""
        if not self.enabled:
            return
        if state is not None:
            self.begin_with(worker, state)
        else:
            self._since[worker.index].append(request)

    def run(self, worker: Worker) -> int:
        """Bring a replacement to where the lost one stood; the number of fragments that it collects again for that."""
        if (state := self._states[worker.index]) is not None:
            worker.actor.restore.remote(state)
        for request in self._since[worker.index]:
            worker.actor.collect.remote(request.weights, request.iteration, False)
        return len(self._since[worker.index])
