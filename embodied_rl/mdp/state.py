"""What terms remember: declared by them, allocated, reset and saved in one place.

Whatever has a `state` is an owner: a term of any section that is a class, a tracker, the environment's own account of
episodes.  Each part of it becomes a tensor (N, ...) that the owner finds under the part's name among its attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from embodied_rl.errors import UserError


@dataclass(frozen=True)
class State:
    """One thing that an owner remembers of every robot, (N, *shape); it begins with zeros."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    fresh: Literal["zero", "keep"] = "zero"
    """What becomes of it when an episode begins."""


class Memory:
    """The memory of N robots.

    Args:
        num_envs: N.
        device: where it lives.
    """

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.tensors: dict[str, Tensor] = {}
        """Every part by name, `section.term.part`, each (N, ...); they keep their addresses."""
        self._num_envs, self._device = num_envs, device
        self._zeroed: list[Tensor] = []
        self._held: list[tuple[str, Any, str]] = []

    def add(self, path: str, owner: Any) -> None:
        """Allocate what an owner declares as `state: dict[str, State]`; nothing where it declares none.

        Args:
            path: begins the names, `section.term`; empty for names without a section.
            owner: gets each tensor as an attribute of the part's name.

        Raises:
            UserError: a part has the name of something else.
        """
        for part, state in getattr(owner, "state", {}).items():
            name = f"{path}.{part}" if path else part
            if name in self.tensors or hasattr(owner, part):
                raise UserError(f"{path}: its state {part!r} has the name of another attribute; rename one of them")
            tensor = torch.zeros(self._num_envs, *state.shape, dtype=state.dtype, device=self._device)
            self.tensors[name] = tensor
            try:
                setattr(owner, part, tensor)
            except AttributeError:
                raise UserError(f"{path}: its state {part!r} cannot be an attribute of it; leave out __slots__") from None
            self._held.append((name, owner, part))
            if state.fresh == "zero":
                self._zeroed.append(tensor)

    def rebound(self) -> str | None:
        """Find the first part whose owner holds another tensor by now, which is in no snapshot; None where all is well."""
        return next((name for name, owner, part in self._held if getattr(owner, part) is not self.tensors[name]), None)

    def begin(self, done: Tensor) -> None:
        """Set to zero what begins anew with an episode, where one does, done (N,) bool."""
        for tensor in self._zeroed:
            tensor.copy_(where(done, torch.zeros_like(tensor), tensor))


def where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Choose new values in the rows, bool (N,), old ones elsewhere; both (N, ...)."""
    return torch.where(rows.view(-1, *[1] * (old.dim() - 1)), new, old)


def check_same_parts(given: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Check that a snapshot has the parts of these robots, by name and size.

    Raises:
        ValueError: it has others: it is of another page.
    """
    odd = sorted(set(given) ^ set(own))
    if odd:
        raise ValueError(f"the snapshot is of another page: {', '.join(odd[:3])} differ")
    odd = [name for name, tensor in own.items() if given[name].shape[1:] != tensor.shape[1:]]
    if odd:
        raise ValueError(f"the snapshot is of another page: the sizes of {', '.join(odd[:3])} differ")
