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


def vtrace(
    rewards: Tensor, values: Tensor, done: Tensor, last_value: Tensor, ratio: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets of what another policy did: V-trace (Espeholt et al., arXiv:1802.01561), (T, N) each.

    rho_t = min(1, pi / mu);  delta_t = rho_t (r_t + gamma V(s_t+1) - V(s_t));
    v_t - V(s_t) = delta_t + gamma lambda rho_t (v_t+1 - V(s_t+1));
    A_t = r_t + gamma (V(s_t+1) + lambda (v_t+1 - V(s_t+1))) - V(s_t).

    Where mu is pi both are those of `gae`.

    Args:
        rewards: (T, N).
        values: V(s_t), (T, N).
        done: bool (T, N).
        last_value: V(s_T), (N,).
        ratio: pi / mu, (T, N).
        gamma: discount.
        lam: lambda.
    """
    going_on = 1.0 - done.to(values.dtype)
    next_values = torch.cat((values[1:], last_value[None]))
    rho = ratio.clamp(max=1.0)
    surprise = rewards + gamma * next_values * going_on - values
    decay = gamma * lam * going_on
    apart, advantages, targets = torch.zeros_like(last_value), [], []
    for step in range(len(values) - 1, -1, -1):
        advantages.append(surprise[step] + decay[step] * apart)
        apart = rho[step] * advantages[-1]
        targets.append(values[step] + apart)
    return torch.stack(advantages[::-1]), torch.stack(targets[::-1])


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


def advantage_scales(taken: list[dict[str, Tensor]], reduce: Reduce) -> list[Tensor]:
    """Find mean and deviation of the advantages of each minibatch, over all processes, (2,).

    Args:
        taken: `advantage` and `weight` of each minibatch's rows.
        reduce: sums over processes.
    """
    longest = max(b["weight"].numel() for b in taken)
    pad = lambda x: torch.nn.functional.pad(x.flatten(), (0, longest - x.numel()))  # noqa: E731
    advantages, weights = (torch.stack([pad(b[name]) for b in taken]) for name in ("advantage", "weight"))
    mean, variance = moments(advantages, weights, reduce)
    return list(torch.stack((mean, variance.sqrt() + 1e-8), dim=1))
