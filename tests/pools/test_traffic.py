"""The metrics of a pool, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl.learn.metrics import Metrics, step_metrics
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.rollout import Rollout
from embodied_rl.pools.crew import Worker
from embodied_rl.pools.traffic import Traffic


def worker(index: int, envs: int) -> Worker:
    return Worker(index, range(index, index + 1), slice(0, envs), np.arange(envs), 1, "node")


def fragment(steps: int, floats: int, busy: float, idle: float) -> dict[str, Any]:
    seconds = {"busy": busy, "idle": idle}
    return {"steps": steps, "arrays": {"obs:actor": np.zeros(floats, np.float32)}, "seconds": seconds}


def test_bytes_and_staleness_are_those_of_what_came() -> None:
    workers = [worker(0, 4), worker(1, 2)]
    crew: Any = SimpleNamespace(workers=workers, world_size=1, settings=SimpleNamespace(mode="gradients"))
    traffic = Traffic(crew)
    # 4000 B of 10 x 4 samples in 1 + 1 s, 2000 + 800 B of 10 x 2 in 0.5 + 1.5 s
    traffic.receive(workers[0], fragment(10, 1000, 1.0, 1.0), None)
    traffic.receive(workers[1], fragment(10, 500, 0.5, 1.5), {"age": np.zeros(100, np.int64)})
    assert (traffic.decide(workers[0], 0), traffic.decide(workers[1], 3), traffic.decide(workers[1], 1)) == (0, 3, 1)
    traffic.queue = {"fragments": 1, "bytes": 4000}
    metrics = step_metrics(traffic.drain(2.0) | {"steps": 60.0, "unstable": 0.0})
    del metrics["Physics/unstable"], metrics["Physics/overflow"]
    assert metrics == pytest.approx(
        {
            "Pool/queue_fragments": 1.0,
            "Pool/queue_bytes": 4000.0,
            "Pool/bytes_per_sample": 6800 / 60,
            "Pool/MB_per_s_per_worker": 0.0068 / 2.0 / 2,
            "Pool/idle": 2.5 / 4.0,
            "Pool/largest_staleness": 3.0,
            "Pool/worker_0_staleness": 0.0,
            "Pool/worker_1_staleness": 3.0,
        }
    )
    assert traffic.bound() == {"most_fragments": 2, "most_bytes": 8000}
    crew.settings.mode = "async"
    assert traffic.bound() == {"most_fragments": 6, "most_bytes": 24000}
    assert (workers[0].bytes_per_sample, workers[0].mb_per_s, workers[0].idle) == pytest.approx((100.0, 0.002, 0.5))
    assert (workers[1].staleness, workers[1].largest_staleness) == (1, 3)
    # the next rollout counts anew
    assert "Pool/largest_staleness" not in step_metrics(traffic.drain(1.0) | {"steps": 0.0, "unstable": 0.0})


def test_ranks_share_out_sums_and_have_one_largest() -> None:
    class Two(Group):
        def gather(self, value: Any) -> list[Any]:
            if not isinstance(value, tuple):
                return [value] * 2
            other = {"largest/Pool/largest_staleness": 4.0, "share/Pool/bytes_per_sample": 900.0, "pool/restarts": 2.0}
            other |= {"share_of/Pool/bytes_per_sample": 10.0}
            return [value, (value[0], value[1] | other)]

    zeros = torch.zeros(2, 3)
    totals = dict.fromkeys(("steps", "unstable", "episodes", "terminated", "episode_length", "reward/total"), 0.0)
    totals |= {"largest/Pool/largest_staleness": 2.0, "share/Pool/bytes_per_sample": 100.0, "pool/restarts": 1.0}
    totals |= {"share_of/Pool/bytes_per_sample": 10.0}
    rollout = Rollout({}, zeros, zeros, None, zeros, zeros, zeros, zeros, {}, {}, totals=totals)
    metrics = Metrics(Two()).of(rollout, 1.0, 1.0, 1)
    names = ("largest_staleness", "bytes_per_sample", "restarts")
    assert [metrics[f"Pool/{name}"] for name in names] == [4.0, 50.0, 3.0]
