"""How a learning rate and an entropy bonus move while a training goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.config.ppo import PPOSettings

#: Bounds and factor of the adaptive learning rate, those of rsl_rl.
_MIN_RATE, _MAX_RATE, _RATE_FACTOR = 1e-5, 1e-2, 1.5
#: Share of the learning rate that it does not fall below where no end is given.
_LEAST_SHARE = 0.1


def adapted(rate: Tensor, kl: Tensor, desired: Tensor) -> Tensor:
    """Follow the KL between the policy that acted and the present one: slower beyond twice what is desired, faster below half."""
    slower = (rate / _RATE_FACTOR).clamp(min=_MIN_RATE)
    faster = (rate * _RATE_FACTOR).clamp(max=_MAX_RATE)
    # an update begins with a KL of rounding alone, which is no reason to go faster
    held = torch.where((kl > torch.finfo(kl.dtype).eps) & (kl < 0.5 * desired), faster, rate)
    return torch.where(kl > 2.0 * desired, slower, held)


def learning_rate(page: PPOSettings, done: float) -> float | None:
    """Return the rate where a share `done` of the training is over; None where no line says it (`adaptive`, `constant`).

    With p of `progress` it is a + (b - a) p, from a = `learning_rate` to b = `final_learning_rate`; without b it falls towards 0
    and is held at a tenth: a max(1 - p, 1/10).
    """
    if page.schedule not in ("linear", "hold"):
        return None
    over = progress(page.schedule, page.hold, done)
    if page.final_learning_rate is None:
        return page.learning_rate * max(_LEAST_SHARE, 1.0 - over)
    return between(page.learning_rate, page.final_learning_rate, over)


def entropy_coef(page: PPOSettings, done: float) -> float:
    """Return the factor of the entropy where a share `done` of the training is over: a + (b - a) p, or a where there is no b."""
    if page.final_entropy_coef is None:
        return page.entropy_coef
    return between(page.entropy_coef, page.final_entropy_coef, progress(page.entropy_schedule, page.hold, done))


def progress(schedule: str, hold: float, done: float) -> float:
    """Return how much of a decay is over: p = `done`, and of a schedule `hold`, p = max(0, (done - hold) / (1 - hold))."""
    return max(0.0, (done - hold) / (1.0 - hold)) if schedule == "hold" else done


def between(start: float, end: float, share: float) -> float:
    """Move linearly: start + (end - start) share."""
    return start + (end - start) * share
