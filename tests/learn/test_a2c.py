"""A2C: PPO's one epoch of one minibatch with RMSprop and one norm for all, against Stable-Baselines3's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from embodied_rl import training
from embodied_rl.config import load
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.errors import UserError
from embodied_rl.learn.damage import find_damage
from embodied_rl.learn.optimizers import RMSprop
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.rsl_rl_ppo import check_counterparts
from embodied_rl.vector_env import ActionSpace

STEPS, ENVS, OBS = 5, 8, 4
A2C: dict[str, Any] = {
    **{"num_learning_epochs": 1, "num_mini_batches": 1, "normalize_advantage": "none", "lam": 1.0, "gamma": 0.99},
    **{"optimizer": "rmsprop", "clip_gradient": "all", "max_grad_norm": 0.5, "learning_rate": 7e-4, "schedule": "constant"},
    **{"use_clipped_value_loss": False, "value_loss_coef": 0.5, "entropy_coef": 0.01, "obs_normalization": False},
    **{"actor_hidden_dims": (64, 64), "critic_hidden_dims": (64, 64), "activation": "tanh"},
}


def learner(**changes: Any) -> PPO:
    torch.manual_seed(1)
    page = PPOSettings.model_validate(A2C | changes)
    return PPO({"actor": torch.zeros(1, OBS)}, ActionSpace(2, discrete=True), page, {}, seed=1)


@torch.no_grad()
def drive(made: PPO, seed: int, scale: float = 1.0) -> Rollout:
    """What the policy does at random observations, for random rewards; robots fall and time out here and there."""
    draw = torch.Generator().manual_seed(seed)
    obs = torch.randn(STEPS, ENVS, OBS, generator=draw)
    answer, _ = made.policy(obs.flatten(0, 1))
    ends = torch.rand(2, STEPS, ENVS, generator=draw) < 0.15
    return Rollout(
        obs={"actor": obs},
        actions=answer.sample(torch.rand(STEPS * ENVS, 2, generator=draw)).view(STEPS, ENVS),
        output=answer.output.view(STEPS, ENVS, 2),
        std=None,
        rewards=scale * torch.randn(STEPS, ENVS, generator=draw),
        terminated=ends[0] & ~ends[1],
        truncated=ends[1],
        valid=torch.ones(STEPS, ENVS, dtype=torch.bool),
        final_obs={"actor": torch.randn(STEPS, ENVS, OBS, generator=draw)},
        last_obs={"actor": torch.randn(ENVS, OBS, generator=draw)},
    )


def weights(made: PPO) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in made.steps.parameters]


# ----------------------------------------------------------------------------------------------- Stable-Baselines3's A2C


def linear(*parts: nn.Module) -> list[Tensor]:
    """Weights and biases of the layers, in order."""
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias)]


def feed(model: Any, rollout: Rollout) -> None:
    """Fill its buffer as its own loop would: a time-out's reward has gamma V of the observation that it ended in."""
    policy, buffer = model.policy, model.rollout_buffer
    buffer.reset()
    done = rollout.terminated | rollout.truncated
    starts = np.ones(ENVS)
    with torch.no_grad():
        for step in range(STEPS):
            obs, actions = rollout.obs["actor"][step], rollout.actions[step]
            values, log_prob, _ = policy.evaluate_actions(obs, actions)
            final = model.gamma * policy.predict_values(rollout.final_obs["actor"][step]).flatten()
            rewards = rollout.rewards[step] + final * rollout.truncated[step]
            buffer.add(obs.numpy(), actions.numpy()[:, None], rewards.numpy(), starts, values.flatten(), log_prob)
            starts = done[step].numpy()
        buffer.compute_returns_and_advantage(policy.predict_values(rollout.last_obs["actor"]), starts)


def test_it_is_that_of_stable_baselines() -> None:
    """From the same weights and batches the same parameters, to 1e-5, over ten updates; gradients are clipped in some."""
    gymnasium = pytest.importorskip("gymnasium", reason="needs Gymnasium: an extra, gym")
    sb3 = pytest.importorskip("stable_baselines3", reason="needs Stable-Baselines3: in the extra dev")
    from stable_baselines3.common.logger import Logger

    envs = gymnasium.make_vec("CartPole-v1", ENVS)
    spaces = {"observation_space": envs.single_observation_space, "action_space": envs.single_action_space}
    model = sb3.A2C("MlpPolicy", _Shape(ENVS, **spaces), n_steps=STEPS, ent_coef=A2C["entropy_coef"], device="cpu", seed=1)
    model.set_logger(Logger(None, []))
    assert type(model.policy.optimizer) is torch.optim.RMSprop and model.vf_coef == 0.5 and model.max_grad_norm == 0.5
    made, policy = learner(), model.policy
    theirs = linear(policy.mlp_extractor.policy_net, policy.action_net), linear(policy.mlp_extractor.value_net, policy.value_net)
    ours = linear(made.actor.mlp), linear(made.critic.mlp)
    for mine, other in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
        other.data.copy_(mine.data)
    start, clipped = weights(made), []
    for iteration in range(10):
        rollout = drive(made, iteration, scale=1.0 if iteration % 2 else 0.02)
        feed(model, rollout)
        model._current_progress_remaining = 1.0
        model.train()
        metrics = made.update(rollout, iteration)
        clipped.append(metrics["Loss/grad_norm"] > 0.5)
        assert metrics["Loss/clip_fraction"] == 0.0  # the ratio is 1: PPO's clip is none
        for mine, other in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
            torch.testing.assert_close(mine, other, rtol=0.0, atol=1e-5)
    assert 0 < sum(clipped) < 10
    assert max(float((a - b).abs().max()) for a, b in zip(start, weights(made), strict=True)) > 1e-3


class _Shape:
    """What Stable-Baselines3 asks of a vector of environments that it never steps."""

    def __new__(cls, num_envs: int, **spaces: Any) -> Any:
        from stable_baselines3.common.vec_env import VecEnv

        methods = ["reset", "step_async", "step_wait", "close", "get_attr", "set_attr", "env_method", "env_is_wrapped"]
        members = {name: lambda self, *_, **__: [None] * num_envs for name in methods}
        return type("Shape", (VecEnv,), members)(num_envs, **spaces)


# -------------------------------------------------------------------------------------------------------------- RMSprop


def test_rmsprop_is_torchs_and_a_step_that_is_left_out_changes_nothing() -> None:
    torch.manual_seed(0)
    mine, other = ([nn.Parameter(value) for value in (torch.ones(3, 2), torch.zeros(4))] for _ in range(2))
    rate, held = torch.tensor(1e-2), torch.zeros(())
    ours, theirs = RMSprop(mine, rate), torch.optim.RMSprop(other, lr=1e-2, alpha=0.99, eps=1e-5)
    ours.found_inf = held
    for step in range(6):
        gradients = [torch.randn_like(parameter) for parameter in mine]
        if step == 3:
            held.fill_(1.0)
            for parameter in mine:
                parameter.grad = torch.full_like(parameter, torch.nan)
            before = copy.deepcopy((mine, ours.state_dict()))
            ours.step()
            assert str((mine, ours.state_dict())) == str(before)
            held.zero_()
        for parameters in (mine, other):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        ours.step()
        theirs.step()
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)
    # torch's own goes on from its state
    theirs.load_state_dict(ours.state_dict())
    assert {float(state["step"]) for state in theirs.state.values()} == {6.0}


def test_a_minibatch_that_is_not_finite_is_skipped() -> None:
    made = learner(num_mini_batches=4)
    rollout, prepare = drive(made, 0), made._prepare

    def spoil(*given: Any) -> Tensor:
        explained = prepare(*given)
        made._batch.columns(made._batch.table.flatten(0, 1))["return"][17] = torch.nan
        return explained

    made._prepare = spoil  # pyright: ignore
    metrics = made.update(rollout, 0)
    assert metrics["Loss/skipped"] == 1.0 and all(bool(parameter.isfinite().all()) for parameter in weights(made))
    assert {float(state["step"]) for state in made.steps.optimizer.state.values()} == {3.0}


def test_the_norm_of_all_or_of_each_network() -> None:
    """Both networks' gradients are shortened by the same factor, or each by its own."""
    factors = {}
    for clip in ("all", "network"):
        made = learner(clip_gradient=clip, max_grad_norm=0.01)
        sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in made.networks.values()]
        gradient = torch.cat([torch.full((size,), value) for size, value in zip(sizes, (1.0, 3.0), strict=True)])
        made.steps._gradient.copy_(gradient)
        made.steps.sums[0] = 1.0
        made.steps._weigh()
        factors[clip] = [
            float((part / whole).mean())
            for part, whole in zip(made.steps._gradient.split(sizes), gradient.split(sizes), strict=True)
        ]
    norms = [sizes[0] ** 0.5, 3.0 * sizes[1] ** 0.5]
    whole = (norms[0] ** 2 + norms[1] ** 2) ** 0.5
    assert factors["all"] == pytest.approx([0.01 / whole] * 2, rel=1e-4)
    assert factors["network"] == pytest.approx([0.01 / norm for norm in norms], rel=1e-4)


def test_it_goes_on_from_its_state_and_from_no_other_optimizers() -> None:
    made, elsewhere, adam = learner(), learner(), learner(optimizer="adam")
    for one in (made, adam):
        one.update(drive(one, 0), 0)
    elsewhere.load_state_dict(copy.deepcopy(made.state_dict()))
    rollout = drive(made, 1)
    assert made.update(rollout, 1) == elsewhere.update(rollout, 1)
    assert all(torch.equal(one, other) for one, other in zip(weights(made), weights(elsewhere), strict=True))
    with pytest.raises(UserError, match=r"^ppo\.optimizer: rmsprop: the checkpoint's is adam, .*; take ppo\.optimizer=adam$"):
        made.load_state_dict(adam.state_dict())
    with pytest.raises(UserError, match=r"^ppo\.optimizer: adam: the checkpoint's is rmsprop"):
        adam.load_state_dict(made.state_dict())
    state = made.state_dict()
    state["optimizer_state_dict"]["state"][0]["square_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"moments 0 have the shapes"):
        elsewhere.load_state_dict(state)


DAMAGE = {
    "square_avg: -1, and no number below 0": ("square_avg", lambda value: torch.full_like(value, -1.0)),
    "values not finite": ("square_avg", lambda value: torch.full_like(value, torch.nan)),
    "int64 of shape (64, 4); a tensor of float32": ("square_avg", lambda value: value.long()),
    "mlp.0.weight: shape (64, 4), and its moments in the optimizer are (3,)": ("square_avg", lambda value: torch.zeros(3)),
    "step: -1, and no number below 0": ("step", lambda value: value - 2.0),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_what_its_moments_cannot_be_is_found(said: str) -> None:
    made = learner()
    made.update(drive(made, 0), 0)
    state = copy.deepcopy(made.state_dict()) | {"iter": 1, "infos": None}
    assert find_damage(state) == ""
    name, change = DAMAGE[said]
    moments = state["optimizer_state_dict"]["state"][0]
    moments[name] = change(moments[name])
    assert said in find_damage(state)
    moments[name] = made.steps.optimizer.state[made.steps.parameters[0]][name]
    (group,) = state["optimizer_state_dict"]["param_groups"]
    group["alpha"] = -1.0
    assert "param_groups.0.alpha: -1.0, and only numbers from 0" in find_damage(state)


# ------------------------------------------------------------------------------------------------------------- as a page's


@pytest.mark.parametrize("setting", ["optimizer=rmsprop", "clip_gradient=all", "normalize_advantage=none"])
def test_rsl_rl_has_nothing_of_the_kind(setting: str) -> None:
    page = load("go2_flat", [f"ppo.{setting}"])
    name, _, value = setting.partition("=")
    with pytest.raises(UserError, match=rf"^ppo\.{name}: .*{value}.*: rsl_rl's PPO has no such setting"):
        check_counterparts(page.ppo)


def test_the_shipped_page_is_a2c(tmp_path: Path) -> None:
    page = load("a2c_cartpole", ["train.iterations=3", "train.save_every=2"])
    said = {name: getattr(page.ppo, name) for name in ("num_learning_epochs", "num_mini_batches", "lam", "normalize_advantage")}
    assert said == {"num_learning_epochs": 1, "num_mini_batches": 1, "lam": 1.0, "normalize_advantage": "none"}
    assert page.ppo.optimizer == "rmsprop" and page.ppo.clip_gradient == "all"
    trainer = training.start(page, tmp_path / "run")
    assert all(metrics["Loss/clip_fraction"] == 0.0 for metrics in trainer.train(3))
    assert training.resume(str(tmp_path / "run"), "a2c_cartpole").iteration == 3
