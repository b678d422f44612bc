"""Proximal policy optimization (Schulman et al., arXiv:1707.06347) on a rollout.

The mathematics are rsl_rl's, and so are models, optimizer and checkpoint layout.  What differs: a time-out bootstraps from the
observation that it ended in, transitions that mean nothing weigh nothing, and a minibatch whose loss or gradient is not finite
is skipped and counted.  Nothing on the way of an update is read on the host.  How a gradient becomes a step, on which threads,
processes or graphs, is `embodied_rl.learn.gradient_steps`'s.  Legend: T steps, N envs, B rows of a minibatch, A actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, Self

import torch
from rsl_rl.models import MLPModel, RNNModel
from torch import Tensor

from embodied_rl.config.learner_numbers import LEARNER_NUMBERS
from embodied_rl.config.page import Page, PPOSettings, TrainSettings
from embodied_rl.learn import schedules
from embodied_rl.learn.advantages import Reduce, advantage_scales, gae, moments, vtrace
from embodied_rl.learn.batch import Batch, columns_of, kept, permutations
from embodied_rl.learn.cpu.gradients import Gradients, Terms, fused_gradients
from embodied_rl.learn.cpu.perceptron import FrozenPerceptron
from embodied_rl.learn.cpu.team import one_thread
from embodied_rl.learn.gradient_steps import GradientSteps
from embodied_rl.learn.models import build_actor, build_critic, hold_deviation, load_actor, policy_of, standard_deviation
from embodied_rl.learn.normalizer import learn_statistics, merge_moments, moments_of
from embodied_rl.learn.policy import Policy, unroll
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.rollout import Collector, Gradient, Rollout
from embodied_rl.random import stream_key
from embodied_rl.vector_env import ActionSpace, Obs

#: What stands behind the gradient in the bucket: how many rows count, and sums over them.
_SUMS = ("rows", "surrogate", "value", "entropy", "kl", "clip_fraction", "symmetry")


class PPO:
    """Actor, critic and their optimizer.

    Args:
        obs: observations of each group, (N, O), for their sizes.
        space: what an action is.
        page: the page's `ppo` section.
        mirrors: left-right reflection of each group and of `actions`, for `ppo.symmetry`.
        seed: keys the shuffling of minibatches.
        device: where it computes.
        iterations: that schedules go over.
        reduce: sums a tensor over all processes, in place; by default there is one process.
        compiler: wraps losses and advantages, `torch.compile` on a GPU, or the identity.
        graph: replay the halves of a minibatch from CUDA graphs, on a GPU.
    """

    numbers = LEARNER_NUMBERS

    def __init__(
        self,
        obs: Obs,
        space: ActionSpace,
        page: PPOSettings,
        mirrors: dict[str, tuple[Tensor, Tensor]],
        seed: int,
        device: torch.device | str = "cpu",
        *,
        iterations: int = TrainSettings().iterations,
        reduce: Reduce = lambda tensor: None,
        compiler: Callable = lambda f: f,
        graph: bool = True,
    ) -> None:
        self.page, self.device, self._iterations = page, torch.device(device), iterations
        self._seed, self._mirrors, self._reduce = seed, mirrors, reduce
        self.actor = build_actor(obs, space, page).to(device)
        self.critic = build_critic(obs, page).to(device)
        self.critic_group, self.gradient_steps = self.critic.obs_groups[0], page.num_learning_epochs * page.num_mini_batches
        self.policy, self.networks = policy_of(self.actor), {"actor": self.actor, "critic": self.critic}
        if self.device.type == "cuda":  # the policy's products while it acts, too: there is one setting in a process
            torch.backends.cuda.matmul.allow_tf32 = page.tf32
        self._frozen_critic = FrozenPerceptron(self.critic.mlp)
        self._discrete, self._recurrent = space.discrete, isinstance(self.actor, RNNModel)
        self._losses, self._gae = compiler(self._losses), compiler(gae)
        own: dict[str, Any] = {"device": self.device, "reduce": reduce, "compiler": compiler, "graph": graph}
        arithmetic, rates = (self._loss, _SUMS, self._judge), (page.learning_rate, page.max_grad_norm)
        self.steps = GradientSteps((self.actor, self.critic), *arithmetic, *rates, self._one_pass, **own)
        # what curricula may move, by dotted path: compiled and captured arithmetic reads it by address
        self._numbers = {path: torch.tensor(getattr(page, path.removeprefix("ppo.")), device=device) for path in LEARNER_NUMBERS}
        self._numbers["ppo.learning_rate"] = self.steps.rate
        self._entropy_coef, self._desired_kl = self._numbers["ppo.entropy_coef"], self._numbers["ppo.desired_kl"]
        # mean and deviation that standardize a minibatch's advantages; (0, 1) leaves them unchanged
        self._advantage_scale = torch.tensor([0.0, 1.0], device=device)
        sizes = obs["actor"].shape[1], obs[self.critic_group].shape[1], space.size
        self._batch = Batch(columns_of(*sizes, discrete=space.discrete, symmetry=page.symmetry), sequences=self._recurrent)
        self._old_std: Tensor | None = None
        self._memory: tuple[Tensor, ...] = ()

    @classmethod
    def make(
        cls, page: Page, collector: Collector, device: torch.device, *, group: Group, compiler: Callable = lambda f: f
    ) -> Self:
        """Make the page's learner, for what the collector gives, on its own or as one of a group's."""
        obs, space, mirrors, graph = collector.observe(), collector.action_space, collector.mirrors, page.physics.graph
        own: dict[str, Any] = {"reduce": group.sum, "compiler": compiler, "graph": graph, "iterations": page.train.iterations}
        return cls(obs, space, page.ppo, mirrors, page.env.seed, device, **own)

    @classmethod
    def load_policy(cls, page: Page, state: dict, device: torch.device | str) -> Policy:
        """Make the policy of what `state_dict` gave."""
        return policy_of(load_actor(page.ppo, state["actor_state_dict"], device))

    def skipped(self, metrics: dict[str, float]) -> float:
        """Say which share of an update's minibatches was skipped."""
        return metrics["Loss/skipped"] / self.gradient_steps

    def panel(self, metrics: dict[str, float]) -> str:
        """Say how far the policy went, its learning rate, and how far actions scatter."""
        kl, rate, std = metrics["Loss/kl"], metrics["Loss/learning_rate"], metrics["Policy/mean_std"]
        return f"kl {kl:.4f}   learning rate {rate:.1e}   std {std:.2f}"

    def update(self, rollout: Rollout, iteration: int, numbers: Mapping[str, float] | None = None) -> dict[str, float]:
        """Improve actor and critic on one rollout, with what curricula have moved; the metrics, by TensorBoard name."""
        with one_thread():
            self._schedule(iteration, numbers or {})
            return self._update(rollout, iteration)

    def gradient(self, rollout: Rollout, iteration: int) -> Gradient:
        """Take the first half of an update of one step: the gradient on a rollout, for the learner that has the optimizer."""
        with one_thread():
            self._schedule(iteration, {})
            explained_variance = self._prepare(rollout)
            (rows,) = self._minibatches(iteration)
            weight, moments = rollout.valid.to(rollout.rewards.dtype), {}
            for name, model, group in self._normalized():
                moments[name] = moments_of(model.obs_normalizer, rollout.obs[group], weight)  # pyright: ignore
            return Gradient(self.steps.gradient_of(rows), explained_variance, moments)

    def _update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        if rollout.gradient is not None:
            return self._apply(rollout.gradient)
        explained_variance = self._prepare(rollout)
        self.steps.begin()
        for rows in self._minibatches(iteration):
            self.steps.take(rows)
        hold_deviation(self.actor)
        weight = rollout.valid.to(rollout.rewards.dtype)
        for _, model, group in self._normalized():
            learn_statistics(model.obs_normalizer, rollout.obs[group], weight, self._reduce)  # pyright: ignore
        return self._metrics(explained_variance)

    def _apply(self, sent: Gradient) -> dict[str, float]:
        """Take the second half of an update, of what `gradient` gave elsewhere."""
        self.steps.begin()
        self.steps.take_sent(sent.bucket)
        hold_deviation(self.actor)
        for name, model, _ in self._normalized():
            merge_moments(model.obs_normalizer, sent.moments[name])  # pyright: ignore
        return self._metrics(sent.explained_variance.to(self.device))

    def _normalized(self) -> list[tuple[str, MLPModel, str]]:
        """List the networks whose observations are normalized, with the groups that they see."""
        both = [("actor", self.actor, "actor"), ("critic", self.critic, self.critic_group)]
        return both if self.page.obs_normalization else []

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
        """Fill the bucket from rows in one pass, where that is possible."""
        if self._fused is None or self._old_std is None:
            return False
        self._fused(self._batch, rows, self._old_std, bucket)
        return True

    def _loss(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Find the loss and `_SUMS` of these rows of the batch."""
        return self._losses(self._batch.take(rows), *(part[:, rows] for part in self._memory))

    def _losses(self, table: Tensor, *memory: Tensor) -> tuple[Tensor, Tensor]:
        """Find both for taken rows, (B, columns), or sequences, (T, B, columns) with the memory that they begin with."""
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

    def _output(self, obs: Tensor, done: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
        """Ask the actor's network what it says of normalized observations, (..., A)."""
        if not self._recurrent:
            return self.actor.mlp(obs)
        return self.actor.mlp(unroll(self.actor.rnn.rnn, obs, done, memory))  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    def _judge(self, means: Tensor) -> Tensor | None:
        """Let the learning rate follow the KL to the policy that acted, and stop beyond `ppo.stop_kl`."""
        page, rate, kl = self.page, self.steps.rate, means[_SUMS.index("kl")]
        if page.schedule == "adaptive":
            rate.copy_(schedules.adapted(rate, kl, self._desired_kl))
        return None if page.stop_kl is None else kl > page.stop_kl

    # ----------------------------------------------------------------------------------------------- what is learned from

    @torch.no_grad()
    def _prepare(self, rollout: Rollout) -> Tensor:
        """Fill the batch; the explained variance of the values that were predicted."""
        page, obs, group = self.page, rollout.obs, self.critic_group
        steps, envs = rollout.rewards.shape
        self._frozen_critic.refresh()
        values, weight = self._values(obs[group]), rollout.valid.to(rollout.rewards.dtype)
        # a time-out is no end: the episode would have gone on, and its value stands for what would have come
        rewards = rollout.rewards + page.gamma * self._final_values(rollout)
        # what an invalid transition led to is unknown: the return of those before it ends in the value of its state
        rewards = torch.where(rollout.valid, rewards, values)
        done = rollout.terminated | rollout.truncated
        given = rewards, values, done, self._values(rollout.last_obs[group])
        if rollout.ratio is None:
            advantages = self._gae(*given, page.gamma, page.lam)
            returns = advantages + values
        else:
            advantages, returns = vtrace(*given, rollout.ratio, page.gamma, page.lam)
        means, variances = moments(torch.stack((advantages, returns, returns - values)), weight, self._reduce)
        if not page.normalize_advantage_per_mini_batch:
            advantages = (advantages - means[0]) / (variances[0].sqrt() + 1e-8)
        if rollout.ratio is not None:
            # w min(r A, clip(r) A) = min(r w A, clip(r) w A): pi / pi_prox is clipped, and pi_prox / mu weighs
            advantages = advantages * rollout.ratio
        known = {"value": values, "return": returns, "advantage": advantages, "weight": weight, "done": done}
        if self._batch.allocate(steps, envs, values):
            self.steps.forget_graphs()  # they read the table that was
        self.steps.share(
            lambda rows: self._fill(rollout, known, slice(int(rows[0]), int(rows[-1]) + 1)), torch.arange(steps * envs)
        )
        self._old_std = kept(self._old_std, rollout.std)
        own = self._memory or (None,) * len(rollout.memory)
        self._memory = tuple(kept(*pair) for pair in zip(own, rollout.memory, strict=True))
        return 1.0 - variances[2] / variances[1].clamp(min=1e-12)

    def _fill(self, rollout: Rollout, known: dict[str, Tensor], rows: slice) -> None:
        """Write some rows of the batch, counted through steps and envs; `known` are columns (T, N)."""
        page = self.page
        actor, critic, output, actions = (
            x.flatten(0, 1)[rows] for x in (rollout.obs["actor"], rollout.obs[self.critic_group], rollout.output, rollout.actions)
        )
        columns = {name: value.flatten()[rows] for name, value in known.items()}
        columns |= {"actor": self.actor.obs_normalizer(actor), "critic": self.critic.obs_normalizer(critic)}
        columns |= {"action": actions, "output": output}
        columns["log_prob"] = self.policy.distribution(output, rollout.std).log_prob(actions)
        if page.symmetry != "none":
            columns["mirrored_actor"] = self.actor.obs_normalizer(self._mirror("actor", actor))
        if page.symmetry == "augmentation":
            columns["mirrored_critic"] = self.critic.obs_normalizer(self._mirror(self.critic_group, critic))
        self._batch.write(rows, columns)

    def _values(self, obs: Tensor) -> Tensor:
        values = self.steps.share(lambda part: self._frozen_critic(self.critic.obs_normalizer(part)), obs.flatten(0, -2))
        return torch.cat(values).view(obs.shape[:-1])

    def _final_values(self, rollout: Rollout) -> Tensor:
        """V of the state that an episode was truncated in, (T, N); 0 where none was."""
        final, truncated = rollout.final_obs[self.critic_group], rollout.truncated
        if self.device.type != "cpu":
            return torch.where(truncated, self._values(final), 0.0)
        values = torch.zeros_like(rollout.rewards)  # looking at the mask costs nothing here, and few rows are asked for
        values[truncated] = self._values(final[truncated])
        return values

    def _minibatches(self, iteration: int) -> Iterator[Tensor]:
        """Yield the rows of each minibatch, (B,), epoch after epoch."""
        minibatches = [rows for order in self._orders(iteration) for rows in order.tensor_split(self.page.num_mini_batches)]
        scales = [self._advantage_scale] * len(minibatches)
        if self.page.normalize_advantage_per_mini_batch:
            scales = advantage_scales([self._batch.columns(self._batch.take(rows)) for rows in minibatches], self._reduce)
        for rows, scale in zip(minibatches, scales, strict=True):
            self._advantage_scale.copy_(scale)
            yield rows

    def _orders(self, iteration: int) -> Tensor:
        """Draw a permutation of the batch's rows for each epoch, (epochs, rows)."""
        page, seed = self.page, int(stream_key(self._seed, f"minibatches of iteration {iteration}"))
        return permutations(self._batch.num_rows, page.num_learning_epochs, seed, reshuffle=page.reshuffle, device=self.device)

    def _schedule(self, iteration: int, numbers: Mapping[str, float]) -> None:
        """Set what the page's schedules and curricula say of this iteration; no number is both's."""
        done = min(1.0, iteration / self._iterations)
        if (rate := schedules.learning_rate(self.page, done)) is not None:
            self.steps.rate.fill_(rate)
        self._entropy_coef.fill_(schedules.entropy_coef(self.page, done))
        for path, number in numbers.items():
            self._numbers[path].fill_(number)

    def _metrics(self, explained_variance: Tensor) -> dict[str, float]:
        """Read what an update came to: the one place where the host does."""
        std, steps = self.policy.std, self.steps
        deviation = steps.rate.new_zeros(()) if std is None else std.detach().mean()
        own = {"Loss/explained_variance": explained_variance, "Loss/learning_rate": steps.rate}
        own |= {"Loss/entropy_coef": self._entropy_coef, "Policy/mean_std": deviation}
        read = torch.cat((steps.totals, torch.stack(list(own.values())))).tolist()
        totals = dict(zip(steps.totals_names, read, strict=False))
        counted, skipped, stopped = totals.pop("minibatches"), totals.pop("skipped"), totals.pop("stopped")
        metrics = {f"Loss/{name}": value / max(counted, 1.0) for name, value in totals.items()}
        if self.page.symmetry != "mirror_loss":
            del metrics["Loss/symmetry"]
        return metrics | {"Loss/skipped": skipped, "Loss/stopped": stopped} | dict(zip(own, read[-len(own) :], strict=True))

    def _mirror(self, name: str, values: Tensor) -> Tensor:
        return values[..., self._mirrors[name][0]] * self._mirrors[name][1]

    def state_dict(self) -> dict:
        """Return the learner in rsl_rl's checkpoint layout; the rate is a plain number there, and nothing is of one device."""
        return {
            "actor_state_dict": self.actor.state_dict(),
            "critic_state_dict": self.critic.state_dict(),
            "optimizer_state_dict": self.steps.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take up what `state_dict` or rsl_rl's runner gave; RuntimeError where the networks have other shapes."""
        self.actor.load_state_dict(state["actor_state_dict"])
        self.critic.load_state_dict(state["critic_state_dict"])
        # an adapted rate is part of the state; a constant one is the page's, which may have changed since
        rate = self.page.learning_rate if self.page.schedule == "constant" else None
        self.steps.load_state_dict(state["optimizer_state_dict"], rate)
