"""A rollout from where robots are to where the learner is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from embodied_rl.learn.rollout import Rollout


class Transfer:
    """Copies rollouts into buffers of its own, which stay at their address.

    Args:
        device: where the buffers are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, rollout: Rollout) -> Rollout:
        """Copy a rollout, one copy a tensor; the given one may be overwritten at once, the copy is by the next call."""
        copied = Rollout(**{name: self._copied(name, value) for name, value in vars(rollout).items()})
        if self._device.type == "cuda":  # copies from pinned memory go on while the host does
            torch.cuda.current_stream(self._device).synchronize()
        return copied

    def _copied(self, name: str, value: Any) -> Any:
        """Copy a tensor, or those in a dict or tuple; the rest is handed on."""
        if isinstance(value, dict):
            return {key: self._copied(f"{name}.{key}", one) for key, one in value.items()}
        if isinstance(value, tuple):
            return tuple(self._copied(f"{name}.{index}", one) for index, one in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != value.shape:
            buffer = self._buffers[name] = torch.empty_like(value, device=self._device)
        return buffer.copy_(value, non_blocking=True)
