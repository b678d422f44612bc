"""Curriculum terms: `(params, iteration, *, ...)`, run once before each rollout, outside the step."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.mdp.term import curriculum


@curriculum()
def linear(
    params: dict[str, Tensor],
    iteration: int,
    *,
    parameter: str,
    start: tuple[float, ...],
    end: tuple[float, ...],
    iterations: tuple[int, int],
) -> None:
    """parameter = start + (end - start) (iteration - a) / (b - a), held before a and after b, with (a, b) = iterations.

    `parameter` is a number of the page by its dotted path (`rewards.action_rate.weight`, `commands.velocity.lin_vel_x`);
    `start` and `end` have as many numbers as it.
    """
    first, last = iterations
    progress = min(max((iteration - first) / max(last - first, 1), 0.0), 1.0)
    # torch.lerp(start, end, progress); the tuples of the signature arrive as tensors
    value = torch.lerp(torch.as_tensor(start), torch.as_tensor(end), progress)
    params[parameter].copy_(value.view(params[parameter].shape))
