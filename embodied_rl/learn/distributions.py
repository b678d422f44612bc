"""Distributions over actions: what a policy's outputs mean.

Noise is passed in and never drawn inside, so that the same numbers give the same actions on every device.  Legend: A actions;
leading dimensions are the caller's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from embodied_rl import random

_LOG_2_PI = math.log(2.0 * math.pi)
#: The float32 before 1.
_WITHIN = 1.0 - 2.0**-24


class Distribution(Protocol):
    """One distribution for each leading index."""

    @property
    def output(self) -> Tensor:
        """What the network says, (..., A): all that differs from one index to the next."""
        ...

    @property
    def mode(self) -> Tensor:
        """The action without exploration."""
        ...

    @staticmethod
    def noise(key: Tensor, env_ids: Tensor, step: Tensor, size: int) -> Tensor:
        """Draw what `sample` takes, (N, size): a function of the stream's key, the global env ids (N,) and their steps (N,)."""
        ...

    def sample(self, noise: Tensor) -> Tensor:
        """Pick an action for each index."""
        ...

    def log_prob(self, actions: Tensor) -> Tensor:
        """log pi(a), (...,)."""
        ...

    def entropy(self) -> Tensor:
        """H(pi), (...,)."""
        ...

    def kl(self, other: Self) -> Tensor:
        """KL(self || other), (...,)."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Independent normal distributions; actions are float (..., A)."""

    mean: Tensor
    """(..., A)."""
    std: Tensor
    """(A,): the same in every state."""

    noise = staticmethod(random.normal)

    @property
    def output(self) -> Tensor:
        return self.mean

    @property
    def mode(self) -> Tensor:
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + self.std * noise

    def log_prob(self, actions: Tensor) -> Tensor:
        # log N(a; mu, sigma) = -(a - mu)^2 / (2 sigma^2) - log sigma - log(2 pi) / 2, summed over a
        return -0.5 * ((actions - self.mean) / self.std).square().sum(-1) - (self.std.log() + 0.5 * _LOG_2_PI).sum()

    def entropy(self) -> Tensor:
        # sum_a log sigma_a + (1 + log 2 pi) / 2
        return (self.std.log() + 0.5 + 0.5 * _LOG_2_PI).sum().expand(self.mean.shape[:-1])

    def kl(self, other: Gaussian) -> Tensor:
        # sum_a log(sigma' / sigma) + (sigma^2 + (mu - mu')^2) / (2 sigma'^2) - 1/2
        variance = other.std.square()
        apart = (0.5 * (self.mean - other.mean).square() / variance).sum(-1)
        return apart + (torch.log(other.std / self.std) + 0.5 * self.std.square() / variance - 0.5).sum()


@dataclass(frozen=True)
class SquashedGaussian:
    """A normal distribution of u, whose tanh times a bound is the action, float (..., A), as in soft actor-critic.

    Densities are of the action over its bound, in +-1: log pi(a) = log N(u) - sum log(1 - tanh(u)^2) (Haarnoja et al.,
    arXiv:1812.05905, appendix C).
    """

    mean: Tensor
    """Of u, (..., A)."""
    log_std: Tensor
    """Of u, (..., A)."""
    bound: Tensor
    """(A,)."""
    uniform: Tensor
    """Where it is not 0, actions are uniform within the bound, whatever the network says, ()."""
    ladder: float = 0.0
    """Where it is not 0, noise of this deviation is added to the mode, in +-1, and the sum held there."""

    noise = staticmethod(random.normal)

    @property
    def output(self) -> Tensor:
        return torch.cat((self.mean, self.log_std), dim=-1)

    @property
    def mode(self) -> Tensor:
        return self.bound * torch.tanh(self.mean)

    def sample(self, noise: Tensor) -> Tensor:
        own = torch.tanh(self.mean + self.log_std.exp() * noise)
        if self.ladder:
            own = (torch.tanh(self.mean) + self.ladder * noise).clamp(-1.0, 1.0)
        # the error function makes of a normal number a uniform one in +-1
        return self.bound * torch.where(self.uniform != 0, torch.erf(noise * math.sqrt(0.5)), own)

    def sample_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Pick an action for each index, and its log pi(a), (...,), from u itself, of which tanh leaves nothing far out."""
        u = self.mean + self.log_std.exp() * noise
        log_prob = -(0.5 * noise.square() + self.log_std + 0.5 * _LOG_2_PI).sum(-1)
        return self.bound * torch.tanh(u), log_prob - _log_slope(u).sum(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        # an action at its bound is where float32 has no tanh any more
        u = torch.atanh((actions / self.bound).clamp(-_WITHIN, _WITHIN))
        normal = -0.5 * ((u - self.mean) / self.log_std.exp()).square() - self.log_std - 0.5 * _LOG_2_PI
        return (normal - _log_slope(u)).sum(-1)

    def entropy(self) -> Tensor:
        # none in closed form: that of u less the mean slope at its mode
        return (self.log_std + 0.5 + 0.5 * _LOG_2_PI + _log_slope(self.mean)).sum(-1)

    def kl(self, other: SquashedGaussian) -> Tensor:
        # tanh is one to one: it is that of u
        variance = (2.0 * other.log_std).exp()
        apart = ((2.0 * self.log_std).exp() + (self.mean - other.mean).square()) / (2.0 * variance)
        return (other.log_std - self.log_std + apart - 0.5).sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), finite for all u."""
    return 2.0 * (math.log(2.0) - u - torch.nn.functional.softplus(-2.0 * u))


@dataclass(frozen=True)
class Categorical:
    """One of A choices; actions are int64 (...,)."""

    logits: Tensor
    """(..., A), up to a constant."""

    noise = staticmethod(random.uniform)

    @property
    def output(self) -> Tensor:
        return self.logits

    @property
    def mode(self) -> Tensor:
        return self.logits.argmax(-1)

    def sample(self, noise: Tensor) -> Tensor:
        # argmax_a log p_a - log(-log u_a) is distributed as p (Gumbel); u is in [0, 1)
        return (self.logits - torch.log(-torch.log(noise.clamp(min=2.0**-25)))).argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self._log_probs().gather(-1, actions.long()[..., None])[..., 0]

    def entropy(self) -> Tensor:
        log_probs = self._log_probs()
        return -(log_probs.exp() * log_probs).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        log_probs = self._log_probs()
        return (log_probs.exp() * (log_probs - other._log_probs())).sum(-1)

    def _log_probs(self) -> Tensor:
        return torch.log_softmax(self.logits, dim=-1)
