"""Batches of soft actor-critic: drawn from the replay, scaled, and put where the losses look for them.

Legend: R rows of a batch, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.config.sac import SACSettings
from embodied_rl.learn.replay import Drawn, Replay
from embodied_rl.learn.return_scale import ReturnScale
from embodied_rl.learn.sac_networks import Actor, Critic


class Batches:
    """One batch after the other, at addresses that stay: CUDA graphs read them.

    Args:
        replay: what is drawn from.
        actor: scales what it sees, and bounds actions.
        critic: scales what it sees.
        scale: scales rewards.
        page: the page's `sac` section.
        mirrors: left-right reflection of each group and of `actions`, in which half of a batch is shown; none where it is not.
        critic_group: the observation group of the critic.
    """

    def __init__(
        self,
        replay: Replay,
        actor: Actor,
        critic: Critic,
        scale: ReturnScale,
        page: SACSettings,
        mirrors: dict[str, tuple[Tensor, Tensor]],
        critic_group: str,
    ) -> None:
        self._replay, self._actor, self._critic, self._scale, self._mirrors = replay, actor, critic, scale, mirrors
        self._group, self._exponent, device = critic_group, page.importance_exponent, replay.device
        self.generator = torch.Generator(device)
        """Of all that is drawn."""
        self.rows = torch.arange(page.batch_size, device=device)
        """All of a batch's, (R,)."""
        self.uniform = torch.zeros(page.batch_size, dtype=torch.float64, device=device)
        """What rows are drawn by, (R,)."""
        self.noise = torch.zeros(2, page.batch_size, replay.actions.shape[1], device=device)
        """Of the actions in the states that followed, and in those that there were, (2, R, A)."""
        self.errors = torch.zeros(page.batch_size, device=device)
        """How wrong the critics were about each row, (R,): theirs to write."""
        self.batch: Drawn | None = None
        """Observations by `actor` and `critic`, and rewards, as the networks know them; actions in +-1."""

    def draw_numbers(self) -> None:
        """Draw all random numbers of an update."""
        self.uniform.uniform_(generator=self.generator)
        self.noise.normal_(generator=self.generator)

    @torch.no_grad()
    def draw(self) -> None:
        """Draw a batch, scale it, and put it where the losses look for it."""
        drawn = self._replay.draw(self.uniform, self._exponent)
        drawn.rewards = drawn.rewards / self._scale.divisor
        drawn.actions = drawn.actions / self._actor.squash.bound
        for group in (drawn.obs, drawn.next_obs):
            if self._mirrors:
                group.update({name: self._half_mirrored(name, values) for name, values in group.items()})
            # the critic's first: its group may be the actor's
            group["critic"] = self._critic.obs_normalizer(group[self._group])
            group["actor"] = self._actor.obs_normalizer(group["actor"])
        if self._mirrors:
            drawn.actions = self._half_mirrored("actions", drawn.actions)
        self.batch = drawn if self.batch is None else self.batch.copy_(drawn)

    def _half_mirrored(self, name: str, values: Tensor) -> Tensor:
        (index, sign), half = self._mirrors[name], len(values) // 2
        return torch.cat((values[:half], values[half:, index] * sign))

    def part(self, rows: Tensor) -> tuple[Drawn, Tensor, Tensor]:
        """Pick some rows of the batch, their noise, (2, R, A), and where their errors are written, (R,)."""
        assert self.batch is not None
        if len(rows) == len(self.rows):
            return self.batch, self.noise, self.errors
        part = slice(int(rows[0]), int(rows[-1]) + 1)  # on the CPU alone, whose threads share them
        return self.batch.rows(part), self.noise[:, part], self.errors[part]

    def prioritize(self) -> None:
        """Set the priorities of the batch's rows by the errors."""
        assert self.batch is not None
        self._replay.set_priorities(self.batch.numbers, self.errors)
