"""How a learning rate and an entropy bonus move while a training goes on."""

from __future__ import annotations

import torch
from torch import Tensor

#: Bounds and factor of the adaptive learning rate, those of rsl_rl.
_MIN_RATE, _MAX_RATE, _RATE_FACTOR = 1e-5, 1e-2, 1.5
#: Share of the learning rate that the linear schedule ends at.
_LINEAR_END = 0.1


def adapted(rate: Tensor, kl: Tensor, desired: float) -> Tensor:
    """Follow the KL between the policy that acted and the present one: slower beyond twice what is desired, faster below half."""
    slower = (rate / _RATE_FACTOR).clamp(min=_MIN_RATE)
    faster = (rate * _RATE_FACTOR).clamp(max=_MAX_RATE)
    # an update begins with a KL of rounding alone, which is no reason to go faster
    held = torch.where((kl > torch.finfo(kl.dtype).eps) & (kl < 0.5 * desired), faster, rate)
    return torch.where(kl > 2.0 * desired, slower, held)


def linear_rate(rate: float, done: float) -> float:
    """Fall linearly to a tenth of the rate; `done` is the share of the training that is over."""
    return rate * max(_LINEAR_END, 1.0 - done)


def between(start: float, end: float | None, done: float) -> float:
    """Move linearly from start to end, or stay where there is none."""
    end = start if end is None else end
    return start + (end - start) * done
