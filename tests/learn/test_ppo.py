from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rsl_rl import algorithms
from rsl_rl.models import MLPModel
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict
from torch import Tensor

from embodied_rl.config import page as pages
from embodied_rl.learn.models import normalized, standard_deviation
from embodied_rl.learn.ppo import PPO, gae
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.rsl_rl_env import with_mirrored

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
#: Settings that rsl_rl's PPO takes under the same name.
SHARED = (
    *("num_learning_epochs", "num_mini_batches", "clip_param", "gamma", "lam", "value_loss_coef", "entropy_coef"),
    *("learning_rate", "schedule", "desired_kl", "max_grad_norm", "use_clipped_value_loss"),
    "normalize_advantage_per_mini_batch",
)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def settings(**changes: Any) -> pages.PPOSettings:
    return pages.PPOSettings.model_validate({"actor_hidden_dims": (16, 8), "critic_hidden_dims": (12,), **changes})


def learner(page: pages.PPOSettings, seed: int = 3) -> PPO:
    """A learner whose normalizers have seen something."""
    torch.manual_seed(seed)
    made = PPO({name: torch.zeros(ENVS, size) for name, size in SIZES.items()}, ACTIONS, page, MIRRORS, seed)
    for model, group in ((made.actor, "actor"), (made.critic, "critic")):
        if page.obs_normalization:
            model.obs_normalizer.update(2.0 + 3.0 * torch.randn(50, SIZES[group]))  # pyright: ignore
    return made


@torch.no_grad()
def drive(actor: MLPModel, seed: int = 0) -> Rollout:
    """What the actor does at random observations, for random rewards; robot 1 falls in step 2, robot 3 times out in step 5."""
    torch.manual_seed(seed)
    obs = {name: 2.0 + 3.0 * torch.randn(STEPS, ENVS, size) for name, size in SIZES.items()}
    mean, std = actor.mlp(normalized(actor, obs["actor"])), standard_deviation(actor).clone()
    terminated, truncated = torch.zeros(STEPS, ENVS).bool(), torch.zeros(STEPS, ENVS).bool()
    terminated[2, 1] = truncated[5, 3] = True
    return Rollout(
        obs=obs,
        actions=mean + std * torch.randn_like(mean),
        mean=mean,
        std=std,
        rewards=torch.randn(STEPS, ENVS),
        terminated=terminated,
        truncated=truncated,
        valid=torch.ones(STEPS, ENVS).bool(),
        final_obs={"critic": torch.randn(STEPS, ENVS, SIZES["critic"])},
        last_obs={name: torch.randn(ENVS, size) for name, size in SIZES.items()},
    )


def weights(made: PPO) -> dict[str, Tensor]:
    named = {"actor": made.actor, "critic": made.critic}
    return {f"{name}.{key}": value.clone() for name, model in named.items() for key, value in model.state_dict().items()}


def perturbed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights a little way off: ratios away from 1, and a KL."""
    return {name: value + 0.05 * torch.rand_like(value) if value.is_floating_point() else value for name, value in state.items()}


def rsl_rl(start: dict, driver: MLPModel, batch: Rollout, page: pages.PPOSettings) -> tuple[algorithms.PPO, dict[str, float]]:
    """rsl_rl's PPO after one update from the weights `start`, on what `driver` did."""

    def observed(obs: dict[str, Any]) -> TensorDict:
        return TensorDict(obs, batch_size=[ENVS])

    example, groups = observed(batch.last_obs), {name: [name] for name in SIZES}
    network = {"activation": page.activation, "obs_normalization": page.obs_normalization}
    gaussian = {"class_name": "GaussianDistribution", "init_std": page.init_std, "std_type": page.std_type}
    actor = MLPModel(example, groups, "actor", ACTIONS, hidden_dims=[16, 8], distribution_cfg=gaussian, **network)
    critic = MLPModel(example, groups, "critic", 1, hidden_dims=[12], **network)
    symmetry = {
        "env": SimpleNamespace(env=SimpleNamespace(mirror_maps=lambda: MIRRORS)),
        "data_augmentation_func": with_mirrored,
        "use_data_augmentation": page.symmetry == "augmentation",
        "use_mirror_loss": page.symmetry == "mirror_loss",
        "mirror_loss_coeff": page.mirror_loss_coeff,
    }
    theirs = algorithms.PPO(
        actor,
        critic,
        RolloutStorage("rl", ENVS, STEPS, example, [ACTIONS]),
        symmetry_cfg=None if page.symmetry == "none" else symmetry,
        **{name: getattr(page, name) for name in SHARED},
    )
    actor.load_state_dict(driver.state_dict())
    critic.load_state_dict(start["critic_state_dict"])
    with torch.no_grad():
        for step in range(STEPS):
            theirs.act(observed({name: value[step] for name, value in batch.obs.items()}))
            theirs.transition.actions = batch.actions[step]
            theirs.transition.actions_log_prob = actor.get_output_log_prob(batch.actions[step])
            done = batch.terminated[step] | batch.truncated[step]
            theirs.process_env_step(example, batch.rewards[step], done, {"time_outs": batch.truncated[step]})
        theirs.compute_returns(observed(batch.last_obs))
    actor.load_state_dict(start["actor_state_dict"])
    return theirs, theirs.update()


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


def returns(made: PPO, batch: Rollout) -> Tensor:
    return made._prepare(batch)["return"].view(STEPS, ENVS)


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


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "fixed"},
        {"schedule": "fixed", "use_clipped_value_loss": False, "normalize_advantage_per_mini_batch": True},
        {"schedule": "adaptive", "desired_kl": 1e-6},
        {"schedule": "adaptive", "desired_kl": 1e6},
        {"schedule": "fixed", "std_type": "log", "init_std": 0.5, "obs_normalization": False, "max_grad_norm": 1e-2},
        {"schedule": "fixed", "symmetry": "augmentation"},
        {"schedule": "fixed", "symmetry": "mirror_loss", "mirror_loss_coeff": 0.7},
    ],
    ids=lambda changes: " ".join(str(value) for value in changes.values()),
)
def test_an_update_is_that_of_rsl_rl(changes: dict[str, Any]) -> None:
    # gamma and lambda with few digits in base 2: rsl_rl multiplies them in single precision
    page = settings(**ONE_BATCH, gamma=31 / 32, lam=15 / 16, clip_param=0.1, entropy_coef=0.02, value_loss_coef=0.6, **changes)
    driver, ours = learner(page, seed=4), learner(page)
    batch = drive(driver.actor)
    # where ours differs on purpose: rsl_rl bootstraps a time-out from the observation before the step
    batch.final_obs = {"critic": batch.obs["critic"]}
    ours.actor.load_state_dict(perturbed(driver.actor.state_dict()))
    start = copy.deepcopy(ours.state_dict())
    theirs, losses = rsl_rl(start, driver.actor, batch, page)
    metrics = ours.update(batch, iteration=0)

    assert {name: metrics[f"Loss/{name}"] for name in ("value", "surrogate", "entropy")} == pytest.approx(
        {name: losses[name] for name in ("value", "surrogate", "entropy")}, rel=1e-12
    )
    assert 0.0 < metrics["Loss/clip_fraction"] < 1.0
    assert ours.learning_rate == theirs.learning_rate
    for name, model in {"actor": ours.actor, "critic": ours.critic}.items():
        for key, value in getattr(theirs, name).state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-9, atol=1e-12, msg=f"{name}.{key}")
    assert not torch.equal(ours.actor.state_dict()["mlp.0.weight"], start["actor_state_dict"]["mlp.0.weight"])


@pytest.mark.parametrize(
    ("kl", "rate", "expected"),
    [
        (0.021, 3e-4, 2e-4),
        (0.019, 3e-4, 3e-4),
        (0.0051, 3e-4, 3e-4),
        (0.0049, 3e-4, 4.5e-4),
        (0.0, 3e-4, 3e-4),  # nothing was learned: no reason to go faster
        (1.0, 1.2e-5, 1e-5),
        (0.001, 9e-3, 1e-2),
    ],
)
def test_the_learning_rate_keeps_the_kl_near_the_desired(kl: float, rate: float, expected: float) -> None:
    made = learner(settings(desired_kl=0.01, learning_rate=rate))
    made._adapt_rate(kl)
    assert made.learning_rate == made.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize("per_mini_batch", [False, True])
def test_invalid_transitions_change_nothing(per_mini_batch: bool) -> None:
    page = settings(normalize_advantage_per_mini_batch=per_mini_batch, num_learning_epochs=2, num_mini_batches=2)
    updated, metrics = [], []
    for garbage in (0.0, 50.0):
        made = learner(page)
        batch = drive(learner(page, seed=4).actor)
        for step, robot in ((0, 0), (3, 2), (7, 5)):
            batch.valid[step, robot], batch.terminated[step, robot] = False, True
            batch.rewards[step, robot] = garbage
            batch.actions[step, robot] += 0.01 * garbage
            batch.mean[step, robot] -= 0.01 * garbage
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
    prepared = made._prepare(batch)
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
        mean=reflect("actions", batch.mean),
    )


def test_with_augmentation_a_rollout_teaches_what_its_mirror_image_does() -> None:
    """Values of states that the rollout and its image share are the critic's, so the rewards alone make the returns here."""
    updated = []
    for image in (False, True):
        page = settings(**ONE_BATCH, symmetry="augmentation", schedule="fixed", gamma=0.0, obs_normalization=False)
        page = page.model_copy(update={"use_clipped_value_loss": False, "value_loss_coef": 0.5})
        made = learner(page)
        made.critic.mlp[-1].weight.data.zero_()  # pyright: ignore  the same value in every state
        batch = drive(made.actor)
        # the mirrored action is as likely in the mirrored state: as it is for a policy that is symmetric already
        batch.mean = torch.zeros_like(batch.mean)
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
        symmetry="mirror_loss", mirror_loss_coeff=coefficient, schedule="fixed", learning_rate=3e-3, max_grad_norm=10.0
    )
    made = learner(page)
    obs = drive(made.actor, seed=9).obs["actor"]
    before = asymmetry(made, obs)
    for iteration in range(20):
        made.update(drive(made.actor, seed=iteration), iteration)
    after = asymmetry(made, obs)
    assert after < 0.3 * before if coefficient else after > 0.3 * before


def test_every_epoch_has_its_own_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    page = settings(num_learning_epochs=3, num_mini_batches=5)
    made, seen = learner(page), []
    batch = drive(made.actor)
    monkeypatch.setattr(made, "_minibatch", lambda b: seen.append(b["log_prob"].tolist()) or {})
    made.update(batch, iteration=0)
    epochs = [seen[0:5], seen[5:10], seen[10:15]]
    everything = sorted(x for rows in epochs[0] for x in rows)
    assert len(seen) == 15 and len(everything) == STEPS * ENVS
    assert all(sorted(x for rows in epoch for x in rows) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    made.update(batch, iteration=0)
    made.update(batch, iteration=1)
    assert seen[15:30] == seen[:15] != seen[30:45]


def test_a_learner_goes_on_from_its_state() -> None:
    page = settings()
    whole, first, second = learner(page), learner(page), learner(page, seed=3)
    whole.update(drive(whole.actor), 0)
    first.update(drive(first.actor), 0)
    for parameter in chain(second.actor.parameters(), second.critic.parameters()):
        parameter.data.zero_()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.learning_rate == first.learning_rate
    batch = drive(whole.actor, seed=1)
    assert whole.update(batch, 1) == second.update(batch, 1)
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(whole).items())


def test_observations_are_normalized_by_what_was_seen() -> None:
    torch.manual_seed(0)
    made = PPO({name: torch.zeros(ENVS, size) for name, size in SIZES.items()}, ACTIONS, settings(), MIRRORS, 3)
    batch = drive(made.actor)
    made.update(batch, 0)
    flat = batch.obs["critic"].flatten(0, 1)
    normal = normalized(made.critic, flat)
    torch.testing.assert_close(normal.mean(0), torch.zeros(SIZES["critic"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(SIZES["critic"]), rtol=0, atol=1e-2)


def test_the_linear_schedule_ends_at_a_tenth():
    page = settings(schedule="linear", learning_rate=1e-3, max_iterations=100, num_learning_epochs=1, num_mini_batches=1)
    made = learner(page)
    batch = drive(made.actor)
    for iteration, rate in ((0, 1e-3), (50, 5e-4), (99, 1e-4), (500, 1e-4)):
        assert made.update(batch, iteration)["Loss/learning_rate"] == pytest.approx(rate)
        assert made.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
