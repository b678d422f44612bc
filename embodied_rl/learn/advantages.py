"""Advantages, and their statistics over all processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], object]
"""Sums a tensor over all processes, in place."""


def gae(rewards: Tensor, values: Tensor, done: Tensor, last_value: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimation (Schulman et al., arXiv:1506.02438), (T, N).

    delta_t = r_t + gamma V(s_t+1) (1 - done_t) - V(s_t);  A_t = delta_t + gamma lambda (1 - done_t) A_t+1.
    """
    going_on = 1.0 - done.to(values.dtype)
    next_values = torch.cat((values[1:], last_value[None]))
    deltas = rewards + gamma * next_values * going_on - values
    decay = gamma * lam * going_on
    advantage, advantages = torch.zeros_like(last_value), []
    for step in range(len(deltas) - 1, -1, -1):
        advantage = deltas[step] + decay[step] * advantage
        advantages.append(advantage)
    return torch.stack(advantages[::-1])


def moments(values: Tensor, weight: Tensor, reduce: Reduce) -> Tensor:
    """Mean and variance (unbiased) of the entries of weight 1, over all processes.

    Args:
        values: (K, ...).
        weight: 1 for entries that count, 0 for others, the same shape or one that broadcasts to it.
        reduce: sums over processes.

    Returns:
        (2, K).
    """
    weight = weight.expand_as(values).flatten(1)
    values = values.flatten(1)
    sums = torch.stack((weight.sum(1), (values * weight).sum(1)))
    reduce(sums)
    count = sums[0].clamp(min=2.0)
    mean = sums[1] / count
    squares = ((values - mean[:, None]).square() * weight).sum(1)
    reduce(squares)
    return torch.stack((mean, squares / (count - 1.0)))
