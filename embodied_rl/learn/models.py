"""The actor and the critic: rsl_rl's models, on plain dicts of tensors."""

from __future__ import annotations

import torch
from rsl_rl.models import MLPModel
from rsl_rl.modules.distribution import GaussianDistribution
from torch import Tensor

from embodied_rl.config.page import PPOSettings

Obs = dict[str, Tensor]


def build_actor(obs: Obs, num_actions: int, page: PPOSettings) -> MLPModel:
    """The policy: normalizer, MLP and a Gaussian with a state-independent standard deviation.

    Args:
        obs: observations of each group, (N, O), for their sizes.
        num_actions: length of the action vector.
        page: the page's `ppo` section.
    """
    distribution = {"class_name": "GaussianDistribution", "init_std": page.init_std, "std_type": page.std_type}
    return _model(obs, "actor", num_actions, page.actor_hidden_dims, page, distribution)


def build_critic(obs: Obs, page: PPOSettings) -> MLPModel:
    """The value function; it sees the group `critic`, or the actor's where the page has none."""
    return _model(obs, "critic" if "critic" in obs else "actor", 1, page.critic_hidden_dims, page, None)


def _model(obs: Obs, group: str, outputs: int, widths: tuple[int, ...], page: PPOSettings, distribution: dict | None) -> MLPModel:
    return MLPModel(
        obs,  # pyright: ignore[reportArgumentType]  a dict serves: only the groups' shapes are read
        {group: [group]},
        group,
        outputs,
        hidden_dims=list(widths),
        activation=page.activation,
        obs_normalization=page.obs_normalization,
        distribution_cfg=distribution,
    )


def standard_deviation(actor: MLPModel) -> Tensor:
    """The actions' standard deviation as the distribution has it, (A,)."""
    distribution = actor.distribution
    assert isinstance(distribution, GaussianDistribution)
    if distribution.std_type == "scalar":
        return distribution.std_param.clamp(*distribution.std_range)
    return torch.exp(distribution.log_std_param.clamp(*distribution.log_std_range))


def normalized(model: MLPModel, obs: Tensor) -> Tensor:
    """An observation of the model's group as its network sees it."""
    return model.obs_normalizer(obs)
