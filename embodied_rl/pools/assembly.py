"""Fragments into a rollout: every shard at its place, whoever sent it and whenever.

Legend: T steps, N environments of the pool, n of a fragment.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.transfer import Transfer

#: Arrays (T, n, ...) of a fragment that a rollout has under the same name, the last where an older policy may have acted.
_PLAIN = ("actions", "output", "rewards", "terminated", "truncated", "valid", "log_prob")
#: Totals that every rollout has.
_TOTALS = ("steps", "unstable", "episodes", "terminated", "episode_length", "reward/total")

Fragment = dict[str, Any]
"""What `SimWorker.collect` sends."""


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


def sum_totals(fragments: Iterable[Fragment]) -> dict[str, float]:
    """Sum what fragments count; the order of the sums is theirs."""
    totals: dict[str, float] = {}
    for fragment in fragments:
        for name, value in fragment["totals"].items():
            totals[name] = totals.get(name, 0.0) + value
    for name in _TOTALS:
        totals.setdefault(name, 0.0)
    return totals
