"""A pool as a collector: one rollout out of fragments of many processes, the same whatever their number.

Each iteration every worker drives its environments for T steps and sends a whole fragment back, which is copied to its place
in the rollout.  What is asked for and waited for is a mode's (`lockstep.py`, `asynchronous.py`); how, and what becomes of lost
workers, the dispatcher's (`dispatcher.py`, `replay.py`).

Legend: T steps, N environments.
"""

from __future__ import annotations

import math
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.learn.copies import pack, pack_networks, plain_copy
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Rollout
from embodied_rl.pools.apex import Apex
from embodied_rl.pools.assembly import blank_obs, check_shards
from embodied_rl.pools.asynchronous import Async
from embodied_rl.pools.cluster import Connection
from embodied_rl.pools.crew import Crew
from embodied_rl.pools.dispatcher import Dispatcher
from embodied_rl.pools.errors import PoolError
from embodied_rl.pools.gradients import Gradients
from embodied_rl.pools.lockstep import Overlap, Sync
from embodied_rl.pools.status import write_status
from embodied_rl.vector_env import Obs

if TYPE_CHECKING:
    from embodied_rl.learn.learner import Learner

_MODES = {"sync": Sync, "overlap": Overlap, "async": Async, "gradients": Gradients, "apex": Apex}
#: Seconds between two writings of the status: some iterations take a hundredth of one.
_STATUS_S = 1.0


class SimPool:
    """A `Collector` whose environments live in processes of their own.

    Args:
        page: the task; its `pool` section says how many processes, where, and what happens when one is lost.
        env_ids: global ids of its environments, int64 (N,); by default all of the page's.
        device: where the learner wants rollouts.
        status: file that says how the pool is, once a second and with every snapshot; None: none is written.
        world_size: how many learners share the cluster's cores, each with a pool of other environments.
        connection: to the cluster; by default what `pool.address` says.

    Raises:
        PoolError: the workers cannot be started.
    """

    def __init__(
        self,
        page: Page,
        env_ids: Tensor | None = None,
        *,
        device: torch.device | str = "cpu",
        status: Path | None = None,
        world_size: int = 1,
        connection: Connection | None = None,
    ) -> None:
        env_ids = torch.arange(page.env.num_envs) if env_ids is None else env_ids
        self.page = page
        self.num_envs = len(env_ids)
        self.num_steps: int = page.train.steps
        if page.pool.mode == "async":
            check_shards(self.num_envs, page.pool.shard_size)
        if page.pool.mode in ("gradients", "apex") and world_size > 1:
            raise PoolError(f"pool.mode: {page.pool.mode}: it has one learner; leave torchrun out, or take another mode")
        self.crew = Crew.open(page, env_ids, connection, world_size)
        self._end = weakref.finalize(self, self.crew.close)
        self.action_space = self.crew.action_space
        self.dispatcher = Dispatcher(self.crew)
        self.timings: dict[str, float] = {}
        self.steps_per_s = self.rollouts_per_s = 0.0
        """Speed of the last rollout, from the end of the one before it: updates included."""
        self._device = torch.device(device)
        self.mirrors = self.crew.mirrors(self._device)
        self._mode = _MODES[page.pool.mode](self.dispatcher, self._device)
        self._policy: Policy | None = None
        self.learner: Learner | None = None
        """Whom it collects for."""
        self._status_file = status
        self._handed_out, self._written = time.perf_counter(), -math.inf

    def observe(self) -> Obs:
        """Zeros of the observations' sizes, (N, O): they themselves are elsewhere."""
        return blank_obs(self.crew.described, self.num_envs, device=self._device)

    def collect(self, policy: Policy, iteration: int, numbers: dict[str, Tensor] | None = None) -> Rollout:
        """Let the policy drive for T steps; the rollout's tensors are overwritten by the next call.

        What an older policy collected, it collected under the numbers that were sent with it.

        Raises:
            PoolError: a worker was lost and `pool.on_crash` is raise, or more were lost than the page allows.
        """
        started = time.perf_counter()
        self.dispatcher.look_at_the_queue(self._mode)
        self.dispatcher.publish(self._weights(policy), iteration, numbers or {})
        put = time.perf_counter()
        rollout = self._mode.collect(policy, iteration)
        self.crew.keep_spares()  # not before the rollout is there: they would take its cores while they load
        now = time.perf_counter()
        self.timings = self._mode.timings | {"put": put - started, "collect": now - started}
        rollout.totals |= self.dispatcher.traffic.drain(now - self._handed_out)
        self.rollouts_per_s, self._handed_out = 1.0 / (now - self._handed_out), now
        self.steps_per_s = rollout.rewards.numel() * self.rollouts_per_s
        if now - self._written > _STATUS_S:
            self._write_status()
        return rollout

    def _write_status(self) -> None:
        if self._status_file:
            write_status(self._status_file, self.status())
            self._written = time.perf_counter()

    def serve(self, learner: Learner) -> None:
        """Collect for this learner: in the mode `gradients` workers have a copy of it, in `apex` it has their replay."""
        self.learner = learner
        if isinstance(self._mode, Apex):
            self._mode.learner = learner  # pyright: ignore[reportAttributeAccessIssue]

    def _weights(self, policy: Policy) -> np.ndarray:
        """Pack what workers need: the policy's numbers, where they appraise the critics' too, where they learn all."""
        mode, learner = self.page.pool.mode, self.learner
        assert learner is not None or mode not in ("gradients", "apex"), "it is not known whom it collects for"
        if mode == "gradients":
            return pack_networks(learner.networks)  # pyright: ignore[reportOptionalMemberAccess]
        appraiser = learner.appraiser() if mode == "apex" and self.page.sac.prioritized else None  # pyright: ignore
        if self._policy is not policy:
            self._policy = policy
            self.crew.meet(plain_copy(policy), appraiser)
        packed = pack(policy)
        return packed if appraiser is None else np.concatenate((packed, pack_networks({"appraiser": appraiser})))

    def drain_unstable(self) -> list[dict]:
        """Hand out what is known of environments that failed since the last call; `row` is the pool's."""
        dumps, self.dispatcher.unstable = self.dispatcher.unstable, []
        return dumps

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the state of every environment, (N, ...); what is in flight is waited for."""
        parts = [self.dispatcher.ask(worker, lambda actor: actor.snapshot.remote()) for worker in self.crew.workers]
        self._write_status()  # a run ends with a snapshot
        return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set environments to what `snapshot` gave, from any number of workers or from this process.

        Raises:
            PoolError: the state is of other environments.
        """
        for worker in self.crew.workers:
            part = {name: value[worker.rows].cpu().numpy() for name, value in state.items()}
            self.dispatcher.replay.begin_with(worker, part)
            worker.lived = int(part["age"].max()) if "age" in part else worker.lived
            try:
                self.dispatcher.ask(worker, lambda actor, part=part: actor.restore.remote(part))
            except PoolError as error:
                raise PoolError(str(error).removeprefix(f"pool: {worker.name}: ")) from None

    def rest(self, *, at_once: bool = False) -> None:
        """See `Collector`: what is under way is in other processes."""

    def status(self) -> dict[str, Any]:
        """Nodes, shards, throughput and waits, as JSON has them."""
        workers = self.crew.workers
        nodes = {node["NodeID"]: node for node in self.crew.connection.nodes()}
        homes = dict.fromkeys([*nodes, *(worker.node for worker in workers)])
        return {
            "time": time.time(),
            "page": self.page.name,
            "mode": self.page.pool.mode,
            "address": self.page.pool.address,
            "iteration": self.dispatcher.iteration,
            "num_envs": self.num_envs,
            "steps_per_s": self.steps_per_s,
            "gradient_steps_per_s": self.rollouts_per_s * (self.learner.gradient_steps if self.learner else 0),
            "queue": self.dispatcher.traffic.queue | self.dispatcher.traffic.bound(),
            "seconds": self.timings,
            "nodes": [
                {
                    "node": home[:8],
                    "address": nodes.get(home, {}).get("NodeManagerAddress", "lost"),
                    "cores": nodes.get(home, {}).get("Resources", {}).get("CPU", 0.0),
                    "workers": [worker.index for worker in workers if worker.node == home],
                }
                for home in homes
            ],
            "workers": [
                {
                    "worker": worker.index,
                    "node": worker.node[:8],
                    "pid": worker.pid,
                    "shards": [worker.shards.start, worker.shards.stop - 1],
                    "environments": len(worker.env_ids),
                    "steps_per_s": worker.steps_per_s,
                    "exploration": worker.exploration,
                    "idle": worker.idle,
                    "staleness": worker.staleness,
                    "largest_staleness": worker.largest_staleness,
                    "bytes_per_sample": worker.bytes_per_sample,
                    "mb_per_s": worker.mb_per_s,
                    "restarts": worker.restarts,
                }
                for worker in workers
            ],
        }

    def close(self) -> None:
        """End the workers, and leave the cluster, or shut it down if this pool started it."""
        self._end()
