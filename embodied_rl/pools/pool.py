"""A pool as a collector: one rollout out of fragments of many processes, the same whatever their number.

One iteration of mode `sync`: the policy's numbers go out once, every worker drives its environments for T steps and sends a
whole fragment back, each is copied to its place as it comes.  At most one request is in flight for a worker (two in `async`),
so that nothing piles up.  A lost worker is replaced, and by default collects its part again from the newest snapshot, with the
same weights and the same random numbers: the same bits.

`overlap` sends the next requests before it hands out what came, so that simulators work while the learner does; `async` lets
them never wait, and takes whatever shards come first.  Both hand out what an older policy did, with the odds that the present
one would have done it (`Rollout.ratio`).

Legend: T steps, N environments, k iteration.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Rollout
from embodied_rl.pools.assembly import Assembly
from embodied_rl.pools.cluster import Connection
from embodied_rl.pools.copies import pack, plain_copy
from embodied_rl.pools.crew import Crew, Worker
from embodied_rl.pools.errors import PoolError
from embodied_rl.pools.stale import weigh
from embodied_rl.pools.status import write_status
from embodied_rl.vector_env import Obs

log = logging.getLogger("embodied_rl")

#: Seconds between two looks at who is late.
_TICK_S = 0.05
#: Counts of a rollout that a pool adds to its totals, under `pool/`.
COUNTS = ("restarts", "masked_steps", "cut_steps", "late_fragments", "replayed_fragments")


@dataclass
class Request:
    """One fragment that a worker owes."""

    iteration: int
    weights: Any
    """Reference of the weights it is to be collected with."""
    version: int
    """Theirs."""
    ref: Any
    """Reference of the fragment."""
    sent: float
    patience: float
    """Seconds without an answer that make the worker a lost one."""
    hurried: float | None = None
    """When it was told to stop."""


class SimPool:
    """A `Collector` whose environments live in processes of their own.

    Args:
        page: the task; its `pool` section says how many processes, where, and what happens when one is lost.
        env_ids: global ids of its environments, int64 (N,); by default all of the page's.
        device: where the learner wants rollouts.
        status: file that says after every iteration how the pool is; None: none is written.
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
        self.page, self._settings, self._status = page, page.pool, status
        env_ids = torch.arange(page.env.num_envs) if env_ids is None else env_ids
        self.num_envs, self.num_steps, self._device = len(env_ids), page.ppo.num_steps_per_env, torch.device(device)
        if page.pool.mode == "async" and self.num_envs % page.pool.shard_size:
            raise PoolError(
                f"pool.shard_size: {page.pool.shard_size}: async wants env.num_envs ({self.num_envs}) in equal shards"
            )
        self.crew = Crew.open(page, env_ids, connection, world_size)
        self._ray = self.crew.connection.ray
        self._end = weakref.finalize(self, self.crew.close)
        described = self.crew.described
        self.action_space, self.mirrors = self.crew.action_space, self.crew.mirrors
        self._sizes, self._final_groups = described["obs"], described["final_obs"]
        self._policy: Policy | None = None
        self._assembly: Assembly | None = None
        self._version = -1
        self._weights: Any = None
        self._requests: dict[int, deque[Request]] = {worker.index: deque() for worker in self.crew.workers}
        # what a replay begins with: the state at the beginning of an iteration (None: as built) and the requests since
        self._kept: dict[int, dict[str, np.ndarray] | None] = dict.fromkeys(self._requests)
        self._since: dict[int, list[Request]] = {index: [] for index in self._requests}
        self._counts = dict.fromkeys(COUNTS, 0)
        self._arrived: deque[tuple[Worker, dict[str, Any], slice]] = deque()
        self._unstable: list[dict] = []
        self._iteration = 0
        self._got: dict[int, dict[str, Any] | None] = {}
        self._share_came: float | None = None
        self.timings: dict[str, float] = {}
        self.steps_per_s = 0.0
        """Of the last rollout, since the one before it: what the run makes, its updates included."""
        self._handed_out = time.perf_counter()

    # ------------------------------------------------------------------------------------------------------ as a collector

    def observe(self) -> Obs:
        """Zeros of the observations' sizes, (N, O): they themselves are elsewhere."""
        return {name: torch.zeros(self.num_envs, *shape, device=self._device) for name, shape in self._sizes.items()}

    def collect(self, policy: Policy, iteration: int) -> Rollout:
        """Let the policy drive for T steps; the rollout's tensors are overwritten by the next call.

        Raises:
            PoolError: a worker was lost and `pool.on_crash` is raise, or more were lost than the page allows.
        """
        started = time.perf_counter()
        if self._policy is not policy:
            self._policy = policy
            self.crew.meet(plain_copy(policy))
        self._iteration = iteration
        self._publish(policy)
        put = time.perf_counter()
        rollout = {"sync": self._sync, "overlap": self._overlap, "async": self._async}[self._settings.mode](policy, iteration)
        self.crew.keep_spares()  # not before the rollout is there: they would take its cores while they load
        self.timings["put"] = put - started
        now = time.perf_counter()
        self.timings["collect"] = now - started
        self.steps_per_s, self._handed_out = rollout.rewards.numel() / (now - self._handed_out), now
        if self._status:
            write_status(self._status, self)
        return rollout

    def drain_unstable(self) -> list[dict]:
        """What is known of environments that failed since the last call; `row` is the pool's."""
        dumps, self._unstable = self._unstable, []
        return dumps

    def snapshot(self) -> dict[str, Tensor]:
        """The state of every environment, (N, ...); what is in flight is waited for."""
        parts = []
        for worker in self.crew.workers:
            self._settle(worker)
            parts.append(self._ask(worker, lambda actor: actor.snapshot.remote()))
        return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `snapshot`, from any number of workers or from this process."""
        for worker in self.crew.workers:
            self._settle(worker)
            part = {name: value[worker.rows].cpu().numpy() for name, value in state.items()}
            self._kept[worker.index], self._since[worker.index] = part, []
            try:
                self._ray.get(worker.actor.restore.remote(part), timeout=self._settings.timeout_s)
            except self._ray.exceptions.RayTaskError as error:
                raise ValueError(self.crew.blame(worker, error).partition(": ")[2]) from None
            except self._ray.exceptions.RayError as error:
                self._recover(worker, self.crew.blame(worker, error), replay=True)

    def close(self) -> None:
        """End the workers, and leave the cluster, or shut it down if this pool started it."""
        self._end()

    # ---------------------------------------------------------------------------------------------------------------- modes

    def _sync(self, policy: Policy, iteration: int) -> Rollout:
        for worker in self.crew.workers:
            self._send(worker, iteration)
        return self._gather(iteration)

    def _overlap(self, policy: Policy, iteration: int) -> Rollout:
        """Hand out what was asked for one update ago, and ask for the next before it is learned from."""
        for worker in self.crew.workers:
            if not self._requests[worker.index]:
                self._send(worker, iteration)
        rollout = self._gather(iteration)
        for worker in self.crew.workers:
            self._send(worker, iteration + 1)
        return weigh(rollout, policy, self._stale_std, self._staleness, self._settings.importance_clip)

    def _async(self, policy: Policy, iteration: int) -> Rollout:
        """Take the first shards that come, not older than `max_staleness` versions; nobody waits."""
        size = self._settings.shard_size
        wanted = max(1, round(self._settings.batch_share * (self.num_envs // size))) * size
        for worker in self.crew.workers:
            worker.actor.renew.options(concurrency_group="control").remote(self._weights)
            self._fill_up(worker, iteration)
        rollout: Rollout | None = None
        stds, filled, started = [], 0, time.perf_counter()
        staleness = torch.zeros(wanted)
        fragments = []
        while filled < wanted:
            while not self._arrived:
                self._wait(self._accept_async)
            worker, fragment, rows = self._arrived.popleft()
            age = self._version - fragment["version"]
            if age > self._settings.max_staleness:
                self._counts["late_fragments"] += 1
                continue
            count = min(rows.stop - rows.start, wanted - filled)
            assembly = self._assembled(fragment, wanted)
            assembly.write(fragment, slice(filled, filled + count), slice(rows.start, rows.start + count))
            stds.append((slice(filled, filled + count), fragment["arrays"].get("std")))
            staleness[filled : filled + count] = age
            if count < rows.stop - rows.start:
                self._arrived.appendleft((worker, fragment, slice(rows.start + count, rows.stop)))
            if not rows.start:
                fragments.append((worker, fragment))
            filled += count
        self.timings["wait"] = time.perf_counter() - started
        assert self._assembly is not None
        rollout = self._finish(fragments)
        return weigh(rollout, policy, stds, staleness, self._settings.importance_clip)

    def _accept_async(self, worker: Worker, fragment: dict[str, Any] | None) -> None:
        if fragment is not None:
            self._arrived.append((worker, fragment, slice(0, len(worker.env_ids))))
        self._fill_up(worker, self._iteration)

    def _fill_up(self, worker: Worker, iteration: int) -> None:
        """Two requests in flight: one that is worked on, one that follows without a pause."""
        while len(self._requests[worker.index]) < 2:
            self._send(worker, iteration)

    # ------------------------------------------------------------------------------------------------- requests and answers

    def _publish(self, policy: Policy) -> None:
        """Put the policy's numbers where every worker fetches them, once."""
        self._version += 1
        # the newest is held until it is replaced, older ones by the requests that a replay needs
        self._weights = self._ray.put({"version": self._version, "numbers": pack(policy)})

    def _send(self, worker: Worker, iteration: int, weights: Any = None, version: int = -1, *, starting: bool = False) -> None:
        """Ask for a fragment, collected with the newest weights or with these, of a worker that is there or is starting."""
        settings = self._settings
        wants = settings.on_crash == "replay" and (iteration + 1) % settings.snapshot_interval == 0
        weights, version = (self._weights, self._version) if weights is None else (weights, version)
        ref = worker.actor.collect.remote(weights, iteration, wants and settings.mode != "async")
        patience = settings.timeout_s + (settings.start_timeout_s if starting else 0.0)
        self._requests[worker.index].append(Request(iteration, weights, version, ref, time.monotonic(), patience))

    def _send_again(self, worker: Worker, owed: list[Request]) -> None:
        """Ask a replacement for what the lost one owed."""
        self._requests[worker.index].clear()
        for request in owed:
            self._send(worker, request.iteration, request.weights, request.version, starting=True)

    def _gather(self, iteration: int) -> Rollout:
        """Wait until every worker has sent its fragment of this iteration, or is left out."""
        started = time.perf_counter()
        self._got, self._share_came = {}, None
        while len(self._got) < len(self.crew.workers):
            self._wait(lambda worker, fragment: self._got.__setitem__(worker.index, fragment))
        self.timings["wait"] = time.perf_counter() - started - self.timings.pop("copy", 0.0)
        workers = self.crew.workers
        fragments = [(worker, fragment) for worker in workers if (fragment := self._got[worker.index]) is not None]
        assembly = self._assembled(fragments[0][1], self.num_envs)
        for worker in workers:
            if self._got[worker.index] is None:
                assembly.leave_out(worker.rows)
                self._counts["masked_steps"] += len(worker.env_ids) * self.num_steps
        # all were collected with one policy
        self._stale_std = [(slice(0, self.num_envs), fragments[0][1]["arrays"].get("std"))]
        self._staleness = torch.full((self.num_envs,), float(self._version - fragments[0][1]["version"]))
        return self._finish(fragments)

    def _wait(self, accept: Callable[[Worker, dict[str, Any] | None], None]) -> None:
        """Take the fragments that are there, and see who is late; `accept` gets None for one that is left out."""
        first = {requests[0].ref: index for index, requests in self._requests.items() if requests}
        ready, _ = self._ray.wait(list(first), num_returns=len(first), timeout=0.0, fetch_local=True)
        if not ready:
            # one that is here already is no reason to sleep, and one that never comes none to sleep long
            ready, _ = self._ray.wait(list(first), num_returns=1, timeout=_TICK_S, fetch_local=True)
        for ref in ready:
            worker = self.crew.workers[first[ref]]
            self._receive(worker, accept)
        self._look_after_the_late(accept)

    def _receive(self, worker: Worker, accept: Callable[[Worker, dict[str, Any] | None], None]) -> None:
        requests = self._requests[worker.index]
        request = requests[0]
        try:
            fragment = self._ray.get(request.ref, timeout=self._settings.grace_s)
        except self._ray.exceptions.RayError as error:
            self._lost(worker, self.crew.blame(worker, error), accept, error)
            return
        requests.popleft()
        if self._settings.mode != "async" and (fragment["iteration"], fragment["version"]) != (
            request.iteration,
            request.version,
        ):
            # not what was asked for, whoever's answer it is
            self._counts["late_fragments"] += 1
            self._send(worker, request.iteration, request.weights, request.version)
            return
        worker.pid, worker.node = fragment["pid"], fragment["node"] or worker.node
        self._remember(worker, request, fragment)
        if self._settings.mode != "async":
            copying = time.perf_counter()
            self._assembled(fragment, self.num_envs).write(fragment, worker.rows)
            self.timings["copy"] = self.timings.get("copy", 0.0) + time.perf_counter() - copying
            # what stays must be a copy: a view would hold the whole fragment in the object store
            fragment["arrays"] = {name: np.array(value) for name, value in fragment["arrays"].items() if name == "std"}
        accept(worker, fragment)

    def _remember(self, worker: Worker, request: Request, fragment: dict[str, Any]) -> None:
        """Keep what a replay begins with."""
        for dump in fragment["unstable"]:
            self._unstable.append(dump | {"row": dump["row"] + worker.rows.start})
        if self._settings.on_crash != "replay" or self._settings.mode == "async":
            return
        if fragment["snapshot"] is not None:
            self._kept[worker.index] = {name: np.array(value) for name, value in fragment.pop("snapshot").items()}
            self._since[worker.index] = []
        else:
            self._since[worker.index].append(request)

    def _finish(self, fragments: list[tuple[Worker, dict[str, Any]]]) -> Rollout:
        """Totals and times, in the order of the shards."""
        assert self._assembly is not None
        rollout = self._assembly.done()
        fragments = sorted(fragments, key=lambda pair: pair[0].index)
        if fragments and "std" in (arrays := fragments[0][1]["arrays"]) and rollout.std is not None:
            rollout.std.copy_(torch.from_numpy(np.array(arrays["std"])))
        totals: dict[str, float] = {}
        for worker, fragment in fragments:
            for name, value in fragment["totals"].items():
                totals[name] = totals.get(name, 0.0) + value
            cut = self.num_steps - fragment["steps"]
            self._counts["cut_steps"] += cut * len(worker.env_ids)
            worker.busy_s = fragment["seconds"]["busy"]
            worker.steps_per_s = fragment["steps"] * len(worker.env_ids) / max(worker.busy_s, 1e-9)
        for name in ("steps", "unstable", "episodes", "falls", "episode_length", "reward/total"):
            totals.setdefault(name, 0.0)
        rollout.totals = totals | {f"pool/{name}": float(value) for name, value in self._counts.items()}
        self._counts = dict.fromkeys(COUNTS, 0)
        rollout.seconds = self._seconds([fragment["seconds"] for _, fragment in fragments])
        return rollout

    def _seconds(self, seconds: list[dict[str, float]]) -> dict[str, float]:
        """Where the time went: means over workers, what the slowest took beyond that, and what no worker accounts for."""
        wait = self.timings.get("wait", 0.0)
        if self._settings.mode != "sync" or not seconds:
            return {"wait": wait}
        mean = {name: sum(one.get(name, 0.0) for one in seconds) / len(seconds) for name in ("physics", "env", "policy")}
        busy = [one["busy"] for one in seconds]
        average = sum(busy) / len(busy)
        self.timings |= {"busy": average, "slowest": max(busy)}
        return mean | {"slowest": max(busy) - average, "transfer": max(0.0, wait - max(busy))}

    def _assembled(self, fragment: dict[str, Any], num_envs: int) -> Assembly:
        if self._assembly is None:
            self._assembly = Assembly(fragment, self.num_steps, num_envs, self._final_groups, self._device)
        return self._assembly

    # ----------------------------------------------------------------------------------------------------- when things fail

    def _look_after_the_late(self, accept: Callable[[Worker, dict[str, Any] | None], None]) -> None:
        """Hurry stragglers where the page says so; give up those that are silent for too long."""
        settings, now = self._settings, time.monotonic()
        for worker in self.crew.workers:
            if not (requests := self._requests[worker.index]):
                continue
            request = requests[0]
            grace = now - request.hurried if request.hurried is not None else 0.0
            if now - request.sent > request.patience or grace > settings.grace_s:
                waited = f"no answer for {now - request.sent:.1f} s" + (f", {grace:.1f} s after it was hurried" if grace else "")
                self._lost(worker, f"{worker.name}: {waited}; it is {self.crew.where(worker)}", accept)
            elif request.hurried is None and self._is_straggling(request, now):
                request.hurried = now
                worker.actor.stop.options(concurrency_group="control").remote(request.iteration)

    def _is_straggling(self, request: Request, now: float) -> bool:
        settings = self._settings
        if settings.deadline_share is None or settings.mode == "async":
            return False
        arrived = sum(len(self.crew.workers[index].shards) for index in self._got)
        enough = arrived >= settings.deadline_share * sum(len(worker.shards) for worker in self.crew.workers)
        if not enough:
            return False
        if self._share_came is None:
            self._share_came = now
        took = self._share_came - request.sent
        return now - request.sent > settings.deadline_factor * took

    def _lost(
        self,
        worker: Worker,
        why: str,
        accept: Callable[[Worker, dict[str, Any] | None], None],
        error: BaseException | None = None,
    ) -> None:
        """A worker will not send what it owes: collect it again, leave it out, or stop.

        Raises:
            PoolError: the page says so, the environment itself raised, or it has happened too often.
        """
        if error is not None and self.crew.is_its_own(error):
            # it would raise again: the code is the same
            log.error("%s", error)
            raise PoolError(f"pool: {why}; iteration {self._iteration}, env.seed {self.page.env.seed}") from None
        if self._settings.on_crash == "raise":
            raise PoolError(f"pool: {why}; iteration {self._iteration}; pool.on_crash: raise") from None
        self._note_node(worker, error)
        owed = list(self._requests[worker.index])
        self._counts["restarts"] += 1
        replay = self._settings.on_crash == "replay" and self._settings.mode != "async"
        self._recover(worker, why, replay=replay)
        if self._settings.mode == "async":
            self._requests[worker.index].clear()
            worker.actor.renew.options(concurrency_group="control").remote(self._weights)
            self._fill_up(worker, self._iteration)
            return
        if not replay and self._may_do_without(worker):
            owed = owed[1:]
            accept(worker, None)
        self._send_again(worker, owed)

    def _may_do_without(self, worker: Worker) -> bool:
        """Whether enough of the rollout is left when this worker's part of it is left out too."""
        missing = sum(len(self.crew.workers[index].env_ids) for index, fragment in self._got.items() if fragment is None)
        left = self.num_envs - missing - len(worker.env_ids)
        return left > 0 and left >= self._settings.min_valid * self.num_envs

    def _recover(self, worker: Worker, why: str, *, replay: bool) -> None:
        """A new process in the place of a lost one, with the state that the lost one had after its last fragment, or fresh."""
        self.crew.replace(worker, why)
        actor = worker.actor
        if not replay:
            actor.fresh.remote((self._iteration + 1) * self.num_steps)
            return
        if (state := self._kept[worker.index]) is not None:
            actor.restore.remote(state)
        for request in self._since[worker.index]:
            self._counts["replayed_fragments"] += 1
            actor.collect.remote(request.weights, request.iteration, False)

    def _note_node(self, worker: Worker, error: BaseException | None) -> None:
        """Stay away from a node that is said to be dead, which the list of nodes may learn later."""
        text = str(error).lower() if error is not None else ""
        if "node" in text and ("died" in text or "dead" in text or "unreachable" in text or "unavailable" in text):
            alive = {node["NodeID"] for node in self.crew.connection.nodes()}
            if len(alive) > 1 or worker.node not in alive:
                self.crew.lost_nodes.add(worker.node)

    def _settle(self, worker: Worker) -> None:
        """Wait for what a worker owes without taking it."""
        for request in self._requests[worker.index]:
            self._ray.wait([request.ref], timeout=self._settings.timeout_s, fetch_local=False)

    def _ask(self, worker: Worker, question: Callable[[Any], Any]) -> Any:
        """An answer of a worker between two rollouts; of its replacement where it is lost."""
        while True:
            try:
                return self._ray.get(question(worker.actor), timeout=self._settings.timeout_s)
            except self._ray.exceptions.RayError as error:
                if self.crew.is_its_own(error):
                    raise PoolError(f"pool: {self.crew.blame(worker, error)}") from None
                self._note_node(worker, error)
                self._counts["restarts"] += 1
                replay, owed = self._settings.on_crash == "replay", list(self._requests[worker.index])
                self._recover(worker, self.crew.blame(worker, error), replay=replay)
                if replay:
                    self._send_again(worker, owed)
