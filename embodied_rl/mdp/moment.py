"""What a term sees: one moment of all environments.

Legend of the shapes: N envs, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embodied_rl.mdp.part import PartState
from embodied_rl.scene import Scene


class Draw:
    """Hands out slices of a step's block of random numbers, in the order of the calls."""

    def __init__(self, block: Tensor | None = None) -> None:
        self._block = block
        self.used = 0

    def __call__(self, size: int) -> Tensor:
        """Hand out the next `size` uniform numbers in [0, 1) of each env, (N, size)."""
        assert self._block is not None, "nothing may be drawn here"
        start, self.used = self.used, self.used + size
        assert self.used <= self._block.shape[1], "more random numbers are drawn than the first pass counted"
        return self._block[:, start : self.used]

    def between(self, low: Tensor | float, high: Tensor | float, size: int) -> Tensor:
        """Uniform numbers in [low, high), (N, size)."""
        return low + (high - low) * self(size)

    def integers(self, low: int, high: int) -> Tensor:
        """Uniform whole numbers from low to high, both included, as float32 (N,)."""
        # the largest uniform number rounds up to high + 1
        return torch.floor(self.between(float(low), high + 1.0, 1)[:, 0]).clamp(max=float(high))


@dataclass
class Moment:
    """One moment of all environments: the `env` of a term."""

    robot: PartState
    scene: Scene
    buffers: dict[str, Tensor]
    """Every registered tensor of the environment, by name, each (N, ...)."""
    commands: dict
    """The page's command terms."""
    step_dt: float
    """Time between two actions [s]."""
    max_episode_length: int
    """Control steps in an episode."""
    draw: Draw
    terminated: Tensor | None = None
    """Episodes that end now, time-outs aside, bool (N,); set once the terminations are known."""

    @property
    def terrain(self):
        """The ground: `terrain.height(xy)`."""
        return self.scene.terrain

    @property
    def num_envs(self) -> int:
        """N."""
        return len(self.buffers["episode_length"])

    @property
    def actions(self) -> Tensor:
        """The policy's last actions, clipped, (N, A)."""
        return self.buffers["actions"]

    @property
    def previous_actions(self) -> Tensor:
        """Those of the step before, (N, A)."""
        return self.buffers["previous_actions"]

    @property
    def episode_length(self) -> Tensor:
        """Control steps since the episode began, int64 (N,)."""
        return self.buffers["episode_length"]

    def command(self, name: str = "velocity") -> Tensor:
        """Return what the command term asks for now, (N, size)."""
        return self.buffers[f"{name}.command"]
