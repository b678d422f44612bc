"""An observation group: its terms, and what happens to each on the way to the policy.

Order: the term's value, + uniform noise, clip, x scale, delay, history; then the terms side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from embodied_rl.mdp.moment import Moment


@dataclass(frozen=True)
class ObservationTerm:
    """One entry of a group."""

    name: str
    function: Callable[..., Tensor]
    params: dict
    noise: Tensor | None
    scale: Tensor
    clip: tuple[float, float] | None
    delay: tuple[int, int]
    history: int
    size: int
    """Numbers of one value, before history."""

    @property
    def buffered(self) -> bool:
        """Whether it needs its past."""
        return self.delay[1] > 0 or self.history > 1


class ObservationGroup:
    """Terms of one group, in the page's order.

    Args:
        name: `actor`, `critic`, ...
        terms: its entries.
    """

    def __init__(self, name: str, terms: list[ObservationTerm]) -> None:
        self.name, self.terms = name, terms
        self.size = sum(term.size * term.history for term in terms)
        self.state: dict[str, tuple[int, ...]] = {}
        for term in terms:
            if term.buffered:
                # the newest value stands last; the oldest that any delay and history can reach, first
                self.state[self._past(term)] = (term.delay[1] + term.history, term.size)
            if term.delay[1] > 0:
                self.state[f"{name}.{term.name}.lag"] = ()

    def compute(self, env: Moment, *, noisy: bool, fresh: Tensor | None) -> Tensor:
        """Compute the group's observation, (N, size).

        Args:
            env: the moment.
            noisy: add the noise; it is drawn from `env.draw`.
            fresh: rows whose episode begins, bool (N,): their past is filled with the present and their delays are drawn.
                None reads past and delays without advancing them, as the terminal observation must.
        """
        columns = []
        for term in self.terms:
            value = term.function(env, **term.params)
            if noisy and term.noise is not None:
                value = value + term.noise * env.draw.between(-1.0, 1.0, term.size)
            if term.clip is not None:
                value = value.clamp(term.clip[0], term.clip[1])
            value = value * term.scale
            columns.append(self._through_time(env, term, value, fresh) if term.buffered else value)
        return torch.cat(columns, dim=-1)

    def mirror(self, obs: Tensor, mirrors: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Turn an observation (..., size) into that of the mirrored robot."""
        index, sign = self.mirror_map(mirrors)
        return obs[..., index] * sign

    def mirror_map(self, mirrors: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Index and sign, each (size,), of the group's reflection: mirrored = obs[..., index] * sign.

        Args:
            mirrors: index and sign of one value of each kind of `embodied_rl.mdp.term.Mirror`.
        """
        indices, signs, start = [], [], 0
        for term in self.terms:
            index, sign = mirrors[term.function.mirror] if term.function.mirror != "scalar" else _identity(term)
            for _ in range(term.history):
                indices.append(index + start)
                signs.append(sign)
                start += term.size
        return torch.cat(indices), torch.cat(signs)

    def _past(self, term: ObservationTerm) -> str:
        return f"{self.name}.{term.name}.past"

    def _through_time(self, env: Moment, term: ObservationTerm, value: Tensor, fresh: Tensor | None) -> Tensor:
        buffer = env.buffers[self._past(term)]  # (N, delay + history, size)
        past = torch.cat((buffer[:, 1:], value[:, None]), dim=1)
        if fresh is not None:
            past = torch.where(fresh[:, None, None], value[:, None], past)
            buffer.copy_(past)
        if term.delay[1] > 0:
            lag = env.buffers[f"{self.name}.{term.name}.lag"]
            if fresh is not None:
                drawn = env.draw.integers(*term.delay)
                lag.copy_(torch.where(fresh, drawn, lag))
            newest = past.shape[1] - 1 - lag.long()
            window = newest[:, None] - torch.arange(term.history - 1, -1, -1, device=value.device)  # (N, history)
            past = torch.gather(past, 1, window[..., None].expand(-1, -1, term.size))
        return past.flatten(1)


def _identity(term: ObservationTerm) -> tuple[Tensor, Tensor]:
    return torch.arange(term.size, device=term.scale.device), torch.ones(term.size, device=term.scale.device)
