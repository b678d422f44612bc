"""What soft actor-critic learns: an actor whose actions are bounded, two critics, and what +-1 of an action means."""

from __future__ import annotations

import math

from rsl_rl.modules import MLP, EmpiricalNormalization
from torch import Tensor, nn

from embodied_rl.config.sac import SACSettings
from embodied_rl.errors import UserError
from embodied_rl.learn.policy import Policy, Squash
from embodied_rl.learn.twin_critic import TwinCritic
from embodied_rl.vector_env import ActionSpace


class Actor(nn.Module):
    """What acts, as modules.

    Args:
        inputs: numbers of an observation.
        bound: largest action, either way, (A,).
        page: the page's `sac` section.
    """

    def __init__(self, inputs: int, bound: Tensor, page: SACSettings) -> None:
        super().__init__()
        self.obs_normalizer = _normalizer(inputs, page)
        self.mlp = MLP(inputs, 2 * len(bound), list(page.actor_hidden_dims), page.activation)
        self.squash = Squash(bound)

    def policy(self) -> Policy:
        """Make the policy that it is."""
        return Policy(self.obs_normalizer, self.mlp, None, squash=self.squash)

    def act(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Act on normalized observations, in +-1, (R, A); log pi of that, and the mean deviation of what is squashed, (R,)."""
        pi = self.squash.distribution(self.mlp(obs).to(noise.dtype))
        action, log_prob = pi.sample_with_log_prob(noise)
        return action / pi.bound, log_prob, pi.log_std.exp().mean(-1)


class Critic(nn.Module):
    """Two critics, and what scales their observations.

    Args:
        inputs: numbers of an observation.
        actions: numbers of an action.
        page: the page's `sac` section.
    """

    def __init__(self, inputs: int, actions: int, page: SACSettings) -> None:
        super().__init__()
        self.obs_normalizer = _normalizer(inputs, page)
        outputs = page.atoms if page.critic == "distributional" else 1
        widths, activation = page.critic_hidden_dims, page.activation
        self.twin = TwinCritic(inputs + actions, widths, outputs, activation, layer_norm=page.layer_norm)


def _normalizer(inputs: int, page: SACSettings) -> nn.Module:
    return EmpiricalNormalization(inputs) if page.obs_normalization else nn.Identity()


def bound_of(space: ActionSpace, page: SACSettings) -> list[float]:
    """Find the action that an output of 1 stands for, (A,).

    Raises:
        UserError: actions are choices, or have no bound and the page says none.
    """
    if space.discrete:
        raise UserError("train.learner: sac: actions are choices, and its policy is of numbers; take ppo")
    if page.action_bound is not None:
        return [page.action_bound] * space.size
    bound = space.bound or (math.inf,) * space.size
    if endless := [str(index) for index, one in enumerate(bound) if not math.isfinite(one)]:
        few = ", ".join(endless[:4]) + (", ..." if len(endless) > 4 else "")
        raise UserError(
            f"sac.action_bound: null: actions {few} of {space.size} have no bound (their joints no limit), so +-1 of them means "
            "nothing; say one, like action_bound: 1.0"
        )
    return list(bound)
