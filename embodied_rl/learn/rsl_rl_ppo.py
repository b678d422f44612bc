"""rsl_rl's own PPO as a learner: `train: {learner: rsl_rl.algorithms:PPO}`, the oracle that ours is tested against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Protocol, Self

import torch
from rsl_rl.algorithms import PPO
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict
from torch import Tensor

from embodied_rl.config.learner_numbers import LEARNER_NUMBERS
from embodied_rl.config.page import Page, TrainSettings
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.errors import UserError
from embodied_rl.learn import schedules
from embodied_rl.learn.models import build_actor, build_critic, load_actor, policy_of, standard_deviation
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.rollout import Collector, Rollout
from embodied_rl.problems import shown
from embodied_rl.vector_env import ActionSpace, Obs

#: Settings of `ppo` that rsl_rl's PPO takes under the same name.
_SAME = (
    "num_learning_epochs",
    "num_mini_batches",
    "clip_param",
    "gamma",
    "lam",
    "value_loss_coef",
    "entropy_coef",
    "learning_rate",
    "schedule",
    "desired_kl",
    "max_grad_norm",
    "use_clipped_value_loss",
)
#: Settings of `ppo` that rsl_rl's PPO has no counterpart of.
_LACKS = ("reshuffle", "stop_kl", "optimizer", "clip_gradient")
#: Settings of `ppo` that rsl_rl's recurrent model takes under the same name.
MEMORY_SETTINGS = ("rnn_type", "rnn_hidden_dim", "rnn_num_layers")


class Mirrored(Protocol):
    """What rsl_rl's symmetry asks of an environment."""

    def mirror_maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Index and sign of the left-right reflection of each observation group and of `actions`."""
        ...


class RslRlPPO:
    """Feeds rollouts to rsl_rl's PPO, step by step, as its runner would.

    It knows no invalid transitions: a robot that blew up counts as fallen, with reward 0.

    Args:
        obs: observations of each group, (N, O), for their sizes.
        space: what an action is.
        page: the page's `ppo` section.
        mirrors: left-right reflection of each group and of `actions`, for `ppo.symmetry`.
        num_steps: T.
        device: where it computes.
        iterations: that schedules go over.

    Raises:
        UserError: actions are choices, for which rsl_rl has no distribution.
    """

    numbers, algorithm_class = LEARNER_NUMBERS, PPO

    def __init__(
        self,
        obs: Obs,
        space: ActionSpace,
        page: PPOSettings,
        mirrors: dict[str, tuple[Tensor, Tensor]],
        num_steps: int,
        device: torch.device | str = "cpu",
        iterations: int = TrainSettings().iterations,
    ) -> None:
        self._page, self._iterations = page, iterations
        if space.discrete:
            raise UserError("train.learner: rsl_rl has no discrete actions; leave the key out")
        num_envs = len(obs["actor"])
        config = algorithm_config(page)
        if "symmetry_cfg" in config:  # all that its data_augmentation_func asks of an environment
            config["symmetry_cfg"]["env"] = SimpleNamespace(mirror_maps=lambda: mirrors)
        actor, critic = build_actor(obs, space, page), build_critic(obs, page)
        storage = RolloutStorage("rl", num_envs, num_steps, _tensor_dict(obs), [space.size], str(device))
        self.algorithm = self.algorithm_class(actor, critic, storage, device=str(device), **config)
        self.actor, self.critic, self.optimizer = self.algorithm.actor, self.algorithm.critic, self.algorithm.optimizer
        self.critic_group, self.policy = critic.obs_groups[0], policy_of(actor)
        self.networks = {"actor": self.actor, "critic": self.critic}
        self.gradient_steps = page.num_learning_epochs * page.num_mini_batches

    @classmethod
    def make(
        cls, page: Page, collector: Collector, device: torch.device, *, group: Group, compiler: Callable = lambda f: f
    ) -> Self:
        """Make the page's learner, in one process.

        Raises:
            UserError: there are several processes, actions are choices, or the page sets what rsl_rl's PPO has not.
        """
        if group.size > 1:
            raise UserError(f"train.learner: {page.train.learner}: it trains in one process; leave the key out, or torchrun")
        check_counterparts(page.ppo)
        obs, steps = collector.observe(), collector.num_steps
        return cls(obs, collector.action_space, page.ppo, collector.mirrors, steps, device, page.train.iterations)

    @classmethod
    def load_policy(cls, page: Page, state: dict, device: torch.device | str) -> Policy:
        """Make the policy of what `state_dict` gave."""
        return policy_of(load_actor(page.ppo, state["actor_state_dict"], device))

    @property
    def learning_rate(self) -> float:
        """The present one."""
        return self.algorithm.learning_rate

    def update(self, rollout: Rollout, iteration: int, numbers: Mapping[str, float] | None = None) -> dict[str, float]:
        """Improve actor and critic on one rollout, with what curricula have moved; the metrics, by TensorBoard name."""
        done = min(1.0, iteration / self._iterations)
        scheduled = {"ppo.entropy_coef": schedules.entropy_coef(self._page, done)}
        if (rate := schedules.learning_rate(self._page, done)) is not None:  # rsl_rl knows adaptive and constant ones
            scheduled["ppo.learning_rate"] = rate
        for path, number in {**scheduled, **(numbers or {})}.items():
            setattr(self.algorithm, path.removeprefix("ppo."), number)
            if path == "ppo.learning_rate":
                for group in self.optimizer.param_groups:
                    group["lr"] = number
        self.feed(rollout)
        losses = self.algorithm.update()
        metrics = {f"Loss/{name}": float(value) for name, value in losses.items()}
        metrics["Policy/mean_std"] = float(standard_deviation(self.actor).detach().mean())
        return metrics | {"Loss/learning_rate": self.learning_rate, "Loss/entropy_coef": self.algorithm.entropy_coef}

    def skipped(self, metrics: dict[str, float]) -> float:
        """Return 0: it leaves nothing out."""
        return 0.0

    def panel(self, metrics: dict[str, float]) -> str:
        """Say the learning rate, and how far actions scatter."""
        return f"learning rate {metrics['Loss/learning_rate']:.1e}   std {metrics['Policy/mean_std']:.2f}"

    @torch.no_grad()
    def feed(self, rollout: Rollout) -> None:
        """Hand the transitions over, and let it compute their returns."""
        algorithm, std = self.algorithm, rollout.std
        assert std is not None
        following = [*range(1, len(rollout.rewards)), None]
        for step, after in enumerate(following):
            algorithm.act(_tensor_dict({name: value[step] for name, value in rollout.obs.items()}))
            # what was done, and not what it would do now
            transition, actions, mean = algorithm.transition, rollout.actions[step], rollout.output[step]
            old = self.policy.distribution(mean, std)
            transition.actions, transition.actions_log_prob = actions, old.log_prob(actions)
            transition.distribution_params = (mean, std.expand_as(mean))
            done = rollout.terminated[step] | rollout.truncated[step]
            next_obs = rollout.last_obs if after is None else {name: value[after] for name, value in rollout.obs.items()}
            extras = {"time_outs": rollout.truncated[step]}
            algorithm.process_env_step(_tensor_dict(next_obs), rollout.rewards[step], done, extras)
        algorithm.compute_returns(_tensor_dict(rollout.last_obs))

    def state_dict(self) -> dict:
        """Return the learner in rsl_rl's checkpoint layout."""
        return self.algorithm.save()

    def load_state_dict(self, state: dict) -> None:
        """Take up what `state_dict` gave; a checkpoint of ours will do.

        Raises:
            RuntimeError: the networks have other shapes.
        """
        self.algorithm.load(state, None, strict=True)


def adapted(algorithm: Any) -> type[RslRlPPO] | None:
    """Make a learner of rsl_rl's PPO or a class derived from it; None of anything else."""
    if not (isinstance(algorithm, type) and issubclass(algorithm, PPO)):
        return None
    return type("RslRlPPO", (RslRlPPO,), {"algorithm_class": algorithm})


def _tensor_dict(obs: Obs) -> TensorDict:
    values: dict[str, Any] = dict(obs)
    return TensorDict(values, batch_size=[len(next(iter(obs.values())))])


def check_counterparts(ppo: PPOSettings) -> None:
    """Check that rsl_rl's PPO has all that the page's `ppo` section sets.

    Raises:
        UserError: it has not.
    """
    unread = [name for name in _LACKS if getattr(ppo, name) != PPOSettings.model_fields[name].default]
    if ppo.normalize_advantage == "none":
        unread.append("normalize_advantage")
    if unread:
        given = ", ".join(f"ppo.{name}: {shown(getattr(ppo, name))}" for name in unread)
        raise UserError(f"{given}: rsl_rl's PPO has no such setting; leave it out, or take train.learner: ppo")


def algorithm_config(ppo: PPOSettings) -> dict[str, Any]:
    """Turn the page's `ppo` section into the keyword arguments of rsl_rl's PPO, a new dict at every call."""
    algorithm: dict[str, Any] = {name: getattr(ppo, name) for name in _SAME}
    algorithm["use_mixed_precision"] = ppo.bfloat16
    algorithm["normalize_advantage_per_mini_batch"] = ppo.normalize_advantage == "minibatch"
    if ppo.schedule != "adaptive":  # rsl_rl has no other
        algorithm["schedule"] = "fixed"
    if ppo.symmetry != "none":
        algorithm["symmetry_cfg"] = {
            "data_augmentation_func": with_mirrored,
            "use_data_augmentation": ppo.symmetry == "augmentation",
            "use_mirror_loss": ppo.symmetry == "mirror_loss",
            "mirror_loss_coeff": ppo.mirror_loss_coeff,
        }
    return algorithm


def with_mirrored(env: Mirrored, obs: TensorDict | None, actions: Tensor | None) -> tuple[TensorDict | None, Tensor | None]:
    """Rows (B, ...) and below them their left-right reflections, (2 B, ...): what rsl_rl's symmetry asks for."""
    maps = env.mirror_maps()

    def mirrored(name: str, values: Any) -> Tensor:
        index, sign = maps[name]
        return torch.cat((values, values[:, index] * sign))

    if obs is not None:
        both: dict[str, Any] = {name: mirrored(name, values) for name, values in obs.items()}
        obs = TensorDict(both, batch_size=[2 * len(obs)], device=obs.device)
    return obs, mirrored("actions", actions) if actions is not None else None
