"""A policy answers robots that live on another device: fake tensors need no GPU, and refuse what a GPU refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from embodied_rl.learn.policy import Player, Policy


@pytest.mark.parametrize("recurrent", [False, True])
def test_actions_come_back_to_where_the_observations_were(recurrent: bool) -> None:
    with FakeTensorMode(), torch.no_grad():
        memory = nn.GRU(5, 7) if recurrent else None
        policy = Policy(nn.Identity(), nn.Linear(7 if recurrent else 5, 3), lambda: torch.ones(3), memory)
        obs = torch.zeros(4, 5, device="cuda")
        if not recurrent:  # torch's CPU build has no views of such tensors, which a GRU takes first
            with pytest.raises(RuntimeError, match=r"two (different )?devices"):
                policy(obs)
        player = Player(policy)
        for given in (obs, {"actor": obs}):
            actions = player(given)
            assert actions.shape == (4, 3) and actions.device.type == "cuda"
            player.forget(torch.zeros(4, dtype=torch.bool, device="cuda"))
