"""Environments of others as the collector wants them: `embodied_rl.learn.rollout.VectorEnv`.

Every episode begins with a seed that is a function of the run's seed, the environment's global id and the steps that it has
lived.  So nothing depends on which process holds an environment, and a seed with the actions since is a snapshot: whoever has
both brings it back to where it was.

Legend: N environments, R rows of them, A actions, O observations.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl import random
from embodied_rl.config import Page
from embodied_rl.errors import install_hint
from embodied_rl.sources.batch import Batch, SourceError
from embodied_rl.vector_env import LARGEST, Step

log = logging.getLogger("embodied_rl")

#: An environment that fails so often, with fewer than `_GOOD_STEPS` good steps in between, will not get better.
_FAILURES, _GOOD_STEPS = 5, 50
#: The longest episode that can be brought back, in steps.
_TAPE = 4096
#: Failures that are described between two drains.
_DUMPS = 8


class SourceEnv:
    """N environments of a page with `env.source`.

    A row whose step raises, or whose observation or reward is not finite or beyond `LARGEST`, ends there: terminated, not
    valid, reward 0, counted as `unstable`, and it begins a new episode.

    Args:
        page: the task.
        batch: the environments.
        env_ids: their global ids, int64 (N,).
    """

    captured = False

    def __init__(self, page: Page, batch: Batch, env_ids: Tensor) -> None:
        self.page, self._batch, self.env_ids = page, batch, env_ids
        self.num_envs, self.device, self.action_space = len(env_ids), torch.device("cpu"), batch.action_space
        self.physics_seconds = 0.0
        self._key = random.stream_key(page.env.seed, "source")
        self._rows = np.arange(self.num_envs)
        zeros = lambda *shape: torch.zeros(self.num_envs, *shape)  # noqa: E731
        self.obs = {name: zeros(size) for name, size in batch.obs_sizes.items()}
        self.final_obs = {name: zeros(batch.obs_sizes[name]) for name in page.env.final_obs_groups}
        self.buffers = {name: zeros().long() for name in ("age", "episode_begin")}
        self.buffers |= {"episode_reward": zeros(), "reward": zeros()}
        self.buffers |= {name: zeros().bool() for name in ("terminated", "truncated", "valid")}
        space = batch.action_space
        # the actions of each row's episode so far: as long as an episode may be, so that a snapshot's size stays
        shape = (self.num_envs, min(batch.episode_limit or _TAPE, _TAPE))
        self._tape = np.zeros(shape, np.int64) if space.discrete else np.zeros((*shape, space.size), np.float32)
        self._failures, self._last_failure = np.zeros(self.num_envs, np.int64), np.full(self.num_envs, -_GOOD_STEPS)
        self._dumps: list[dict[str, Any]] = []
        self._totals: dict[str, float] = {}
        self.drain_totals()
        self.reset()

    @property
    def result(self) -> Step:
        b = self.buffers
        return Step(self.obs, b["reward"], b["terminated"], b["truncated"], self.final_obs, b["valid"])

    def reset(self) -> dict[str, Tensor]:
        self._begin(self._rows)
        return self.obs

    def advance(self, actions: Tensor) -> None:
        b, given = self.buffers, actions.detach().cpu().numpy()
        self._remember(given)
        started = time.perf_counter()
        outcome = self._batch.step(self._rows, given)
        self.physics_seconds += time.perf_counter() - started
        b["age"] += 1
        bad = np.zeros(self.num_envs, bool)
        bad[list(outcome.errors)] = True
        bad |= ~(np.abs(outcome.rewards) <= LARGEST)  # NaN fails every comparison
        for value in outcome.obs.values():
            bad |= ~(np.abs(value) <= LARGEST).all(1)
        terminated, truncated = outcome.terminated | bad, outcome.truncated & ~bad
        rewards = torch.from_numpy(np.where(bad, 0.0, outcome.rewards).astype(np.float32))
        b["valid"].copy_(torch.from_numpy(~bad))
        b["terminated"].copy_(torch.from_numpy(terminated))
        b["truncated"].copy_(torch.from_numpy(truncated))
        b["reward"].copy_(rewards * self.page.env.reward_scale)
        b["episode_reward"] += rewards
        for name, value in outcome.obs.items():
            self.obs[name].copy_(torch.from_numpy(value))
            if name in self.final_obs:
                self.final_obs[name].copy_(self.obs[name])
        done = np.flatnonzero(terminated | truncated)
        self._count(bad, terminated, done)
        if bad.any():
            self._record(np.flatnonzero(bad), outcome.errors)
        if len(done):
            self._begin(done)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        return function

    def begin_iteration(self, iteration: int, numbers: dict[str, Tensor]) -> None:
        """Refuse any: environments of others have no numbers of a page.

        Raises:
            SourceError: there are some.
        """
        if numbers:
            raise SourceError(f"{self.page.env.source}: has no number {next(iter(numbers))!r} that could be set")

    def drain_totals(self) -> dict[str, float]:
        totals = self._totals
        self._totals = dict.fromkeys(("steps", "unstable", "episodes", "terminated", "episode_length", "reward/total"), 0.0)
        return totals

    def drain_unstable(self) -> list[dict]:
        dumps, self._dumps = self._dumps, []
        return dumps

    def mirror_maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {}

    def snapshot(self, rows: Tensor) -> dict[str, Tensor]:
        """Age, seed and the actions since: `restore` acts them out again, which takes as long as it took before."""
        index = rows.numpy()
        state = {name: self.buffers[name][rows].clone() for name in ("age", "episode_begin", "episode_reward")}
        state |= {f"obs.{name}": value[rows].clone() for name, value in self.obs.items()}
        return state | {"actions": torch.from_numpy(self._tape[index].copy())}

    def restore(self, rows: Tensor, state: dict[str, Tensor]) -> None:
        """Undo what came since a `snapshot`, where the source can be brought back; else its environments begin anew.

        Raises:
            ValueError: the snapshot is of another page.
        """
        if "actions" not in state or state["actions"].shape[1:] != self._tape.shape[1:]:
            raise ValueError("the snapshot is of another page: actions differ")
        index = rows.numpy()
        for name in ("age", "episode_begin", "episode_reward"):
            self.buffers[name][rows] = state[name]
        if not self._batch.replayable:
            log.warning("%s: %d environments cannot be brought back and begin anew", self.page.env.source, len(index))
            self._begin(index)
            return
        tape, lengths = state["actions"].numpy(), self._lengths()[index]
        self._tape[index] = tape
        if lengths.max(initial=0) > tape.shape[1]:
            log.warning("%s: episodes of more than %d steps cannot be brought back", self.page.env.source, tape.shape[1])
            lengths = np.minimum(lengths, tape.shape[1])
        obs = self._first(index)
        for step in range(int(lengths.max(initial=0))):
            going = np.flatnonzero(lengths > step)
            outcome = self._batch.step(index[going], tape[going, step])
            for name, value in outcome.obs.items():
                obs[name][going] = value
        for name, value in obs.items():
            self.obs[name][rows] = torch.from_numpy(value)
        differ = sum(not torch.equal(self.obs[name][rows], state[f"obs.{name}"]) for name in obs)
        if differ:
            log.warning("%s: the same seed and actions led elsewhere: what is replayed is not what was", self.page.env.source)

    def busy_with(self) -> str:
        """Name the environment whose code is running, asked from another thread; empty where none is known."""
        row = self._batch.at
        return "" if row is None else self._named(row)

    def close(self) -> None:
        self._batch.close()

    # ------------------------------------------------------------------------------------------------------------- episodes

    def _begin(self, rows: np.ndarray) -> None:
        """Begin new episodes in some rows."""
        index = torch.from_numpy(rows)
        self.buffers["episode_begin"][index] = self.buffers["age"][index]
        self.buffers["episode_reward"][index] = 0.0
        for name, value in self._first(rows).items():
            odd = ~(np.abs(value) <= LARGEST).all(1)
            if odd.any():
                row = int(rows[np.flatnonzero(odd)[0]])
                raise SourceError(f"{self._named(row)}: its first observation is not finite, or beyond {LARGEST:.0e}")
            self.obs[name][index] = torch.from_numpy(value)

    def _first(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Begin anew the episodes that the rows are in; their first observations."""
        seeds = self._seeds()[rows]
        try:
            return self._batch.reset(rows, seeds)
        except SourceError:
            pass  # it has been replaced: once more, one by one, to know whose it is
        parts = []
        for row, seed in zip(rows, seeds, strict=True):
            try:
                parts.append(self._batch.reset(np.array([row]), np.array([seed])))
            except SourceError as error:
                raise SourceError(f"{self._named(int(row))}: {str(error).partition(': ')[2]}, twice") from error
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _seeds(self) -> np.ndarray:
        """Return the seed of each row's present episode, below 2^32."""
        words, _ = random.philox2x32(self.env_ids, self.buffers["episode_begin"], self._key)
        return words.numpy()

    def _lengths(self) -> np.ndarray:
        return (self.buffers["age"] - self.buffers["episode_begin"]).numpy()

    def _remember(self, actions: np.ndarray) -> None:
        lengths = self._lengths()
        room = lengths < self._tape.shape[1]
        self._tape[self._rows[room], lengths[room]] = actions[room]

    def _count(self, bad: np.ndarray, terminated: np.ndarray, done: np.ndarray) -> None:
        totals = self._totals
        totals["steps"] += self.num_envs
        totals["unstable"] += int(bad.sum())
        totals["episodes"] += len(done)
        totals["terminated"] += int(terminated.sum())
        totals["episode_length"] += int(self._lengths()[done].sum())
        totals["reward/total"] += float(self.buffers["episode_reward"][torch.from_numpy(done)].sum())

    def _record(self, rows: np.ndarray, errors: dict[int, str]) -> None:
        """Note what went wrong; stop where it does so again and again."""
        ages, lengths, seeds = self.buffers["age"].numpy(), self._lengths(), self._seeds()
        for row in rows.tolist():
            again = ages[row] - self._last_failure[row] < _GOOD_STEPS
            self._failures[row] = self._failures[row] + 1 if again else 1
            self._last_failure[row] = ages[row]
            error = errors.get(row, f"the observation or the reward is not finite, or beyond {LARGEST:.0e}")
            if len(self._dumps) < _DUMPS:
                tape = self._tape[row, : lengths[row]].copy()
                dump = {"row": row, "env_id": int(self.env_ids[row]), "seed": int(seeds[row]), "error": error, "actions": tape}
                self._dumps.append(dump)
            if self._failures[row] >= _FAILURES:
                raise SourceError(f"{self._named(row)}: failed {_FAILURES} times within {_GOOD_STEPS} steps each: {error}")

    def _named(self, row: int) -> str:
        """Name an environment for an error: whose it is, and what begins the same episode."""
        env_id, seed, length = int(self.env_ids[row]), int(self._seeds()[row]), int(self._lengths()[row])
        return f"{self.page.env.source}: environment {env_id}, step {length} of the episode of seed {seed}"


def make_source(page: Page, env_ids: Tensor) -> SourceEnv:
    """Make the environments of a page with `env.source`.

    Raises:
        SourceError: the source is not installed, or does not know the name.
    """
    kind, _, name = (page.env.source or "").partition(":")
    options, groups = dict(page.env.source_options), page.env.groups
    if kind == "envpool":
        from embodied_rl.sources.envpool import EnvPoolBatch

        key = random.stream_key(page.env.seed, "source")
        seeds, _ = random.philox2x32(env_ids, torch.zeros_like(env_ids), key)
        batch: Batch = EnvPoolBatch(name, (seeds >> 1).numpy(), page.physics.num_threads, groups, options)
    else:
        try:
            from embodied_rl.sources.singles import Singles, maker
        except ImportError as error:
            raise SourceError(f"env.source: {kind}:{name}: {error}; {install_hint('gym')}") from None
        batch = Singles(maker(kind, name, options), len(env_ids), groups)
    for group in page.env.final_obs_groups:
        if group not in batch.obs_sizes:
            raise SourceError(f"env.final_obs_groups: {group!r} is not a group of observations")
    return SourceEnv(page, batch, env_ids)
