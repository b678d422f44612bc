"""Proximal policy optimization (Schulman et al., arXiv:1707.06347) on a rollout.

The mathematics are rsl_rl's, and so are models, optimizer and checkpoint layout.  What differs: a time-out bootstraps from the
observation that it ended in, transitions that mean nothing weigh nothing, and a minibatch whose loss or gradient is not finite
is skipped and counted.  With one epoch of one minibatch it is A2C: the ratio is 1 then, and its gradient that of log pi(a|s) A.

Where an older policy mu acted, pi_prox is the policy at the beginning of the update, and `train.correction` says what is made of
the two.  `decoupled` is the objective of Hilton, Cobbe and Schulman ("Batch size-invariance for policy optimization",
arXiv:2110.00641): the ratio that is clipped is pi / pi_prox, weighed by pi_prox / mu, with V-trace's advantages.  `vtrace` has
those too, and clips pi / mu; `none` clips pi / mu as if all were on-policy.

Legend: T steps, N envs, B rows of a minibatch, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from embodied_rl.learn.actor_critic import ActorCritic
from embodied_rl.learn.advantages import advantage_scales, gae, moments, vtrace
from embodied_rl.learn.batch import Batch, columns_of
from embodied_rl.learn.cpu.gradients import Gradients, Terms, fused_gradients
from embodied_rl.learn.models import standard_deviation
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.stale import Present
from embodied_rl.vector_env import ActionSpace


class PPO(ActorCritic):
    """Actor, critic and their optimizer, by PPO's clipped objective; see `ActorCritic` for what it is made of."""

    sums = ("rows", "surrogate", "value", "entropy", "kl", "clip_fraction", "symmetry")

    @cached_property
    def _gae(self) -> Callable:
        return self._compiler(gae)

    @cached_property
    def _advantage_scale(self) -> Tensor:
        """Mean and deviation that standardize a minibatch's advantages, (2,); (0, 1) leaves them unchanged."""
        return torch.tensor([0.0, 1.0], device=self.device)

    @property
    def _epochs(self) -> int:
        return self.page.num_learning_epochs

    @property
    def _bound(self) -> float:
        return {"decoupled": self._train.importance_clip, "vtrace": 1.0, "none": math.inf}[self._train.correction]

    def _make_batch(self, actor: int, critic: int, space: ActionSpace) -> Batch:
        widths = columns_of(actor, critic, space.size, discrete=space.discrete, symmetry=self.page.symmetry)
        return Batch(widths, sequences=self._recurrent)

    def _metrics(self, explained_variance: Tensor | None) -> dict[str, float]:
        metrics = super()._metrics(explained_variance)
        if self.page.symmetry != "mirror_loss":
            del metrics["Loss/symmetry"]
        return metrics

    # ----------------------------------------------------------------------------------------------------- a minibatch

    @cached_property
    def _fused(self) -> Gradients | None:
        """What computes `_losses` and its gradient in one pass, where that is possible."""
        page = self.page
        if self.steps.team is None or self._discrete or self._recurrent or page.bfloat16 or page.symmetry == "mirror_loss":
            return None
        terms = Terms(
            std=partial(standard_deviation, self.actor),
            mirror=self._mirrors["actions"] if page.symmetry == "augmentation" else None,
            advantage_scale=self._advantage_scale,
            entropy_coef=self._entropy_coef,
            clip_param=page.clip_param,
            value_loss_coef=page.value_loss_coef,
            clip_value=page.use_clipped_value_loss,
        )
        return fused_gradients((self.actor.mlp, self.critic.mlp), self.steps.parameters, terms, self.steps.team)

    def _one_pass(self, rows: Tensor, bucket: Tensor) -> bool:
        if self._fused is None or self._old_std is None:
            return False
        self._fused(self._batch, rows, self._old_std, bucket)
        return True

    def _minibatches(self, iteration: int) -> Iterator[Tensor]:
        minibatches = list(super()._minibatches(iteration))
        scales = [self._advantage_scale] * len(minibatches)
        if self.page.normalize_advantage == "minibatch":
            scales = advantage_scales([self._batch.columns(self._batch.take(rows)) for rows in minibatches], self._reduce)
        for rows, scale in zip(minibatches, scales, strict=True):
            self._advantage_scale.copy_(scale)
            yield rows

    def _losses(self, table: Tensor, *memory: Tensor) -> tuple[Tensor, Tensor]:
        page, b = self.page, self._batch.columns(table)
        actor_obs, critic_obs, action, weight = b["actor"], b["critic"], b["action"], b["weight"]
        old_log_prob, old_value, target = b["log_prob"], b["value"], b["return"]
        advantage = (b["advantage"] - self._advantage_scale[0]) / self._advantage_scale[1]
        copies = 2 if page.symmetry == "augmentation" else 1
        if copies == 2:
            # the mirrored transition is as likely and as good as the one that happened
            actor_obs = torch.cat((actor_obs, b["mirrored_actor"]))
            critic_obs = torch.cat((critic_obs, b["mirrored_critic"]))
            action = torch.cat((action, self._mirror("actions", action)))
            doubled = (torch.cat((x, x)) for x in (weight, old_log_prob, old_value, target, advantage))
            weight, old_log_prob, old_value, target, advantage = doubled
        with torch.autocast(self.device.type, torch.bfloat16, enabled=page.bfloat16):
            output, value = self._output(actor_obs, b["done"], memory), self.critic.mlp(critic_obs)[..., 0]
        output, value = output.to(table.dtype), value.to(table.dtype)
        pi = self.policy.distribution(output)
        # r = pi(a|s) / pi_old(a|s);  L_clip = E[min(r A, clip(r, 1 - eps, 1 + eps) A)]
        ratio = (pi.log_prob(action) - old_log_prob).exp()
        clipped_ratio = ratio.clamp(1.0 - page.clip_param, 1.0 + page.clip_param)
        surrogate = (torch.maximum(-advantage * ratio, -advantage * clipped_ratio) * weight).sum() / copies
        # L_V = E[(V(s) - R)^2], or the larger of it and that of the clipped value
        value_error = (value - target).square()
        if page.use_clipped_value_loss:
            clipped_value = old_value + (value - old_value).clamp(-page.clip_param, page.clip_param)
            value_error = torch.maximum(value_error, (clipped_value - target).square())
        value_loss = (value_error * weight).sum() / copies
        # H[pi], of what happened and not of its image
        pi = self.policy.distribution(output.chunk(copies)[0])
        entropy = (pi.entropy() * b["weight"]).sum()
        # L = L_clip + c_V L_V - c_H H
        loss = surrogate + page.value_loss_coef * value_loss - self._entropy_coef * entropy
        asymmetry = torch.zeros_like(loss)
        if page.symmetry == "mirror_loss":
            # L_S = E[(pi(mirrored s) - mirrored pi(s))^2], the second held
            image = self._mirror("actions", output.detach())
            asymmetry = ((self.actor.mlp(b["mirrored_actor"]) - image).square().mean(-1) * weight).sum()
            loss = loss + page.mirror_loss_coeff * asymmetry
        with torch.no_grad():
            kl = (self.policy.distribution(b["output"], self._old_std).kl(pi) * b["weight"]).sum()
            outside = (((ratio - 1.0).abs() > page.clip_param) * weight).sum() / copies
            sums = torch.stack((b["weight"].sum(), surrogate, value_loss, entropy, kl, outside, asymmetry))
        return loss, sums

    # ----------------------------------------------------------------------------------------------- what is learned from

    @torch.no_grad()
    def _prepare(self, rollout: Rollout, present: Present | None = None) -> Tensor:
        page, obs, group, correction = self.page, rollout.obs, self.critic_group, self._train.correction
        steps, envs = rollout.rewards.shape
        self._frozen_critic.refresh()
        values, weight = self._values(obs[group]), rollout.valid.to(rollout.rewards.dtype)
        # a time-out is no end: the episode would have gone on, and its value stands for what would have come
        rewards = rollout.rewards + page.gamma * self._final_values(rollout.final_obs[group], rollout.truncated)
        # what an invalid transition led to is unknown: the return of those before it ends in the value of its state
        rewards = torch.where(rollout.valid, rewards, values)
        done = rollout.terminated | rollout.truncated
        given = rewards, values, done, self._values(rollout.last_obs[group])
        if present is None or correction == "none":
            advantages = self._gae(*given, page.gamma, page.lam)
            returns = advantages + values
        else:
            advantages, returns = vtrace(*given, present.ratio, page.gamma, page.lam)
        means, variances = moments(torch.stack((advantages, returns, returns - values)), weight, self._reduce)
        if page.normalize_advantage == "rollout":
            advantages = (advantages - means[0]) / (variances[0].sqrt() + 1e-8)
        if present is not None and correction == "decoupled":
            # w min(r A, clip(r) A) = min(r w A, clip(r) w A): pi / pi_prox is clipped, and pi_prox / mu weighs
            advantages = advantages * present.ratio.clamp(max=self._train.importance_clip)
        known = {"value": values, "return": returns, "advantage": advantages, "weight": weight, "done": done}
        if present is not None and correction != "decoupled":
            known["log_prob"] = rollout.log_prob
        old = self._before(rollout, present)
        self._allocate(steps, envs, values)
        self.steps.share(
            lambda rows: self._fill(rollout, known, old, slice(int(rows[0]), int(rows[-1]) + 1)), torch.arange(steps * envs)
        )
        self._keep(old[1], rollout.memory)
        return 1.0 - variances[2] / variances[1].clamp(min=1e-12)

    def _fill(self, rollout: Rollout, known: dict[str, Any], old: tuple[Tensor, Tensor | None], rows: slice) -> None:
        """Write some rows of the batch, counted through steps and envs; `known` are columns (T, N), `old` the policy before."""
        page = self.page
        actor, critic, output, actions = (
            x.flatten(0, 1)[rows] for x in (rollout.obs["actor"], rollout.obs[self.critic_group], old[0], rollout.actions)
        )
        columns = {name: value.flatten()[rows] for name, value in known.items()}
        columns |= {"actor": self.actor.obs_normalizer(actor), "critic": self.critic.obs_normalizer(critic)}
        columns |= {"action": actions, "output": output}
        if "log_prob" not in columns:
            columns["log_prob"] = self.policy.distribution(output, old[1]).log_prob(actions)
        if page.symmetry != "none":
            columns["mirrored_actor"] = self.actor.obs_normalizer(self._mirror("actor", actor))
        if page.symmetry == "augmentation":
            columns["mirrored_critic"] = self.critic.obs_normalizer(self._mirror(self.critic_group, critic))
        self._batch.write(rows, columns)
