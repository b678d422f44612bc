"""Proximal policy optimization (Schulman et al., arXiv:1707.06347) on a rollout.

Differs from rsl_rl's where that is wrong or slow: a time-out bootstraps from the observation it ended in, minibatches are
shuffled anew each epoch, observations are normalized once an iteration.  Models, optimizer and checkpoint layout are its.
"""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch import Tensor, nn

from embodied_rl.config.page import PPOSettings
from embodied_rl.learn.models import Obs, build_actor, build_critic, normalized, standard_deviation
from embodied_rl.learn.rollout import Rollout

#: Bounds and factor of the adaptive learning rate, those of rsl_rl.
_MIN_RATE, _MAX_RATE, _RATE_FACTOR = 1e-5, 1e-2, 1.5
#: Share of the learning rate that the linear schedule ends at.
_LINEAR_END = 0.1


class PPO:
    """Actor, critic and their optimizer.

    Args:
        obs: observations of each group, (N, O), for their sizes.
        num_actions: length of the action vector.
        page: the page's `ppo` section.
        mirrors: left-right reflection of each group and of `actions`, for `ppo.symmetry`.
        seed: keys the shuffling of minibatches.
        device: where it computes.
    """

    def __init__(
        self,
        obs: Obs,
        num_actions: int,
        page: PPOSettings,
        mirrors: dict[str, tuple[Tensor, Tensor]],
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.page, self.device, self._seed, self._mirrors = page, torch.device(device), seed, mirrors
        self.actor = build_actor(obs, num_actions, page).to(device)
        self.critic = build_critic(obs, page).to(device)
        self.critic_group = self.critic.obs_groups[0]
        self._parameters = list(chain(self.actor.parameters(), self.critic.parameters()))
        self.optimizer = torch.optim.Adam(self._parameters, lr=page.learning_rate, fused=True)
        self.learning_rate = page.learning_rate

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Improve actor and critic on one rollout; the metrics, by TensorBoard name."""
        page = self.page
        if page.schedule == "linear":
            self._set_rate(page.learning_rate * max(_LINEAR_END, 1.0 - iteration / page.max_iterations))
        batch = self._prepare(rollout)
        size = len(batch["weight"])
        generator = torch.Generator().manual_seed((self._seed << 32) + iteration)
        sums: dict[str, Tensor] = {}
        for _ in range(page.num_learning_epochs):
            order = torch.randperm(size, generator=generator).to(self.device)
            for rows in order.tensor_split(page.num_mini_batches):
                for name, value in self._minibatch({key: x[rows] for key, x in batch.items()}).items():
                    sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value
        for model, group in ((self.actor, "actor"), (self.critic, self.critic_group)):
            if page.obs_normalization:
                model.obs_normalizer.update(rollout.obs[group].flatten(0, 1))  # pyright: ignore
        updates = page.num_learning_epochs * page.num_mini_batches
        metrics = {name: float(value) / updates for name, value in sums.items()}
        valid = batch["weight"] > 0
        returns, error = batch["return"][valid], (batch["return"] - batch["value"])[valid]
        metrics["Loss/explained_variance"] = float(1.0 - error.var() / returns.var().clamp(min=1e-12))
        metrics["Loss/learning_rate"] = self.learning_rate
        metrics["Policy/mean_std"] = float(standard_deviation(self.actor).detach().mean())
        return metrics

    @torch.no_grad()
    def _prepare(self, rollout: Rollout) -> dict[str, Tensor]:
        """Everything that minibatches take rows of, flat (T N, ...)."""
        obs, group = rollout.obs, self.critic_group
        values = self._values(obs[group])
        # a time-out is no end: the episode would have gone on, and its value stands for what would have come
        final = self._values(rollout.final_obs[group])
        rewards = rollout.rewards + self.page.gamma * torch.where(rollout.truncated, final, 0.0)
        # what an invalid transition led to is unknown: the return of those before it ends in the value of its state
        rewards = torch.where(rollout.valid, rewards, values)
        done = rollout.terminated | rollout.truncated
        advantages = gae(rewards, values, done, self._values(rollout.last_obs[group]), self.page.gamma, self.page.lam)
        returns = advantages + values
        weight = rollout.valid.float()
        if not self.page.normalize_advantage_per_mini_batch:
            advantages = _standardized(advantages, weight)
        batch = {
            "actor_obs": normalized(self.actor, obs["actor"]),
            "critic_obs": normalized(self.critic, obs[group]),
            "action": rollout.actions,
            "mean": rollout.mean,
            "log_prob": _log_prob(rollout.actions, rollout.mean, rollout.std),
            "value": values,
            "return": returns,
            "advantage": advantages,
            "weight": weight,
        }
        if self.page.symmetry != "none":
            batch["mirrored_actor_obs"] = normalized(self.actor, self._mirror("actor", obs["actor"]))
        if self.page.symmetry == "augmentation":
            batch["mirrored_critic_obs"] = normalized(self.critic, self._mirror(group, obs[group]))
        self._old_std = rollout.std.clone()
        return {name: tensor.flatten(0, 1) for name, tensor in batch.items()}

    def _minibatch(self, b: dict[str, Tensor]) -> dict[str, Tensor]:
        """One gradient step on rows of the batch, (B, ...); its metrics."""
        page, weight, count = self.page, b["weight"], len(b["weight"])
        advantage = _standardized(b["advantage"], weight) if page.normalize_advantage_per_mini_batch else b["advantage"]
        actor_obs, critic_obs, action = b["actor_obs"], b["critic_obs"], b["action"]
        if page.symmetry == "augmentation":
            # the mirrored transition is as likely and as good as the one that happened
            actor_obs = torch.cat((actor_obs, b["mirrored_actor_obs"]))
            critic_obs = torch.cat((critic_obs, b["mirrored_critic_obs"]))
            action = torch.cat((action, self._mirror("actions", action)))
            b = {name: torch.cat((b[name], b[name])) for name in ("log_prob", "value", "return", "weight")} | {"mean": b["mean"]}
            advantage, weight = torch.cat((advantage, advantage)), b["weight"]
        mean, std = self.actor.mlp(actor_obs), standard_deviation(self.actor)
        value = self.critic.mlp(critic_obs)[:, 0]
        total = weight.sum().clamp(min=1.0)

        # r = pi(a|s) / pi_old(a|s);  L_clip = E[min(r A, clip(r, 1 - eps, 1 + eps) A)]
        log_ratio = _log_prob(action, mean, std) - b["log_prob"]
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - page.clip_param, 1.0 + page.clip_param)
        surrogate = (torch.maximum(-advantage * ratio, -advantage * clipped) * weight).sum() / total
        # L_V = E[(V(s) - R)^2], or the larger of it and that of the clipped value
        value_error = (value - b["return"]).square()
        if page.use_clipped_value_loss:
            near = b["value"] + (value - b["value"]).clamp(-page.clip_param, page.clip_param)
            value_error = torch.maximum(value_error, (near - b["return"]).square())
        value_loss = (value_error * weight).sum() / total
        # H of a Gaussian: sum_a log sigma_a + (1 + log 2 pi) / 2
        entropy = (std.log() + 0.5 + 0.5 * math.log(2.0 * math.pi)).sum()
        loss = surrogate + page.value_loss_coef * value_loss - page.entropy_coef * entropy
        if page.symmetry == "mirror_loss":
            target = self._mirror("actions", mean.detach())
            asymmetry = (self.actor.mlp(b["mirrored_actor_obs"]) - target).square().mean()
            loss = loss + page.mirror_loss_coeff * asymmetry

        with torch.no_grad():
            kl = _gaussian_kl(b["mean"], self._old_std, mean[:count], std)
            kl = (kl * weight[:count]).sum() / weight[:count].sum().clamp(min=1.0)
            if page.schedule == "adaptive":
                self._adapt_rate(float(kl))
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.actor.parameters(), page.max_grad_norm)
        nn.utils.clip_grad_norm_(self.critic.parameters(), page.max_grad_norm)
        self.optimizer.step()
        outside = ((ratio - 1.0).abs() > page.clip_param).float()
        return {
            "Loss/surrogate": surrogate.detach(),
            "Loss/value": value_loss.detach(),
            "Loss/entropy": entropy.detach(),
            "Loss/kl": kl,
            "Loss/clip_fraction": (outside.detach() * weight).sum() / total,
            "Loss/grad_norm": norm.detach(),
        }

    def _adapt_rate(self, kl: float) -> None:
        if kl > 2.0 * self.page.desired_kl:
            self._set_rate(max(_MIN_RATE, self.learning_rate / _RATE_FACTOR))
        elif 0.0 < kl < 0.5 * self.page.desired_kl:
            self._set_rate(min(_MAX_RATE, self.learning_rate * _RATE_FACTOR))

    def _set_rate(self, rate: float) -> None:
        self.learning_rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _values(self, obs: Tensor) -> Tensor:
        return self.critic.mlp(normalized(self.critic, obs))[..., 0]

    def _mirror(self, name: str, values: Tensor) -> Tensor:
        index, sign = self._mirrors[name]
        return values[..., index] * sign

    def state_dict(self) -> dict:
        """The learner in rsl_rl's checkpoint layout."""
        return {
            "actor_state_dict": self.actor.state_dict(),
            "critic_state_dict": self.critic.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`; a checkpoint of rsl_rl's runner will do.

        Raises:
            RuntimeError: the networks have other shapes.
        """
        self.actor.load_state_dict(state["actor_state_dict"])
        self.critic.load_state_dict(state["critic_state_dict"])
        self.optimizer.load_state_dict(state["optimizer_state_dict"])
        for group in self.optimizer.param_groups:
            group["fused"], group["foreach"] = True, None
        rate = float(self.optimizer.param_groups[0]["lr"])
        # an adapted rate is part of the state; a fixed one is the page's, which may have changed since
        self._set_rate(self.page.learning_rate if self.page.schedule == "fixed" else rate)


def gae(rewards: Tensor, values: Tensor, done: Tensor, last_value: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimation (Schulman et al., arXiv:1506.02438), (T, N).

    delta_t = r_t + gamma V(s_t+1) (1 - done_t) - V(s_t);  A_t = delta_t + gamma lambda (1 - done_t) A_t+1.
    """
    going_on = 1.0 - done.float()
    next_values = torch.cat((values[1:], last_value[None]))
    deltas = rewards + gamma * next_values * going_on - values
    advantages, advantage = torch.empty_like(deltas), torch.zeros_like(last_value)
    for step in range(len(deltas) - 1, -1, -1):
        advantage = deltas[step] + gamma * lam * going_on[step] * advantage
        advantages[step] = advantage
    return advantages


def _standardized(values: Tensor, weight: Tensor) -> Tensor:
    """Zero mean and unit deviation over the rows of weight 1."""
    total = weight.sum().clamp(min=2.0)
    mean = (values * weight).sum() / total
    variance = ((values - mean).square() * weight).sum() / (total - 1.0)
    return (values - mean) / (variance.sqrt() + 1e-8)


def _log_prob(action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(action; mean, std), summed over the last dimension."""
    return (-0.5 * ((action - mean) / std).square() - std.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def _gaussian_kl(mean_old: Tensor, std_old: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """KL(old || new) of two diagonal Gaussians, (B,)."""
    variance = std.square()
    return (torch.log(std / std_old) + (std_old.square() + (mean_old - mean).square()) / (2.0 * variance) - 0.5).sum(-1)
