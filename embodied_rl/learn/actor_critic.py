"""What learners of an actor and a critic share: networks, gradient steps, schedules, normalizers, metrics, checkpoints.

Models, optimizer and checkpoint layout are rsl_rl's.  Nothing on the way of an update is read on the host.  How a gradient
becomes a step, on which threads, processes or graphs, is `embodied_rl.learn.gradient_steps`'s.  Legend: T steps, N envs, B rows
of a minibatch, A actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from rsl_rl.models import MLPModel, RNNModel
from torch import Tensor

from embodied_rl.config.learner_numbers import LEARNER_NUMBERS
from embodied_rl.config.page import Page, TrainSettings
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.learn import schedules
from embodied_rl.learn.advantages import Reduce
from embodied_rl.learn.batch import Batch, kept, permutations
from embodied_rl.learn.cpu.perceptron import FrozenPerceptron
from embodied_rl.learn.cpu.team import one_thread
from embodied_rl.learn.gradient_steps import GradientSteps
from embodied_rl.learn.models import build_actor, build_critic, hold_deviation, load_actor, policy_of
from embodied_rl.learn.normalizer import learn_statistics, merge_moments, moments_of
from embodied_rl.learn.policy import Policy, unroll
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.rollout import Collector, Gradient, Rollout
from embodied_rl.learn.stale import Present, compare, staleness_totals
from embodied_rl.random import stream_key
from embodied_rl.vector_env import ActionSpace, Obs


class ActorCritic(ABC):
    """Actor, critic and their optimizer; what a batch holds and what a minibatch loses, a class derived from it says.

    Args:
        obs: observations of each group, (N, O), for their sizes.
        space: what an action is.
        page: the page's `ppo` section.
        mirrors: left-right reflection of each group and of `actions`, for `ppo.symmetry`.
        seed: keys the shuffling of minibatches.
        device: where it computes.
        train: the page's section of that name.
        reduce: sums a tensor over all processes, in place; by default there is one process.
        compiler: wraps losses and advantages, `torch.compile` on a GPU, or the identity.
        graph: replay the halves of a minibatch from CUDA graphs, on a GPU.
    """

    numbers = LEARNER_NUMBERS
    sums: ClassVar[tuple[str, ...]]
    """What `_losses` sums up, by name; the first is how many rows count, and `kl` is among them."""

    def __init__(
        self,
        obs: Obs,
        space: ActionSpace,
        page: PPOSettings,
        mirrors: dict[str, tuple[Tensor, Tensor]],
        seed: int,
        device: torch.device | str = "cpu",
        *,
        train: TrainSettings = TrainSettings(),  # noqa: B008  frozen
        reduce: Reduce = lambda tensor: None,
        compiler: Callable = lambda f: f,
        graph: bool = True,
    ) -> None:
        self.page, self.device, self._train = page, torch.device(device), train
        self._seed, self._mirrors, self._reduce = seed, mirrors, reduce
        self.actor = build_actor(obs, space, page).to(device)
        self.critic = build_critic(obs, page).to(device)
        self.critic_group, self.gradient_steps = self.critic.obs_groups[0], self._epochs * page.num_mini_batches
        self.policy, self.networks = policy_of(self.actor), {"actor": self.actor, "critic": self.critic}
        if self.device.type == "cuda":  # the policy's products while it acts, too: there is one setting in a process
            torch.backends.cuda.matmul.allow_tf32 = page.tf32
        self._frozen_critic = FrozenPerceptron(self.critic.mlp)
        self._discrete, self._recurrent = space.discrete, isinstance(self.actor, RNNModel)
        self._compiler, self._losses = compiler, compiler(self._losses)
        own: dict[str, Any] = {"device": self.device, "reduce": reduce, "compiler": compiler, "graph": graph}
        own |= {"optimizer": page.optimizer, "clip": page.clip_gradient}
        arithmetic, rates = (self._loss, self.sums, self._judge), (page.learning_rate, page.max_grad_norm)
        self.steps = GradientSteps((self.actor, self.critic), *arithmetic, *rates, self._one_pass, **own)
        # what curricula may move, by dotted path: compiled and captured arithmetic reads it by address
        self._numbers = {path: torch.tensor(getattr(page, path.removeprefix("ppo.")), device=device) for path in LEARNER_NUMBERS}
        self._numbers["ppo.learning_rate"] = self.steps.rate
        self._entropy_coef, self._desired_kl = self._numbers["ppo.entropy_coef"], self._numbers["ppo.desired_kl"]
        self._batch = self._make_batch(obs["actor"].shape[1], obs[self.critic_group].shape[1], space)
        self._old_std: Tensor | None = None
        self._memory: tuple[Tensor, ...] = ()

    @classmethod
    def make(
        cls, page: Page, collector: Collector, device: torch.device, *, group: Group, compiler: Callable = lambda f: f
    ) -> Self:
        """Make the page's learner, for what the collector gives, on its own or as one of a group's."""
        obs, space, mirrors, graph = collector.observe(), collector.action_space, collector.mirrors, page.physics.graph
        own: dict[str, Any] = {"reduce": group.sum, "compiler": compiler, "graph": graph, "train": page.train}
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
        """Improve actor and critic on one rollout, with what curricula have moved; the metrics, by TensorBoard name.

        Where an older policy acted, the rollout's totals tell of it too.
        """
        with one_thread():
            self._schedule(iteration, numbers or {})
            return self._update(rollout, iteration)

    def gradient(self, rollout: Rollout, iteration: int) -> Gradient:
        """Take the first half of an update of one step: the gradient on a rollout, for the learner that has the optimizer."""
        with one_thread():
            self._schedule(iteration, {})
            explained_variance = self._prepare(rollout)
            assert explained_variance is not None, "its targets are not known beforehand"
            (rows,) = self._minibatches(iteration)
            weight, moments = rollout.valid.to(rollout.rewards.dtype), {}
            for name, model, group in self._normalized():
                moments[name] = moments_of(model.obs_normalizer, rollout.obs[group], weight)  # pyright: ignore
            return Gradient(self.steps.gradient_of(rows), explained_variance, moments)

    def _update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        if rollout.gradient is not None:
            return self._apply(rollout.gradient)
        present = None if rollout.staleness is None else compare(rollout, self.policy)
        explained_variance = self._prepare(rollout, present)
        self.steps.begin()
        for rows in self._minibatches(iteration):
            self.steps.take(rows)
        hold_deviation(self.actor)
        weight = rollout.valid.to(rollout.rewards.dtype)
        for _, model, group in self._normalized():
            learn_statistics(model.obs_normalizer, rollout.obs[group], weight, self._reduce)  # pyright: ignore
        metrics = self._metrics(explained_variance)
        if present is not None:
            rollout.totals |= staleness_totals(rollout, present, self._bound)
        return metrics

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

    # ------------------------------------------------------------------------------------ what a derived class says

    @property
    @abstractmethod
    def _epochs(self) -> int:
        """How often an update takes every row."""

    @property
    @abstractmethod
    def _bound(self) -> float:
        """What the ratio between the present policy and an older one that acted is bounded by."""

    @abstractmethod
    def _make_batch(self, actor: int, critic: int, space: ActionSpace) -> Batch:
        """Make what minibatches take rows of, from the sizes of what both networks observe."""

    @abstractmethod
    def _prepare(self, rollout: Rollout, present: Present | None = None) -> Tensor | None:
        """Fill the batch; the explained variance of the values that were predicted, where it is known beforehand."""

    @abstractmethod
    def _losses(self, table: Tensor, *memory: Tensor) -> tuple[Tensor, Tensor]:
        """Find the loss and `sums` for taken rows, (B, columns), or sequences, with the memory that they begin with."""

    def _one_pass(self, rows: Tensor, bucket: Tensor) -> bool:
        """Fill the bucket from rows in one pass, where that is possible."""
        return False

    # ----------------------------------------------------------------------------------------------------- a minibatch

    def _loss(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Find the loss and `sums` of these rows of the batch."""
        return self._losses(self._batch.take(rows), *(part[:, rows] for part in self._memory))

    def _output(self, obs: Tensor, done: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
        """Ask the actor's network what it says of normalized observations, (..., A)."""
        if not self._recurrent:
            return self.actor.mlp(obs)
        return self.actor.mlp(unroll(self.actor.rnn.rnn, obs, done, memory))  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    def _judge(self, means: Tensor) -> Tensor | None:
        """Let the learning rate follow the KL to the policy before the update, and stop beyond `ppo.stop_kl`."""
        page, rate, kl = self.page, self.steps.rate, means[self.sums.index("kl")]
        if page.schedule == "adaptive":
            rate.copy_(schedules.adapted(rate, kl, self._desired_kl))
        return None if page.stop_kl is None else kl > page.stop_kl

    def _minibatches(self, iteration: int) -> Iterator[Tensor]:
        """Yield the rows of each minibatch, (B,), epoch after epoch."""
        for order in self._orders(iteration):
            yield from order.tensor_split(self.page.num_mini_batches)

    def _orders(self, iteration: int) -> Tensor:
        """Draw a permutation of the batch's rows for each epoch, (epochs, rows)."""
        page, seed = self.page, int(stream_key(self._seed, f"minibatches of iteration {iteration}"))
        return permutations(self._batch.num_rows, self._epochs, seed, reshuffle=page.reshuffle, device=self.device)

    # -------------------------------------------------------------------------------------------------------- a rollout

    def _allocate(self, steps: int, envs: int, like: Tensor) -> None:
        """Make room for a rollout in the batch."""
        if self._batch.allocate(steps, envs, like):
            self.steps.forget_graphs()  # they read the table that was

    def _before(self, rollout: Rollout, present: Present | None) -> tuple[Tensor, Tensor | None]:
        """Give output and deviation of the policy before the update, whose distance the learning rate follows."""
        return (rollout.output, rollout.std) if present is None else (present.output, present.std)

    def _keep(self, std: Tensor | None, memory: tuple[Tensor, ...]) -> None:
        """Keep the deviation before the update, and what robots remembered before the rollout, at addresses that stay."""
        self._old_std = kept(self._old_std, std)
        own = self._memory or (None,) * len(memory)
        self._memory = tuple(kept(*pair) for pair in zip(own, memory, strict=True))

    def _values(self, obs: Tensor) -> Tensor:
        values = self.steps.share(lambda part: self._frozen_critic(self.critic.obs_normalizer(part)), obs.flatten(0, -2))
        return torch.cat(values).view(obs.shape[:-1])

    def _final_values(self, final: Tensor, truncated: Tensor) -> Tensor:
        """V of the state that an episode was truncated in, `final` (T, N, O), (T, N); 0 where none was."""
        if self.device.type != "cpu":
            return torch.where(truncated, self._values(final), 0.0)
        values = final.new_zeros(truncated.shape)  # looking at the mask costs nothing here, and few rows are asked for
        values[truncated] = self._values(final[truncated])
        return values

    def _mirror(self, name: str, values: Tensor) -> Tensor:
        return values[..., self._mirrors[name][0]] * self._mirrors[name][1]

    # ----------------------------------------------------------------------------------------------------- all the while

    def _schedule(self, iteration: int, numbers: Mapping[str, float]) -> None:
        """Set what the page's schedules and curricula say of this iteration; no number is both's."""
        done = min(1.0, iteration / self._train.iterations)
        if (rate := schedules.learning_rate(self.page, done)) is not None:
            self.steps.rate.fill_(rate)
        self._entropy_coef.fill_(schedules.entropy_coef(self.page, done))
        for path, number in numbers.items():
            self._numbers[path].fill_(number)

    def _metrics(self, explained_variance: Tensor | None) -> dict[str, float]:
        """Read what an update came to: the one place where the host does."""
        std, steps = self.policy.std, self.steps
        deviation = steps.rate.new_zeros(()) if std is None else std.detach().mean()
        own = {} if explained_variance is None else {"Loss/explained_variance": explained_variance}
        own |= {"Loss/learning_rate": steps.rate, "Loss/entropy_coef": self._entropy_coef, "Policy/mean_std": deviation}
        read = torch.cat((steps.totals, torch.stack(list(own.values())))).tolist()
        totals = dict(zip(steps.totals_names, read, strict=False))
        counted, skipped, stopped = totals.pop("minibatches"), totals.pop("skipped"), totals.pop("stopped")
        metrics = {f"Loss/{name}": value / max(counted, 1.0) for name, value in totals.items()}
        return metrics | {"Loss/skipped": skipped, "Loss/stopped": stopped} | dict(zip(own, read[-len(own) :], strict=True))

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
