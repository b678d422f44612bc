"""IMPALA: the policy gradient of what other policies did, corrected by V-trace (Espeholt et al., arXiv:1802.01561).

With mu the policy that acted, rho_t = min(1, pi(a_t|s_t) / mu(a_t|s_t)), v_t V-trace's value targets and A_t its advantages,

    L = E[-rho_t A_t log pi(a_t|s_t) + c_V (v_t - V(s_t))^2] - c_H H[pi].

The truncation levels rho-bar and c-bar are 1, as in the paper's experiments, and c_t = lambda rho_t as in its remark 2.  One pass
is made over a rollout, in minibatches of whole trajectories, each with the targets of the networks as they are by then.  The
V(s) that stands for what would have come after a time-out is the critic's at the beginning of the update.

Legend: T steps, N envs, B trajectories of a minibatch, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.learn.actor_critic import ActorCritic
from embodied_rl.learn.advantages import vtrace
from embodied_rl.learn.batch import Batch
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.stale import Present
from embodied_rl.vector_env import ActionSpace


class IMPALA(ActorCritic):
    """Actor, critic and their optimizer, by V-trace's policy gradient; see `ActorCritic` for what it is made of."""

    sums = ("rows", "policy", "value", "entropy", "kl", "target", "squared_target")

    @property
    def _epochs(self) -> int:
        return 1

    @property
    def _bound(self) -> float:
        return 1.0

    def _make_batch(self, actor: int, critic: int, space: ActionSpace) -> Batch:
        widths = {"actor": actor, "critic": critic, "action": 0 if space.discrete else space.size, "output": space.size}
        widths |= dict.fromkeys(("log_prob", "reward", "done", "weight"), 0)
        if self.page.symmetry == "augmentation":
            widths |= {"mirrored_actor": actor, "mirrored_critic": critic, "mirrored_reward": 0}
        return Batch(widths, sequences=True)

    def _losses(self, table: Tensor, *memory: Tensor) -> tuple[Tensor, Tensor]:
        """Find both for trajectories, (T + 1, B, columns): the last row holds what was seen after the last step."""
        page, whole = self.page, self._batch.columns(table)
        critic_obs, b = whole["critic"], {name: column[:-1] for name, column in whole.items()}
        actor_obs, action, log_mu, reward, done, weight = (
            b[name] for name in ("actor", "action", "log_prob", "reward", "done", "weight")
        )
        copies = 2 if page.symmetry == "augmentation" else 1
        if copies == 2:
            # the mirrored trajectory is as likely and as good as the one that happened
            actor_obs = torch.cat((actor_obs, b["mirrored_actor"]), dim=1)
            critic_obs = torch.cat((critic_obs, whole["mirrored_critic"]), dim=1)
            reward = torch.cat((reward, b["mirrored_reward"]), dim=1)
            action = torch.cat((action, self._mirror("actions", action)), dim=1)
            log_mu, done, weight = (torch.cat((x, x), dim=1) for x in (log_mu, done, weight))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=page.bfloat16):
            output, value = self._output(actor_obs, done, memory), self.critic.mlp(critic_obs)[..., 0]
        output, value = output.to(table.dtype), value.to(table.dtype)
        log_pi = self.policy.distribution(output).log_prob(action)
        with torch.no_grad():
            valid = weight > 0.0
            ratio = torch.where(valid, (log_pi - log_mu).exp(), 1.0)
            # what an invalid transition led to is unknown: the return of those before it ends in the value of its state
            reward = torch.where(valid, reward, value[:-1])
            advantage, target = vtrace(reward, value[:-1], done, value[-1], ratio, page.gamma, page.lam)
            advantage = ratio.clamp(max=1.0) * advantage
        policy_loss = -(advantage * log_pi * weight).sum() / copies
        value_loss = ((target - value[:-1]).square() * weight).sum() / copies
        # H[pi], of what happened and not of its image
        pi, weight = self.policy.distribution(output.chunk(copies, dim=1)[0]), b["weight"]
        entropy = (pi.entropy() * weight).sum()
        loss = policy_loss + page.value_loss_coef * value_loss - self._entropy_coef * entropy
        with torch.no_grad():
            kl = (self.policy.distribution(b["output"], self._old_std).kl(pi) * weight).sum()
            target = target.chunk(copies, dim=1)[0]
            moments = (target * weight).sum(), (target.square() * weight).sum()
            sums = torch.stack((weight.sum(), policy_loss, value_loss, entropy, kl, *moments))
        return loss, sums

    @torch.no_grad()
    def _prepare(self, rollout: Rollout, present: Present | None = None) -> None:
        steps, envs = rollout.rewards.shape
        self._frozen_critic.refresh()
        output, std = self._before(rollout, present)
        log_mu = rollout.log_prob
        if log_mu is None:
            log_mu = self.policy.distribution(output, std).log_prob(rollout.actions)
        mirrors, final, ends = self.page.symmetry == "augmentation", rollout.final_obs[self.critic_group], rollout.truncated
        columns = {"action": rollout.actions, "output": output, "log_prob": log_mu}
        columns |= {"done": rollout.terminated | ends, "weight": rollout.valid}
        # a time-out is no end: the episode would have gone on, and its value stands for what would have come
        columns["reward"] = rollout.rewards + self.page.gamma * self._final_values(final, ends)
        if mirrors:
            image = self._mirror(self.critic_group, final)
            columns["mirrored_reward"] = rollout.rewards + self.page.gamma * self._final_values(image, ends)
        self._allocate(steps + 1, envs, rollout.rewards)
        table = self._batch.columns(self._batch.table)
        for name, column in columns.items():
            table[name][:-1] = column
            table[name][-1] = 0.0
        for name, model, group in (("actor", self.actor, "actor"), ("critic", self.critic, self.critic_group)):
            for rows, obs in ((slice(0, steps), rollout.obs[group]), (steps, rollout.last_obs[group])):
                table[name][rows] = model.obs_normalizer(obs)
                if mirrors:
                    table[f"mirrored_{name}"][rows] = model.obs_normalizer(self._mirror(group, obs))
        self.steps.steps_per_row = steps
        self._keep(std, rollout.memory)

    def _metrics(self, explained_variance: Tensor | None) -> dict[str, float]:
        metrics = super()._metrics(explained_variance)
        mean, square = metrics.pop("Loss/target"), metrics.pop("Loss/squared_target")
        # of what the minibatches' targets were, about their mean over all
        metrics["Loss/explained_variance"] = 1.0 - metrics["Loss/value"] / max(square - mean**2, 1e-12)
        return metrics
