"""The same formulas in two languages: the losses of `SAC`, differentiated by torch, and `soft_actor_critic.cpp`."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from embodied_rl import machine
from embodied_rl.config.sac import SACSettings
from embodied_rl.learn import soft_gradients
from embodied_rl.learn.cpu import perceptron
from embodied_rl.learn.replay import Drawn
from embodied_rl.learn.sac import SAC

SIZES, ACTIONS = {"actor": 5, "critic": 19}, 3
PLAIN = {"critic": "mse", "layer_norm": False, "obs_normalization": False, "scale_rewards": False, "replay_size": 4000}


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    if reason := machine.cpp_error():
        pytest.skip(reason)


def learner(rows: int, *, alone: bool = True, **changes: Any) -> SAC:
    """With networks whose targets are elsewhere, and a batch of which some rows mean nothing and some weigh more."""
    widths = {"actor_hidden_dims": (16, 24), "critic_hidden_dims": (33, 20), "batch_size": rows, "alpha": 0.3}
    page = SACSettings.model_validate(PLAIN | widths | changes)
    torch.manual_seed(1)
    obs = {name: torch.zeros(4, size) for name, size in SIZES.items()}
    made = SAC(obs, torch.tensor([1.0, 2.0, 0.5]), page, {}, seed=1, alone=alone)
    with torch.no_grad():
        for parameter in (*made.target.parameters(), *made.actor.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
        list(made.actor.mlp.parameters())[-2].mul_(8.0)  # some deviations are at their limits
    draw = lambda: {name: torch.randn(rows, size) for name, size in SIZES.items()}  # noqa: E731
    weight = torch.where(torch.rand(rows) < 0.2, 0.0, 0.2 + torch.rand(rows))
    action, discount = torch.tanh(torch.randn(rows, ACTIONS)), torch.where(torch.rand(rows) < 0.2, 0.0, 0.99)
    numbers = torch.zeros(rows).long(), torch.zeros(rows).long()
    made.batches.batch = Drawn(draw(), action, torch.randn(rows), draw(), discount, weight, numbers)
    made.batches.noise.normal_()
    return made


def buckets(made: SAC) -> dict[str, Tensor]:
    """What a pass of each leaves, and the errors of the critics."""
    found = {}
    for name, steps in (("critics", made.critic_steps), ("actor", made.actor_steps)):
        steps.rows[len(made.batches.rows)] = made.batches.rows
        steps.gradients(len(made.batches.rows))
        found[name] = steps.bucket.clone().double()
    return found | {"errors": made.batches.errors.clone().double()}


def in_double(made: SAC) -> dict[str, Tensor]:
    """The same by torch, in double precision."""
    made._fused = None
    for network in made.networks.values():
        network.double()
    batch = made.batches.batch
    assert batch is not None
    doubled = lambda values: {name: value.double() for name, value in values.items()}  # noqa: E731
    numbers = batch.actions.double(), batch.rewards.double(), batch.discount.double(), batch.weight.double()
    made.batches.batch = Drawn(doubled(batch.obs), *numbers[:2], doubled(batch.next_obs), *numbers[2:], batch.numbers)
    made.batches.noise, made.batches.errors = made.batches.noise.double(), made.batches.errors.double()
    for steps in (made.critic_steps, made.actor_steps):
        steps.bucket = steps.bucket.double()
    return buckets(made)


@pytest.mark.parametrize("activation", ["elu", "relu", "tanh"])
@pytest.mark.parametrize("rows", [1, 64, 193, 700])
def test_gradients_sums_and_errors_are_those_of_double_precision(rows: int, activation: str) -> None:
    made = learner(rows, activation=activation)
    assert made._fused is not None
    found, wanted = buckets(made), in_double(made)
    for name, values in wanted.items():
        assert float(values.abs().max()) > 0.0, name
        assert torch.allclose(found[name], values, rtol=2e-5, atol=2e-5 * float(values.abs().max())), name


def test_batches_here_have_rows_of_either_critic() -> None:
    made = learner(256)
    batch, noise = made.batches.batch, made.batches.noise
    assert batch is not None
    action, _, _ = made.actor.act(batch.obs["actor"], noise[1])
    lower = made.critic.twin(torch.cat((batch.obs["critic"], action), dim=-1))[..., 0].argmin(0)
    assert 20 < int(lower.sum()) < 236


def test_results_do_not_depend_on_who_shares_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 3)
    together, single = buckets(learner(700)), buckets(learner(700, alone=False))
    assert all(torch.equal(together[name], single[name]) for name in together)


@pytest.mark.parametrize("where", ["rewards", "obs", "critic"])
def test_what_is_not_finite_stays_so_and_moves_nothing(where: str) -> None:
    made = learner(64)
    batch = made.batches.batch
    assert batch is not None
    batch.weight.fill_(1.0)
    spoiled = {"rewards": batch.rewards, "obs": batch.obs["actor"][:, 0], "critic": batch.obs["critic"][:, 0]}[where]
    spoiled[7] = float("nan")
    before = [parameter.clone() for parameter in (*made.critic.parameters(), *made.actor.parameters())]
    steps: dict[Literal["critic", "actor"], Any] = {"critic": made.critic_steps, "actor": made.actor_steps}
    spoils = {"rewards": {"critic"}, "obs": {"actor"}, "critic": {"critic", "actor"}}[where]
    for name, one in steps.items():
        one.begin()
        one.take(made.batches.rows)
        assert (float(one.totals[one.totals_names.index("skipped")]) == 1.0) == (name in spoils)
    after = [*made.critic.parameters(), *made.actor.parameters()]
    held = len(list(made.critic.parameters()))
    assert all(map(torch.equal, before[:held], after[:held])) == ("critic" in spoils)
    assert all(map(torch.equal, before[held:], after[held:])) == ("actor" in spoils)


def test_other_critics_networks_and_precisions_are_torchs() -> None:
    changes: list[dict[str, Any]] = [
        {"critic": "distributional"},
        {"layer_norm": True},
        {"activation": "swish"},
        {"bfloat16": True},
    ]
    for change in changes:
        assert learner(64, **change)._fused is None
    assert learner(64)._fused is not None


def test_without_a_compiler_torch_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_gradients, "load_library", lambda source=None: None if source else perceptron.load_library())
    assert learner(64)._fused is None
