from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rsl_rl.models import MLPModel
from torch import Tensor

from embodied_rl import machine
from embodied_rl.config import page as pages
from embodied_rl.config.learner_numbers import LEARNER_NUMBERS
from embodied_rl.errors import UserError
from embodied_rl.learn import actor_critic, gradient_steps
from embodied_rl.learn.advantages import gae
from embodied_rl.learn.models import normalized, standard_deviation
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.rsl_rl_ppo import RslRlPPO
from embodied_rl.vector_env import ActionSpace

STEPS, ENVS, ACTIONS = 8, 6, 4
SIZES = {"actor": 5, "critic": 7}
#: A reflection of each group: it is its own inverse.
MIRRORS = {
    "actor": (torch.tensor([1, 0, 2, 4, 3]), torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])),
    "critic": (torch.tensor([0, 2, 1, 3, 5, 4, 6]), torch.tensor([-1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0])),
    "actions": (torch.tensor([2, 3, 0, 1]), torch.tensor([-1.0, 1.0, -1.0, 1.0])),
}
#: One minibatch of everything: its order does not matter, so that two learners can be compared.
ONE_BATCH = {"num_learning_epochs": 1, "num_mini_batches": 1}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def settings(**changes: Any) -> pages.PPOSettings:
    return pages.PPOSettings.model_validate({"actor_hidden_dims": (16, 8), "critic_hidden_dims": (12,), **changes})


def learner(page: pages.PPOSettings, seed: int = 3, **named: Any) -> PPO:
    """A learner whose normalizers have seen something."""
    torch.manual_seed(seed)
    made = PPO(
        {name: torch.zeros(ENVS, size) for name, size in SIZES.items()}, ActionSpace(ACTIONS), page, MIRRORS, seed, **named
    )
    for model, group in ((made.actor, "actor"), (made.critic, "critic")):
        if page.obs_normalization:
            model.obs_normalizer.update(2.0 + 3.0 * torch.randn(50, SIZES[group]))  # pyright: ignore
    return made


@torch.no_grad()
def drive(actor: MLPModel, seed: int = 0, steps: int = STEPS, envs: int = ENVS) -> Rollout:
    """What the actor does at random observations, for random rewards; robot 1 falls in step 2, robot 3 times out in step 5."""
    torch.manual_seed(seed)
    obs = {name: 2.0 + 3.0 * torch.randn(steps, envs, size) for name, size in SIZES.items()}
    mean, std = actor.mlp(normalized(actor, obs["actor"])), standard_deviation(actor).clone()
    terminated, truncated = torch.zeros(steps, envs).bool(), torch.zeros(steps, envs).bool()
    terminated[2, 1] = truncated[5, 3] = True
    return Rollout(
        obs=obs,
        actions=mean + std * torch.randn_like(mean),
        output=mean,
        std=std,
        rewards=torch.randn(steps, envs),
        terminated=terminated,
        truncated=truncated,
        valid=torch.ones(steps, envs).bool(),
        final_obs={"critic": torch.randn(steps, envs, SIZES["critic"])},
        last_obs={name: torch.randn(envs, size) for name, size in SIZES.items()},
    )


def weights(made: PPO) -> dict[str, Tensor]:
    named = {"actor": made.actor, "critic": made.critic}
    return {f"{name}.{key}": value.clone() for name, model in named.items() for key, value in model.state_dict().items()}


def perturbed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights a little way off: ratios away from 1, and a KL."""
    return {name: value + 0.05 * torch.rand_like(value) if value.is_floating_point() else value for name, value in state.items()}


def theirs_from(start: dict, page: pages.PPOSettings, steps: int, envs: int) -> RslRlPPO:
    """rsl_rl's PPO with the weights `start`."""
    example = {name: torch.zeros(envs, size) for name, size in SIZES.items()}
    theirs = RslRlPPO(example, ActionSpace(ACTIONS), page, MIRRORS, steps)
    theirs.actor.load_state_dict(start["actor_state_dict"])
    theirs.critic.load_state_dict(start["critic_state_dict"])
    return theirs


def rsl_rl(start: dict, batch: Rollout, page: pages.PPOSettings, order: Tensor) -> tuple[RslRlPPO, dict[str, float], list[float]]:
    """rsl_rl's PPO after one update from the weights `start`, its losses, and the learning rate of each minibatch."""
    theirs = theirs_from(start, page, *batch.rewards.shape)
    rates, step = [], theirs.optimizer.step
    theirs.optimizer.step = lambda: rates.append(theirs.learning_rate) or step()  # pyright: ignore
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", lambda size, **_: order)
        metrics = theirs.update(batch, 0)
    return theirs, metrics, rates


def test_gae_by_hand() -> None:
    # gamma = 0.5, lambda = 0.5; three steps of a robot that goes on:
    #   delta_2 = 4 + 0.5 * 8 - 2 = 6          A_2 = 6
    #   delta_1 = 2 + 0.5 * 2 - 4 = -1         A_1 = -1 + 0.25 * 6 = 0.5
    #   delta_0 = 1 + 0.5 * 4 - 1 = 2          A_0 = 2 + 0.25 * 0.5 = 2.125
    # of one whose episode ends with step 1:
    #   delta_1 = 2 - 4 = -2                   A_1 = -2
    #                                          A_0 = 2 + 0.25 * -2 = 1.5
    # of one whose episode ends with the last step:
    #   delta_2 = 4 - 2 = 2                    A_2 = 2
    #                                          A_1 = -1 + 0.25 * 2 = -0.5
    #                                          A_0 = 2 + 0.25 * -0.5 = 1.875
    rewards = torch.tensor([1.0, 2.0, 4.0])[:, None].expand(3, 3)
    values = torch.tensor([1.0, 4.0, 2.0])[:, None].expand(3, 3)
    done = torch.tensor([[False, False, False], [False, True, False], [False, False, True]])
    advantages = gae(rewards, values, done, torch.tensor([8.0, 8.0, 8.0]), 0.5, 0.5)
    assert advantages.tolist() == [[2.125, 1.5, 1.875], [0.5, -2.0, -0.5], [6.0, 6.0, 2.0]]


def column(made: PPO, batch: Rollout, name: str) -> Tensor:
    """What minibatches take of a rollout, (T N, ...)."""
    made._prepare(batch)
    return made._batch.columns(made._batch.take(torch.arange(batch.rewards.numel())))[name]


def returns(made: PPO, batch: Rollout) -> Tensor:
    return column(made, batch, "return").view(STEPS, ENVS)


def value_of(made: PPO, obs: Tensor) -> Tensor:
    with torch.no_grad():
        return made.critic.mlp(normalized(made.critic, obs)).squeeze()


def test_a_time_out_is_worth_what_would_have_come() -> None:
    """R_t = r_t + gamma V(state that the episode ended in), and no reward beyond a fall."""
    page = settings()
    made = learner(page)
    batch = drive(made.actor)
    before = returns(made, batch)
    expected = batch.rewards[5, 3] + page.gamma * value_of(made, batch.final_obs["critic"][5, 3])
    torch.testing.assert_close(before[5, 3], expected)
    torch.testing.assert_close(before[2, 1], batch.rewards[2, 1])

    old_value = value_of(made, batch.final_obs["critic"][5, 3])
    batch.final_obs["critic"] += 1.0
    change = page.gamma * (value_of(made, batch.final_obs["critic"][5, 3]) - old_value)
    # it reaches the steps before, each time shortened by gamma lambda, and nothing else
    moved = torch.zeros(STEPS, ENVS)
    moved[:6, 3] = change * (page.gamma * page.lam) ** torch.arange(5.0, -1.0, -1.0)
    torch.testing.assert_close(returns(made, batch), before + moved)


#: What one update is compared under.
VARIANTS = [
    {"schedule": "constant"},
    {"schedule": "constant", "use_clipped_value_loss": False, "normalize_advantage": "minibatch"},
    {"schedule": "adaptive", "desired_kl": 0.02},
    {"schedule": "adaptive", "desired_kl": 1e-6},
    {"schedule": "adaptive", "desired_kl": 1e6},
    {"schedule": "constant", "std_type": "log", "init_std": 0.5, "obs_normalization": False, "max_grad_norm": 1e-2},
    {"schedule": "constant", "symmetry": "augmentation"},
    {"schedule": "constant", "symmetry": "mirror_loss", "mirror_loss_coeff": 0.7},
]


def updated(
    page: pages.PPOSettings, steps: int = STEPS, envs: int = ENVS
) -> tuple[PPO, RslRlPPO, dict, list[dict], list[list[float]]]:
    """Ours and theirs after one update on the same rollout in the same order, the start, their metrics and learning rates."""
    driver, ours = learner(page, seed=4), learner(page)
    batch = drive(driver.actor, steps=steps, envs=envs)
    # where ours differs on purpose: rsl_rl bootstraps a time-out from the observation before the step,
    batch.final_obs = {"critic": batch.obs["critic"]}
    ours.actor.load_state_dict(perturbed(driver.actor.state_dict()))
    start = copy.deepcopy(ours.state_dict())
    # and has the same minibatches in every epoch
    order = torch.randperm(steps * envs)
    theirs, losses, their_rates = rsl_rl(start, batch, page, order)
    ours._orders = lambda iteration: order.expand(page.num_learning_epochs, -1)  # pyright: ignore
    rates, apply = [], ours.steps.apply
    ours.steps.apply = lambda size: (apply(size), rates.append(float(ours.steps.rate)))  # pyright: ignore
    metrics = ours.update(batch, iteration=0)
    return ours, theirs, start, [metrics, losses], [rates, their_rates]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: " ".join(str(value) for value in changes.values()))
def test_an_update_is_that_of_rsl_rl(changes: dict[str, Any]) -> None:
    """5 epochs of 4 minibatches in double precision."""
    # gamma and lambda with few digits in base 2: rsl_rl multiplies them in single precision
    page = settings(gamma=31 / 32, lam=15 / 16, clip_param=0.1, entropy_coef=0.02, value_loss_coef=0.6, **changes)
    ours, theirs, start, (metrics, losses), (rates, their_rates) = updated(page)
    for name in ("value", "surrogate", "entropy"):
        assert metrics[f"Loss/{name}"] == pytest.approx(losses[f"Loss/{name}"], rel=1e-10), name
    assert 0.0 < metrics["Loss/clip_fraction"] < 1.0
    assert rates == pytest.approx(their_rates, rel=1e-12) and len(rates) == 20
    for name, model in {"actor": ours.actor, "critic": ours.critic}.items():
        for key, value in getattr(theirs, name).state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-10, atol=1e-10, msg=f"{name}.{key}")
    assert not torch.equal(ours.actor.state_dict()["mlp.0.weight"], start["actor_state_dict"]["mlp.0.weight"])


def test_what_is_carried_from_update_to_update_is_that_of_rsl_rl() -> None:
    """Moments of the optimizer and normalizers: six rollouts, each driven by what was learned before."""
    page = settings(gamma=31 / 32, lam=15 / 16, schedule="constant")
    ours = learner(page)
    theirs = theirs_from(ours.state_dict(), page, STEPS, ENVS)
    for iteration in range(6):
        batch = drive(ours.actor, seed=iteration)
        batch.final_obs = {"critic": batch.obs["critic"]}
        order = torch.randperm(STEPS * ENVS)
        ours._orders = lambda iteration, order=order: order.expand(page.num_learning_epochs, -1)  # pyright: ignore
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randperm", lambda size, order=order, **_: order)
            losses = theirs.update(batch, iteration)
        metrics = ours.update(batch, iteration)
        assert metrics["Loss/value"] == pytest.approx(losses["Loss/value"], rel=1e-8)
    for name, model in {"actor": ours.actor, "critic": ours.critic}.items():
        for key, value in getattr(theirs, name).state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-8, atol=1e-8, msg=f"{name}.{key}")


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: " ".join(str(value) for value in changes.values()))
def test_in_single_precision_an_update_is_nearly_that_of_rsl_rl(changes: dict[str, Any]) -> None:
    torch.set_default_dtype(torch.float32)
    ours, theirs, start, _, (rates, their_rates) = updated(settings(entropy_coef=0.02, **changes), steps=16, envs=128)
    assert rates == pytest.approx(their_rates, rel=1e-6)

    def change(made: PPO | RslRlPPO) -> Tensor:
        pairs = ((made.actor, "actor_state_dict"), (made.critic, "critic_state_dict"))
        return torch.cat([(p.detach() - start[key][n]).flatten() for model, key in pairs for n, p in model.named_parameters()])

    assert float((change(ours) - change(theirs)).norm() / change(theirs).norm()) <= 1e-3


@pytest.mark.parametrize(("kl", "expected"), [(0.021, 2e-4), (0.019, 3e-4), (0.0049, 4.5e-4)])
def test_the_learning_rate_follows_the_kl(kl: float, expected: float) -> None:
    made = learner(settings(desired_kl=0.01, learning_rate=3e-4))
    made.steps.sums[0], made.steps.sums[4] = 2.0, 2.0 * kl  # of two rows
    made.steps.apply(2)
    assert float(made.steps.rate) == float(made.steps.optimizer.param_groups[0]["lr"]) == pytest.approx(expected)


@pytest.mark.parametrize("normalize", ["rollout", "minibatch", "none"])
def test_invalid_transitions_change_nothing(normalize: str) -> None:
    page = settings(normalize_advantage=normalize, num_learning_epochs=2, num_mini_batches=2)
    updated, metrics = [], []
    for garbage in (0.0, 50.0):
        made = learner(page)
        batch = drive(learner(page, seed=4).actor)
        for step, robot in ((0, 0), (3, 2), (7, 5)):
            batch.valid[step, robot], batch.terminated[step, robot] = False, True
            batch.rewards[step, robot] = garbage
            batch.actions[step, robot] += 0.01 * garbage
            batch.output[step, robot] -= 0.01 * garbage
            batch.final_obs["critic"][step, robot] = garbage
        metrics.append(made.update(batch, iteration=0))
        updated.append(weights(made))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-12)
    for name, value in updated[0].items():
        torch.testing.assert_close(updated[1][name], value, rtol=1e-12, atol=1e-14, msg=name)


def test_before_an_invalid_transition_counts_the_value_of_its_state() -> None:
    page = settings()
    made = learner(page)
    batch = drive(made.actor)
    batch.valid[4, 0], batch.terminated[4, 0], batch.rewards[4, 0] = False, True, -100.0
    value = value_of(made, batch.obs["critic"][4, 0])
    torch.testing.assert_close(returns(made, batch)[3, 0], batch.rewards[3, 0] + page.gamma * value)


def test_statistics_are_those_of_valid_transitions() -> None:
    made = learner(settings(**ONE_BATCH))
    batch = drive(made.actor)
    batch.valid[4, :3], batch.terminated[4, :3] = False, True
    prepared = {name: column(made, batch, name) for name in ("advantage", "return", "value")}
    valid = batch.valid.flatten()
    advantage, error = prepared["advantage"][valid], (prepared["return"] - prepared["value"])[valid]
    torch.testing.assert_close(advantage.mean(), torch.tensor(0.0), rtol=0, atol=1e-9)
    torch.testing.assert_close(advantage.std(), torch.tensor(1.0), rtol=0, atol=1e-6)
    explained = 1.0 - float(error.var() / prepared["return"][valid].var())
    assert made.update(batch, 0)["Loss/explained_variance"] == pytest.approx(explained)


def mirrored(batch: Rollout) -> Rollout:
    """The rollout as it looks in a mirror."""

    def reflect(name: str, values: Tensor) -> Tensor:
        index, sign = MIRRORS[name]
        return values[..., index] * sign

    def each(obs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: reflect(name, values) for name, values in obs.items()}

    return dataclasses.replace(
        batch,
        obs=each(batch.obs),
        last_obs=each(batch.last_obs),
        final_obs=each(batch.final_obs),
        actions=reflect("actions", batch.actions),
        output=reflect("actions", batch.output),
    )


def test_with_augmentation_a_rollout_teaches_what_its_mirror_image_does() -> None:
    """Values of states that the rollout and its image share are the critic's, so the rewards alone make the returns here."""
    updated = []
    for image in (False, True):
        page = settings(**ONE_BATCH, symmetry="augmentation", schedule="constant", gamma=0.0, obs_normalization=False)
        page = page.model_copy(update={"use_clipped_value_loss": False, "value_loss_coef": 0.5})
        made = learner(page)
        made.critic.mlp[-1].weight.data.zero_()  # pyright: ignore  the same value in every state
        batch = drive(made.actor)
        # the mirrored action is as likely in the mirrored state: as it is for a policy that is symmetric already
        batch.output = torch.zeros_like(batch.output)
        made.update(mirrored(batch) if image else batch, iteration=0)
        updated.append(weights(made))
    for name, value in updated[0].items():
        torch.testing.assert_close(updated[1][name], value, rtol=1e-9, atol=1e-12, msg=name)


def asymmetry(made: PPO, obs: Tensor) -> float:
    """Mean square of pi(mirrored obs) - mirrored pi(obs)."""
    (index, sign), (action_index, action_sign) = MIRRORS["actor"], MIRRORS["actions"]
    with torch.no_grad():
        mean = made.actor.mlp(normalized(made.actor, obs))
        image = made.actor.mlp(normalized(made.actor, obs[..., index] * sign))
    return float((image - mean[..., action_index] * action_sign).square().mean())


@pytest.mark.parametrize("coefficient", [10.0, 0.0])
def test_the_mirror_loss_makes_the_policy_symmetric(coefficient: float) -> None:
    page = settings(
        symmetry="mirror_loss", mirror_loss_coeff=coefficient, schedule="constant", learning_rate=3e-3, max_grad_norm=10.0
    )
    made = learner(page)
    obs = drive(made.actor, seed=9).obs["actor"]
    before = asymmetry(made, obs)
    for iteration in range(20):
        made.update(drive(made.actor, seed=iteration), iteration)
    after = asymmetry(made, obs)
    assert after < 0.3 * before if coefficient else after > 0.3 * before


@pytest.mark.parametrize("reshuffle", [False, True])
def test_every_iteration_has_its_own_minibatches_and_every_epoch_where_the_page_says_so(
    monkeypatch: pytest.MonkeyPatch, reshuffle: bool
) -> None:
    page = settings(num_learning_epochs=3, num_mini_batches=5, reshuffle=reshuffle)

    def minibatches(*iterations: int, seed: int = 3) -> list[list[int]]:
        made, seen = learner(page, seed), []
        batch = drive(made.actor)
        monkeypatch.setattr(made.steps, "gradients", lambda size: seen.append(made.steps.rows[size].tolist()))
        monkeypatch.setattr(made.steps, "apply", lambda size: None)
        for iteration in iterations:
            made.update(batch, iteration)
        return seen

    seen = minibatches(0)
    epochs = [seen[0:5], seen[5:10], seen[10:15]]
    everything = sorted(x for rows in epochs[0] for x in rows)
    assert len(seen) == 15 and len(everything) == STEPS * ENVS
    assert all(sorted(x for rows in epoch for x in rows) == everything for epoch in epochs)
    assert [epochs[0] == epochs[1], epochs[1] == epochs[2]] == [not reshuffle] * 2
    again = minibatches(0, 0, 1)
    assert again[15:30] == again[:15] == seen != again[30:45]
    assert minibatches(0, seed=4) != seen


def test_a_learner_goes_on_from_its_state() -> None:
    page = settings()
    whole, first, second = learner(page), learner(page), learner(page, seed=3)
    whole.update(drive(whole.actor), 0)
    first.update(drive(first.actor), 0)
    for parameter in chain(second.actor.parameters(), second.critic.parameters()):
        parameter.data.zero_()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert float(second.steps.rate) == float(first.steps.rate)
    batch = drive(whole.actor, seed=1)
    assert whole.update(batch, 1) == second.update(batch, 1)
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(whole).items())


def test_observations_are_normalized_by_what_was_seen() -> None:
    torch.manual_seed(0)
    made = PPO({name: torch.zeros(ENVS, size) for name, size in SIZES.items()}, ActionSpace(ACTIONS), settings(), MIRRORS, 3)
    batch = drive(made.actor)
    made.update(batch, 0)
    flat = batch.obs["critic"].flatten(0, 1)
    normal = normalized(made.critic, flat)
    torch.testing.assert_close(normal.mean(0), torch.zeros(SIZES["critic"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(SIZES["critic"]), rtol=0, atol=1e-2)


def test_the_linear_schedule_ends_at_a_tenth():
    page = settings(schedule="linear", learning_rate=1e-3, num_learning_epochs=1, num_mini_batches=1)
    made = learner(page, train=pages.TrainSettings(iterations=100))
    batch = drive(made.actor)
    for iteration, rate in ((0, 1e-3), (50, 5e-4), (99, 1e-4), (500, 1e-4)):
        assert made.update(batch, iteration)["Loss/learning_rate"] == pytest.approx(rate)
        assert made.steps.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_the_entropy_bonus_moves_to_its_end():
    page = settings(entropy_coef=0.02, final_entropy_coef=0.0, num_learning_epochs=1, num_mini_batches=1)
    made = learner(page, train=pages.TrainSettings(iterations=100))
    batch = drive(made.actor)
    for iteration, coefficient in ((0, 0.02), (25, 0.015), (100, 0.0), (500, 0.0)):
        assert made.update(batch, iteration)["Loss/entropy_coef"] == pytest.approx(coefficient)


@pytest.mark.parametrize(
    ("path", "value", "schedule"),
    [("ppo.learning_rate", 2e-3, "constant"), ("ppo.entropy_coef", 0.5, "constant"), ("ppo.desired_kl", 1e-6, "adaptive")],
)
def test_a_number_that_a_curriculum_moves_is_as_good_as_the_pages(path: str, value: float, schedule: str) -> None:
    """Also with a graph's reading by address: the tensors are the same ones before and after."""
    page, name = settings(schedule=schedule), path.removeprefix("ppo.")
    moved, own, without = learner(page), learner(settings(schedule=schedule, **{name: value})), learner(page)
    assert set(moved._numbers) == set(LEARNER_NUMBERS) and moved._numbers["ppo.learning_rate"] is moved.steps.rate
    batch, where = drive(moved.actor), {path: number.data_ptr() for path, number in moved._numbers.items()}
    for iteration in range(2):
        assert moved.update(batch, iteration, {path: value}) == own.update(batch, iteration)
        without.update(batch, iteration)
    assert where == {path: number.data_ptr() for path, number in moved._numbers.items()}
    assert all(torch.equal(value, weights(own)[name]) for name, value in weights(moved).items())
    assert not torch.equal(weights(moved)["actor.mlp.0.weight"], weights(without)["actor.mlp.0.weight"])


def test_rsl_rl_takes_the_same_numbers() -> None:
    page = settings(schedule="constant")
    theirs = theirs_from(learner(page).state_dict(), page, STEPS, ENVS)
    numbers = {"ppo.learning_rate": 2e-3, "ppo.entropy_coef": 0.25, "ppo.desired_kl": 0.5}
    metrics = theirs.update(drive(theirs.actor), 0, numbers)
    assert (metrics["Loss/learning_rate"], metrics["Loss/entropy_coef"], theirs.algorithm.desired_kl) == (2e-3, 0.25, 0.5)
    assert theirs.optimizer.param_groups[0]["lr"] == 2e-3


def test_a_minibatch_that_is_not_finite_is_skipped_and_counted() -> None:
    """One spoiled row: the minibatch that it is in teaches nothing, each epoch, and the others what they would."""
    page = settings(num_learning_epochs=2, num_mini_batches=4, schedule="adaptive", obs_normalization=False)
    made, control = learner(page), learner(page)
    batch = drive(learner(page, seed=4).actor)
    metrics = control.update(batch, 0)
    assert metrics["Loss/skipped"] == 0.0
    before, taken, apply = weights(made), [], made.steps.apply
    prepare = made._prepare

    def spoil(*given: Any) -> Tensor:
        result = prepare(*given)
        columns = made._batch.columns(made._batch.table.flatten(0, 1))
        columns["return"][17] = torch.nan
        return result

    def watch(size: int) -> None:
        start = weights(made)
        apply(size)
        moved = any(not torch.equal(value, start[name]) for name, value in weights(made).items())
        taken.append((17 in made.steps.rows[size].tolist(), moved))

    made._prepare, made.steps.apply = spoil, watch  # pyright: ignore
    metrics = made.update(batch, 0)
    assert metrics["Loss/skipped"] == 2.0 and len(taken) == 8
    assert [spoiled for spoiled, _ in taken] == [not moved for _, moved in taken]
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    assert all(value.isfinite().all() for value in weights(made).values())
    assert any(not torch.equal(value, before[name]) for name, value in weights(made).items())


def test_beyond_the_kl_that_stops_nothing_more_is_learned() -> None:
    """The step that overshoots is the last one: the next minibatch sees its KL, and none is taken from there on."""
    page = settings(schedule="constant", learning_rate=0.05, num_learning_epochs=3, num_mini_batches=4, obs_normalization=False)
    limit = 0.05
    free, held = learner(page), learner(page.model_copy(update={"stop_kl": limit}))
    batch = drive(free.actor)
    kls: list[float] = []
    for made in (free, held):
        apply = made.steps.apply
        made.steps.apply = lambda size, made=made, apply=apply: (
            kls.append(float(made.steps.sums[4] / made.steps.sums[0])),
            apply(size),
        )  # pyright: ignore
    free.update(batch, 0)
    first = next(index for index, kl in enumerate(kls) if kl > limit)
    kls.clear()
    metrics = held.update(batch, 0)
    assert 0 < first < 11 and metrics["Loss/stopped"] == 12 - first
    steps = {float(state["step"]) for state in held.steps.optimizer.state.values()}
    assert steps == {float(first)}


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_steps, "_PART", 10)  # 24 rows of a minibatch: three parts
    results = []
    for cores in (1, 3):
        monkeypatch.setattr(machine, "cores", lambda cores=cores: cores)
        made = learner(settings(num_mini_batches=2))
        made.update(drive(made.actor), 0)
        results.append(weights(made))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_a_rollout_may_change_after_the_update_began() -> None:
    """What is learned from is the learner's own copy."""
    updated = []
    for spoils in (False, True):
        made = learner(settings())
        batch = drive(made.actor)
        gradients = made.steps.gradients

        def spoil(size: int, batch: Rollout = batch, gradients: Any = gradients, spoils: bool = spoils) -> None:
            if spoils:
                for tensor in (batch.actions, batch.output, batch.rewards, *batch.obs.values(), *batch.final_obs.values()):
                    tensor.fill_(99.0)
            gradients(size)

        made.steps.gradients, made.page = spoil, made.page.model_copy(update={"obs_normalization": False})  # pyright: ignore
        made.update(batch, 0)
        updated.append(weights(made))
    assert all(torch.equal(value, updated[1][name]) for name, value in updated[0].items() if "mlp" in name)


@pytest.mark.parametrize("symmetry", ["none", "augmentation"])
def test_in_bfloat16_it_learns_nearly_the_same(symmetry: str) -> None:
    torch.set_default_dtype(torch.float32)
    changes = []
    for bfloat16 in (False, True):
        made = learner(settings(bfloat16=bfloat16, symmetry=symmetry, schedule="constant", **ONE_BATCH))
        before = weights(made)
        made.update(drive(learner(settings(), seed=4).actor, steps=16, envs=64), 0)
        after = weights(made)
        changes.append(torch.cat([(after[name] - before[name]).flatten() for name in after if "mlp" in name]))
        assert all(value.dtype == before[name].dtype for name, value in after.items())
    cosine = torch.nn.functional.cosine_similarity(changes[0], changes[1], dim=0)
    assert cosine > 0.9 and not torch.equal(*changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/learn/test_gpu.py captures it")
def test_torch_lets_an_update_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for a GPU: torch looks at the optimizer's settings before a step, and refuses some during a capture."""
    made, elsewhere = learner(settings(**ONE_BATCH)), learner(settings(**ONE_BATCH))
    made.steps.captures = True
    made.load_state_dict(elsewhere.state_dict())  # of a CPU, say
    made.update(drive(made.actor), 0)
    (rows,) = made.steps.rows
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    # torch 2.13 asks these, which 2.11 does not
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *_: SimpleNamespace(is_capturing=lambda: True))
    with pytest.raises(RuntimeError, match="capturable is False"):
        elsewhere.steps.optimizer.step()
    for half in (made.steps.gradients, made.steps.apply):
        half(rows)


@pytest.mark.parametrize("graph", [True, False])
def test_adam_is_capturable_where_an_update_is_captured(monkeypatch: pytest.MonkeyPatch, graph: bool) -> None:
    """The CPU stands for a GPU, of which the learner alone is told."""

    class Torch:
        device = staticmethod(lambda name: SimpleNamespace(type="cuda"))
        __getattr__ = staticmethod(partial(getattr, torch))

    monkeypatch.setattr(actor_critic, "torch", Torch())
    obs = {name: torch.zeros(ENVS, size) for name, size in SIZES.items()}
    made = PPO(obs, ActionSpace(ACTIONS), settings(), MIRRORS, 3, graph=graph)
    assert made.steps.captures is graph and made.steps.optimizer.param_groups[0]["capturable"] is graph


def test_what_is_saved_is_of_no_device() -> None:
    """A CPU's Adam refuses to be capturable."""
    made = learner(settings(**ONE_BATCH))
    (group,) = made.steps.optimizer.param_groups
    group["capturable"] = made.steps.captures = True
    (saved,) = made.state_dict()["optimizer_state_dict"]["param_groups"]
    assert saved["capturable"] is False and group["capturable"] is True


def test_a_deviation_below_its_least_value_comes_back() -> None:
    """What is saved is a policy, and one that can explore again; below it the gradient would be zero for ever."""
    made = learner(settings(**ONE_BATCH))
    batch = drive(made.actor)
    distribution: Any = made.actor.distribution
    parameter = distribution.std_param
    parameter.data[1] = -0.5
    made.update(batch, 0)
    assert parameter[1].item() == pytest.approx(distribution.std_range[0]) and bool((parameter > 0.0).all())
    assert bool((parameter[[0, 2, 3]] > 0.5).all())


def test_a_checkpoint_of_an_optimizer_that_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch puts the counts of steps where a fused optimizer needs them only if it knows beforehand that it is one."""
    made, elsewhere = learner(settings(**ONE_BATCH)), learner(settings(**ONE_BATCH))
    elsewhere.update(drive(elsewhere.actor), 0)
    state = copy.deepcopy(elsewhere.state_dict())
    state["optimizer_state_dict"]["param_groups"][0]["fused"] = None
    given, load = [], made.steps.optimizer.load_state_dict
    monkeypatch.setattr(made.steps.optimizer, "load_state_dict", lambda state: given.append(state) or load(state))
    made.load_state_dict(state)
    assert given[0]["param_groups"][0]["fused"] is True
    rollout = drive(elsewhere.actor)
    metrics = [one.update(rollout, 1) for one in (made, elsewhere)]
    assert metrics[0] == metrics[1] and all(torch.equal(weights(made)[name], value) for name, value in weights(elsewhere).items())


@pytest.mark.parametrize("works", [True, False])
def test_an_update_is_the_same_whether_it_can_be_captured_or_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, works: bool
) -> None:
    """The CPU stands for a GPU: a capture runs nothing, a replay runs it once."""

    def graph(function: Any, device: torch.device, physics: Any, *, what: str) -> Any:
        if not works:
            raise UserError(f"physics.graph: {what} cannot be captured here: why; set physics.graph=false")
        return function

    monkeypatch.setattr("embodied_rl.cuda_graph.CudaGraph", graph)
    learners = [learner(settings(num_learning_epochs=2, num_mini_batches=2)) for _ in range(2)]
    learners[1].steps.captures = True
    for iteration in range(2):
        metrics = [made.update(drive(made.actor, iteration), iteration) for made in learners]
        assert metrics[0] == metrics[1]
    before, after = map(weights, learners)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert learners[1].steps.captures is works and len(learners[1].steps.graphs) == 2 * works
    assert [message.partition(";")[0] for message in caplog.messages] == (
        [] if works else ["physics.graph: the update cannot be captured here: why"]
    )
