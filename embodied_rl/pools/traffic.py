"""What comes from the workers and what waits for the learner: the metrics of a pool."""

from __future__ import annotations

from typing import Any

from embodied_rl.pools.crew import Crew, Worker

#: Up to so many workers each has its own curve of staleness.
_SHOWN_WORKERS = 16


class Traffic:
    """Counts between two rollouts.

    Totals are named so that sums over ranks mean what they say: a share has its denominator beside it.

    Args:
        crew: the workers.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self.queue = {"fragments": 0, "bytes": 0}
        """What waited when the learner last came for a rollout."""
        self._largest_bytes = 0
        self._begin()

    def _begin(self) -> None:
        self._bytes = self._samples = 0
        self._idle_s = self._busy_s = 0.0
        self._ages: dict[int, int] = {}

    def receive(self, worker: Worker, fragment: dict[str, Any], snapshot: dict[str, Any] | None) -> None:
        """Count a fragment that came, and the state of the environments that came along."""
        size = sum(array.nbytes for array in fragment["arrays"].values())
        size += sum(array.nbytes for array in snapshot.values()) if snapshot else 0
        samples = fragment["steps"] * len(worker.env_ids)
        busy, idle = fragment["seconds"]["busy"], fragment["seconds"]["idle"]
        worker.bytes, worker.bytes_per_sample = size, size / max(samples, 1)
        worker.mb_per_s, worker.idle = size / 1e6 / max(busy + idle, 1e-9), idle / max(busy + idle, 1e-9)
        self._largest_bytes = max(self._largest_bytes, size)
        self._bytes += size
        self._samples += samples
        self._busy_s += busy
        self._idle_s += idle

    def decide(self, worker: Worker, age: int) -> int:
        """Note how many versions a fragment is behind when its turn comes, its time in the queue among them; that number."""
        worker.staleness, worker.largest_staleness = age, max(worker.largest_staleness, age)
        self._ages[worker.index] = max(self._ages.get(worker.index, 0), age)
        return age

    def drain(self, seconds: float) -> dict[str, float]:
        """Hand out what came since the last call, so many seconds ago, as totals of a rollout."""
        crew = self._crew
        totals = {f"pool/queue_{name}": float(value) for name, value in self.queue.items()}
        totals |= _share("Pool/bytes_per_sample", self._bytes, self._samples)
        totals |= _share("Pool/MB_per_s_per_worker", self._bytes / 1e6, seconds * len(crew.workers))
        totals |= _share("Pool/idle", self._idle_s, self._idle_s + self._busy_s)
        if self._ages and (crew.settings.mode != "sync" or crew.settings.lag):
            totals["largest/Pool/largest_staleness"] = float(max(self._ages.values()))
            if crew.world_size == 1 and len(crew.workers) <= _SHOWN_WORKERS:
                totals |= {f"largest/Pool/worker_{index}_staleness": float(age) for index, age in self._ages.items()}
        self._begin()
        return totals

    def bound(self) -> dict[str, int]:
        """Say how many fragments can wait, and how many bytes that is with the largest that came.

        A worker has one request in flight, two in `apex`, or two in `async`, where one fragment of it may be half used besides;
        it waits when those are answered.
        """
        each = {"async": 3, "apex": 2}.get(self._crew.settings.mode, 1)
        most = each * len(self._crew.workers)
        return {"most_fragments": most, "most_bytes": most * self._largest_bytes}


def _share(name: str, value: float, of: float) -> dict[str, float]:
    return {f"share/{name}": float(value), f"share_of/{name}": float(of)}
