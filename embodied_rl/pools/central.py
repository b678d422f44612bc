"""The policy here and the environments elsewhere: observations over the wire, actions back, every step.

For policies that are too big for the workers.  Each step waits for the slowest worker and for two messages, so with small
networks it is several times slower than policies in the workers; the transitions are the same, to the bit.

Legend: N environments, A actions, O observations.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.pools.cluster import Connection
from embodied_rl.pools.crew import Crew, Worker
from embodied_rl.pools.errors import PoolError
from embodied_rl.vector_env import Step

_LED_TO = ("rewards", "terminated", "truncated", "valid")


class RemoteEnv:
    """The environments of all workers as one `VectorEnv`, for a `LocalCollector` here.

    A lost worker is replaced: it gets the state of the iteration's beginning, and the actions since are acted out again.

    Args:
        page: the task.
        env_ids: global ids of the environments, int64 (N,).
        world_size: how many learners share the cluster's cores.
        connection: to the cluster; by default what `pool.address` says.

    Raises:
        PoolError: the workers cannot be started.
    """

    captured = False

    def __init__(self, page: Page, env_ids: Tensor, *, world_size: int = 1, connection: Connection | None = None) -> None:
        self.page, self.env_ids, self.num_envs, self.device = page, env_ids, len(env_ids), torch.device("cpu")
        self.crew = Crew.open(page, env_ids, connection, world_size)
        self._ray = self.crew.connection.ray
        self.close = weakref.finalize(self, self.crew.close)
        described = self.crew.described
        self.action_space = self.crew.action_space
        zeros = lambda *shape: torch.zeros(self.num_envs, *shape)  # noqa: E731
        self.obs = {name: zeros(*shape) for name, shape in described["obs"].items()}
        self.final_obs = {name: zeros(*described["obs"][name]) for name in described["final_obs"]}
        self.buffers = {"age": zeros().long(), "rewards": zeros()}
        self.buffers |= {name: zeros().bool() for name in _LED_TO[1:]}
        self.physics_seconds = 0.0
        self._iteration = 0
        self._numbers: dict[str, Tensor] = {}
        # what a lost worker's replacement begins with, and what it does then
        self._kept: dict[int, Any] = {worker.index: None for worker in self.crew.workers}
        self._tape: list[Tensor] = []
        self._take(self._ask(lambda worker: worker.actor.look.remote()))

    @property
    def result(self) -> Step:
        """What the last step left behind."""
        b = self.buffers
        return Step(self.obs, b["rewards"], b["terminated"], b["truncated"], self.final_obs, b["valid"])

    def advance(self, actions: Tensor) -> None:
        """One step of all workers, which wait for each other."""
        given = actions.detach().clone().cpu()
        self._take(self._ask(lambda worker: worker.actor.act.remote(given[worker.rows].numpy())))
        self._tape.append(given)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """As it is: there is nothing to capture."""
        return function

    def begin_iteration(self, iteration: int, numbers: dict[str, Tensor]) -> None:
        """Keep the state of the iteration's beginning, and send the workers numbers of the page."""
        self._iteration, self._numbers = iteration, numbers
        self.crew.keep_spares()
        if self.page.pool.on_crash == "replay":
            states = self._ask(lambda worker: worker.actor.snapshot.remote())
            self._kept = {index: {name: value.copy() for name, value in state.items()} for index, state in states.items()}
        self._tape = []
        self._ask(lambda worker: worker.actor.begin_iteration.remote(iteration, numbers))

    def drain_totals(self) -> dict[str, float]:
        """Add up over all workers."""
        totals: dict[str, float] = {}
        self._dumps: list[dict] = []
        seconds = []
        for index, (summed, dumps, physics) in self._ask(lambda worker: worker.actor.drain.remote()).items():
            first = self.crew.workers[index].rows.start
            self._dumps += [dump | {"row": dump["row"] + first} for dump in dumps]
            seconds.append(physics)
            for name, value in summed.items():
                totals[name] = totals.get(name, 0.0) + value
        self.physics_seconds = max(seconds)
        restarts = float(sum(worker.restarts for worker in self.crew.workers))
        return totals | {"pool/restarts": restarts}

    def drain_unstable(self) -> list[dict]:
        """See `VectorEnv`."""
        dumps, self._dumps = self._dumps, []
        return dumps

    def mirror_maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """See `VectorEnv`."""
        return self.crew.mirrors

    def snapshot(self, rows: Tensor) -> dict[str, Tensor]:
        """See `VectorEnv`."""
        states = self._ask(lambda worker: worker.actor.snapshot.remote())
        order = range(len(states))
        return {name: torch.cat([torch.tensor(states[index][name]) for index in order])[rows] for name in states[0]}

    def restore(self, rows: Tensor, state: dict[str, Tensor]) -> None:
        """See `VectorEnv`; all rows at once."""
        parts = {worker.index: {n: v[worker.rows].numpy() for n, v in state.items()} for worker in self.crew.workers}
        self._kept, self._tape = dict(parts), []
        self._ask(lambda worker: worker.actor.restore.remote(parts[worker.index]))
        self._take(self._ask(lambda worker: worker.actor.look.remote()))

    def reset(self) -> dict[str, Tensor]:
        """See `VectorEnv`."""
        age = int(self.buffers["age"][0])
        self._ask(lambda worker: worker.actor.fresh.remote(age))
        self._take(self._ask(lambda worker: worker.actor.look.remote()))
        return self.obs

    def _take(self, answers: dict[int, dict[str, Any]]) -> None:
        """Put what the workers saw in its place."""
        targets = {"age": self.buffers["age"]} | self.obs
        targets |= {name: self.buffers[name] for name in _LED_TO} | {f"final:{n}": v for n, v in self.final_obs.items()}
        for index, answer in answers.items():
            rows = self.crew.workers[index].rows
            for name, value in answer.items():
                targets[name].numpy()[rows] = value

    def _ask(self, question: Callable[[Worker], Any]) -> dict[int, Any]:
        """Every worker's answer, by index; of its replacement where it is lost."""
        refs = {worker.index: question(worker) for worker in self.crew.workers}
        answers = {}
        for worker in self.crew.workers:
            answers[worker.index] = self._answer(worker, refs[worker.index], question)
        return answers

    def _answer(self, worker: Worker, ref: Any, question: Callable[[Worker], Any]) -> Any:
        while True:
            try:
                return self._ray.get(ref, timeout=self.page.pool.timeout_s)
            except self._ray.exceptions.RayError as error:
                why = self.crew.blame(worker, error)
                if self.crew.is_its_own(error) or self.page.pool.on_crash == "raise":
                    age = int(self.buffers["age"][0])
                    raise PoolError(f"pool: {why}; after {age} steps, env.seed {self.page.env.seed}") from None
            self.crew.replace(worker, why)
            if self._kept[worker.index] is not None:
                worker.actor.restore.remote(self._kept[worker.index])
            worker.actor.begin_iteration.remote(self._iteration, self._numbers)
            for actions in self._tape:
                worker.actor.act.remote(actions[worker.rows].numpy())
            ref = question(worker)
