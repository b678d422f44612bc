"""How a pool is, in one file: written once a second, read by `embodied-rl pool status`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from embodied_rl.pools.errors import PoolError


def write_status(path: Path, status: dict[str, Any]) -> None:
    """Write `SimPool.status` whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(status, indent=2) + "\n")
    temporary.replace(path)


def read_status(folder: Path) -> list[dict[str, Any]]:
    """Read what the pools of a run directory, one for each rank, have last written there.

    Raises:
        PoolError: none has written anything, or something else has written over it.
    """
    found = sorted(folder.glob("pool*.json"))
    if not found:
        raise PoolError(f"{folder}: no pool has written its status here; pool.workers on the page makes one")
    return [_read(path) for path in found]


def _read(path: Path) -> dict[str, Any]:
    try:
        status = json.loads(path.read_text())
        shown(status)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise PoolError(f"{path}: no status of a pool; remove it, and the next iteration writes another") from None
    return status


def shown(status: dict[str, Any]) -> str:
    """Write a status as text for a person."""
    seconds, queue = status["seconds"], status["queue"]
    age = time.time() - status["time"]
    lines = [
        f"{status['page']}: iteration {status['iteration']}, mode {status['mode']}, {status['num_envs']} environments, "
        f"{status['steps_per_s']:,.0f} steps/s, {status['gradient_steps_per_s']:,.1f} gradient steps/s, {age:.0f} s ago",
        "seconds of the last rollout: " + "  ".join(f"{name} {value:.3f}" for name, value in seconds.items()),
        f"waiting for the learner: {queue['fragments']} fragments of at most {queue['most_fragments']}, "
        f"{queue['bytes'] / 1e6:.2f} MB of at most {queue['most_bytes'] / 1e6:.2f} MB",
        "node      address          cores  workers",
    ]
    for node in status["nodes"]:
        workers = ", ".join(map(str, node["workers"])) or "-"
        lines.append(f"{node['node']:9s} {node['address']:16s} {node['cores']:5.0f}  {workers}")
    lines.append(
        "worker  node      pid      shards     environments    steps/s    idle  B/sample    MB/s  behind  at most  restarts"
    )
    for one in status["workers"]:
        shards = f"{one['shards'][0]}-{one['shards'][1]}"
        numbers = f"{one['environments']:12d}  {one['steps_per_s']:9,.0f}  {100 * one['idle']:4.0f} %  "
        numbers += f"{one['bytes_per_sample']:8,.0f}  {one['mb_per_s']:6.2f}  "
        numbers += f"{one['staleness']:6d}  {one['largest_staleness']:7d}  {one['restarts']:8d}"
        lines.append(f"{one['worker']:6d}  {one['node']:8s}  {one['pid']:<7d}  {shards:9s}  {numbers}")
    return "\n".join(lines)
