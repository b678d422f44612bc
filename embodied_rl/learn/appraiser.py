"""How wrong the critics are about new rows, found where those are made: the priorities with which they go into a replay.

Plain torch, so that a worker needs no learner.  Legend: T steps, N robots.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from embodied_rl.learn.policy import Policy
from embodied_rl.learn.replay import Replay
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.twin_critic import Returns, TwinCritic


class Appraiser(nn.Module):
    """A copy of two critics, on the CPU, with what scales what they see.

    Args:
        twin: the critics, copied.
        normalizer: of their observations, on the CPU.
        group: the observation group that they see.
        gamma: discount.
        n_steps: rewards that a target sums.
        returns: of distributional critics; None: they say returns themselves.
    """

    def __init__(
        self, twin: TwinCritic, normalizer: nn.Module, group: str, gamma: float, n_steps: int, returns: Returns | None
    ) -> None:
        super().__init__()
        self.twin, self.normalizer = copy.deepcopy(twin).cpu().requires_grad_(False), normalizer
        self.divisor: Tensor
        self.register_buffer("divisor", torch.ones(()))
        self._group, self._gamma, self._n_steps = group, gamma, n_steps
        self._returns = None if returns is None else returns.cpu()

    @torch.no_grad()
    def priorities(self, policy: Policy, rollout: Rollout) -> Tensor:
        """Find |r + gamma^m Q(s', pi(s')) - Q(s, a)| of every step, (T, N), with the policy's own action and the lower critic.

        Where the rollout ends, what came until then is the target, bootstrapped from where it stands.
        """
        steps, envs = rollout.rewards.shape
        sizes = {name: rollout.obs[name].shape[-1] for name in {"actor": 0, self._group: 0}}
        actions = rollout.actions.shape[-1]
        rows = Replay(sizes, actions, num_envs=envs, size=steps * envs, gamma=self._gamma, n_steps=self._n_steps)
        rows.insert(rollout)
        drawn = rows.draw((torch.arange(steps * envs, dtype=torch.float64) + 0.5) / (steps * envs))
        action = policy(drawn.next_obs["actor"])[0].mode
        following = self._values(policy, drawn.next_obs[self._group], action).amin(0)
        target = drawn.rewards / self.divisor + drawn.discount * following
        errors = (target - self._values(policy, drawn.obs[self._group], drawn.actions)).abs().mean(0)
        return errors.view(envs, steps).T.contiguous()  # drawn lane by lane

    def _values(self, policy: Policy, obs: Tensor, action: Tensor) -> Tensor:
        """Ask both critics, (2, R)."""
        assert policy.squash is not None
        output = self.twin(torch.cat((self.normalizer(obs), action / policy.squash.bound), dim=-1))
        return output[..., 0] if self._returns is None else self._returns.mean(output)
