"""Two critics of states and actions side by side, and what a distribution over returns is good for.

Legend: R rows, K atoms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": functional.elu,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "swish": functional.silu,
}


class TwinCritic(nn.Module):
    """Two perceptrons in one: each product is one of both, and each weight, (2, outputs, inputs), two of `torch.nn.Linear`.

    Args:
        inputs: numbers that they see.
        widths: of the hidden layers.
        outputs: of each.
        activation: of the hidden layers.
        layer_norm: normalize what each hidden layer gives on.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], outputs: int, activation: str, *, layer_norm: bool) -> None:
        super().__init__()
        self.activation, self._layer_norm = activation, layer_norm
        sizes = list(itertools.pairwise((inputs, *widths, outputs)))
        self.weights, self.biases, self.gains = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for index, (before, after) in enumerate(sizes):
            # as torch.nn.Linear begins
            limit = 1.0 / math.sqrt(before)
            self.weights.append(nn.Parameter(torch.empty(2, after, before).uniform_(-limit, limit)))
            self.biases.append(nn.Parameter(torch.empty(2, 1, after).uniform_(-limit, limit)))
            if layer_norm and index < len(widths):
                self.gains.append(nn.Parameter(torch.ones(2, 1, after)))

    def forward(self, x: Tensor) -> Tensor:
        """(R, inputs) to (2, R, outputs)."""
        x = x.expand(2, *x.shape)
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if index == last:
                return torch.baddbmm(bias, x, weight.transpose(1, 2))
            if self._layer_norm:
                product = torch.bmm(x, weight.transpose(1, 2))
                x = functional.layer_norm(product, product.shape[-1:]) * self.gains[index] + bias
            else:
                x = torch.baddbmm(bias, x, weight.transpose(1, 2))
            x = _ACTIVATIONS[self.activation](x)
        raise AssertionError


class Returns:
    """Distributions over returns at fixed atoms, from -most to most (Bellemare, Dabney and Munos, arXiv:1707.06887).

    Args:
        atoms: how many there are.
        most: the largest.
        device: where they lie.
    """

    def __init__(self, atoms: int, most: float, device: torch.device | str = "cpu") -> None:
        self.atoms = torch.linspace(-most, most, atoms, device=device)
        """(K,)."""
        self._most, self._apart = most, 2.0 * most / (atoms - 1)

    def cpu(self) -> Returns:
        """Make the same, on the CPU."""
        return Returns(len(self.atoms), self._most)

    def mean(self, logits: Tensor) -> Tensor:
        """Expect returns, (...,), of logits (..., K)."""
        return (torch.softmax(logits, dim=-1) * self.atoms).sum(-1)

    def project(self, probabilities: Tensor, rewards: Tensor, discount: Tensor) -> Tensor:
        """Spread what `rewards + discount * atoms` has the probabilities of over the atoms next to it, (R, K).

        Beyond the last atom it is that atom's.

        Args:
            probabilities: of the returns that follow, (R, K).
            rewards: (R,).
            discount: (R,).
        """
        where = (rewards[:, None] + discount[:, None] * self.atoms).clamp(-self._most, self._most)
        place = ((where + self._most) / self._apart).clamp(0.0, len(self.atoms) - 1.0)
        below = place.floor()
        share, index = place - below, below.long()
        # of a target at an atom nothing goes to the one above, which may not be there
        above = (index + 1).clamp(max=len(self.atoms) - 1)
        spread = torch.zeros_like(probabilities)
        spread.scatter_add_(-1, index, probabilities * (1.0 - share))
        return spread.scatter_add_(-1, above, probabilities * share)
