"""How a pool is, in one file: written after every iteration, read by `embodied-rl pool status`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embodied_rl.pools.errors import PoolError

if TYPE_CHECKING:
    from embodied_rl.pools.pool import SimPool


def write_status(path: Path, pool: SimPool) -> None:
    """Nodes, shards, throughput and waits; written whole or not at all."""
    crew, timings = pool.crew, pool.timings
    nodes = {node["NodeID"]: node for node in crew.connection.nodes()}
    homes = dict.fromkeys([*nodes, *(worker.node for worker in crew.workers)])
    state = {
        "time": time.time(),
        "page": pool.page.name,
        "mode": pool.page.pool.mode,
        "address": pool.page.pool.address,
        "iteration": pool._iteration,
        "num_envs": pool.num_envs,
        "steps_per_s": pool.steps_per_s,
        "seconds": timings,
        "nodes": [
            {
                "node": home[:8],
                "address": nodes.get(home, {}).get("NodeManagerAddress", "lost"),
                "cores": nodes.get(home, {}).get("Resources", {}).get("CPU", 0.0),
                "workers": [worker.index for worker in crew.workers if worker.node == home],
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
                "idle": 1.0 - min(1.0, worker.busy_s / max(timings["collect"], 1e-9)),
                "restarts": worker.restarts,
            }
            for worker in crew.workers
        ],
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=2) + "\n")
    temporary.replace(path)


def read_status(folder: Path) -> list[dict[str, Any]]:
    """What the pools of a run directory, one for each rank, have last written there.

    Raises:
        PoolError: none has written anything.
    """
    found = sorted(folder.glob("pool*.json"))
    if not found:
        raise PoolError(f"{folder}: no pool has written its status here; pool.workers on the page makes one")
    return [json.loads(path.read_text()) for path in found]


def shown(state: dict[str, Any]) -> str:
    """The file's content for a person."""
    seconds = state["seconds"]
    age = time.time() - state["time"]
    lines = [
        f"{state['page']}: iteration {state['iteration']}, mode {state['mode']}, {state['num_envs']} environments, "
        f"{state['steps_per_s']:,.0f} steps/s, {age:.0f} s ago",
        "seconds of the last rollout: " + "  ".join(f"{name} {value:.3f}" for name, value in seconds.items()),
        "node      address          cores  workers",
    ]
    for node in state["nodes"]:
        workers = ", ".join(map(str, node["workers"])) or "-"
        lines.append(f"{node['node']:9s} {node['address']:16s} {node['cores']:5.0f}  {workers}")
    lines.append("worker  node      pid      shards     environments  steps/s    idle  restarts")
    for one in state["workers"]:
        shards = f"{one['shards'][0]}-{one['shards'][1]}"
        numbers = f"{one['environments']:12d}  {one['steps_per_s']:9,.0f}  {100 * one['idle']:4.0f} %  {one['restarts']:8d}"
        lines.append(f"{one['worker']:6d}  {one['node']:8s}  {one['pid']:<7d}  {shards:9s}  {numbers}")
    return "\n".join(lines)
