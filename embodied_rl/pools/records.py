"""A step over the wire: one string of bytes each way, which Ray sends as it is and packs several times faster than arrays.

Legend: N environments of a worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from embodied_rl.vector_env import ActionSpace, Step

FLAGS = ("terminated", "truncated", "valid")


class Records:
    """What a step led to: a record for each environment, then the last observations of those that were truncated.

    Args:
        obs: shape of one environment's observation, by group.
        final_obs: groups that are bootstrapped from.
    """

    def __init__(self, obs: Mapping[str, tuple[int, ...]], final_obs: Iterable[str]) -> None:
        flags = [(name, np.bool_) for name in FLAGS]
        self._row = np.dtype(
            [*((f"obs:{name}", np.float32, shape) for name, shape in obs.items()), ("rewards", np.float32), *flags]
        )
        self._final = np.dtype([(name, np.float32, obs[name]) for name in final_obs])

    def pack(self, step: Step) -> bytes:
        """Write down a step of N environments."""
        rows = np.empty(len(step.rewards), self._row)
        for name, value in step.obs.items():
            rows[f"obs:{name}"] = value.numpy()
        for name in ("rewards", *FLAGS):
            rows[name] = getattr(step, name).numpy()
        ended = step.truncated.numpy()
        finals = np.empty(int(ended.sum()), self._final)
        for name in self._final.names or ():
            finals[name] = step.final_obs[name].numpy()[ended]
        return rows.tobytes() + finals.tobytes()

    def unpack(self, data: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Read what `pack` wrote of N = `count`: records (N,), and last observations, (truncated,); both cannot be written to."""
        rows = np.frombuffer(data, self._row, count)
        if not self._final.itemsize:
            return rows, np.empty(0, self._final)
        return rows, np.frombuffer(data, self._final, offset=count * self._row.itemsize)


def pack_actions(actions: np.ndarray) -> bytes:
    """Write down actions, float32 (N, A), or choices, int64 (N,)."""
    return actions.tobytes()


def unpack_actions(data: bytes, space: ActionSpace) -> Tensor:
    """Read what `pack_actions` wrote."""
    if space.discrete:
        return torch.from_numpy(np.frombuffer(data, np.int64).copy())
    return torch.from_numpy(np.frombuffer(data, np.float32).reshape(-1, space.size).copy())
