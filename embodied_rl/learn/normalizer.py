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

    Chan, Golub and LeVeque's update: first the batch's mean, then the squares about it, so that nothing cancels.  A batch whose
    sums are not finite is left out, whole.

    Args:
        normalizer: rsl_rl's module.
        obs: (T, N, O).
        weight: 1 for rows that count, 0 for others, (T, N).
        reduce: sums a tensor over all processes, in place.
    """
    mean, var = normalizer._mean, normalizer._var  # (1, O)
    left_out = (weight == 0.0)[..., None]
    # T numbers are added in their own precision, which is fast, and those sums in double
    total = lambda values: values.masked_fill_(left_out, 0.0).sum(0).sum(0, dtype=torch.float64)  # noqa: E731
    sums = torch.cat((weight.sum(dtype=torch.float64)[None], total(obs - mean)))
    reduce(sums)
    count = sums[0]
    apart = sums[1:] / count.clamp(min=1.0)  # the batch's mean, about the present one
    squares = total((obs - (mean + apart).to(obs.dtype)).square_())
    reduce(squares)
    sound = sums.isfinite().all() & squares.isfinite().all()
    rate = count / (normalizer.count + count).clamp(min=1.0)
    mean.copy_(torch.where(sound, mean + rate * apart, mean))
    moved = rate * (squares / count.clamp(min=1.0) - var + apart.square() * (1.0 - rate))
    var.copy_(torch.where(sound, var + moved, var))
    normalizer._std.copy_(var.sqrt())
    normalizer.count.add_(torch.where(sound, count, 0.0).long())  # pyright: ignore[reportAttributeAccessIssue]
