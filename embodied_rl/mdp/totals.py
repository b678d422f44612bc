"""Sums over an iteration, kept on the device and read once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.mdp.term import check_answer, described

if TYPE_CHECKING:
    from embodied_rl.mdp.moment import Moment

#: What names of the trainer's own metrics begin with.
_RESERVED = ("Train", "Perf", "Physics", "Policy", "Pool", "Loss", "Score", "Episode_Reward", "Episode_Termination")


class Share(NamedTuple):
    """What a term counts of each robot, for one of some names: the sum of the numbers over that of the wholes is told of each."""

    names: list[str]
    """As in TensorBoard."""
    number: Tensor
    """(N,)."""
    whole: Tensor
    """(N,)."""
    at: Tensor | None = None
    """Which of the names each robot counts for, int64 (N,); one that is none of them counts for nothing.  None: there is one."""


class Told(NamedTuple):
    """What commands and events tell of the robots in a step."""

    errors: list[str]
    """Names of errors."""
    shares: list[list[str]]
    """Names of each share."""
    numbers: Tensor
    """Errors, then number and whole of each share, side by side, (N, errors + 2 shares)."""
    cells: Tensor
    """Which name of each share a robot counts for, int64 (N, shares)."""


class Totals:
    """Sums over all robots and steps since they were last read.

    Args:
        names: of the sums, in the order of the columns that are added.
        shares: names of each share, whose numbers and wholes are the last columns.
        num_envs: N.
        device: where they are kept.
    """

    def __init__(self, names: list[str], shares: list[list[str]], num_envs: int, device: torch.device) -> None:
        self._names, self._shares = names, shares
        self.columns = torch.zeros(num_envs, len(names) + 2 * len(shares), device=device)
        """What a step adds, (N, names + 2 shares)."""
        self.cells = torch.zeros(num_envs, len(shares), dtype=torch.int64, device=device)
        """Which name of each share it adds to, (N, shares)."""
        self.rows = (self.columns, self.cells)
        self._sums = torch.zeros(len(names) + 2 * sum(map(len, shares)), device=device)

    def add(self) -> None:
        """Add one step, as it stands in `columns` and `cells`."""
        plain = len(self._names)
        parts = [self.columns[:, :plain].sum(0)]
        for share, names in enumerate(self._shares):  # sums, whose order of addition is always the same
            pair = self.columns[:, plain + 2 * share : plain + 2 * share + 2]
            if len(names) > 1:
                here = self.cells[:, share, None] == torch.arange(len(names), device=pair.device)
                pair = torch.where(here[..., None], pair[:, None], 0.0).flatten(1)
            parts.append(pair.sum(0))
        self._sums.add_(torch.cat(parts))

    def drain(self) -> dict[str, float]:
        """Read the sums by name, and begin anew; waits for the device."""
        pairs = [f"{kind}/{name}" for share in self._shares for name in share for kind in ("share", "share_of")]
        totals = dict(zip([*self._names, *pairs], self._sums.tolist(), strict=True))
        self._sums.zero_()
        return totals

    def save(self) -> Tensor:
        """Return a copy of the sums, for `load`."""
        return self._sums.clone()

    def load(self, saved: Tensor) -> None:
        """Set the sums to what `save` gave."""
        self._sums.copy_(saved)


def total_names(terminations: Iterable[str], rewards: Iterable[str], errors: Iterable[str]) -> list[str]:
    """Name the columns of a step of `Env` but its shares': what is counted of it, and of the episodes that it ends.

    Args:
        terminations: the page's.
        rewards: the page's.
        errors: what commands tell of how far robots are from them.
    """
    names = ["steps", "unstable", "episodes", "terminated", "episode_length"]
    names += [f"termination/{name}" for name in terminations]
    names += [*(f"reward/{name}" for name in rewards), "reward/total"]
    return [*names, *(f"error/{name}" for name in errors)]


def shares_of(path: str, teller: Any, moment: Moment) -> list[Share]:
    """Ask a command or an event for its shares.

    Raises:
        UserError: it gives something else; one line.
    """
    given = teller.shares(moment)
    if not isinstance(given, list) or not all(isinstance(one, Share) for one in given):
        raise UserError(f"{path}: shares returns a list of Share(names, number, whole, at), got {described(given)}")
    for share in given:
        for part, wanted in (("number", torch.float32), ("whole", torch.float32), ("at", torch.int64)):
            if part != "at" or share.at is not None:
                check_answer(f"{path}.shares: {part}", getattr(share, part), moment.num_envs, wanted)
        if odd := next((name for name in share.names if name.split("/")[0] in _RESERVED), None):
            raise UserError(f"{path}.shares: {odd!r} is a name of the trainer's own; take another than {odd.split('/')[0]}/...")
        if share.at is None and len(share.names) != 1:
            raise UserError(f"{path}.shares: {len(share.names)} names, and no `at` that says which of them robots count for")
    return given
