from __future__ import annotations

import math

import pytest
import torch
from torch import distributions

from embodied_rl import random
from embodied_rl.learn.distributions import Categorical, Gaussian


def gaussian(seed: int = 0) -> Gaussian:
    torch.manual_seed(seed)
    return Gaussian(torch.randn(5, 7, 3), 0.2 + torch.rand(3))


def categorical(seed: int = 0) -> Categorical:
    torch.manual_seed(seed)
    return Categorical(2.0 * torch.randn(5, 7, 4))


def test_a_gaussian_is_torchs() -> None:
    ours, other = gaussian(0), gaussian(1)
    theirs, others = (distributions.Normal(one.mean, one.std.expand_as(one.mean)) for one in (ours, other))
    actions = torch.randn(5, 7, 3)
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions).sum(-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    torch.testing.assert_close(ours.kl(other), distributions.kl_divergence(theirs, others).sum(-1), rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.mode, ours.mean) and torch.equal(ours.output, ours.mean)


def test_a_choice_is_torchs() -> None:
    ours, other = categorical(0), categorical(1)
    theirs, others = (distributions.Categorical(logits=one.logits) for one in (ours, other))
    actions = torch.randint(4, (5, 7))
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.log_prob(actions.float()), theirs.log_prob(actions))  # as a batch's columns hold them
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.kl(other), distributions.kl_divergence(theirs, others))
    assert torch.equal(ours.mode, theirs.probs.argmax(-1))


@pytest.mark.parametrize("kind", [gaussian, categorical])
def test_a_kl_to_itself_is_zero(kind) -> None:
    torch.testing.assert_close(kind().kl(kind()), torch.zeros(5, 7), rtol=0.0, atol=1e-6)


def noise(distribution, rows: int) -> torch.Tensor:
    key = random.stream_key(1, "policy")
    return distribution.noise(key, torch.arange(rows), torch.zeros(rows, dtype=torch.int64), distribution.output.shape[-1])


def test_samples_of_a_gaussian_have_its_moments() -> None:
    std = torch.tensor([0.5, 2.0])
    one = Gaussian(torch.tensor([1.0, -3.0]).expand(20_000, 2), std)
    samples = one.sample(noise(one, 20_000))
    error = std / math.sqrt(20_000)
    assert ((samples.mean(0) - one.mean[0]).abs() < 5 * error).all()
    assert ((samples.std(0) / std - 1.0).abs() < 5 / math.sqrt(2 * 20_000)).all()


def test_samples_of_a_choice_have_its_frequencies() -> None:
    logits = torch.tensor([0.0, 1.0, -2.0, 3.0])
    one = Categorical(logits.expand(20_000, 4))
    samples = one.sample(noise(one, 20_000))
    assert samples.dtype == torch.int64 and samples.shape == (20_000,)
    wanted = torch.softmax(logits, 0)
    found = torch.bincount(samples, minlength=4) / 20_000
    assert ((found - wanted).abs() < 5 * (wanted * (1 - wanted) / 20_000).sqrt()).all()


def test_a_uniform_number_of_zero_is_no_choice_of_its_own() -> None:
    assert int(Categorical(torch.zeros(3)).sample(torch.tensor([0.0, 0.5, 0.4]))) == 1
