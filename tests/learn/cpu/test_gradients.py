"""The same formula in two languages: `PPO._losses`, differentiated by torch, and `perceptron.cpp`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl import machine
from embodied_rl.config import page as pages
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.rollout import Rollout
from embodied_rl.vector_env import ActionSpace

SIZES, ACTIONS = {"actor": 5, "critic": 19}, 3
MIRRORS = {
    "actor": (torch.tensor([1, 0, 2, 4, 3]), torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])),
    "critic": (torch.arange(19).flip(0), torch.ones(19)),
    "actions": (torch.tensor([2, 1, 0]), torch.tensor([-1.0, 1.0, -1.0])),
}


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    if reason := machine.cpp_error():
        pytest.skip(reason)


def learner(**changes: Any) -> PPO:
    sizes = {"actor_hidden_dims": (16, 24), "critic_hidden_dims": (33,), "entropy_coef": 0.02, "value_loss_coef": 0.7}
    page = pages.PPOSettings.model_validate(sizes | changes)
    torch.manual_seed(1)
    return PPO({name: torch.zeros(1, size) for name, size in SIZES.items()}, ActionSpace(ACTIONS), page, MIRRORS, 1)


@torch.no_grad()
def prepared(made: PPO, steps: int, envs: int) -> PPO:
    """With a batch of what the policy did before its weights, and its deviation, moved on; a robot is invalid."""
    torch.manual_seed(2)
    draw = lambda *shape: torch.randn(steps, envs, *shape)  # noqa: E731
    obs = {name: draw(size) for name, size in SIZES.items()}
    output, std = made.actor.mlp(obs["actor"]), torch.tensor([0.8, 1.1, 0.9])
    valid = torch.ones(steps, envs).bool()
    valid[:, 1] = False
    ends, none = torch.rand(steps, envs) < 0.1, torch.zeros(steps, envs).bool()
    last = {name: value[0] for name, value in obs.items()}
    final = {"critic": obs["critic"]}
    actions = output + std * draw(ACTIONS)
    made._prepare(Rollout(obs, actions, output, std, draw(), ends, none, valid, final, last))
    for parameter in (*made.actor.parameters(), *made.critic.parameters()):
        parameter.add_(0.08 * torch.randn_like(parameter))
    made._advantage_scale.copy_(torch.tensor([0.1, 1.3]))
    made._entropy_coef.fill_(0.02)
    return made


def both(made: PPO, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The bucket by `perceptron.cpp`, and by torch in double precision."""
    made.steps.rows[len(rows)] = rows
    assert made._fused is not None and made._old_std is not None
    made.steps.gradients(len(rows))
    found, made.steps.bucket = made.steps.bucket.clone().double(), made.steps.bucket.double()
    made.actor.double()
    made.critic.double()
    made._batch.table, made._old_std = made._batch.table.double(), made._old_std.double()
    made._fused, made._advantage_scale = None, made._advantage_scale.double()
    made.steps.gradients(len(rows))
    return found, made.steps.bucket


@pytest.mark.parametrize("symmetry", ["none", "augmentation"])
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("std_type", ["scalar", "log"])
@pytest.mark.parametrize(("rows", "activation"), [(1, "elu"), (193, "relu"), (193, "tanh"), (2000, "elu")])
def test_gradients_and_sums_are_those_of_double_precision(
    symmetry: str, clipped: bool, std_type: str, rows: int, activation: str
) -> None:
    check(rows, symmetry=symmetry, use_clipped_value_loss=clipped, std_type=std_type, activation=activation)


@pytest.mark.parametrize("rows", [7, 191, 192, 1000])
@pytest.mark.parametrize(
    ("actor", "critic"), [((128, 128), (128, 128)), ((1,), (1,)), ((24, 40, 8), (5, 33)), ((3, 64), (40, 8, 16, 1))]
)
@pytest.mark.parametrize("activation", ["elu", "relu", "tanh"])
def test_networks_of_all_widths(activation: str, actor: tuple[int, ...], critic: tuple[int, ...], rows: int) -> None:
    # a bias of the last layer is a sum of terms of either sign, which leave little of each other
    check(rows, max(1e-6, 1e-8 * rows), actor_hidden_dims=actor, critic_hidden_dims=critic, activation=activation)


def check(rows: int, rounding: float = 1e-6, **changes: Any) -> None:
    """The bucket by `perceptron.cpp` is torch's in double precision, within rounding."""
    made = prepared(learner(**changes), 25, 100)
    found, exact = both(made, torch.randperm(2500)[:rows])
    sums, wanted = (dict(zip(PPO.sums, bucket[-len(PPO.sums) :].tolist(), strict=True)) for bucket in (found, exact))
    assert sums == pytest.approx(wanted, rel=2e-5, abs=1e-4)
    if rows > 1:
        assert 0.05 < sums["clip_fraction"] / sums["rows"] < 0.95  # on both sides of the clip
    start = 0
    for parameter in made.steps.parameters:
        one, other = (bucket[start : start + parameter.numel()] for bucket in (found, exact))
        assert float((one - other).norm()) <= 2e-5 * float(other.norm()) + rounding
        start += parameter.numel()


def test_what_is_not_finite_stays_so() -> None:
    for column, value in (("advantage", torch.nan), ("log_prob", -torch.inf), ("return", torch.inf), ("actor", torch.nan)):
        made = prepared(learner(), 25, 100)
        made._batch.columns(made._batch.table)[column][3, 4] = value
        found, exact = both(made, torch.arange(2500))
        assert not bool(found.sum().isfinite()) and not bool(exact.sum().isfinite())


def test_who_is_served() -> None:
    for activation in ("elu", "relu", "tanh"):
        assert learner(activation=activation)._fused is not None
    for changes in ({"activation": "selu"}, {"bfloat16": True}, {"symmetry": "mirror_loss"}, {"rnn_type": "gru"}):
        assert learner(**changes)._fused is None
