from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, distributions

from embodied_rl import random
from embodied_rl.learn.distributions import Categorical, Gaussian, SquashedGaussian


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


# ----------------------------------------------------------------------------------------------------------- squashed


def _squashed(mean: Tensor, log_std: Tensor, bound: float = 2.0, **own: float) -> SquashedGaussian:
    return SquashedGaussian(mean, log_std, torch.tensor([bound]), torch.zeros(()), **own)


def test_a_saturated_policy_has_finite_densities_and_gradients() -> None:
    """Mean 20 and deviation 0.01: tanh is 1 in float32, and the density is float64's all the same."""
    noise = torch.linspace(-3.0, 3.0, 7)[:, None]
    found = {}
    for dtype in (torch.float32, torch.float64):
        mean, log_std = (torch.full((7, 1), value, dtype=dtype, requires_grad=True) for value in (20.0, math.log(0.01)))
        _, log_prob = _squashed(mean, log_std).sample_with_log_prob(noise.to(dtype))
        gradients = torch.autograd.grad(log_prob.sum(), (mean, log_std))
        found[dtype] = torch.cat([log_prob.detach(), *(one.flatten() for one in gradients)]).double()
    assert bool(found[torch.float32].isfinite().all())
    assert torch.allclose(found[torch.float32], found[torch.float64], rtol=1e-4, atol=1e-4)
    # log N(u) - log(1 - tanh(u)^2), of which the second is log 4 - 2 u out there
    by_hand = -0.5 * noise[:, 0].double() ** 2 - math.log(0.01) - 0.5 * math.log(2 * math.pi)
    by_hand = by_hand - (math.log(4.0) - 2.0 * (20.0 + 0.01 * noise[:, 0].double()))
    assert torch.allclose(found[torch.float64][:7], by_hand, rtol=1e-6)


def test_an_action_at_its_bound_has_a_finite_density() -> None:
    mean = torch.zeros(3, 1, requires_grad=True)
    log_prob = _squashed(mean, torch.zeros(3, 1)).log_prob(torch.tensor([[2.0], [-2.0], [0.5]]))
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    assert bool(log_prob.isfinite().all()) and bool(gradient.isfinite().all())
    u = math.atanh(0.25)
    wanted = -0.5 * u**2 - 0.5 * math.log(2 * math.pi) - math.log(1 - 0.25**2)
    assert float(log_prob[2].detach()) == pytest.approx(wanted, abs=1e-6)


def test_densities_of_squashed_actions_integrate_to_one() -> None:
    mean, log_std = (torch.tensor([[value]], dtype=torch.float64) for value in (0.3, -0.5))
    grid = torch.linspace(-1.0, 1.0, 20_001, dtype=torch.float64)[1:-1]
    density = _squashed(mean, log_std, bound=1.0).log_prob(grid[:, None]).exp()
    assert float(density.sum()) * 1e-4 == pytest.approx(1.0, abs=1e-4)


def test_on_a_ladder_the_mode_has_noise_of_its_own_and_stays_in_bounds() -> None:
    mean, noise = torch.tensor([[0.5], [3.0]]), torch.tensor([[1.0], [2.0]])
    pi = _squashed(mean, torch.zeros(2, 1), ladder=0.25)
    wanted = [2.0 * (math.tanh(0.5) + 0.25), 2.0]
    assert pi.sample(noise)[:, 0].tolist() == pytest.approx(wanted, abs=1e-6)
    assert torch.equal(pi.mode, _squashed(mean, torch.zeros(2, 1)).mode)
