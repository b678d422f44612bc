"""What an older policy did, as the present one may learn from it.

The decoupled objective of Hilton, Cobbe and Schulman ("Batch size-invariance for policy optimization", arXiv:2110.00641): mu
acted, pi_prox is the policy at the beginning of the update, and the ratio that is clipped is pi / pi_prox, weighed by
pi_prox / mu.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Rollout

#: Environments whose observations are answered at once.
_CHUNK = 256

Stds = list[tuple[slice, np.ndarray | None]]
"""The standard deviation that acted, for each slice of the environments; None for choices."""


@torch.no_grad()
def weigh(rollout: Rollout, policy: Policy, stds: Stds, staleness: Tensor, clip: float) -> Rollout:
    """Put what the present policy says in the place of what acted, and their ratio beside it.

    Args:
        rollout: with `output` of the policy that acted; changed in place.
        policy: the present one, without memory.
        stds: of the policy that acted; not read where the rollout has `log_prob`.
        staleness: versions that each environment's part is behind, (N,).
        clip: bound of the ratio, which is counted where it is reached.
    """
    staleness = staleness.to(rollout.rewards.device)
    output = torch.cat([policy(rows)[0].output for rows in rollout.obs["actor"].split(_CHUNK, dim=1)], dim=1)
    before = torch.empty_like(rollout.rewards) if rollout.log_prob is None else rollout.log_prob
    for rows, std in stds if rollout.log_prob is None else ():
        acted = None if std is None else torch.from_numpy(np.array(std)).to(output.device)
        before[:, rows] = policy.distribution(rollout.output[:, rows], acted).log_prob(rollout.actions[:, rows])
    now = policy.distribution(output, policy.std).log_prob(rollout.actions)
    ratio = (now - before).exp()
    # where the policy is the one that acted, it is 1 and not nearly so
    ratio = torch.where(staleness == 0, 1.0, ratio)
    rollout.output = torch.where((staleness == 0)[None, :, None], rollout.output, output)
    if rollout.std is not None and policy.std is not None:
        rollout.std = policy.std.detach().clone()
    valid = rollout.valid
    rollout.ratio = torch.where(valid, ratio, 1.0).clamp(max=clip)
    apart = torch.where(valid, before - now, 0.0)
    clipped = ((ratio > clip) & valid).to(ratio.dtype)
    # read at once: a GPU is waited for
    sums = torch.stack([part.sum() for part in (staleness * valid, torch.where(valid, ratio, 0.0), clipped, apart)]).tolist()
    names = ("staleness", "importance", "clipped", "kl")
    rollout.totals |= {f"policy_mean/{name}": value for name, value in zip(names, sums, strict=True)}
    return rollout
