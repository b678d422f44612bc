"""Soft actor-critic (Haarnoja et al., arXiv:1812.05905) on a replay: a squashed Gaussian, two critics, and alpha.

    target = r + gamma^m (min Q'(s', a') - alpha log pi(a'|s')),  a' ~ pi(s')
    L_Q = E[(Q(s, a) - target)^2] / 2, or the cross-entropy to the distribution of the target
    L_pi = E[alpha log pi(a|s) - min Q(s, a)],  a ~ pi(s)
    L_alpha = -log alpha E[log pi(a|s) + wanted entropy]

Actions are in +-1 here; `Squash.bound` says what that means to a robot.  Rows lie in the replay as they came; observations and
rewards are scaled where they are drawn, and what they are scaled by moves once a rollout.  Nothing on the way of an update is
read on the host.  Legend: T steps, N robots, R rows of a batch, A actions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from embodied_rl.config.page import Page, TrainSettings
from embodied_rl.config.sac import SACSettings
from embodied_rl.cuda_graph import try_to_capture
from embodied_rl.learn.appraiser import Appraiser
from embodied_rl.learn.copies import plain_normalizer
from embodied_rl.learn.cpu.team import own_cores, threads
from embodied_rl.learn.gradient_steps import GradientSteps
from embodied_rl.learn.normalizer import learn_statistics
from embodied_rl.learn.pace import Pace
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.replay import Drawn, Replay
from embodied_rl.learn.return_scale import ReturnScale
from embodied_rl.learn.rollout import Collector, Rollout
from embodied_rl.learn.sac_batches import Batches
from embodied_rl.learn.sac_networks import Actor, Critic, bound_of
from embodied_rl.learn.soft_gradients import soft_gradients
from embodied_rl.learn.twin_critic import Returns
from embodied_rl.random import stream_key
from embodied_rl.vector_env import Obs

_CRITIC_SUMS, _ACTOR_SUMS = ("rows", "critic", "value"), ("rows", "actor", "entropy", "std")


class SAC:
    """Actor, two critics, their targets and alpha.

    Args:
        obs: observations of each group, (N, O), for their sizes.
        bound: largest action, either way, (A,).
        page: the page's `sac` section.
        mirrors: left-right reflection of each group and of `actions`, for `sac.symmetry`.
        seed: keys what is drawn.
        device: where it computes.
        num_steps: T.
        group: the processes that train, each with robots and a replay of its own.
        compiler: see `PPO`.
        graph: see `PPO`.
        alone: whether all of this process's cores are its own while it updates; else it keeps to one.
    """

    numbers: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        obs: Obs,
        bound: Tensor,
        page: SACSettings,
        mirrors: dict[str, tuple[Tensor, Tensor]],
        seed: int,
        device: torch.device | str = "cpu",
        *,
        num_steps: int = TrainSettings().steps,
        group: Group | None = None,
        compiler: Callable = lambda f: f,
        graph: bool = True,
        alone: bool = True,
    ) -> None:
        self.page, self.device, self._group = page, torch.device(device), group or Group()
        self._seed, self._reduce = seed, self._group.sum
        self.critic_group = "critic" if "critic" in obs else "actor"
        sizes = {name: obs[name].shape[1] for name in {"actor": 0, self.critic_group: 0}}
        self.actor = Actor(sizes["actor"], bound, page).to(self.device)
        self.critic = Critic(sizes[self.critic_group], len(bound), page).to(self.device)
        self.target = copy.deepcopy(self.critic.twin).requires_grad_(False)
        self._pairs: tuple[list[Tensor], list[Tensor]] = [*self.target.parameters()], [*self.critic.twin.parameters()]
        self.temperature = nn.ParameterDict({"log_alpha": torch.tensor(math.log(page.alpha))}).to(self.device)
        self.networks = {"actor": self.actor, "critic": self.critic, "target": self.target, "temperature": self.temperature}
        self.policy = self.actor.policy()
        self._returns = Returns(page.atoms, page.value_range, self.device) if page.critic == "distributional" else None
        self._num_envs = len(obs["actor"])
        kept: dict[str, Any] = {"size": page.replay_size, "gamma": page.gamma, "n_steps": page.n_steps, "device": self.device}
        kept |= {"priority_exponent": page.priority_exponent if page.prioritized else None}
        self.replay = Replay(sizes, len(bound), num_envs=self._num_envs, **kept)
        place: dict[str, Any] = {"rank": self._group.rank, "ranks": self._group.size, "device": self.device}
        self.scale = ReturnScale(self._num_envs, page.gamma, page.value_range, **place)
        own: dict[str, Any] = {"device": self.device, "reduce": self._reduce, "compiler": compiler, "graph": graph}
        rates = page.learning_rate, page.max_grad_norm or math.inf
        never = lambda means: None  # noqa: E731
        critics, actor = (self._of_parts(compiler(losses)) for losses in (self._critic_losses, self._actor_losses))
        passes = [partial(self._in_one_pass, of) for of in ("critics", "actor")]
        self.critic_steps = GradientSteps((self.critic,), critics, _CRITIC_SUMS, never, *rates, passes[0], **own)
        self.actor_steps = GradientSteps((self.actor, self.temperature), actor, _ACTOR_SUMS, never, *rates, passes[1], **own)
        scales = self.actor, self.critic, self.scale
        self.batches = Batches(self.replay, *scales, page, mirrors if page.symmetry == "augmentation" else {}, self.critic_group)
        self._graphs: dict[str, Callable[[], None]] | None = {} if graph and self.device.type == "cuda" else None
        self._moves = 0  # of the replay, when its draw was captured
        robots = sum(self._group.gather(self._num_envs))
        self.pace = Pace(page, num_envs=robots, num_steps=num_steps, ranks=self._group.size)
        self.gradient_steps, self._resumed = 0, False
        learns = self.actor.mlp, (self.critic.twin, self.target), self.temperature["log_alpha"]
        both, wanted = (self.critic_steps, self.actor_steps), page.target_entropy * len(bound)
        self._fused = None if page.bfloat16 else soft_gradients(*learns, both, wanted, alone=alone)
        # torch's own products are too large for one core, and too small to share out otherwise than as torch does
        self._threads = own_cores() if alone and self._fused is None else 1

    @classmethod
    def make(
        cls, page: Page, collector: Collector, device: torch.device, *, group: Group, compiler: Callable = lambda f: f
    ) -> Self:
        """Make the page's learner, for what the collector gives, on its own or as one of a group's.

        Raises:
            UserError: actions are choices, or it is not known what +-1 of one means.
        """
        bound = torch.tensor(bound_of(collector.action_space, page.sac))
        own: dict[str, Any] = {"group": group, "compiler": compiler, "graph": page.physics.graph}
        busy = page.train.overlap or (page.pool.has_processes and page.pool.mode in ("overlap", "apex"))
        own |= {"num_steps": collector.num_steps, "alone": not busy}
        return cls(collector.observe(), bound, page.sac, collector.mirrors, page.env.seed, device, **own)

    @classmethod
    def load_policy(cls, page: Page, state: dict, device: torch.device | str) -> Policy:
        """Make the policy of what `state_dict` gave."""
        weights = state["actor_state_dict"]
        actor = Actor(weights["mlp.0.weight"].shape[1], weights["squash.bound"], page.sac).to(device)
        actor.load_state_dict(weights)
        return actor.eval().policy()

    def skipped(self, metrics: dict[str, float]) -> float:
        """Say which share of an update's steps was left out because a loss or gradient was not finite."""
        return metrics["Loss/skipped"] / max(self.gradient_steps, 1)

    def panel(self, metrics: dict[str, float]) -> str:
        """Say what the critics expect, how far actions scatter, and the weight of their entropy."""
        value, entropy, alpha, rows = (metrics[n] for n in ("Policy/value", "Policy/entropy", "Loss/alpha", "Replay/rows"))
        return f"value {value:.2f}   entropy {entropy:.2f}   alpha {alpha:.1e}   rows {rows:,.0f}"

    def update(self, rollout: Rollout, iteration: int, numbers: Mapping[str, float] | None = None) -> dict[str, float]:
        """Take a rollout into the replay, and learn from what is drawn of it; the metrics, by TensorBoard name."""
        with threads(self._threads):
            count, before, interval = self._take_in(rollout), self.pace.updates, self.page.actor_interval
            self.batches.generator.manual_seed(int(stream_key(self._seed, f"replay of rank {self._group.rank}, update {before}")))
            self.critic_steps.begin()
            self.actor_steps.begin()
            for _ in range(count):
                self._update()
            self.gradient_steps = count + self.pace.updates // interval - before // interval
            return self._metrics() | self.pace.metrics(count, len(rollout.rewards))

    def appraiser(self) -> Appraiser:
        """Make what finds priorities where rows are made, with the present numbers."""
        page, normalizer = self.page, plain_normalizer(self.critic.obs_normalizer)
        made = Appraiser(self.critic.twin, normalizer, self.critic_group, page.gamma, page.n_steps, self._returns)
        made.divisor.copy_(self.scale.divisor)
        return made

    def _take_in(self, rollout: Rollout) -> int:
        """Keep a rollout, and let what rows are scaled by follow it; the updates that are due."""
        if self._resumed and not bool(self.replay.written.any()):
            self.pace.begin_anew(tell=self._group.rank == 0)
        self._resumed = False
        self.replay.insert(rollout, rollout.lanes, rollout.priorities)
        if self.page.scale_rewards:
            self.scale.follow(rollout, rollout.lanes, self._reduce)
        if self.page.obs_normalization:
            weight = rollout.valid.to(rollout.rewards.dtype)
            for model, group in ((self.actor, "actor"), (self.critic, self.critic_group)):
                learn_statistics(model.obs_normalizer, rollout.obs[group], weight, self._reduce)  # pyright: ignore[reportArgumentType]
        count = self.pace.take_in(rollout)
        self.actor.squash.uniform.fill_(float(self.pace.knows_nothing))
        return count

    # ---------------------------------------------------------------------------------------------------------- an update

    def _update(self) -> None:
        self.batches.draw_numbers()
        if self._moves != self.replay.moves:  # the graph would go on with what is no longer written to
            self._moves = self.replay.moves
            (self._graphs or {}).pop("draw", None)
        self._run("draw", self.batches.draw)
        self.critic_steps.take(self.batches.rows)
        if self.replay.tree is not None:
            self._run("prioritize", self.batches.prioritize)
        self.pace.updates += 1
        if self.pace.updates % self.page.actor_interval == 0:
            self.actor_steps.take(self.batches.rows)
        self._run("follow", self._follow)

    def _in_one_pass(self, of: Literal["critics", "actor"], rows: Tensor, bucket: Tensor) -> bool:
        if self._fused is not None:
            getattr(self._fused, of)(*self.batches.part(rows), bucket)
        return self._fused is not None

    def _of_parts(self, losses: Callable) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return lambda rows: losses(*self.batches.part(rows))

    def _critic_losses(self, batch: Drawn, noise: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
        """Find the loss of the critics, and `_CRITIC_SUMS`; how wrong they were about each row is written to `errors`."""
        target, returns = self._target(batch, noise[0]), self._returns
        with self._precision():
            output = self.critic.twin(torch.cat((batch.obs["critic"], batch.actions), dim=-1))
        output = output.to(target.dtype)
        if returns is None:
            value, loss, wanted = output[..., 0], 0.5 * (output[..., 0] - target).square(), target
        else:
            value, wanted = returns.mean(output.detach()), (target * returns.atoms).sum(-1)
            loss = -(target * torch.log_softmax(output, dim=-1)).sum(-1)
        loss, there = (loss.sum(0) * batch.weight).sum(), (batch.weight > 0).to(target.dtype)
        with torch.no_grad():
            value = value.mean(0)
            errors.copy_((value - wanted).abs())
            sums = torch.stack((there.sum(), loss, (value * there).sum()))
        return loss, sums

    @torch.no_grad()
    def _target(self, batch: Drawn, noise: Tensor) -> Tensor:
        """Find what the critics are to say, (R,), or (R, K) of a distribution."""
        with self._precision():
            action, log_prob, _ = self.actor.act(batch.next_obs["actor"], noise)
            output = self.target(torch.cat((batch.next_obs["critic"], action), dim=-1)).to(noise.dtype)
        cost = self.temperature["log_alpha"].exp() * log_prob
        if self._returns is None:
            return batch.rewards + batch.discount * (output[..., 0].amin(0) - cost)
        # the distribution of that one of both which expects less
        lower = self._returns.mean(output).argmin(0)
        probabilities = torch.softmax(torch.where((lower == 0)[:, None], output[0], output[1]), dim=-1)
        return self._returns.project(probabilities, batch.rewards - batch.discount * cost, batch.discount)

    def _actor_losses(self, batch: Drawn, noise: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        """Find the loss of actor and alpha, and `_ACTOR_SUMS`."""
        there, log_alpha = (batch.weight > 0).to(noise.dtype), self.temperature["log_alpha"]
        with self._precision():
            action, log_prob, std = self.actor.act(batch.obs["actor"], noise[1])
            output = self.critic.twin(torch.cat((batch.obs["critic"], action), dim=-1)).to(noise.dtype)
        value = output[..., 0] if self._returns is None else self._returns.mean(output)
        policy = ((log_alpha.exp().detach() * log_prob - value.amin(0)) * there).sum()
        wanted = self.page.target_entropy * noise.shape[-1]
        loss = policy - (log_alpha * (log_prob.detach() + wanted) * there).sum()
        return loss, torch.stack((there.sum(), policy, -(log_prob * there).sum(), (std * there).sum())).detach()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.page.bfloat16)

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the targets take over a share of the critics."""
        torch._foreach_lerp_(*self._pairs, self.page.tau)  # pyright: ignore[reportPrivateImportUsage]

    def _run(self, name: str, function: Callable[[], None]) -> None:
        """Call it: from its CUDA graph from the third time on, where there is one."""
        if self._graphs is None:
            return function()
        if name not in self._graphs:
            self._graphs[name] = function
        elif self._graphs[name] == function:
            self._graphs[name] = try_to_capture(function, self.device, what="the update") or partial(function)
        self._graphs[name]()

    def _metrics(self) -> dict[str, float]:
        """Read what an update came to: the one place where the host does."""
        both, replay = (self.critic_steps, self.actor_steps), self.replay
        own = {"Loss/alpha": self.temperature["log_alpha"].detach().exp(), "Replay/rows": replay.filled.sum()}
        own |= {"Replay/stale_priorities": replay.stale_priorities, "Replay/reward_divisor": self.scale.divisor}
        read = torch.cat((*(one.totals for one in both), torch.stack([value.float() for value in own.values()]))).tolist()
        metrics = dict(zip(own, read[-len(own) :], strict=True)) | {"Loss/skipped": 0.0}
        for one in both:
            totals, read = dict(zip(one.totals_names, read, strict=False)), read[len(one.totals_names) :]
            metrics["Loss/skipped"] += totals["skipped"]
            names = {"value": "Policy/value", "entropy": "Policy/entropy", "std": "Policy/mean_std"}
            names |= {"grad_norm": f"Loss/{one.sums_names[1]}_grad_norm"}
            for name in (*one.sums_names[1:], "grad_norm"):
                metrics[names.get(name, f"Loss/{name}")] = totals[name] / max(totals["minibatches"], 1.0)
        return metrics

    def state_dict(self) -> dict:
        """Return networks, optimizers and counts; the replay is kept by robot, see `Replay.snapshot`."""
        parts = self.networks | {"critic_optimizer": self.critic_steps, "actor_optimizer": self.actor_steps}
        states = {f"{name}_state_dict": part.state_dict() for name, part in parts.items()}
        return states | {"return_scale": self.scale.state_dict(), "pace": self.pace.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take up what `state_dict` gave; RuntimeError where the networks have other shapes."""
        for name, network in self.networks.items():
            network.load_state_dict(state[f"{name}_state_dict"])
        for name, steps in (("critic", self.critic_steps), ("actor", self.actor_steps)):
            steps.load_state_dict(state[f"{name}_optimizer_state_dict"], self.page.learning_rate)
        (self._graphs or {}).clear()
        self.scale.load_state_dict(state["return_scale"])
        self.pace.load_state_dict(state["pace"], tell=self._group.rank == 0)
        self._resumed = True
