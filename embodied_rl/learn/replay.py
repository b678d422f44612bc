"""A replay: what the robots did last, on the learner's device, for learners that draw from it again and again.

Each robot has a lane of L slots that it writes round and round.  An observation is stored once: what a step led to is the
observation of the following slot, and where an episode was truncated there, its final observation, which lies beside.

Legend: L slots, N robots, R rows drawn, O observations, A actions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.sum_tree import SumTree
from embodied_rl.machine import free_memory
from embodied_rl.vector_env import Obs

log = logging.getLogger("embodied_rl")

#: How a row ends: its episode goes on, ended for good, ended by the clock or was left there; or the row means nothing.
GOES_ON, TERMINATED, TRUNCATED, INVALID = range(4)
#: Slots of a lane for each final observation that there is room for at the start; where episodes are shorter, more is made.
_ROWS_A_FINAL = 64


@dataclass
class Drawn:
    """R rows of a replay."""

    obs: Obs
    """What the actions answered, (R, O)."""
    actions: Tensor
    """(R, A)."""
    rewards: Tensor
    """sum of gamma^i r_t+i over the steps up to the next end, `n_steps` at most, (R,)."""
    next_obs: Obs
    """Where those steps led: of an episode that was truncated its final observation, (R, O)."""
    discount: Tensor
    """gamma^m after m steps, and 0 where the episode terminated, (R,)."""
    weight: Tensor
    """Importance weight; 0 of rows that mean nothing, (R,)."""
    numbers: tuple[Tensor, Tensor]
    """Lane and number of each row, by which its priority is set, int64 (R,) each."""

    def copy_(self, other: Drawn) -> Self:
        """Take over what another draw of the same size found, at the addresses that there are."""
        for name, values in vars(other).items():
            mine = getattr(self, name)
            if isinstance(values, Tensor):
                mine.copy_(values)
            else:
                for key in values if isinstance(values, dict) else range(len(values)):
                    mine[key].copy_(values[key])
        return self

    def rows(self, part: slice) -> Drawn:
        """Give some of them, by reference."""
        obs, following = ({name: value[part] for name, value in group.items()} for group in (self.obs, self.next_obs))
        numbers = self.numbers[0][part], self.numbers[1][part]
        return Drawn(obs, self.actions[part], self.rewards[part], following, self.discount[part], self.weight[part], numbers)


class Replay:
    """The last rows of N robots.

    A row is numbered by the steps that its lane had before; number k lies in slot k mod L until it is written over.

    Args:
        sizes: numbers of an observation of each group that is kept.
        actions: numbers of an action.
        num_envs: N.
        size: rows of all lanes together, of which each holds its share.
        gamma: discount.
        n_steps: of a target.
        device: where it lies.
        priority_exponent: what priorities are raised to; None: rows are drawn uniformly.

    Raises:
        UserError: a lane would be too short, or there is no room for it; nothing has been allocated then.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        actions: int,
        *,
        num_envs: int,
        size: int,
        gamma: float,
        n_steps: int = 1,
        device: torch.device | str = "cpu",
        priority_exponent: float | None = None,
    ) -> None:
        self.num_envs, self.num_slots, self.gamma, self.n_steps = num_envs, size // num_envs + 1, gamma, n_steps
        self.device = device = torch.device(device)
        if self.num_slots - 1 < n_steps:
            raise UserError(
                f"sac.replay_size: {size} are {self.num_slots - 1} rows for each of {num_envs} robots, and a target takes "
                f"{n_steps}; at least {n_steps * num_envs} are wanted"
            )
        check_room(replay_bytes(sizes, actions, num_envs=num_envs, size=size, prioritized=priority_exponent is not None), device)
        rows = self.num_slots * num_envs
        # written to, so that the memory is there from now on and not when the replay is nearly full
        zeros = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device=device).zero_()  # noqa: E731
        self.obs = {name: zeros(rows, width) for name, width in sizes.items()}
        self.actions, self.rewards = zeros(rows, actions), zeros(rows)
        self._ends = zeros(rows, dtype=torch.uint8).fill_(INVALID)
        # which of its lane's final observations a truncated row has
        self._final = zeros(rows, dtype=torch.int32)
        self._num_finals = _final_slots(self.num_slots)
        # the last one is where what is no final observation goes
        self._finals = {name: zeros(self._num_finals * num_envs + 1, width) for name, width in sizes.items()}
        self._finals_written = zeros(num_envs, dtype=torch.int64)
        self._finals_kept = zeros(num_envs, dtype=torch.int64)
        self.moves = 0
        """How often what a draw reads has moved to other memory, which a CUDA graph of an earlier draw does not know."""
        self.written = zeros(num_envs, dtype=torch.int64)
        """Rows that each lane has been given so far, (N,)."""
        self._lanes = torch.arange(num_envs, device=device)
        self._ahead = torch.arange(n_steps, device=device)
        self._discounts = gamma ** torch.arange(n_steps + 1, dtype=torch.float32, device=device)
        self.tree = None if priority_exponent is None else SumTree(rows, device)
        """Priorities by row, raised to their exponent; a row that cannot be drawn has none."""
        self._exponent = priority_exponent or 0.0
        self._largest = torch.ones((), dtype=torch.float64, device=device)
        self.stale_priorities = torch.zeros((), dtype=torch.int64, device=device)
        """Priorities that came when their row had been written over."""

    # ---------------------------------------------------------------------------------------------------------- what comes in

    @torch.no_grad()
    def insert(self, rollout: Rollout, lanes: Tensor | None = None, priorities: Tensor | None = None) -> None:
        """Append T steps to some lanes.

        Where a lane goes on elsewhere than its last row led to (its robot was replaced), that row counts as truncated.

        Args:
            rollout: (T, n, ...), with `final_obs` of every group that is kept.
            lanes: int64 (n,), each once; None: all.
            priorities: of the rows, (T, n); None: the largest so far.

        Raises:
            UserError: the rollout is longer than a lane.
        """
        steps, envs = rollout.rewards.shape
        if not envs:
            return
        if steps > self.num_slots - 1:
            raise UserError(
                f"sac.replay_size: {(self.num_slots - 1) * self.num_envs} are {self.num_slots - 1} rows for each robot, and a "
                f"rollout has train.steps: {steps}; at least {steps * self.num_envs} are wanted"
            )
        lanes = self._lanes if lanes is None else lanes
        self._join(rollout, lanes)
        number = self.written[lanes] + torch.arange(steps + 1, device=self.device)[:, None]
        places = (number % self.num_slots) * self.num_envs + lanes
        # the slot after the last row loses its own row too
        forgotten = (self._ends[places.flatten()] == TRUNCATED).view_as(places).sum(0)
        self._finals_kept[lanes] -= forgotten
        own = places[:-1].flatten()
        for name, values in self.obs.items():
            values.index_copy_(0, own, rollout.obs[name].flatten(0, 1))
            values.index_copy_(0, places[-1], rollout.last_obs[name])
        self.actions.index_copy_(0, own, rollout.actions.flatten(0, 1).view(len(own), -1))
        self.rewards.index_copy_(0, own, rollout.rewards.flatten())
        truncated = rollout.truncated & ~rollout.terminated & rollout.valid
        ends = torch.where(truncated, TRUNCATED, torch.where(rollout.terminated, TERMINATED, GOES_ON))
        ends = torch.where(rollout.valid, ends, INVALID).to(torch.uint8)
        self._ends.index_copy_(0, own, ends.flatten())
        self._ends[places[-1]] = INVALID
        self._keep_finals(truncated, rollout.final_obs, lanes, places[:-1])
        self.written[lanes] += steps
        if self.tree is not None:
            given = self._largest.expand(steps, envs) if priorities is None else self._raised(priorities)
            self.tree.set(own, torch.where(rollout.valid, given, 0.0).flatten())
            self.tree.set(places[-1], torch.zeros_like(places[-1], dtype=torch.float64))

    def _join(self, rollout: Rollout, lanes: Tensor) -> None:
        """Cut lanes whose robot stands elsewhere than their last row led to."""
        head = (self.written[lanes] % self.num_slots) * self.num_envs + lanes
        last = ((self.written[lanes] - 1) % self.num_slots) * self.num_envs + lanes
        moved = torch.zeros_like(lanes, dtype=torch.bool)
        for name, values in self.obs.items():
            moved |= (values[head] != rollout.obs[name][0]).any(-1)
        cut = moved & (self.written[lanes] > 0) & (self._ends[last] == GOES_ON)
        self._keep_finals(cut[None], {name: values[head][None] for name, values in self.obs.items()}, lanes, last[None])
        self._ends[last] = torch.where(cut, TRUNCATED, self._ends[last]).to(torch.uint8)

    def _keep_finals(self, truncated: Tensor, final_obs: Obs, lanes: Tensor, places: Tensor) -> None:
        """Put the final observations of truncated rows beside, (T, n); `places` of those rows."""
        if not bool(truncated.any()):  # once a rollout, and on a GPU the one thing that is waited for
            return
        new = truncated.sum(0)
        self._finals_kept[lanes] += new
        self._make_room(int(self._finals_kept.max()))
        number = self._finals_written[lanes] + truncated.cumsum(0) - truncated.long()
        where = torch.where(truncated, (number % self._num_finals) * self.num_envs + lanes, self._num_finals * self.num_envs)
        for name, values in self._finals.items():
            values.index_copy_(0, where.flatten(), final_obs[name].flatten(0, 1))
        kept = self._final[places.flatten()].view_as(places)
        self._final.index_copy_(0, places.flatten(), torch.where(truncated, number.to(torch.int32), kept).flatten())
        self._finals_written[lanes] += new

    def _make_room(self, wanted: int) -> None:
        """Make room for as many final observations of a lane, each where it will be looked for."""
        if wanted <= self._num_finals:
            return
        before, self._num_finals = self._num_finals, min(max(2 * self._num_finals, wanted), max(self.num_slots, wanted))
        log.info("replay: episodes are short: room for %d final observations of each robot now", self._num_finals)
        # the numbers of those that are there, the newest last
        number = self._finals_written[None] - torch.arange(before, 0, -1, device=self.device)[:, None]
        old, new = ((number % room) * self.num_envs + self._lanes for room in (before, self._num_finals))
        for name, values in self._finals.items():
            larger = values.new_zeros(self._num_finals * self.num_envs + 1, values.shape[1])
            larger.index_copy_(0, new.flatten(), values[old.flatten()])
            self._finals[name] = larger
        self.moves += 1

    # --------------------------------------------------------------------------------------------------------- what is drawn

    @property
    def filled(self) -> Tensor:
        """Rows that each lane holds, (N,)."""
        return self.written.clamp(max=self.num_slots - 1)

    @torch.no_grad()
    def draw(self, uniform: Tensor, importance_exponent: float | Tensor = 0.0) -> Drawn:
        """Draw rows.

        Where there are priorities, each row is drawn from a stratum of its own, and its weight is (N p)^-beta, N the rows that
        are there, over the largest of those drawn (Schaul et al., arXiv:1511.05952).

        Args:
            uniform: numbers in [0, 1), float64 (R,).
            importance_exponent: beta.
        """
        if self.tree is None:
            lane, number = self._numbered((uniform * self.filled.sum()).long())
            weight = torch.ones_like(uniform, dtype=torch.float32)
        else:
            strata = torch.arange(len(uniform), device=self.device, dtype=torch.float64)
            place, share = self.tree.find((strata + uniform) / len(uniform))
            lane, slot = place % self.num_envs, place // self.num_envs
            written = self.written[lane]
            number = written - 1 - (written - 1 - slot) % self.num_slots
            weight = (self.filled.sum() * share).pow(-importance_exponent)
            weight = (weight / weight.max()).float()
        return self._rows(lane, number, weight)

    def _numbered(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Lane and number of the rows of these places among all rows that are there."""
        filled = self.filled
        ends = filled.cumsum(0)
        index = torch.minimum(index, ends[-1] - 1).clamp(min=0)
        lane = torch.searchsorted(ends, index, right=True).clamp(max=self.num_envs - 1)
        return lane, self.written[lane] - ends[lane] + index

    def _rows(self, lane: Tensor, number: Tensor, weight: Tensor) -> Drawn:
        """Gather rows and where `n_steps` steps from each led, or as many as there are before an end."""
        numbers = number[:, None] + self._ahead
        places = (numbers % self.num_slots) * self.num_envs + lane[:, None]
        ends = self._ends[places]
        there = (numbers < self.written[lane][:, None]) & (ends != INVALID)
        before = ((ends[:, :-1] == GOES_ON) & there[:, :-1]).long().cumprod(1).bool()
        summed = torch.cat((torch.ones_like(there[:, :1]), before & there[:, 1:]), dim=1)
        count = summed.sum(1)
        rewards = (torch.where(summed, self.rewards[places], 0.0) * self._discounts[:-1]).sum(1)
        last = places.gather(1, count[:, None] - 1)[:, 0]
        end = self._ends[last]
        truncated = end == TRUNCATED
        after = ((number + count) % self.num_slots) * self.num_envs + lane
        final = (self._final[last].long() % self._num_finals) * self.num_envs + lane
        first = places[:, 0]
        following = {
            name: torch.where(truncated[:, None], self._finals[name][final], values[after]) for name, values in self.obs.items()
        }
        return Drawn(
            obs={name: values[first] for name, values in self.obs.items()},
            actions=self.actions[first],
            rewards=rewards,
            next_obs=following,
            discount=self._discounts[count] * (end != TERMINATED),
            weight=weight * (ends[:, 0] != INVALID),
            numbers=(lane, number),
        )

    @torch.no_grad()
    def set_priorities(self, numbers: tuple[Tensor, Tensor], errors: Tensor) -> None:
        """Set the priorities of rows that were drawn; those of rows that were written over since are dropped, and counted.

        Args:
            numbers: `Drawn.numbers`.
            errors: how wrong the learner was about each, (R,).
        """
        if self.tree is None:
            return
        lane, number = numbers
        place = (number % self.num_slots) * self.num_envs + lane
        there = (number > self.written[lane] - self.num_slots) & (number < self.written[lane])
        there &= self._ends[place] != INVALID
        raised = self._raised(errors)
        self.tree.set(place, torch.where(there, raised, self.tree.leaves[place]))
        self._largest.copy_(torch.maximum(self._largest, torch.where(there, raised, 0.0).max()))
        self.stale_priorities += (~there).sum()

    def _raised(self, errors: Tensor) -> Tensor:
        # a row of no error is drawn again some day
        return (errors.abs().double() + 1e-6).pow(self._exponent)

    # ------------------------------------------------------------------------------------------------------------ to be kept

    def snapshot(self) -> dict[str, Tensor]:
        """Copy everything by robot, (N, ...), for a replay of as many robots with lanes of the same length."""
        lanes = lambda values: values.view(-1, self.num_envs, *values.shape[1:]).transpose(0, 1).contiguous()  # noqa: E731
        state = {f"obs.{name}": lanes(values) for name, values in self.obs.items()}
        state |= {f"finals.{name}": lanes(values[:-1]) for name, values in self._finals.items()}
        own = {"actions": self.actions, "rewards": self.rewards, "ends": self._ends, "final": self._final}
        state |= {name: lanes(values) for name, values in own.items()}
        if self.tree is not None:
            state |= {"priorities": lanes(self.tree.leaves), "largest": self._largest.repeat(self.num_envs)}
        counts = {"written": self.written, "finals_written": self._finals_written, "finals_kept": self._finals_kept}
        return state | {name: values.clone() for name, values in counts.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set everything to what `snapshot` gave.

        Raises:
            ValueError: it is of another size.
        """
        room = next(value.shape[1] for name, value in state.items() if name.startswith("finals."))
        for name, values in self._finals.items():
            self._finals[name] = values.new_zeros(room * self.num_envs + 1, values.shape[1])
        self._num_finals = room
        self.moves += 1
        targets = {f"obs.{name}": values for name, values in self.obs.items()}
        targets |= {f"finals.{name}": values[:-1] for name, values in self._finals.items()}
        targets |= {"actions": self.actions, "rewards": self.rewards, "ends": self._ends, "final": self._final}
        for name, values in targets.items():
            given, shape = state[name], (self.num_envs, len(values) // self.num_envs, *values.shape[1:])
            if given.shape != shape:
                raise ValueError(f"replay.{name} has the shape {tuple(given.shape)}, and {shape} is wanted")
            values.copy_(given.transpose(0, 1).reshape(values.shape))
        for name, values in (
            ("written", self.written),
            ("finals_written", self._finals_written),
            ("finals_kept", self._finals_kept),
        ):
            values.copy_(state[name])
        if self.tree is not None:
            leaves = state["priorities"].transpose(0, 1).reshape(-1).to(self.device)
            self.tree.set(torch.arange(len(leaves), device=self.device), leaves)
            self._largest.copy_(state["largest"].max())


def replay_bytes(sizes: Mapping[str, int], actions: int, *, num_envs: int, size: int, prioritized: bool) -> int:
    """Count the memory that a replay takes [bytes], of which final observations of short episodes take more.

    Args:
        sizes: see `Replay`.
        actions: see `Replay`.
        num_envs: see `Replay`.
        size: see `Replay`.
        prioritized: whether it has priorities.
    """
    slots = size // num_envs + 1
    observed = sum(sizes.values())
    row = 4 * (observed + actions + 2) + 1
    finals = 4 * observed * (_final_slots(slots) * num_envs + 1)
    return slots * num_envs * row + finals + (SumTree.bytes(slots * num_envs) if prioritized else 0) + 24 * num_envs


def check_room(wanted: int, device: torch.device) -> None:
    """Refuse what does not fit into the memory that is free.

    Raises:
        UserError: it does not; one line.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if wanted > free:
        raise UserError(
            f"sac.replay_size: the replay takes {wanted / 2**30:,.3g} GiB, and {free / 2**30:,.3g} GiB are free "
            f"({device}); take fewer rows"
        )


def _final_slots(slots: int) -> int:
    return slots // _ROWS_A_FINAL + 4
