"""What minibatches take rows of: one table of floats, its columns by name."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


class Batch:
    """A table (T, N, columns), written once an iteration; one gather takes a minibatch.

    Args:
        widths: how many columns each name has; a width of 0 stands for one column without a dimension of its own.
        sequences: a row is a robot's whole rollout and not one transition.
    """

    def __init__(self, widths: dict[str, int], *, sequences: bool) -> None:
        self._widths, self._sequences = widths, sequences
        self.table = torch.zeros(0, 0, 0)
        """(T, N, columns)."""

    @property
    def num_rows(self) -> int:
        """How many there are to be taken."""
        steps, envs, _ = self.table.shape
        return envs if self._sequences else steps * envs

    def allocate(self, steps: int, envs: int, like: Tensor) -> bool:
        """Room for a rollout; whether it has a new address: for one of the same size it stays."""
        width = sum(width or 1 for width in self._widths.values())
        if self.table.shape == (steps, envs, width):
            return False
        self.table = like.new_empty(steps, envs, width)
        return True

    def write(self, rows: slice, values: dict[str, Tensor]) -> None:
        """Fill every column of some transitions, counted through steps and envs, from tensors (B, width) or (B,)."""
        for name, column in self.columns(self.table.flatten(0, 1)[rows]).items():
            column.copy_(values[name])

    def take(self, rows: Tensor) -> Tensor:
        """Gather the rows, int64 (B,), of the table: (B, columns), or (T, B, columns) of sequences."""
        return self.table.index_select(1, rows) if self._sequences else self.table.flatten(0, 1).index_select(0, rows)

    def first_columns(self) -> dict[str, int]:
        """Where each name's columns begin."""
        starts = itertools.accumulate((width or 1 for width in self._widths.values()), initial=0)
        return dict(zip(self._widths, starts, strict=False))

    def columns(self, table: Tensor) -> dict[str, Tensor]:
        """Split taken rows into their columns by name, (..., width) or (...)."""
        parts = table.split([width or 1 for width in self._widths.values()], dim=-1)
        named = zip(self._widths.items(), parts, strict=True)
        return {name: part if width else part[..., 0] for (name, width), part in named}


def columns_of(actor: int, critic: int, actions: int, *, discrete: bool, symmetry: str) -> dict[str, int]:
    """Say how many columns PPO learns from, by name; 0: one, without a dimension of its own.

    Args:
        actor: size of the policy's observations.
        critic: size of the critic's.
        actions: how many there are, or how many to choose from.
        discrete: whether one of them is chosen.
        symmetry: `ppo.symmetry`.
    """
    widths = {"actor": actor, "critic": critic, "action": 0 if discrete else actions, "output": actions}
    widths |= dict.fromkeys(("log_prob", "value", "return", "advantage", "weight", "done"), 0)
    if symmetry != "none":
        widths["mirrored_actor"] = actor
    if symmetry == "augmentation":
        widths["mirrored_critic"] = critic
    return widths


def permutations(rows: int, epochs: int, seed: int, *, reshuffle: bool, device: torch.device | str = "cpu") -> Tensor:
    """Draw the order in which each epoch takes a batch's rows, int64 (epochs, rows).

    By default it is the same in all epochs of an iteration, as in rsl_rl, where each transition is met again after as many
    minibatches.  Where it is not, some are met twice in short succession: the policy goes further from the one that acted, and
    the objective on a rollout that was not learned from is the worse for it (docs/performance.md).

    Args:
        rows: how many there are.
        epochs: how often all are taken.
        seed: of the generator, which looks at 32 bits of it and no more: a hash, then.
        reshuffle: another order in each epoch.
        device: where they are drawn; each kind of device has its own.
    """
    generator = torch.Generator(device).manual_seed(seed)
    orders = [torch.randperm(rows, generator=generator, device=device) for _ in range(epochs if reshuffle else 1)]
    return torch.stack(orders).expand(epochs, rows)


def kept(own: Tensor | None, given: Tensor | None) -> Tensor:
    """Put the values under an address that stays: `own`, filled."""
    if given is None or own is None or own.shape != given.shape:
        return given if given is None else given.clone()  # pyright: ignore[reportReturnType]
    return own.copy_(given)
