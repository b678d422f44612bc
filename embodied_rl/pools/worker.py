"""What runs far away: environments, a copy of the policy, and a collector like the one that runs here.

A worker imports no learner, no rsl_rl and no tensordict, but where it is to send gradients; it holds no truth of its own but
the state of its environments.

Legend: T steps, N environments of this worker, S of a shard.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.learn.copies import checksum
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import LocalCollector
from embodied_rl.make_env import compiler, identity, make_vector
from embodied_rl.pools.duties import Acting, Appraising, Arrays, Duty, Learning
from embodied_rl.pools.records import Records, unpack_actions
from embodied_rl.vector_env import VectorEnv

if TYPE_CHECKING:
    from embodied_rl.learn.appraiser import Appraiser


class SimWorker:
    """One process of simulators; an actor of Ray's, of which little in here depends on Ray.

    Args:
        path: where modules of the page's own are looked for, beside what is installed.
    """

    def __init__(self, path: list[str]) -> None:
        sys.path += [folder for folder in path if folder not in sys.path]
        torch.set_num_threads(1)
        self._env: VectorEnv | None = None
        self._duty: Duty | None = None
        self._exploration = 0.0
        self._rested = time.perf_counter()
        self._stop_at, self._doing = -1, ("waiting", -1, 0.0)
        self._newest: dict[str, Any] | None = None

    # ---------------------------------------------------------------------------------------------------------- a beginning

    def build(self, page: Page, env_ids: np.ndarray, place: tuple[int, int] = (0, 1)) -> dict[str, Any]:
        """Make the environments of these global ids; what they are like.

        Args:
            page: the task.
            env_ids: int64 (N,).
            place: which of the pool's workers this is, and how many there are.
        """
        self._doing = ("building", -1, time.time())
        env = make_vector(page, torch.from_numpy(np.array(env_ids)))
        wrap = identity if page.env.source else compiler(page, env.device)
        steps, size = page.train.steps, page.pool.shard_size
        symmetry = page.symmetry != "none"
        self._collector = LocalCollector(env, steps, page.env.seed, symmetry=symmetry, compiler=wrap, chunk=size)
        self._collector.interrupted = self._interrupted
        self._collector.notes_log_prob = page.pool.is_stale
        self._env = env
        sizes = {name: tuple(value.shape[1:]) for name, value in env.obs.items()}
        self._records = Records(sizes, env.final_obs)
        if page.pool.mode == "gradients":
            self._meet_learner(page)
        self._exploration = page.sac.exploration(*place) if page.pool.mode == "apex" else 0.0
        self._doing, self._rested = ("waiting", -1, time.time()), time.perf_counter()
        return {
            "pid": os.getpid(),
            "obs": sizes,
            "final_obs": list(env.final_obs),
            "action_space": tuple(env.action_space),
            "mirrors": {name: tuple(part.cpu().numpy() for part in pair) for name, pair in self._collector.mirrors.items()},
        }

    def meet(self, policy: Policy, appraiser: Appraiser | None = None) -> None:
        """Let this one act from now on, and an appraiser say how wrong its critics are about what it leads to."""
        if policy.squash is not None:
            policy.squash.ladder = self._exploration
        self._duty = Acting(policy) if appraiser is None else Appraising(policy, appraiser)

    def _meet_learner(self, page: Page) -> None:
        """Make a copy of the learner, whose policy acts here and whose optimizer never steps."""
        from embodied_rl.learn.ppo import PPO
        from embodied_rl.learn.ranks.group import Group

        self._duty = Learning(PPO.make(page, self._collector, torch.device("cpu"), group=Group()))

    def fresh(self, steps: int) -> None:
        """Begin new episodes everywhere, as environments that have lived so many steps."""
        env = self._env
        assert env is not None
        env.buffers["age"].fill_(steps)
        with torch.no_grad():
            env.reset()

    # ------------------------------------------------------------------------------------------------------------ fragments

    def collect(self, weights: dict[str, Any], iteration: int, snapshot: bool = False) -> dict[str, Any]:
        """Let the policy drive for T steps, or until told to stop.

        Args:
            weights: `version`, the packed `weights` and the `numbers` of the page that go with them; newer ones that `renew`
                brought go before.
            iteration: the trainer's; `stop` goes by it.
            snapshot: whether to send the environments' state along.

        Returns:
            A fragment: arrays (T', N, ...), T' <= T steps done, or the gradient on them, and what is to be known of them:
            `checksum` is that of the weights that acted, their normalizer's among them.
        """
        if self._newest is not None and self._newest["version"] > weights["version"]:
            weights = self._newest
        assert self._duty is not None and self._env is not None
        started = time.perf_counter()
        self._doing = ("collecting", iteration, time.time())
        self._iteration = iteration
        self._duty.load(weights["weights"])
        rollout = self._collector.collect(self._duty.policy, iteration, weights["numbers"])
        arrays = self._duty.answer(rollout, self._collector.num_done, iteration)
        idle, self._rested = started - self._rested, time.perf_counter()
        fragment = {
            "version": weights["version"],
            "checksum": checksum(self._duty.weights()),
            "iteration": iteration,
            "steps": self._collector.num_done,
            "age": int(self._env.buffers["age"].max()),
            "arrays": arrays,
            "totals": rollout.totals,
            "seconds": rollout.seconds | {"busy": self._rested - started, "idle": idle},
            "unstable": self._collector.drain_unstable(),
            "snapshot": self.snapshot() if snapshot else None,
            "pid": os.getpid(),
            "node": _node(),
        }
        self._doing = ("waiting", iteration, time.time())
        return fragment

    def snapshot(self) -> Arrays:
        """Copy the state of every environment, (N, ...)."""
        return {name: value.cpu().numpy() for name, value in self._collector.snapshot().items()}

    def restore(self, state: Arrays) -> None:
        """Set every environment to what `snapshot` gave."""
        self._doing = ("restoring", -1, time.time())
        with torch.no_grad():
            self._collector.restore({name: torch.from_numpy(np.array(value)) for name, value in state.items()})

    # -------------------------------------------------------------------------------------------- the policy is elsewhere

    def begin(self, iteration: int, numbers: dict[str, Tensor], snapshot: bool = False) -> dict[str, Any]:
        """Begin a rollout that a policy elsewhere drives.

        Args:
            iteration: the trainer's.
            numbers: of the page.
            snapshot: whether to send the environments' state along.

        Returns:
            Present observations by group, `obs`, and `age`, (N,); the `state`, as it was before.
        """
        state = self.snapshot() if snapshot else None
        self._begin(iteration, numbers)
        assert self._env is not None
        obs = {name: value.numpy().copy() for name, value in self._env.obs.items()}
        return {"obs": obs, "age": self._env.buffers["age"].numpy().copy(), "state": state}

    def act(self, actions: bytes) -> bytes:
        """One step, by `unpack_actions`; what it led to, as `Records` packs it."""
        env = self._env
        assert env is not None
        self._doing = ("stepping", self._iteration, time.time())
        with torch.no_grad():
            env.advance(unpack_actions(actions, env.action_space))
        self._doing = ("waiting", self._iteration, time.time())
        return self._records.pack(env.result)

    def act_last(self, actions: bytes) -> tuple[bytes, dict[str, Any]]:
        """Do what `act` does, for the last step of a rollout; with its `totals`, and `unstable` environments."""
        env, packed = self._env, self.act(actions)
        assert env is not None
        return packed, {"totals": env.drain_totals(), "unstable": env.drain_unstable()}

    def retrace(self, state: Arrays | None, tape: list[tuple[int, dict[str, Tensor], np.ndarray]]) -> None:
        """Do what a lost worker did.

        Args:
            state: the environments' at the beginning; None: as built.
            tape: iteration, numbers of the page and actions (t, N, ...) of each rollout since, the last one maybe unfinished.
        """
        if state is not None:
            self.restore(state)
        assert self._env is not None
        for iteration, numbers, actions in tape:
            self._begin(iteration, numbers)
            with torch.no_grad():
                for given in torch.from_numpy(np.array(actions)):
                    self._env.advance(given)

    def _begin(self, iteration: int, numbers: dict[str, Tensor]) -> None:
        env = self._env
        assert env is not None
        env.drain_totals()  # of a rollout that was retraced, and is counted already
        env.drain_unstable()
        self._iteration = iteration
        env.begin_iteration(iteration, numbers)

    # ----------------------------------------------------------------------------------- asked while something else goes on

    def stop(self, iteration: int) -> None:
        """End this iteration's rollout before its next step."""
        self._stop_at = max(self._stop_at, iteration)

    def renew(self, weights: dict[str, Any]) -> None:
        """Take these weights for the rollouts that begin from now on."""
        self._newest = weights

    def where(self) -> str:
        """Say in words what it is at."""
        kind, iteration, since = self._doing
        step = f", step {self._collector.num_done}" if kind == "collecting" else ""
        busy = getattr(self._env, "busy_with", lambda: "")()
        return f"{kind} iteration {iteration}{step} for {time.time() - since:.0f} s{busy and f', in {busy}'}"

    def _interrupted(self) -> bool:
        return self._stop_at >= self._iteration


def _node() -> str:
    """Id of the node that this process was put on in the end; empty outside Ray."""
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray is not None and ray.is_initialized() else ""
