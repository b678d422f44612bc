"""What a learner is said to take, against what one has."""

from __future__ import annotations

import torch

from embodied_rl.config import Page, load
from embodied_rl.learn import costs
from embodied_rl.learn.models import build_actor
from embodied_rl.learn.sac import SAC
from embodied_rl.vector_env import ActionSpace

WIDTHS = {"actor": 17, "critic": 23}
OBS = {name: torch.zeros(4, width) for name, width in WIDTHS.items()}


def _networks(page: Page) -> float:
    return costs.memory_of(page, WIDTHS, 6)["networks"] / 4 / costs.FLOAT


def test_numbers_of_networks_are_those_of_ones_that_are_made() -> None:
    page = load("go2_flat", ["ppo.rnn_type=gru", "ppo.symmetry=none", "ppo.critic_hidden_dims=[7]"])
    actor = build_actor(OBS, ActionSpace(6), page.ppo)
    numbers = sum(one.numel() for one in actor.parameters()) - 6  # the standard deviations
    assert _networks(page) == numbers + 24 * 7 + 8


def test_soft_actor_critic_is_two_critics_and_a_replay() -> None:
    page = load("go2_flat_sac", ["sac.layer_norm=false", "sac.replay_size=4000", "env.num_envs=4"])
    sac = SAC(OBS, torch.ones(6), page.sac, {}, seed=1)
    made = [one.numel() for network in (sac.actor, sac.critic) for one in network.parameters()]
    assert _networks(page) == sum(made)
    assert costs.memory_of(page, WIDTHS, 6)["replay"] > 4000 * 4 * (17 + 23 + 6)
    # a smaller batch, or an update for every other step, is as much less
    whole = costs.operations(page, WIDTHS, 6)
    half = costs.operations(load("go2_flat_sac", ["sac.updates=0.5", "env.num_envs=4"]), WIDTHS, 6)
    assert 0.49 < half / whole < 0.52
