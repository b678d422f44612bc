"""RMSprop that can leave a step out without anyone looking, as torch's fused Adam can."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class RMSprop(torch.optim.RMSprop):
    """torch's RMSprop and its state, taken on the device: a step while `found_inf` is 1 changes nothing.

    v = alpha v + (1 - alpha) g^2;  x = x - rate g / (sqrt(v) + eps), with alpha 0.99 and eps 1e-5 as Stable-Baselines3's A2C.

    Args:
        parameters: what it moves.
        rate: the learning rate, a tensor that is read in every step.
    """

    found_inf: Tensor

    def __init__(self, parameters: Iterable[nn.Parameter], rate: Tensor) -> None:
        super().__init__(parameters, lr=rate, alpha=0.99, eps=1e-5)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step along each parameter's `grad`, or none."""
        (group,) = self.param_groups
        held = self.found_inf > 0.0
        for parameter in group["params"]:
            state, gradient = self.state[parameter], parameter.grad
            if not state:
                state |= {"step": torch.zeros((), device=parameter.device), "square_avg": torch.zeros_like(parameter)}
            average = group["alpha"] * state["square_avg"] + (1.0 - group["alpha"]) * gradient.square()
            moved = parameter - group["lr"] * gradient / (average.sqrt() + group["eps"])
            # `where` and no factor: what is not finite times 0 is not 0
            parameter.copy_(torch.where(held, parameter, moved))
            state["square_avg"].copy_(torch.where(held, state["square_avg"], average))
            state["step"].add_(torch.where(held, 0.0, 1.0))

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Take up what `state_dict` gave; counts of steps lie where the parameters do, which torch has otherwise."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            state["step"] = state["step"].to(parameter.device)
