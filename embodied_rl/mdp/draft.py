"""What events will set rows to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Draft:
    """What rows will be set to: events replace its tensors."""

    qpos: Tensor
    """(N, nq): the default pose for resets, the present one for interval events."""
    qvel: Tensor
    """(N, nv)."""
    model: dict[str, Tensor]
    """Model fields that the page randomizes, (N, ...); only what an event replaces is written."""
