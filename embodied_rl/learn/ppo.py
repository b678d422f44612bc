"""Proximal policy optimization (Schulman et al., arXiv:1707.06347) on a rollout.

The mathematics are rsl_rl's, and so are models, optimizer and checkpoint layout.  What differs: a time-out bootstraps from the
observation that it ended in, transitions that mean nothing weigh nothing, and a minibatch whose loss or gradient is not finite
is skipped and counted.

Nothing on the way of an update is read on the host and no branch depends on data: learning rate, statistics and metrics are
tensors, read once an iteration.  A minibatch has two halves, each one CUDA graph on a GPU: `_gradients` leaves this process's
sums in one flat bucket, `_apply` makes a step of them.  Between the two the bucket is summed over all processes.

Legend: T steps, N envs, B rows of a minibatch, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import chain
from typing import TypeVar

import torch
from rsl_rl.models import RNNModel
from torch import Tensor

from embodied_rl.config.page import PPOSettings
from embodied_rl.cuda_graph import try_to_capture
from embodied_rl.learn.advantages import Reduce, gae, moments, vtrace
from embodied_rl.learn.batch import Batch, kept, permutations
from embodied_rl.learn.cpu.gradients import Gradients, Terms, fused_gradients
from embodied_rl.learn.cpu.perceptron import FrozenPerceptron
from embodied_rl.learn.cpu.team import Team, one_thread
from embodied_rl.learn.models import build_actor, build_critic, policy_of, standard_deviation
from embodied_rl.learn.normalizer import learn_statistics
from embodied_rl.learn.policy import remember
from embodied_rl.learn.rollout import Rollout
from embodied_rl.random import stream_key
from embodied_rl.vector_env import ActionSpace, Obs

R = TypeVar("R")

#: Bounds and factor of the adaptive learning rate, those of rsl_rl.
_MIN_RATE, _MAX_RATE, _RATE_FACTOR = 1e-5, 1e-2, 1.5
#: Share of the learning rate that the linear schedule ends at.
_LINEAR_END = 0.1
#: Rows of the parts that threads share on the CPU: enough to hide what a part costs beside its arithmetic.
_PART = 1536
#: What stands behind the gradient in the bucket: how many rows count, and sums over them.
_SUMS = ("rows", "surrogate", "value", "entropy", "kl", "clip_fraction", "symmetry")
#: Accumulated over an iteration: how many minibatches were applied, sums of their means, how many were skipped and stopped.
_TOTALS = ("minibatches", *_SUMS[1:], "grad_norm", "skipped", "stopped")


class PPO:
    """Actor, critic and their optimizer.

    Args:
        obs: observations of each group, (N, O), for their sizes.
        space: what an action is.
        page: the page's `ppo` section.
        mirrors: left-right reflection of each group and of `actions`, for `ppo.symmetry`.
        seed: keys the shuffling of minibatches.
        device: where it computes.
        reduce: sums a tensor over all processes, in place; by default there is one process.
        compiler: wraps losses and advantages, `torch.compile` on a GPU, or the identity.
        graph: replay the halves of a minibatch from CUDA graphs, on a GPU.
    """

    def __init__(
        self,
        obs: Obs,
        space: ActionSpace,
        page: PPOSettings,
        mirrors: dict[str, tuple[Tensor, Tensor]],
        seed: int,
        device: torch.device | str = "cpu",
        *,
        reduce: Reduce = lambda tensor: None,
        compiler: Callable = lambda f: f,
        graph: bool = True,
    ) -> None:
        self.page, self.device, self._seed, self._mirrors, self._reduce = page, torch.device(device), seed, mirrors, reduce
        self.actor = build_actor(obs, space, page).to(device)
        self.critic = build_critic(obs, page).to(device)
        self.critic_group = self.critic.obs_groups[0]
        self.policy = policy_of(self.actor)
        self._team = Team() if self.device.type == "cpu" else None
        if self.device.type == "cuda":  # the policy's products while it acts, too: there is one setting in a process
            torch.backends.cuda.matmul.allow_tf32 = page.tf32
        self._frozen_critic = FrozenPerceptron(self.critic.mlp)
        self._discrete, self._recurrent = space.discrete, isinstance(self.actor, RNNModel)
        self._parameters = parameters = list(chain(self.actor.parameters(), self.critic.parameters()))
        sizes = [parameter.numel() for parameter in parameters]
        self._actor_size, gradient_size = sum(p.numel() for p in self.actor.parameters()), sum(sizes)
        self._bucket = torch.zeros(gradient_size + len(_SUMS), device=device)
        self._gradient, self._sums = self._bucket[:gradient_size], self._bucket[gradient_size:]
        for parameter, part in zip(parameters, self._gradient.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)  # what the optimizer reads
        self._rate = torch.tensor(page.learning_rate, device=device)
        self._captures = graph and self.device.type == "cuda"
        # capturable: torch refuses to capture a step otherwise, though a fused one reads nothing on the host
        self.optimizer = torch.optim.Adam(parameters, lr=self._rate, fused=True, capturable=self._captures)
        # a minibatch's first step is no part of a graph, as torch would warn
        self.optimizer._warned_capturable_if_run_uncaptured = True  # pyright: ignore[reportAttributeAccessIssue]
        # 1: the optimizer leaves everything as it is
        self.optimizer.found_inf = self._found_inf = torch.zeros((), dtype=torch.float32, device=device)  # pyright: ignore[reportAttributeAccessIssue]
        self._entropy_coef = torch.zeros((), device=device)
        self._stopped = torch.zeros((), dtype=torch.bool, device=device)
        self._totals, self._one = torch.zeros(len(_TOTALS), device=device), torch.ones(1, device=device)
        # mean and deviation that standardize a minibatch's advantages; (0, 1) leaves them unchanged
        self._advantage_scale = torch.tensor([0.0, 1.0], device=device)
        self._batch = Batch(self._widths(obs, space), sequences=self._recurrent)
        self._old_std: Tensor | None = None
        self._memory: tuple[Tensor, ...] = ()
        self._losses, self._weigh, self._gae = compiler(self._losses), compiler(self._weigh), compiler(gae)
        self._graphs: dict[tuple[str, int], Callable[[], None]] = {}
        self._rows: dict[int, Tensor] = {}

    @property
    def learning_rate(self) -> float:
        """The present one."""
        return float(self._rate)

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """Improve actor and critic on one rollout; the metrics, by TensorBoard name."""
        with one_thread():
            return self._update(rollout, iteration)

    def _update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        self._schedule(iteration)
        explained_variance = self._prepare(rollout)
        self._totals.zero_()
        self._stopped.zero_()
        for rows in self._minibatches(iteration):
            self._run(self._gradients, len(rows))
            self._reduce(self._bucket)
            self._run(self._apply, len(rows))
        if self.page.obs_normalization:
            weight = rollout.valid.to(rollout.rewards.dtype)
            for model, group in ((self.actor, "actor"), (self.critic, self.critic_group)):
                learn_statistics(model.obs_normalizer, rollout.obs[group], weight, self._reduce)  # pyright: ignore
        return self._metrics(explained_variance)

    # ----------------------------------------------------------------------------------------------------- a minibatch

    def _gradients(self, size: int) -> None:
        """The first half: the gradient and `_SUMS` of this process's rows, summed over them, into the bucket."""
        if self._fused is not None and self._old_std is not None:
            self._fused(self._batch, self._rows[size], self._old_std, self._bucket)
        else:
            torch.sum(torch.stack(self._share(self._part, self._rows[size])), dim=0, out=self._bucket)

    @cached_property
    def _fused(self) -> Gradients | None:
        """What computes `_losses` and its gradient in one pass, where that is possible."""
        page = self.page
        if self._team is None or self._discrete or self._recurrent or page.bfloat16 or page.symmetry == "mirror_loss":
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
        return fused_gradients((self.actor.mlp, self.critic.mlp), self._parameters, terms, self._team)

    def _part(self, rows: Tensor) -> Tensor:
        """Gradient and `_SUMS` of these rows, flat."""
        loss, sums = self._losses(self._batch.take(rows), *(part[:, rows] for part in self._memory))
        gradient = torch.autograd.grad(loss, self._parameters)
        return torch.cat((*(part.flatten() for part in gradient), sums))

    def _losses(self, table: Tensor, *memory: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and `_SUMS` of taken rows, (B, columns), or sequences, (T, B, columns) with the memory they begin with."""
        page, b = self.page, self._batch.columns(table)
        actor_obs, critic_obs, action, weight = b["actor"], b["critic"], b["action"], b["weight"]
        old_log_prob, old_value, target = b["log_prob"], b["value"], b["return"]
        advantage = (b["advantage"] - self._advantage_scale[0]) / self._advantage_scale[1]
        copies = 1
        if page.symmetry == "augmentation":
            # the mirrored transition is as likely and as good as the one that happened
            actor_obs = torch.cat((actor_obs, b["mirrored_actor"]))
            critic_obs = torch.cat((critic_obs, b["mirrored_critic"]))
            action = torch.cat((action, self._mirror("actions", action)))
            doubled = (torch.cat((x, x)) for x in (weight, old_log_prob, old_value, target, advantage))
            weight, old_log_prob, old_value, target, advantage = doubled
            copies = 2
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
        """What the actor's network says of normalized observations, (..., A)."""
        if not self._recurrent:
            return self.actor.mlp(obs)
        features = []
        for now, ends in zip(obs, done, strict=True):
            out, memory = remember(self.actor.rnn.rnn, now, memory)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
            memory = tuple(part * (1.0 - ends)[:, None] for part in memory)  # the next episode begins without memories
            features.append(out)
        return self.actor.mlp(torch.stack(features))

    @torch.no_grad()
    def _apply(self, size: int) -> None:
        """The second half: a step of the optimizer with the sums of all processes, unless something is off."""
        self._weigh()
        self.optimizer.step()

    def _weigh(self) -> None:
        """Make the means of the sums, clip them, and decide how far the step goes and whether it is taken."""
        page = self.page
        share = 1.0 / self._sums[0].clamp(min=1.0)
        means, networks = self._sums * share, self._gradient.split((self._actor_size, len(self._gradient) - self._actor_size))
        norms = torch.stack([sums.norm() for sums in networks]) * share  # of actor and critic, which are clipped separately
        factors = (page.max_grad_norm / (norms + 1e-6)).clamp(max=1.0) * share
        for sums, factor in zip(networks, factors, strict=True):
            sums.mul_(factor)
        kl = means[_SUMS.index("kl")]
        if page.schedule == "adaptive":
            slower = (self._rate / _RATE_FACTOR).clamp(min=_MIN_RATE)
            faster = (self._rate * _RATE_FACTOR).clamp(max=_MAX_RATE)
            # an update begins with a KL of rounding alone, which is no reason to go faster
            held = torch.where((kl > torch.finfo(kl.dtype).eps) & (kl < 0.5 * page.desired_kl), faster, self._rate)
            self._rate.copy_(torch.where(kl > 2.0 * page.desired_kl, slower, held))
        if page.stop_kl is not None:
            self._stopped.logical_or_(kl > page.stop_kl)
        skipped = ~(means.sum() + norms.sum()).isfinite()
        self._found_inf.copy_(skipped | self._stopped)
        counted = torch.where(skipped, 0.0, torch.cat((self._one, means[1:], norms[:1])))
        self._totals.add_(torch.cat((counted, torch.stack((skipped, self._stopped)).to(counted.dtype))))

    def _run(self, half: Callable[[int], None], size: int) -> None:
        """One half on minibatches of that size: from its CUDA graph from the second time on, when all it needs is there."""
        key = (half.__name__, size)
        if not self._captures:
            half(size)
        elif key not in self._graphs:
            half(size)
            self._graphs[key] = partial(self._capture, key, half)
        else:
            self._graphs[key]()

    def _capture(self, key: tuple[str, int], half: Callable[[int], None]) -> None:
        function = partial(half, key[1])
        graph = try_to_capture(function, self.device, what="the update")
        if graph is None:
            self._captures = False
            self._graphs.clear()
        else:
            self._graphs[key] = graph
        (graph or function)()

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
            self._graphs.clear()  # they read the table that was
        self._share(lambda rows: self._fill(rollout, known, slice(int(rows[0]), int(rows[-1]) + 1)), torch.arange(steps * envs))
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
        values = self._share(lambda part: self._frozen_critic(self.critic.obs_normalizer(part)), obs.flatten(0, -2))
        return torch.cat(values).view(obs.shape[:-1])

    def _share(self, function: Callable[[Tensor], R], rows: Tensor) -> list[R]:
        """Results of parts of the rows, computed side by side on the CPU."""
        if self._team is None:
            return [function(rows)]
        # as many parts on every machine, whatever its cores: results are the same
        return self._team.map(function, rows.tensor_split(math.ceil(max(len(rows), 1) / _PART)))

    def _final_values(self, rollout: Rollout) -> Tensor:
        """V of the state that an episode was truncated in, (T, N); 0 where none was."""
        final, truncated = rollout.final_obs[self.critic_group], rollout.truncated
        if self.device.type != "cpu":
            return torch.where(truncated, self._values(final), 0.0)
        values = torch.zeros_like(rollout.rewards)  # looking at the mask costs nothing here, and few rows are asked for
        values[truncated] = self._values(final[truncated])
        return values

    def _minibatches(self, iteration: int) -> Iterator[Tensor]:
        """The rows of each minibatch, (B,), epoch after epoch."""
        minibatches = [rows for order in self._orders(iteration) for rows in order.tensor_split(self.page.num_mini_batches)]
        scales = [self._advantage_scale] * len(minibatches)
        if self.page.normalize_advantage_per_mini_batch:
            scales = self._scales(minibatches)
        for rows, scale in zip(minibatches, scales, strict=True):
            if len(rows) not in self._rows:
                self._rows[len(rows)] = torch.empty_like(rows)
            self._rows[len(rows)].copy_(rows)
            self._advantage_scale.copy_(scale)
            yield rows

    def _orders(self, iteration: int) -> Tensor:
        """A permutation of the batch's rows for each epoch, (epochs, rows)."""
        page, seed = self.page, int(stream_key(self._seed, f"minibatches of iteration {iteration}"))
        return permutations(self._batch.num_rows, page.num_learning_epochs, seed, reshuffle=page.reshuffle, device=self.device)

    def _scales(self, minibatches: list[Tensor]) -> list[Tensor]:
        """Mean and deviation of the advantages of each minibatch, over all processes, (2,)."""
        taken = [self._batch.columns(self._batch.take(rows)) for rows in minibatches]
        longest = max(b["weight"].numel() for b in taken)
        pad = lambda x: torch.nn.functional.pad(x.flatten(), (0, longest - x.numel()))  # noqa: E731
        advantages, weights = (torch.stack([pad(b[name]) for b in taken]) for name in ("advantage", "weight"))
        mean, variance = moments(advantages, weights, self._reduce)
        return list(torch.stack((mean, variance.sqrt() + 1e-8), dim=1))

    # -------------------------------------------------------------------------------------------------------- around it

    def _schedule(self, iteration: int) -> None:
        """Learning rate and entropy bonus of this iteration."""
        page = self.page
        done = min(1.0, iteration / page.max_iterations)
        if page.schedule == "linear":
            self._rate.fill_(page.learning_rate * max(_LINEAR_END, 1.0 - done))
        end = page.entropy_coef if page.final_entropy_coef is None else page.final_entropy_coef
        self._entropy_coef.fill_(page.entropy_coef + (end - page.entropy_coef) * done)

    def _metrics(self, explained_variance: Tensor) -> dict[str, float]:
        """The one place where the host reads."""
        std = self.policy.std
        deviation = self._rate.new_zeros(()) if std is None else std.detach().mean()
        read = torch.cat((self._totals, torch.stack((explained_variance, self._rate, deviation)))).tolist()
        totals = dict(zip(_TOTALS, read, strict=False))
        counted, skipped, stopped = totals.pop("minibatches"), totals.pop("skipped"), totals.pop("stopped")
        metrics = {f"Loss/{name}": value / max(counted, 1.0) for name, value in totals.items()}
        if self.page.symmetry != "mirror_loss":
            del metrics["Loss/symmetry"]
        metrics |= {"Loss/skipped": skipped, "Loss/stopped": stopped}
        metrics |= {"Loss/explained_variance": read[-3], "Loss/learning_rate": read[-2], "Policy/mean_std": read[-1]}
        return metrics

    def _mirror(self, name: str, values: Tensor) -> Tensor:
        index, sign = self._mirrors[name]
        return values[..., index] * sign

    def _widths(self, obs: Obs, space: ActionSpace) -> dict[str, int]:
        """Columns of the batch; 0: one, without a dimension of its own."""
        actor, critic = obs["actor"].shape[1], obs[self.critic_group].shape[1]
        widths = {"actor": actor, "critic": critic, "action": 0 if space.discrete else space.size, "output": space.size}
        widths |= dict.fromkeys(("log_prob", "value", "return", "advantage", "weight", "done"), 0)
        if self.page.symmetry != "none":
            widths["mirrored_actor"] = actor
        if self.page.symmetry == "augmentation":
            widths["mirrored_critic"] = critic
        return widths

    def state_dict(self) -> dict:
        """The learner in rsl_rl's checkpoint layout; the learning rate is a plain number there, and nothing is of one device."""
        optimizer = self.optimizer.state_dict()
        groups = [group | {"lr": self.learning_rate, "capturable": False} for group in optimizer["param_groups"]]
        return {
            "actor_state_dict": self.actor.state_dict(),
            "critic_state_dict": self.critic.state_dict(),
            "optimizer_state_dict": optimizer | {"param_groups": groups},
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`; a checkpoint of rsl_rl's runner will do.

        Raises:
            RuntimeError: the networks have other shapes.
        """
        self.actor.load_state_dict(state["actor_state_dict"])
        self.critic.load_state_dict(state["critic_state_dict"])
        optimizer = state["optimizer_state_dict"]
        (group,) = optimizer["param_groups"]
        # said beforehand: a fused optimizer's counts of steps lie on the device, where those of others do not
        own = {"fused": True, "foreach": None, "capturable": self._captures}
        self.optimizer.load_state_dict(optimizer | {"param_groups": [group | own]})
        (group,) = self.optimizer.param_groups
        # an adapted rate is part of the state; a fixed one is the page's, which may have changed since
        self._rate.fill_(self.page.learning_rate if self.page.schedule == "fixed" else float(group["lr"]))
        group["lr"] = self._rate
        self._graphs.clear()  # they hold the addresses of the state before
