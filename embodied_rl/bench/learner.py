"""Our learner against rsl_rl's on the same numbers: what a policy costs while it acts, and what an update costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from embodied_rl import make_env
from embodied_rl.bench.clock import now
from embodied_rl.bench.train import COMPARABLE
from embodied_rl.config import Page, override
from embodied_rl.cuda_graph import WARMUP, try_to_capture
from embodied_rl.learn.learner import make_learner
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.learn.rsl_rl_ppo import RslRlPPO
from embodied_rl.vector_env import ActionSpace, Step

#: Iterations that count, and those before them: by then everything is compiled and in its place.
_ROUNDS, _WARMUP = 9, 3
_WIDE = "[512, 256, 128]"
_ON_A_GPU = ("env.num_envs=4096", f"ppo.actor_hidden_dims={_WIDE}", f"ppo.critic_hidden_dims={_WIDE}")


def bench_learner(page: Page) -> dict[str, float]:
    """Both learners in turn, in an environment of the page's sizes that does nothing.

    The size is `bench.train.COMPARABLE`; on a GPU 4096 robots and networks 512-256-128.

    `act` is all that a policy costs while a rollout is collected, storage included; `update` is all that happens between the
    last step and the next rollout, values and returns included.  rsl_rl has its own threads, ours are those of training.

    Returns:
        update_s, rsl_rl_update_s, speedup, act_s, rsl_rl_act_s, act_speedup: seconds an iteration and ratios, medians.
    """
    device = make_env.learner_device(page)
    page = override(page, [*COMPARABLE, *(_ON_A_GPU if device.type == "cuda" else ())])
    env = make_env.make(page, num_envs=1)
    sizes, space = {name: value.shape[1] for name, value in env.obs.items()}, env.action_space
    env.close()
    sides = {"": _Ours(page, _Still(page, sizes, space, device)), "rsl_rl_": _Theirs(page, _Still(page, sizes, space, device))}
    seconds: dict[str, list[float]] = {}
    for round_ in range(_WARMUP + _ROUNDS):
        for prefix, side in sides.items():
            for name, part in (("act", side.act), ("update", side.update)):
                taken = _timed(part, round_, device)
                if round_ >= _WARMUP:
                    seconds.setdefault(f"{prefix}{name}", []).append(taken)
    median = {name: statistics.median(values) for name, values in seconds.items()}

    def ratio(name: str) -> float:
        return statistics.median(t / o for t, o in zip(seconds[f"rsl_rl_{name}"], seconds[name], strict=True))

    return {
        "num_envs": page.env.num_envs,
        "update_s": median["update"],
        "rsl_rl_update_s": median["rsl_rl_update"],
        "speedup": ratio("update"),
        "act_s": median["act"],
        "rsl_rl_act_s": median["rsl_rl_act"],
        "act_speedup": ratio("act"),
    }


class _Still:
    """An environment that costs nothing: observations, rewards and ends are drawn beforehand."""

    physics_seconds = 0.0

    def __init__(self, page: Page, sizes: dict[str, int], space: ActionSpace, device: torch.device) -> None:
        torch.manual_seed(page.env.seed)
        self.captured = device.type == "cuda" and page.physics.graph  # as in training
        self.num_envs, self.device, self.action_space = page.env.num_envs, device, space
        self.env_ids = torch.arange(self.num_envs, device=device)
        self.buffers = {"age": torch.zeros(self.num_envs, dtype=torch.int64, device=device)}
        self.obs = {name: torch.randn(self.num_envs, size, device=device) for name, size in sizes.items()}
        self.final_obs = {name: self.obs[name] for name in page.env.final_obs_groups}
        ends = torch.rand(self.num_envs, device=device)
        valid = torch.ones(self.num_envs, dtype=torch.bool, device=device)
        self.result = Step(self.obs, torch.randn(self.num_envs, device=device), ends < 0.01, ends > 0.999, self.final_obs, valid)

    def advance(self, actions: Tensor) -> None:
        self.buffers["age"].add_(1)

    def begin_iteration(self, iteration: int, numbers: dict[str, Tensor]) -> None: ...

    def drain_totals(self) -> dict[str, float]:
        return {}

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        if not self.captured:
            return function
        for _ in range(WARMUP):
            function()
        return try_to_capture(function, self.device, what="the rollout") or function


class _Ours:
    """The collector and the learner that train the page."""

    def __init__(self, page: Page, env: _Still) -> None:
        stands_in: Any = env
        compiler = make_env.compiler(page, env.device)
        self._collector = LocalCollector(stands_in, page.train.steps, page.env.seed, compiler=compiler)
        self._learner = make_learner(page, self._collector, env.device, compiler=compiler)

    def act(self, round_: int) -> None:
        self._rollout = self._collector.collect(self._learner.policy, round_)

    def update(self, round_: int) -> None:
        self._learner.update(self._rollout, round_)


class _Theirs:
    """rsl_rl's PPO as its runner drives it."""

    def __init__(self, page: Page, env: _Still) -> None:
        steps, threads = page.train.steps, torch.get_num_threads()
        learner = RslRlPPO(env.obs, env.action_space, page.ppo, {}, steps, env.device)
        self._algorithm, self._env, self._steps, self._threads = learner.algorithm, env, steps, threads
        obs: dict[str, Any] = dict(env.obs)
        self._obs = TensorDict(obs, batch_size=[env.num_envs], device=env.device)

    @torch.inference_mode()
    def act(self, round_: int) -> None:
        torch.set_num_threads(self._threads)
        step = self._env.result
        for _ in range(self._steps):
            self._algorithm.act(self._obs)
            done = step.terminated | step.truncated
            self._algorithm.process_env_step(self._obs, step.rewards, done, {"time_outs": step.truncated})

    def update(self, round_: int) -> None:
        with torch.inference_mode():
            self._algorithm.compute_returns(self._obs)
        self._algorithm.update()


def _timed(function: Callable[[int], None], round_: int, device: torch.device) -> float:
    threads, started = torch.get_num_threads(), now(device)
    function(round_)
    taken = now(device) - started
    torch.set_num_threads(threads)
    return taken
