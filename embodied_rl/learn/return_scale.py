"""How large returns are, so that rewards can be scaled to what a critic knows."""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.learn.advantages import Reduce
from embodied_rl.learn.normalizer import sums_about
from embodied_rl.learn.rollout import Rollout


class ReturnScale:
    """Follows the discounted sum of each robot's rewards so far: their deviation, and the largest.

    Rewards are divided by the deviation, or by more where the largest sum would then be beyond what the critic knows (Lee et
    al., SimbaV2, arXiv:2502.15280).

    Args:
        num_envs: N.
        gamma: discount.
        most: the largest return that the critic knows.
        rank: of this process.
        ranks: how many there are.
        device: where the rewards are.
    """

    def __init__(self, num_envs: int, gamma: float, most: float, *, rank: int, ranks: int, device: torch.device) -> None:
        self._gamma, self._most, self._rank = gamma, most, rank
        self.sums = torch.zeros(num_envs, device=device)
        """Of each robot's episode so far, (N,)."""
        # how many sums there were, their mean, the sum of squares about it, and the largest
        self.statistics = torch.zeros(4, dtype=torch.float64, device=device)
        self.divisor = torch.ones((), device=device)
        """What rewards are divided by: read by address, ()."""
        self._largest = torch.zeros(ranks, dtype=torch.float64, device=device)

    @torch.no_grad()
    def follow(self, rollout: Rollout, lanes: Tensor | None, reduce: Reduce) -> None:
        """Take in a rollout of all robots, or of those of `lanes`."""
        sums, seen = self.sums if lanes is None else self.sums[lanes], []
        ended = rollout.terminated | rollout.truncated | ~rollout.valid
        rewards = torch.where(rollout.valid, rollout.rewards, 0.0)
        for reward, end in zip(rewards, ended, strict=True):
            sums = self._gamma * sums + reward
            seen.append(sums)
            sums = torch.where(end, 0.0, sums)
        if lanes is None:
            self.sums.copy_(sums)
        else:
            self.sums[lanes] = sums
        found = torch.stack(seen).double()
        count, mean, squares, largest = self.statistics
        new, apart, about = sums_about(found[..., None], torch.ones_like(found), mean, reduce)
        self._largest.zero_()
        self._largest[self._rank] = found.abs().max() if found.numel() else 0.0
        reduce(self._largest)
        share = new / (count + new).clamp(min=1.0)
        squares = squares + about[0] + apart[0].square() * count * share
        largest = torch.maximum(largest, self._largest.max())
        self.statistics.copy_(torch.stack((count + new, mean + apart[0] * share, squares, largest)))
        self._set()

    def _set(self) -> None:
        count, _, squares, largest = self.statistics
        deviation = (squares / count.clamp(min=1.0)).sqrt()
        # rewards of 0 so far are left as they are
        divisor = torch.maximum(deviation, largest / self._most)
        self.divisor.copy_(torch.where(divisor > 0.0, divisor, 1.0))

    def state_dict(self) -> dict[str, Tensor]:
        """Return what all robots' sums have come to."""
        return {"statistics": self.statistics.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there, with sums that begin anew."""
        self.statistics.copy_(state["statistics"])
        self._set()
