"""What a term sees: one moment of all environments.

Legend of the shapes: N envs, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.mdp.part import PartState
from embodied_rl.mdp.state import State
from embodied_rl.problems import did_you_mean
from embodied_rl.scene import Scene

#: Random numbers of a robot that are there to be counted.
_MOST_NUMBERS = 4096


class Draw:
    """Hands out slices of a step's block of random numbers, in the order of the calls."""

    def __init__(self, block: Tensor | None = None) -> None:
        self._block = block
        self.used = 0

    def __call__(self, size: int) -> Tensor:
        """Hand out the next `size` uniform numbers in [0, 1) of each env, (N, size).

        Raises:
            UserError: nothing may be drawn here, or not so much.
        """
        if self._block is None:
            raise UserError("a term draws where nothing may be drawn; draw in an event, or in the method resample(env, done)")
        start, self.used = self.used, self.used + size
        if self.used > self._block.shape[1]:
            raise UserError(
                "a term draws more random numbers than at first; draw in an event, or in resample(env, done), each time as many, "
                "and choose among them with torch.where"
            )
        return self._block[:, start : self.used]

    def between(self, low: Tensor | float, high: Tensor | float, size: int) -> Tensor:
        """Uniform numbers in [low, high), (N, size)."""
        return low + (high - low) * self(size)

    def coarse(self, low: Tensor | float, high: Tensor | float, size: int) -> Tensor:
        """Numbers in (low, high) of 256 values each, (N, size); three for what one of the others costs."""
        words = (self(-(-size // 3)) * 2.0**24).int()
        parts = torch.cat([(words >> shift) & 255 for shift in (0, 8, 16)], dim=-1)
        return low + (high - low) * (parts[:, :size].float() + 0.5) / 256.0

    def integers(self, low: int, high: int) -> Tensor:
        """Uniform whole numbers from low to high, both included, as float32 (N,)."""
        # the largest uniform number rounds up to high + 1
        return torch.floor(self.between(float(low), high + 1.0, 1)[:, 0]).clamp(max=float(high))


def counting(num_envs: int, device: torch.device) -> Draw:
    """Hand out zeros, so that what is drawn can be counted."""
    return Draw(torch.zeros(num_envs, 1, device=device).expand(-1, _MOST_NUMBERS))


class Episode:
    """What the environment itself remembers of every robot.

    Args:
        actions: numbers of an action, A.
        rewards: reward terms, R.
    """

    age: Tensor
    """Control steps that the environment has lived, int64 (N,)."""
    episode_length: Tensor
    """Control steps since the episode began, int64 (N,)."""
    actions: Tensor
    """The policy's last actions, clipped, (N, A)."""
    previous_actions: Tensor
    """Those of the step before, (N, A)."""
    reward: Tensor
    """Of the last step, (N,)."""
    reward_terms: Tensor
    """Each term's share of it, weighted, and the reward, (N, R + 1)."""
    episode_rewards: Tensor
    """Their sums since the episode began, (N, R + 1)."""
    terminated: Tensor
    """Episodes that the last step ended, time-outs aside, bool (N,)."""
    truncated: Tensor
    """Episodes that the last step ended by time, bool (N,)."""
    done: Tensor
    """Either; rows that stand in a new episode, bool (N,)."""
    valid: Tensor
    """Rows whose last step means something: their simulation did not blow up, all their numbers are finite, bool (N,)."""
    lost: Tensor
    """Rows in a state, or before an observation, that is not finite: they end with the next step, bool (N,)."""

    def __init__(self, actions: int, rewards: int) -> None:
        whole, flag = torch.int64, State(dtype=torch.bool, fresh="keep")
        self.state = {
            "age": State(dtype=whole, fresh="keep"),
            "episode_length": State(dtype=whole),
            "actions": State((actions,)),
            "previous_actions": State((actions,)),
            "reward": State(fresh="keep"),
            "reward_terms": State((rewards + 1,), fresh="keep"),
            "episode_rewards": State((rewards + 1,)),
            **dict.fromkeys(("terminated", "truncated", "done", "valid", "lost"), flag),
        }


@dataclass
class Moment:
    """One moment of all environments: the `env` of a term."""

    robot: PartState
    scene: Scene
    episode: Episode
    commands: Mapping[str, Any]
    """The page's command terms."""
    trackers: Mapping[str, Any]
    """The trackers that terms need."""
    model: Mapping[str, Tensor]
    """The model fields that events change or terms need, by MuJoCo's names, each (N, ...)."""
    step_dt: float
    """Time between two actions [s]."""
    decimation: int
    """Physics steps between two actions."""
    max_episode_length: int
    """Control steps in an episode."""
    env_ids: Tensor
    """Global numbers of the environments, int64 (N,)."""
    draw: Draw
    terminated: Tensor | None = None
    """Episodes that end now, time-outs and blow-ups aside, bool (N,); set once the terminations are known."""

    @property
    def terrain(self) -> Any:
        """The ground: `terrain.height(xy)`."""
        return self.scene.terrain

    @property
    def num_envs(self) -> int:
        """N."""
        return len(self.episode.episode_length)

    @property
    def actions(self) -> Tensor:
        """The policy's last actions, clipped, (N, A)."""
        return self.episode.actions

    @property
    def previous_actions(self) -> Tensor:
        """The actions of the step before, (N, A)."""
        return self.episode.previous_actions

    @property
    def episode_length(self) -> Tensor:
        """Control steps since the episode began, int64 (N,); for events, where one begins, 0."""
        return self.episode.episode_length

    @property
    def timed_out(self) -> Tensor:
        """Rows whose episode the last step ended by time, bool (N,)."""
        return self.episode.truncated

    @property
    def done(self) -> Tensor:
        """Rows whose episode ended with this step; once it is written, those that begin one, bool (N,)."""
        return self.episode.done

    def command(self, name: str) -> Tensor:
        """Return what the command term asks for now, (N, size).

        Raises:
            UserError: the page has no such command.
        """
        return self.command_term(name).command

    def command_term(self, name: str) -> Any:
        """Return a command term by its entry's name.

        Raises:
            UserError: the page has no such command.
        """
        if name not in self.commands:
            there = did_you_mean(name, self.commands) or f"; {_named(self.commands)}"
            raise UserError(f"a term reads the command {name!r}, which the page has not{there}")
        return self.commands[name]

    def tracker(self, name: str) -> Any:
        """Return a tracker of `embodied_rl.mdp.trackers`.

        Raises:
            UserError: no term of the page says that it needs it.
        """
        return self.trackers[name]


def _named(entries: Mapping[str, Any]) -> str:
    return f"it has {', '.join(entries)}" if entries else "it has none: name one under commands"
