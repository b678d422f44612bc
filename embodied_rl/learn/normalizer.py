"""Running statistics of observations, merged exactly: whatever the order, the number of processes, the rows left out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rsl_rl.modules import EmpiricalNormalization
from torch import Tensor


@torch.no_grad()
def learn_statistics(
    normalizer: EmpiricalNormalization, obs: Tensor, weight: Tensor, reduce: Callable[[Tensor], object] = lambda tensor: None
) -> None:
    """Merge a batch into the normalizer's mean and variance, in place: CUDA graphs read them by address.

    A batch whose sums are not finite is left out, whole.

    Args:
        normalizer: rsl_rl's module.
        obs: (T, N, O).
        weight: 1 for rows that count, 0 for others, (T, N).
        reduce: sums a tensor over all processes, in place.
    """
    _merge(normalizer, *sums_about(obs, weight, normalizer._mean, reduce))


@torch.no_grad()
def moments_of(normalizer: EmpiricalNormalization, obs: Tensor, weight: Tensor) -> Tensor:
    """Sum a batch up for a normalizer that is elsewhere: count, mean and squares about the mean, float64 (1 + 2 O,).

    Args:
        normalizer: a copy of it, about whose mean the sums are taken.
        obs: (T, N, O).
        weight: 1 for rows that count, 0 for others, (T, N).
    """
    count, apart, squares = sums_about(obs, weight, normalizer._mean)
    return torch.cat((count[None], normalizer._mean[0] + apart, squares))


@torch.no_grad()
def merge_moments(normalizer: EmpiricalNormalization, moments: Tensor) -> None:
    """Merge what `moments_of` gave, as if the batch were here: to the rounding of double precision the same."""
    given = moments.to(normalizer.count.device)  # pyright: ignore[reportAttributeAccessIssue]
    mean, squares = given[1:].chunk(2)
    _merge(normalizer, given[0], mean - normalizer._mean[0], squares)


def sums_about(
    obs: Tensor, weight: Tensor, about: Tensor, reduce: Callable[[Tensor], object] = lambda tensor: None
) -> tuple[Tensor, Tensor, Tensor]:
    """Find how many rows count, (), their mean about a given one, (O,), and the squares about their own, (O,), in double.

    First the mean, then the squares about it, so that nothing cancels.

    Args:
        obs: (T, N, O).
        weight: 1 for rows that count, 0 for others, (T, N).
        about: (O,), or one that broadcasts to it.
        reduce: sums a tensor over all processes, in place.
    """
    left_out = (weight == 0.0)[..., None]
    # T numbers are added in their own precision, which is fast, and those sums in double
    total = lambda values: values.masked_fill_(left_out, 0.0).sum(0).sum(0, dtype=torch.float64)  # noqa: E731
    sums = torch.cat((weight.sum(dtype=torch.float64)[None], total(obs - about)))
    reduce(sums)
    count = sums[0]
    apart = sums[1:] / count.clamp(min=1.0)
    squares = total((obs - (about + apart).to(obs.dtype)).square_())
    reduce(squares)
    return count, apart, squares


def _merge(normalizer: EmpiricalNormalization, count: Tensor, apart: Tensor, squares: Tensor) -> None:
    """Take the update of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm", 1979)."""
    mean, var = normalizer._mean, normalizer._var  # (1, O)
    sound = count.isfinite() & apart.isfinite().all() & squares.isfinite().all()
    rate = count / (normalizer.count + count).clamp(min=1.0)
    mean.copy_(torch.where(sound, mean + rate * apart, mean))
    moved = rate * (squares / count.clamp(min=1.0) - var + apart.square() * (1.0 - rate))
    var.copy_(torch.where(sound, var + moved, var))
    normalizer._std.copy_(var.sqrt())
    normalizer.count.add_(torch.where(sound, count, 0.0).long())  # pyright: ignore[reportAttributeAccessIssue]
