"""Terms side by side: the observations of a group, the actions of a page.

On the way of an observation to the policy: the term's value, + offset and uniform noise, dropout, clip, x scale, delay, history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.mdp.mirrors import Reflection, reflection
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.part import Part
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import Action, check_answer, described


@dataclass(eq=False)
class ObservationTerm:
    """One entry of a group; where it needs its past, it remembers it."""

    name: str
    path: str
    """`observations.group.name`."""
    function: Callable[..., Tensor]
    params: dict
    noise: Tensor | None
    offset: float
    dropout: float
    scale: Tensor
    clip: tuple[float, float] | None
    delay: tuple[int, int]
    history: int
    size: int
    """Numbers of one value, before history."""
    coarse: bool = False
    """Whether its noise is of 256 values."""

    off: Tensor = field(init=False)
    """What this episode adds to all its numbers, (N,)."""
    past: Tensor = field(init=False)
    """(N, delay + history, size): the newest value stands last; the oldest that any delay and history can reach, first."""
    lag: Tensor = field(init=False)
    """Age of the newest value that is seen [control steps], (N,)."""

    @property
    def buffered(self) -> bool:
        """Whether it needs its past."""
        return self.delay[1] > 0 or self.history > 1

    @property
    def state(self) -> dict[str, State]:
        """What it remembers, filled when it is first computed in an episode."""
        past = {"past": State((self.delay[1] + self.history, self.size), fresh="keep")} if self.buffered else {}
        off = {"off": State(fresh="keep")} if self.offset else {}
        return past | off | ({"lag": State(fresh="keep")} if self.delay[1] > 0 else {})


class ObservationGroup:
    """Terms of one group, in the page's order.

    Args:
        name: `actor`, `critic`, ...
        terms: its entries.
    """

    def __init__(self, name: str, terms: list[ObservationTerm]) -> None:
        self.name, self.terms = name, terms
        self.size = sum(term.size * term.history for term in terms)

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
            check_answer(term.path, value, env.num_envs, torch.float32, term.size)
            if term.offset:
                if noisy and fresh is not None:
                    term.off.copy_(torch.where(fresh, env.draw.between(-term.offset, term.offset, 1)[:, 0], term.off))
                value = value + term.off[:, None]  # the last look of an episode is at what it has seen all along
            if noisy:
                value = self._worsened(env, term, value)
            if term.clip is not None:
                value = value.clamp(term.clip[0], term.clip[1])
            value = value * term.scale
            columns.append(self._through_time(env, term, value, fresh) if term.buffered else value)
        return torch.cat(columns, dim=-1)

    def mirror_map(self, reflect: Callable[[ObservationTerm], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Index and sign, each (size,), of the group's reflection: mirrored = obs[..., index] * sign.

        Args:
            reflect: index and sign of one value of a term, each (term.size,).
        """
        indices, signs, start = [], [], 0
        for term in self.terms:
            index, sign = reflect(term)
            for _ in range(term.history):
                indices.append(index + start)
                signs.append(sign)
                start += term.size
        return torch.cat(indices), torch.cat(signs)

    def _worsened(self, env: Moment, term: ObservationTerm, value: Tensor) -> Tensor:
        """Add noise, and leave numbers out."""
        if term.noise is not None:
            draw = env.draw.coarse if term.coarse else env.draw.between
            value = value + term.noise * draw(-1.0, 1.0, term.size)
        if term.dropout:
            draw = env.draw.coarse if term.coarse else env.draw.between
            value = torch.where(draw(0.0, 1.0, term.size) < term.dropout, 0.0, value)
        return value

    def _through_time(self, env: Moment, term: ObservationTerm, value: Tensor, fresh: Tensor | None) -> Tensor:
        past = torch.cat((term.past[:, 1:], value[:, None]), dim=1)
        if fresh is not None:
            past = torch.where(fresh[:, None, None], value[:, None], past)
            term.past.copy_(past)
        if term.delay[1] > 0:
            if fresh is not None:
                drawn = env.draw.integers(*term.delay)
                term.lag.copy_(torch.where(fresh, drawn, term.lag))
            newest = past.shape[1] - 1 - term.lag.long()
            window = newest[:, None] - torch.arange(term.history - 1, -1, -1, device=value.device)  # (N, history)
            past = torch.gather(past, 1, window[..., None].expand(-1, -1, term.size))
        return past.flatten(1)


class ActionGroup:
    """A page's action terms side by side: the policy's outputs in the page's order, each a joint's.

    Joints that no term drives hold the default pose.

    Args:
        terms: name and term of each entry.
        robot: the robot.
    """

    def __init__(self, terms: list[tuple[str, Action]], robot: Part) -> None:
        self.terms = terms
        self.size = sum(len(term.joints) for _, term in terms)
        joints = [joint for _, term in terms for joint in term.joints]
        # controls of terms that drive all joints in their order are the controls of the robot
        self._whole = joints == list(range(len(robot.joint_names)))
        self._joints = torch.tensor(joints, dtype=torch.int64, device=robot.default_joint_pos.device)
        self._robot, self._default = robot, robot.default_joint_pos

    def bounds(self) -> Tensor:
        """Return what the outputs are clipped to, either way, (A,)."""
        return torch.cat([torch.as_tensor(term.clip).expand(len(term.joints)) for _, term in self.terms])

    def reach(self) -> Tensor:
        """Return the outputs that reach as far as each joint goes; infinite where a term or a joint does not say, (A,)."""
        unknown = lambda joints: torch.full((len(joints),), torch.inf)  # noqa: E731
        given = ((getattr(term, "reach", None), term.joints) for _, term in self.terms)
        return torch.cat([reach().cpu() if reach else unknown(joints) for reach, joints in given])

    def clip(self, actions: Tensor) -> Tensor:
        """Bound the policy's outputs, (N, A)."""
        parts = [part.clamp(-term.clip, term.clip) for (_, term), part in zip(self.terms, self._split(actions), strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def controls(self, env: Moment) -> Tensor:
        """Return what the engine is told by the present actions, (N, J), or (N, decimation, J)."""
        before = self._split(env.previous_actions)
        parts = [
            term.controls(env, now, then)
            for (_, term), now, then in zip(self.terms, self._split(env.actions), before, strict=True)
        ]
        for (name, term), part in zip(self.terms, parts, strict=True):
            _check_controls(name, part, (len(env.actions), len(term.joints)), env.decimation)
        if any(part.dim() == 3 for part in parts):
            parts = [part if part.dim() == 3 else part[:, None].expand(-1, env.decimation, -1) for part in parts]
        driven = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self._whole:
            return driven
        held = self._default.expand(*driven.shape[:-1], -1)
        return held.index_copy(-1, self._joints, driven)

    def reflection(self, params: dict[str, dict[str, Any]]) -> Reflection:
        """Index and sign of the actions under left-right reflection; each term's are among themselves.

        Args:
            params: each entry's parameters, as the page has them.
        """
        indices: list[int] = []
        signs: list[float] = []
        for name, term in self.terms:
            index, sign = reflection(term.mirror, self._robot, params[name], len(term.joints), f"actions.{name}")
            indices += [len(signs) + one for one in index]
            signs += sign
        return indices, signs

    def _split(self, actions: Tensor) -> Sequence[Tensor]:
        if len(self.terms) == 1:
            return [actions]
        return actions.split([len(term.joints) for _, term in self.terms], dim=-1)


def _check_controls(name: str, given: Any, size: tuple[int, int], decimation: int) -> None:
    """Check what an action term makes of its outputs; nothing is read from the device.

    Raises:
        UserError: it is neither (N, joints) nor (N, decimation, joints); one line.
    """
    of_steps = (size[0], decimation, size[1])
    if not isinstance(given, Tensor) or given.dtype != torch.float32 or tuple(given.shape) not in (size, of_steps):
        raise UserError(f"actions.{name}.controls: returns float32 {size} or {of_steps}, got {described(given)}")
