"""rsl_rl's VecEnv: its stock runner trains on our environments, with the settings of the page.

    runner = OnPolicyRunner(RslRlEnv(env), runner_config(env.page), log_dir="logs", device="cpu")
    runner.learn(300)

Checkpoints are the same: either trainer loads the other's.
"""

from __future__ import annotations

from typing import Any

import torch
from rsl_rl.env import VecEnv
from tensordict import TensorDict
from torch import Tensor

from embodied_rl.adapters import check_is_ours
from embodied_rl.config import Page
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn.metrics import episode_metrics, step_metrics
from embodied_rl.learn.rsl_rl_ppo import MEMORY_SETTINGS, algorithm_config, check_counterparts


class RslRlEnv(VecEnv):
    """An environment as rsl_rl's runners want it.

    rsl_rl keeps what it is given, so that everything returned is a copy.  It knows no invalid transitions: a robot that
    blew up counts as fallen, with reward 0.  Curricula are our trainer's: under rsl_rl's runner the page's own numbers hold.

    Args:
        env: the environment.

    Raises:
        UserError: it is none of ours; from `step`, actions of another shape or kind; from `episode_length_buf`, what counts no
            steps.
    """

    def __init__(self, env: Env) -> None:
        check_is_ours(env)
        self.env = env
        self.num_envs, self.num_actions = env.num_envs, env.num_actions
        self.max_episode_length, self.device = env.max_episode_length, env.device
        self.cfg = env.page.to_mapping()
        self._steps = 0

    @property
    def unwrapped(self) -> Env:
        """The environment itself."""
        return self.env

    @property
    def episode_length_buf(self) -> Tensor:
        """Control steps since each episode began, int64 (N,); setting it copies into the environment's buffer."""
        return self.env.buffers["episode_length"]

    @episode_length_buf.setter
    def episode_length_buf(self, value: Tensor) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        whole = (
            isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool
        )
        if not whole or value.shape != (self.num_envs,) or bool((value < 0).any()):
            given = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"episode_length_buf: {given} is given; whole numbers ({self.num_envs},) from 0 up are wanted")
        self.env.buffers["episode_length"].copy_(value)

    def mirror_maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Index and sign of the left-right reflection of each observation group and of `actions`, for rsl_rl's symmetry."""
        return self.env.mirror_maps()

    def get_observations(self) -> TensorDict:
        """Return the present observations, each group (N, O)."""
        obs: dict[str, Any] = {name: value.clone() for name, value in self.env.obs.items()}
        return TensorDict(obs, batch_size=[self.num_envs], device=self.device)

    @torch.no_grad()
    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict]:
        """Advance all environments by one control step.

        Args:
            actions: (N, A).

        Returns:
            Observations, of finished rows the first of the next episode; rewards (N,); dones, bool (N,); extras with
            `time_outs`, bool (N,), and once an iteration `log`, the episodes' means by TensorBoard name.
        """
        result = self.env.step(actions)
        extras: dict[str, Any] = {"time_outs": result.truncated.clone()}
        self._steps += 1
        if self._steps % self.env.page.train.steps == 0:
            totals = self.env.drain_totals()
            metrics = step_metrics(totals) | episode_metrics(totals)
            # the runner has its own Train/mean_reward and the like
            extras["log"] = {name: value for name, value in metrics.items() if not name.startswith("Train/")}
        return self.get_observations(), result.rewards.clone(), result.terminated | result.truncated, extras


def runner_config(page: Page) -> dict[str, Any]:
    """Turn the page's `ppo` section into the configuration of rsl_rl's OnPolicyRunner, a new dict at every call.

    It builds the networks and the optimizer that `embodied_rl.learn.ppo.PPO` builds.

    Raises:
        UserError: the page sets what rsl_rl's PPO has not.
    """
    ppo = page.ppo
    check_counterparts(ppo)
    network = {"class_name": "MLPModel", "activation": ppo.activation, "obs_normalization": ppo.obs_normalization}
    memory = (
        {"class_name": "RNNModel", **{name: getattr(ppo, name) for name in MEMORY_SETTINGS}} if ppo.rnn_type != "none" else {}
    )
    gaussian = {"class_name": "GaussianDistribution", "init_std": ppo.init_std, "std_type": ppo.std_type}
    return {
        "num_steps_per_env": page.train.steps,
        "save_interval": page.train.save_every,
        "obs_groups": {"actor": ["actor"], "critic": ["critic" if "critic" in page.observations else "actor"]},
        "actor": {**network, **memory, "hidden_dims": list(ppo.actor_hidden_dims), "distribution_cfg": gaussian},
        "critic": {**network, "hidden_dims": list(ppo.critic_hidden_dims)},
        "algorithm": {"class_name": "PPO", **algorithm_config(ppo)},
        # the environment lets nothing through that is not finite, and looking costs a host sync a tensor and step
        "check_for_nan": False,
    }
