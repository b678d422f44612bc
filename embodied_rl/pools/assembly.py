"""Fragments into a rollout: every shard at its place, whoever sent it and whenever.

Legend: T steps, N environments of the pool, n of a fragment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.transfer import Transfer
from embodied_rl.pools.crew import Worker
from embodied_rl.pools.errors import PoolError
from embodied_rl.vector_env import Obs

#: Arrays (T, n, ...) of a fragment that a rollout has under the same name, the last where an older policy may have acted.
_PLAIN = ("actions", "output", "rewards", "terminated", "truncated", "valid", "log_prob")
#: Totals that every rollout has.
_TOTALS = ("steps", "unstable", "episodes", "terminated", "episode_length", "reward/total")

Fragment = dict[str, Any]
"""What `SimWorker.collect` sends."""

Arrived = deque[tuple[Worker, Fragment, slice]]
"""Whole fragments, and which of their environments no rollout has had yet."""


class Assembly:
    """A rollout that stays at its address, and what is written into it.

    Args:
        num_steps: T.
        num_envs: N.
        final_groups: observation groups that are bootstrapped from.
        device: where the learner wants it.
    """

    def __init__(self, num_steps: int, num_envs: int, final_groups: Iterable[str], device: torch.device) -> None:
        self.num_steps = num_steps
        self.num_envs = num_envs
        self._final_groups = final_groups
        self._device = device
        self._rollout: Rollout | None = None
        self._transfer = Transfer(device)

    @property
    def rollout(self) -> Rollout:
        """What has been written, on the CPU."""
        assert self._rollout is not None, "nothing has been written"
        return self._rollout

    def _allocated(self, like: Fragment) -> Rollout:
        """Zeros of the sizes and types that the first fragment has."""
        num_steps, num_envs, arrays = self.num_steps, self.num_envs, like["arrays"]
        pinned = self._device.type == "cuda"

        def space(*lead: int, like: np.ndarray, skip: int) -> Tensor:
            kind = torch.from_numpy(np.empty(0, like.dtype)).dtype
            return torch.zeros(*lead, *like.shape[skip:], dtype=kind, pin_memory=pinned)

        whole = lambda name: space(num_steps, num_envs, like=arrays[name], skip=2)  # noqa: E731
        groups = [name.partition(":")[2] for name in arrays if name.startswith("obs:")]
        memory = [arrays[name] for name in arrays if name.startswith("memory:")]
        return Rollout(
            obs={name: whole(f"obs:{name}") for name in groups},
            **{name: whole(name) for name in _PLAIN if name in arrays},  # pyright: ignore[reportArgumentType]
            std=torch.from_numpy(np.array(arrays["std"])) if "std" in arrays else None,
            final_obs={name: whole(f"obs:{name}") for name in self._final_groups},
            last_obs={name: space(num_envs, like=arrays[f"last_obs:{name}"], skip=1) for name in groups},
            memory=tuple(space(part.shape[0], num_envs, part.shape[2], like=part, skip=3) for part in memory),
        )

    def write(self, fragment: Fragment, rows: slice, taken: slice = slice(None)) -> None:
        """Put a fragment's environments (those of `taken`) in their rows.

        Where it ends early, the state it ends in stands for what would have come: not valid and terminated, so that the last
        valid transition is bootstrapped from V of that state and nothing is learned beyond it.
        """
        if self._rollout is None:
            self._rollout = self._allocated(fragment)
        rollout, arrays, steps = self._rollout, fragment["arrays"], fragment["steps"]
        for name in (one for one in _PLAIN if one in arrays):
            target = getattr(rollout, name).numpy()
            target[:steps, rows] = arrays[name][:, taken]
            target[steps:, rows] = name == "terminated"
        for name, tensor in rollout.obs.items():
            last = arrays[f"last_obs:{name}"][taken]
            tensor.numpy()[:steps, rows] = arrays[f"obs:{name}"][:, taken]
            tensor.numpy()[steps:, rows] = last
            rollout.last_obs[name].numpy()[rows] = last
        for index, tensor in enumerate(rollout.memory):
            tensor.numpy()[:, rows] = arrays[f"memory:{index}"][:, taken]
        at, env = arrays["final_rows"].T
        first, end, _ = taken.indices(arrays["valid"].shape[1])
        inside = (env >= first) & (env < end)
        for name, tensor in rollout.final_obs.items():
            tensor.numpy()[at[inside], env[inside] - first + rows.start] = arrays[f"final_obs:{name}"][inside]
        if rollout.std is not None:
            rollout.std.copy_(torch.from_numpy(np.array(arrays["std"])))

    def leave_out(self, rows: slice) -> None:
        """Nothing came of these rows: no transition of them means anything."""
        rollout = self.rollout
        for name in _PLAIN:
            if (target := getattr(rollout, name)) is not None:
                target[:, rows] = name == "terminated"
        for target in rollout.obs.values():
            target[:, rows] = 0.0
        for target in rollout.last_obs.values():
            target[rows] = 0.0
        for target in rollout.memory:
            target[:, rows] = 0.0

    def done(self) -> Rollout:
        """Return the rollout, where the learner wants it."""
        return self._transfer(self.rollout) if self._device.type == "cuda" else self.rollout


def blank_obs(described: dict[str, Any], *lead: int, groups: Iterable[str] | None = None, **how: Any) -> Obs:
    """Make zeros of the observations' sizes that a worker has described, (*lead, O), of all groups or some; `how` is torch's."""
    sizes = described["obs"]
    return {name: torch.zeros(*lead, *sizes[name], **how) for name in (sizes if groups is None else groups)}


def check_shards(num_envs: int, size: int) -> None:
    """Refuse environments that are no whole number of shards, of which rollouts are filled as they come.

    Raises:
        PoolError: they are none.
    """
    if num_envs % size:
        raise PoolError(f"pool.shard_size: {size}: async wants env.num_envs ({num_envs}) in equal shards")


def fill(
    assembly: Assembly,
    arrived: Arrived,
    following: Callable[[], tuple[Worker, Fragment, slice]],
    age_of: Callable[[Worker, Fragment], int],
    most: int,
) -> tuple[dict[str, float], Tensor, int]:
    """Fill a rollout with the first fragments that come; what is left over of the last one is the next rollout's first.

    Args:
        assembly: the rollout.
        arrived: where what is left over is put back.
        following: gives what has arrived, and waits for it.
        age_of: how many versions a fragment is behind.
        most: the largest age that is taken.

    Returns:
        Totals, how many versions each environment's part is behind, (N,), and how many fragments were too old.
    """
    begun: list[tuple[int, Fragment]] = []
    staleness = torch.zeros(assembly.num_envs)
    filled = late = 0
    while filled < assembly.num_envs:
        worker, fragment, rows = following()
        if (age := age_of(worker, fragment)) > most:
            late += 1
            continue
        count = min(rows.stop - rows.start, assembly.num_envs - filled)
        places, taken = slice(filled, filled + count), slice(rows.start, rows.start + count)
        assembly.write(fragment, places, taken)
        staleness[places] = age
        if taken.stop < rows.stop:
            arrived.appendleft((worker, fragment, slice(taken.stop, rows.stop)))
        if not rows.start:  # its totals count once, in the first rollout that has some of it
            begun.append((worker.index, fragment))
        filled += count
    return sum_totals(fragment for _, fragment in sorted(begun, key=lambda pair: pair[0])), staleness, late


def sum_totals(fragments: Iterable[Fragment]) -> dict[str, float]:
    """Sum what fragments count; the order of the sums is theirs."""
    totals: dict[str, float] = {}
    for fragment in fragments:
        for name, value in fragment["totals"].items():
            totals[name] = totals.get(name, 0.0) + value
    for name in _TOTALS:
        totals.setdefault(name, 0.0)
    return totals
