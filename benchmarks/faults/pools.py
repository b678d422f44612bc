"""What happens to a rollout when its pool is harmed: one table.

    python benchmarks/faults/pools.py [--json F] [--num-envs 256] [FAULT ...]

A Ray cluster of two nodes on this machine, go2_flat on two workers, and each fault in turn.  `recovery` is how much longer the
rollout took than a clean one of the same length, `same bits` whether it equals that of a run without the fault, `lost` how many
of its transitions are not valid.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when Ray starts: the death of a node is noticed within two seconds instead of fifteen.
os.environ |= {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

import gymnasium  # noqa: TID253
import numpy as np
import ray  # noqa: TID253
import torch
from ray.cluster_utils import Cluster  # noqa: TID253

from embodied_rl.config import Page, load
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Rollout
from embodied_rl.make_env import make_vector
from embodied_rl.pools.cluster import Connection
from embodied_rl.pools.pool import SimPool

STEPS = 24


class Harmful(gymnasium.Env):
    """A point that is pulled about; it does as the file `trap` says, once."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, trap: str) -> None:
        self.trap, self.pause, self.state = Path(trap), 0.002, np.zeros(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps, self.state = 0, self.np_random.normal(size=3)
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(self.pause)
        self.steps += 1
        self.state = 0.9 * self.state + np.resize(action, 3)
        kind = ""
        if self.trap.exists():
            kind = self.trap.read_text()
            self.trap.unlink(missing_ok=True)
        if kind == "raise":
            raise RuntimeError("the gripper is stuck")
        if kind == "slow":
            self.pause = 0.2
        state = self.state * np.nan if kind == "nan" else self.state
        return state, -float(np.abs(self.state).sum()), False, self.steps >= 50, {}


def make(**options: Any) -> gymnasium.Env:
    """What `python:pools:make` makes."""
    return Harmful(**options)


def policy(page: Page) -> Policy:
    env = make_vector(page, torch.arange(1))
    torch.manual_seed(0)
    size, space = env.obs["actor"].shape[1], env.action_space
    network = torch.nn.Sequential(torch.nn.Linear(size, 64), torch.nn.ELU(), torch.nn.Linear(64, space.size))
    std = torch.full((space.size,), 0.5)
    env.close()
    return Policy(torch.nn.Identity(), network.requires_grad_(False), lambda: std)


def fingerprint(rollout: Rollout) -> str:
    """A hash of everything that is learned from."""
    parts = [rollout.actions, rollout.output, rollout.rewards, rollout.terminated, rollout.truncated, rollout.valid]
    parts += [value for group in (rollout.obs, rollout.last_obs) for _, value in sorted(group.items())]
    parts += [value[rollout.truncated] for _, value in sorted(rollout.final_obs.items())]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Table:
    """Runs faults on pools of one page and notes what came of each."""

    def __init__(self, cluster: Cluster, num_envs: int) -> None:
        self.cluster, self.rows = cluster, []
        small = [
            *("env.compile=false", f"env.num_envs={num_envs}", "env.episode_s=1.0", "physics.num_threads=1"),
            *(f"train.steps={STEPS}", f"pool.shard_size={num_envs // 4}", "pool.workers=2", "pool.spares=1"),
        ]
        self.page = load("go2_flat", small)
        self.acting = policy(self.page)
        self.clean, self.seconds = self._clean()

    def pool(self, page: Page) -> SimPool:
        pool = SimPool(page)
        time.sleep(8.0)  # the spare loads
        return pool

    def _clean(self) -> tuple[list[str], float]:
        pool = self.pool(self.page)
        prints, seconds = [], []
        for iteration in range(4):
            started = time.perf_counter()
            prints.append(fingerprint(pool.collect(self.acting, iteration)))
            seconds.append(time.perf_counter() - started)
        pool.close()
        return prints, min(seconds)

    def run(self, name: str, harm: Callable[[SimPool], Any], *overrides: str) -> None:
        """One clean rollout, a harmed one, and one after it."""
        pool = self.pool(load("go2_flat", [*_told(self.page), *overrides]))
        try:
            pool.collect(self.acting, 0)
            undo = harm(pool)
            started = time.perf_counter()
            rollout = pool.collect(self.acting, 1)
            seconds = time.perf_counter() - started
            same, lost = fingerprint(rollout) == self.clean[1], int((~rollout.valid).sum())
            restarts = rollout.totals["pool/restarts"]
            after = fingerprint(pool.collect(self.acting, 2)) == self.clean[2]
            self.note(name, seconds, self.seconds, same, after, lost, rollout.valid.numel(), restarts)
            if undo:
                undo()
        finally:
            pool.close()

    def run_source(self, name: str, kind: str, *overrides: str) -> None:
        """An environment of another's that does something wrong once."""
        with tempfile.TemporaryDirectory() as folder:
            trap = Path(folder) / "trap"
            path = Path(folder) / "page.yaml"
            source = {"source": "python:pools:make", "source_options": {"trap": str(trap)}, "num_envs": 16}
            pool_ = {"workers": 2, "shard_size": 4, "spares": 0}
            path.write_text(
                json.dumps({"env": source, "physics": {"max_unstable": 1.0}, "pool": pool_, "train": {"steps": STEPS}})
            )
            page = load(path, overrides)
            acting = policy(page)
            pool = self.pool(page)
            started = time.perf_counter()
            pool.collect(acting, 0)
            clean = time.perf_counter() - started
            trap.write_text(kind)
            started = time.perf_counter()
            rollout = pool.collect(acting, 1)
            seconds = time.perf_counter() - started
            lost = int((~rollout.valid).sum())
            said = [dump["error"] for dump in pool.drain_unstable()]
            self.note(name, seconds, clean, None, None, lost, rollout.valid.numel(), rollout.totals["pool/restarts"], said)
            pool.close()

    def note(
        self,
        name: str,
        seconds: float,
        clean: float,
        same: bool | None,
        after: bool | None,
        lost: int,
        of: int,
        restarts: float,
        said: list[str] | None = None,
    ) -> None:
        row = {"fault": name, "collect_s": seconds, "clean_s": clean, "recovery_s": seconds - clean, "same_bits": same}
        row |= {"same_bits_after": after, "lost": lost, "of": of, "restarts": restarts, "said": said or []}
        self.rows.append(row)
        tell = {None: "-", True: "yes", False: "no"}
        print(
            f"{name:42s} recovery {seconds - clean:6.2f} s   same bits {tell[same]:3s} then {tell[after]:3s}   "
            f"lost {lost:5d} of {of}   restarts {restarts:.0f}   {' '.join(said or [])[:60]}",
            flush=True,
        )


def _told(page: Page) -> list[str]:
    """The overrides that make `page` of go2_flat."""
    env, pool = page.env, page.pool
    return [
        *("env.compile=false", f"env.num_envs={env.num_envs}", "env.episode_s=1.0", "physics.num_threads=1"),
        *(f"train.steps={STEPS}", f"pool.shard_size={pool.shard_size}", "pool.workers=2", "pool.spares=1"),
    ]


def kill(index: int, number: signal.Signals = signal.SIGKILL, wait: float = 0.1) -> Callable[[SimPool], None]:
    """Send a worker a signal in the middle of the next rollout."""
    return lambda pool: threading.Timer(wait, os.kill, (pool.crew.workers[index].pid, number)).start()


def lose_node(table: Table, *, after: bool) -> Callable[[SimPool], Any]:
    """Kill the raylet of a worker's node that is not the head, before its result is there or between its end and its fetching."""

    def harm(pool: SimPool) -> Callable[[], None]:
        homes = {node.node_id: node for node in table.cluster.worker_nodes}
        worker = next(worker for worker in pool.crew.workers if worker.node in homes)
        node = homes[worker.node]
        if after:
            dispatcher, wait = pool.dispatcher, pool.dispatcher.wait

            def once(receiver: Any, *, patiently: bool = True) -> None:
                dispatcher.wait = wait  # the result is there, and the driver has not looked yet
                ray.wait([dispatcher.requests[worker.index][0].ref], fetch_local=False, timeout=60.0)
                node.kill_raylet()
                wait(receiver, patiently=patiently)

            dispatcher.wait = once
        else:
            threading.Timer(0.1, node.kill_raylet).start()

        def undo() -> None:
            table.cluster.remove_node(node)
            table.cluster.add_node(num_cpus=4, object_store_memory=200 << 20)

        return undo

    return harm


def driver_killed(table: Table) -> None:
    """How long its actors outlive a driver that is killed."""
    code = f"""
import time
from embodied_rl.config import load
from embodied_rl.pools.cluster import Connection
from embodied_rl.pools.pool import SimPool
pool = SimPool(load("go2_flat", {[*_told(table.page), f"pool.address={table.cluster.address}"]!r}))
print(*(worker.pid for worker in pool.crew.workers), flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = process.stdout.readline().split()
    process.kill()
    started = time.perf_counter()
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.perf_counter() - started < 60.0:
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    left = sum(Path(f"/proc/{pid}").exists() for pid in pids)
    table.rows.append({"fault": "driver killed", "recovery_s": seconds, "orphans": left})
    print(f"{'driver killed':42s} all actors gone after {seconds:.2f} s, {left} orphans", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="words that names of faults contain; default: all")
    parser.add_argument("--json", type=Path, metavar="F")
    parser.add_argument("--num-envs", type=int, default=256)
    options = parser.parse_args()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 200 << 20})
    cluster.add_node(num_cpus=4, object_store_memory=200 << 20)
    connection = Connection(str(cluster.address))
    table = Table(cluster, options.num_envs)
    print(f"go2_flat, {options.num_envs} environments x {STEPS} steps on 2 workers: a clean rollout takes {table.seconds:.2f} s")
    cases: dict[str, Callable[[str], None]] = {
        "SIGKILL of a worker, replay": lambda name: table.run(name, kill(0)),
        "SIGKILL of a worker, mask": lambda name: table.run(name, kill(1), "pool.on_crash=mask"),
        "SIGSTOP of a worker, timeout_s 5, replay": lambda name: table.run(name, kill(0, signal.SIGSTOP), "pool.timeout_s=5.0"),
        "node lost before its result": lambda name: table.run(name, lose_node(table, after=False)),
        "node lost after its result": lambda name: table.run(name, lose_node(table, after=True)),
        "raising environment": lambda name: table.run_source(name, "raise"),
        "NaN environment": lambda name: table.run_source(name, "nan"),
        "slow environment, deadline": lambda name: table.run_source(name, "slow", "pool.deadline_share=0.5"),
        "driver killed": lambda name: driver_killed(table),
    }
    for name, case in cases.items():
        if not options.faults or any(word.lower() in name.lower() for word in options.faults):
            case(name)
    if options.json:
        options.json.write_text(json.dumps(table.rows, indent=2) + "\n")
    connection.close()
    cluster.shutdown()


if __name__ == "__main__":
    main()
