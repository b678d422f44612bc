"""The actor and the critic: rsl_rl's models, on plain dicts of tensors."""

from __future__ import annotations

import torch
from rsl_rl.models import MLPModel, RNNModel
from rsl_rl.modules.distribution import GaussianDistribution
from torch import Tensor, nn

from embodied_rl.config.ppo import PPOSettings
from embodied_rl.learn.policy import Policy
from embodied_rl.vector_env import ActionSpace, Obs


def policy_of(actor: MLPModel) -> Policy:
    """Make the policy that an actor is."""
    std = (lambda: standard_deviation(actor)) if actor.distribution is not None else None
    return Policy(actor.obs_normalizer, actor.mlp, std, actor.rnn.rnn if isinstance(actor, RNNModel) else None)


def build_actor(obs: Obs, space: ActionSpace, page: PPOSettings) -> MLPModel:
    """Build the policy's networks: normalizer, recurrent network where the page asks for one, MLP, standard deviation.

    Args:
        obs: observations of each group, (N, O), for their sizes.
        space: what an action is.
        page: the page's `ppo` section.
    """
    gaussian = {"class_name": "GaussianDistribution", "init_std": page.init_std, "std_type": page.std_type}
    distribution = None if space.discrete else gaussian
    if page.rnn_type == "none":
        return _model(obs, "actor", space.size, page.actor_hidden_dims, page, distribution)
    return RNNModel(
        obs,  # pyright: ignore[reportArgumentType]  a dict serves: only the groups' shapes are read
        {"actor": ["actor"]},
        "actor",
        space.size,
        hidden_dims=list(page.actor_hidden_dims),
        activation=page.activation,
        obs_normalization=page.obs_normalization,
        distribution_cfg=distribution,
        rnn_type=page.rnn_type,
        rnn_hidden_dim=page.rnn_hidden_dim,
        rnn_num_layers=page.rnn_num_layers,
    )


def load_actor(page: PPOSettings, weights: dict[str, Tensor], device: torch.device | str = "cpu") -> MLPModel:
    """Make the actor whose `state_dict` is given: its sizes stand in there.

    Raises:
        KeyError, RuntimeError: it is not the one that the page describes.
    """
    first = "mlp.0.weight" if page.rnn_type == "none" else "rnn.rnn.weight_ih_l0"
    outputs = [value for name, value in weights.items() if name.startswith("mlp.")][-1].shape[0]
    space = ActionSpace(outputs, discrete=not any(name.startswith("distribution.") for name in weights))
    actor = build_actor({"actor": torch.zeros(1, weights[first].shape[1])}, space, page).to(device)
    actor.load_state_dict(weights)
    return actor.eval()


def build_critic(obs: Obs, page: PPOSettings) -> MLPModel:
    """Build the value function; it sees the group `critic`, or the actor's where the page has none."""
    return _model(obs, "critic" if "critic" in obs else "actor", 1, page.critic_hidden_dims, page, None)


def _model(obs: Obs, group: str, outputs: int, widths: tuple[int, ...], page: PPOSettings, distribution: dict | None) -> MLPModel:
    model = MLPModel(
        obs,  # pyright: ignore[reportArgumentType]
        {group: [group]},
        group,
        outputs,
        hidden_dims=list(widths),
        activation=page.activation,
        obs_normalization=page.obs_normalization,
        distribution_cfg=distribution,
    )
    return _in_place(model)


def _in_place(model: MLPModel) -> MLPModel:
    """Activations overwrite their inputs, which nothing else needs: a third of the memory that an update moves."""
    for module in model.mlp.modules():
        if isinstance(module, nn.ELU):
            module.inplace = True
    return model


def standard_deviation(actor: MLPModel) -> Tensor:
    """Give the actions' standard deviation as the distribution has it, (A,)."""
    distribution = actor.distribution
    assert isinstance(distribution, GaussianDistribution)
    if distribution.std_type == "scalar":
        return distribution.std_param.clamp(*distribution.std_range)
    return torch.exp(distribution.log_std_param.clamp(*distribution.log_std_range))


@torch.no_grad()
def hold_deviation(actor: MLPModel) -> None:
    """Bring a standard deviation that the optimizer has taken below its least value back to it, from where it can grow again."""
    distribution = actor.distribution
    if isinstance(distribution, GaussianDistribution) and distribution.std_type == "scalar":
        distribution.std_param.clamp_(*distribution.std_range)


def normalized(model: MLPModel, obs: Tensor) -> Tensor:
    """Show an observation of the model's group as its network sees it."""
    return model.obs_normalizer(obs)
