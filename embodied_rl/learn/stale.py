"""What an older policy did, beside what the present one would have done."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Rollout

#: Environments whose observations are answered at once.
_CHUNK = 256


@dataclass(frozen=True)
class Present:
    """What pi, the policy at the beginning of an update, says of what mu did."""

    output: Tensor
    """Of its network, (T, N, P)."""
    std: Tensor | None
    """Of its Gaussian, (A,)."""
    log_ratio: Tensor
    """log pi(a|s) / mu(a|s), (T, N); 0 where pi is mu, and where a transition means nothing."""

    @property
    def ratio(self) -> Tensor:
        """pi(a|s) / mu(a|s), (T, N)."""
        return self.log_ratio.exp()


@torch.no_grad()
def compare(rollout: Rollout, policy: Policy) -> Present:
    """Ask the policy that is to learn from a rollout what it says of it; the rollout has `staleness` and `log_prob`."""
    assert rollout.staleness is not None and rollout.log_prob is not None
    fresh, done = rollout.staleness == 0, rollout.terminated | rollout.truncated
    parts = []
    for first in range(0, len(fresh), _CHUNK):
        rows = slice(first, first + _CHUNK)
        memory = tuple(part[:, rows].contiguous() for part in rollout.memory)
        parts.append(policy.outputs(rollout.obs["actor"][:, rows], done[:, rows], memory))
    output, std = torch.cat(parts, dim=1), policy.std
    log_ratio = policy.distribution(output).log_prob(rollout.actions) - rollout.log_prob
    # where the policy is the one that acted, the ratio is 1 and not nearly so
    log_ratio = torch.where(fresh | ~rollout.valid, 0.0, log_ratio)
    output = torch.where(fresh[None, :, None], rollout.output, output)
    return Present(output, None if std is None else std.detach().clone(), log_ratio)


def staleness_totals(rollout: Rollout, present: Present, bound: float) -> dict[str, float]:
    """Sum up how far what acted is from the present policy, for `Policy/...`; a GPU is waited for.

    Args:
        rollout: with `staleness`.
        present: what `compare` made of it.
        bound: of the ratio, which is counted where it is reached.
    """
    assert rollout.staleness is not None
    valid, ratio = rollout.valid, present.ratio
    sums = {
        "staleness": rollout.staleness * valid,
        "importance": torch.where(valid, ratio, 0.0),
        "clipped": ((ratio > bound) & valid).to(ratio.dtype),
        "kl": -present.log_ratio,
    }
    values = torch.stack([part.sum() for part in sums.values()]).tolist()
    return {f"policy_mean/{name}": value for name, value in zip(sums, values, strict=True)}
