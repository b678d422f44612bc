"""The workers of a pool: where they run, that they live, and what replaces them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.config import Page, override
from embodied_rl.pools.cluster import Connection
from embodied_rl.pools.errors import PoolError
from embodied_rl.pools.worker import SimWorker
from embodied_rl.vector_env import ActionSpace

log = logging.getLogger("embodied_rl")

#: Seconds within which a question that needs no work is answered.
_ANSWER_S = 2.0


@dataclass
class Worker:
    """One actor and the shards that are its own."""

    index: int
    shards: range
    """Ids of its shards."""
    rows: slice
    """Where its environments stand among the pool's."""
    env_ids: np.ndarray
    threads: int
    node: str
    """Id of the node it was put on."""
    actor: Any = None
    pid: int = 0
    starts: deque[float] = field(default_factory=deque)
    """When it was restarted."""
    restarts: int = 0
    lived: int = 0
    """Steps that its environments have lived at most: where a replacement begins anew, it begins beyond them."""
    steps_per_s: float = 0.0
    busy_s: float = 0.0
    idle: float = 0.0
    """Share of the time that it had nothing to do before its last fragment."""
    bytes: int = 0
    """Of its last fragment."""
    bytes_per_sample: float = 0.0
    mb_per_s: float = 0.0
    staleness: int = 0
    """Versions that its last fragment was behind when its turn came."""
    largest_staleness: int = 0
    exploration: float = 0.0
    """Of `pool.mode: apex`: the deviation of its actions, in +-1."""

    @property
    def name(self) -> str:
        """As an error names it."""
        return f"worker {self.index} (pid {self.pid}, node {self.node[:8]}, environments {self.env_ids[0]} to {self.env_ids[-1]})"


class Crew:
    """Starts, asks, replaces and ends workers.

    Args:
        page: the task.
        env_ids: global ids of this pool's environments, int64 (N,).
        connection: to the cluster.
        world_size: how many learners share its cores.

    Raises:
        PoolError: they do not start.
    """

    def __init__(self, page: Page, env_ids: Tensor, connection: Connection, world_size: int = 1) -> None:
        self.page = page
        self.connection = connection
        self._ray = connection.ray
        self.num_envs = len(env_ids)
        self.settings = page.pool
        self.world_size = world_size
        self._class = self._ray.remote(max_restarts=0, concurrency_groups={"control": 1})(SimWorker)
        self._met: tuple[Any, ...] = ()
        self._spares: list[tuple[str, Any]] = []
        self.lost_nodes: set[str] = set()
        self.workers = self._plan(env_ids.cpu().numpy())
        for worker in self.workers:
            worker.actor = self._start(worker.node, self._cores(worker))
        builds = [(worker, self._build(worker)) for worker in self.workers]
        self.described, *_ = [self._started(worker, ref) for worker, ref in builds]
        self.action_space = ActionSpace(*self.described["action_space"])
        self.keep_spares()

    @classmethod
    def open(cls, page: Page, env_ids: Tensor, connection: Connection | None = None, world_size: int = 1) -> Crew:
        """A crew on what `pool.address` says, or on this connection, which is closed if it does not start."""
        connection = connection or Connection(page.pool.address)
        try:
            return cls(page, env_ids, connection, world_size)
        except BaseException:
            connection.close()
            raise

    def mirrors(self, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
        """Left-right reflection of each observation group and of `actions`, where the learner is: index and sign."""
        there = lambda array: torch.tensor(array).to(device)  # noqa: E731
        return {name: (there(index), there(sign)) for name, (index, sign) in self.described["mirrors"].items()}

    def _plan(self, env_ids: np.ndarray) -> list[Worker]:
        """Whole shards, in order, on the nodes in turn."""
        settings, nodes = self.settings, self.connection.nodes()
        size = settings.shard_size
        shards = -(-len(env_ids) // size)
        cores = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) // self.world_size for node in nodes}
        able = [node for node in nodes if cores[node["NodeID"]] > 0] or nodes
        python = self.page.env.source is not None and not self.page.env.source.startswith("envpool:")
        asked = settings.workers or (sum(max(1, cores[node["NodeID"]]) for node in able) if python else len(able))
        count = min(asked, shards)
        homes = [able[index % len(able)]["NodeID"] for index in range(count)]
        if python and not settings.workers:  # a node gets as many as it has cores
            homes = [node["NodeID"] for node in able for _ in range(max(1, cores[node["NodeID"]]))][:count]
        workers = []
        for index, (part, home) in enumerate(zip(np.array_split(np.arange(shards), count), homes, strict=True)):
            first, end = int(part[0]) * size, min((int(part[-1]) + 1) * size, len(env_ids))
            threads = 1 if python else self.page.physics.num_threads or max(1, cores[home] // homes.count(home))
            workers.append(Worker(index, range(part[0], part[-1] + 1), slice(first, end), env_ids[first:end], threads, home))
        return workers

    def _cores(self, worker: Worker) -> float:
        """What a worker takes of its node's cores, so that others' work goes elsewhere."""
        sharing = sum(one.node == worker.node for one in self.workers) * self.world_size
        nodes = {node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in self.connection.nodes()}
        share = nodes.get(worker.node, 0.0) / sharing
        return float(min(worker.threads, int(share))) if share >= 1.0 else 0.9 * share

    def _start(self, node: str, num_cpus: float) -> Any:
        """A process that has loaded all it needs, on that node if it lives."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node, soft=True)
        options = self._class.options(num_cpus=num_cpus, num_gpus=0, scheduling_strategy=strategy)
        return options.remote([os.getcwd(), *sys.path])

    def keep_spares(self) -> None:
        """Start what `pool.spares` asks for, where the fewest workers are."""
        while len(self._spares) < self.settings.spares:
            node = self._emptiest()
            self._spares.append((node, self._start(node, num_cpus=0)))

    def _spare(self, worker: Worker) -> Any:
        """A spare process for the worker, on its own node if there is one; None where there is none."""
        alive = self._alive()
        self._spares = [(node, actor) for node, actor in self._spares if node in alive]
        if not self._spares:
            return None
        self._spares.sort(key=lambda pair: pair[0] != worker.node)
        worker.node, actor = self._spares.pop(0)
        return actor

    def _build(self, worker: Worker) -> Any:
        # there, it is a page like any other
        page = override(self.page, [f"physics.num_threads={worker.threads}", "pool.workers=null"])
        return worker.actor.build.remote(page, worker.env_ids, (worker.index, len(self.workers)))

    def _started(self, worker: Worker, ref: Any) -> dict[str, Any]:
        ready, _ = self._ray.wait([ref], timeout=self.settings.start_timeout_s)
        if not ready:
            wants, free = self._cores(worker), self._ray.available_resources().get("CPU", 0.0)
            raise PoolError(
                f"pool: {worker.name} did not start within {self.settings.start_timeout_s:g} s (it wants {wants:g} cores, the "
                f"cluster has {free:g} free); take fewer pool.workers, or a larger pool.start_timeout_s"
            )
        try:
            described = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            raise PoolError(self.blame(worker, error)) from None
        worker.pid = described["pid"]
        return described

    # ------------------------------------------------------------------------------------------------------------- questions

    def meet(self, policy: Any, appraiser: Any = None) -> None:
        """Send every worker, and whoever replaces one, a policy, and an appraiser where priorities are wanted."""
        self._met = tuple(self._ray.put(one) for one in (policy, appraiser) if one is not None)
        for worker in self.workers:
            worker.actor.meet.remote(*self._met)

    def where(self, worker: Worker) -> str:
        """What a worker says it is at; `silent` where it says nothing."""
        ref = worker.actor.where.options(concurrency_group="control").remote()
        try:
            return self._ray.get(ref, timeout=_ANSWER_S)
        except self._ray.exceptions.RayError:
            return "silent"

    def blame(self, worker: Worker, error: BaseException) -> str:
        """What happened to a worker, in one line."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, ValueError):  # one of our own errors, of one line
            return f"{worker.name}: {' '.join(str(cause).split())}"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        text = lines[-1] if self.is_its_own(error) else lines[0]
        words = self.connection.last_words(worker.pid) if worker.pid else ""
        return f"{worker.name}: {type(error).__name__}: {text}{words and f'; it said: {words}'}"

    def is_its_own(self, error: BaseException) -> bool:
        """Whether the error was raised by the worker's code, and is no death of a process or node."""
        return isinstance(error, self._ray.exceptions.RayTaskError)

    # ----------------------------------------------------------------------------------------------------------- replacement

    def replace(self, worker: Worker, why: str) -> None:
        """End a worker and start another in its place; it is built and has met the policy before whatever it is asked next.

        Raises:
            PoolError: that has happened too often.
        """
        settings, now = self.settings, time.monotonic()
        worker.restarts += 1
        worker.starts.append(now)
        while worker.starts and now - worker.starts[0] > settings.restart_window_s:
            worker.starts.popleft()
        why = why.removeprefix(f"{worker.name}: ")
        log.warning("pool: %s is lost, restart %d: %s", worker.name, worker.restarts, why)
        if len(worker.starts) > settings.max_restarts:
            raise PoolError(
                f"pool: {worker.name}, env.seed {self.page.env.seed}: lost {len(worker.starts)} times within "
                f"{settings.restart_window_s:g} s, the last time: {why}; mend that, or raise pool.max_restarts"
            )
        self.kill(worker)
        spare = self._spare(worker)
        if spare is None:
            worker.node = worker.node if worker.node in self._alive() else self._emptiest()
            # no cores of its own: it never waits for those that a dying process still holds, or that a lost node took along
            spare = self._start(worker.node, num_cpus=0)
        worker.actor = spare
        self._build(worker)
        if self._met:
            worker.actor.meet.remote(*self._met)

    def note_node(self, worker: Worker, error: BaseException) -> None:
        """Stay away from a node that is said to be dead, which the list of nodes may learn later."""
        text = str(error).lower()
        if "node" in text and ("died" in text or "dead" in text or "unreachable" in text or "unavailable" in text):
            alive = {node["NodeID"] for node in self.connection.nodes()}
            if len(alive) > 1 or worker.node not in alive:
                self.lost_nodes.add(worker.node)

    def kill(self, worker: Worker) -> None:
        """End a worker's process, whatever state it is in."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker.actor, no_restart=True)
        here = self._ray.get_runtime_context().get_node_id()
        if worker.pid and worker.node == here and self._is_ours(worker.pid):
            # Ray asks it to exit, which a stopped process does not hear
            os.kill(worker.pid, signal.SIGKILL)
        worker.pid = 0

    def _is_ours(self, pid: int) -> bool:
        """Whether the process is a worker of Ray's still, and its id not somebody else's by now."""
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return file.read().startswith(b"ray::")
        except OSError:
            return False

    def _alive(self) -> list[str]:
        """Nodes that live, as far as anyone knows."""
        return [node["NodeID"] for node in self.connection.nodes() if node["NodeID"] not in self.lost_nodes]

    def _emptiest(self) -> str:
        """The node with the fewest workers."""
        nodes = self._alive() or [self.workers[0].node]
        return min(nodes, key=lambda node: sum(one.node == node for one in self.workers))

    def close(self) -> None:
        """End every worker, and leave the cluster."""
        if self._ray.is_initialized():
            for worker in self.workers:
                if worker.actor is not None:
                    self.kill(worker)
            for _, actor in self._spares:
                self._ray.kill(actor)
            self._spares = []
        self.connection.close()
