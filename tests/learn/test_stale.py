from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.stale import weigh


def gaussian_policy(weight: float, std: float) -> Policy:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return Policy(nn.Identity(), nn.Sequential(layer).requires_grad_(False), lambda: torch.tensor([std]))


def test_the_odds_of_what_another_policy_did() -> None:
    """mu = N(o, 1), pi = N(2 o, 0.5), o = 1, a = 1.5: log pi - log mu = -0.5 + log 2 + 0.125."""
    one = torch.ones(1, 2)
    given = {"obs": {"actor": one[..., None]}, "output": one[..., None].clone(), "actions": 1.5 * one[..., None]}
    flags = dict.fromkeys(("terminated", "truncated"), one < 0)
    rollout = Rollout(
        **given, **flags, std=torch.ones(1), rewards=one, valid=torch.tensor([[True, False]]), final_obs={}, last_obs={}
    )
    policy, acted = gaussian_policy(2.0, 0.5), np.array([1.0], np.float32)
    weighed = weigh(rollout, policy, [(slice(0, 2), acted)], torch.tensor([1.0, 3.0]), clip=2.0)
    expected = math.exp(-0.5 * (0.5 / 0.5) ** 2 + math.log(2.0) + 0.5 * 0.5**2)
    assert weighed.ratio is not None and weighed.ratio[0].tolist() == pytest.approx([expected, 1.0])
    assert weighed.output[0, :, 0].tolist() == [2.0, 2.0] and weighed.std is not None and weighed.std.tolist() == [0.5]
    assert weighed.totals["policy_mean/staleness"] == 1.0 and weighed.totals["policy_mean/clipped"] == 0.0
    weighed = weigh(weighed, gaussian_policy(1.5, 0.1), [(slice(0, 2), np.array([0.5], np.float32))], torch.ones(2), clip=2.0)
    assert weighed.ratio is not None and weighed.ratio[0, 0] == 2.0 and weighed.totals["policy_mean/clipped"] == 1.0
    fresh = weigh(weighed, policy, [(slice(0, 2), acted)], torch.zeros(2), clip=2.0)
    assert fresh.ratio is not None and (fresh.ratio == 1.0).all()
