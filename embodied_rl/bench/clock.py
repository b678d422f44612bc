"""The clock of a device that works ahead of the host."""

from __future__ import annotations

import time

import torch


def now(device: torch.device) -> float:
    """Wait until the device has done all that it was given; seconds, of which differences count."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
