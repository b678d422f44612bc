from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from embodied_rl.config.ppo import PPOSettings
from embodied_rl.errors import UserError
from embodied_rl.learn.copies import pack, plain_copy, unpack
from embodied_rl.learn.models import build_actor, policy_of
from embodied_rl.learn.policy import Policy
from embodied_rl.vector_env import ActionSpace


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("rnn_type", ["none", "lstm"])
def test_a_copy_answers_to_the_bit_and_needs_no_learner(discrete: bool, rnn_type: str) -> None:
    page = PPOSettings.model_validate({"actor_hidden_dims": (16, 8, 8), "rnn_type": rnn_type, "rnn_hidden_dim": 4})
    obs = torch.randn(32, 5)
    actor = build_actor({"actor": obs}, ActionSpace(3, discrete=discrete), page)
    policy = policy_of(actor)
    copied = plain_copy(policy)
    for parameter in actor.parameters():
        parameter.data.add_(0.1)  # it has learned since
    actor.obs_normalizer.update(obs)  # pyright: ignore
    unpack(copied, pack(policy))
    there = pickle.loads(pickle.dumps(copied))
    memory, far = policy.start(32, "cpu"), there.start(32, "cpu")
    for _ in range(2):
        (one, memory), (other, far) = policy(obs, memory), there(obs, far)
        assert torch.equal(one.output, other.output)
    stds = [std for std in (there.std, policy.std) if std is not None]
    assert len(stds) == 2 * (not discrete) and (discrete or torch.equal(*stds))
    assert b"rsl_rl" not in pickle.dumps(copied)
    assert np.array_equal(pack(copied), pack(policy))


@pytest.mark.parametrize(
    ("normalizer", "network", "said"),
    [
        (nn.Identity(), nn.Bilinear(1, 1, 1), "network is a Bilinear, of which robots .*make it a torch.nn.Sequential$"),
        (nn.LayerNorm(1), nn.Sequential(), "normalizer is a LayerNorm, of which robots .*make it rsl_rl's EmpiricalNormal"),
    ],
)
def test_a_policy_that_cannot_be_copied_is_refused(normalizer: nn.Module, network: nn.Module, said: str) -> None:
    with pytest.raises(UserError, match=rf"^train.learner: its policy's {said}"):
        plain_copy(Policy(normalizer, network, None))
