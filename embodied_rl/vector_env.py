"""What a learner sees of any environment, ours or another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from embodied_rl.errors import UserError

#: A coordinate beyond this is unstable in MuJoCo (mjMAXVAL), an observation or reward is none: float32 sums squares of it.
LARGEST = 1e10


class ActionSpace(NamedTuple):
    """What an action is."""

    size: int
    """Numbers of a box, or choices of a discrete space."""
    discrete: bool = False
    """Whether an action is one of `size` choices, int64 (N,), and not a vector, float32 (N, size)."""
    bound: tuple[float, ...] = ()
    """What each number of a box reaches, either way, where its meaning ends; infinite where it has no bound, (size,)."""


@dataclass(frozen=True)
class Step:
    """What a step leaves behind: views of the environment's own buffers, overwritten by the next step."""

    obs: dict[str, Tensor]
    """Observation of each group, (N, O); of rows whose episode ended, the first of the next one.

    A group in which a number of a row is not finite, or beyond `LARGEST`, is zeros there, and the row's next episode begins with
    the next step: of one that is cut for it (`terminated`, not `valid`) this is no first observation.
    """
    rewards: Tensor
    """(N,)."""
    terminated: Tensor
    """Bool (N,): the episode ended for good, there is nothing to bootstrap from."""
    truncated: Tensor
    """Bool (N,): the episode ended by the clock alone."""
    final_obs: dict[str, Tensor]
    """The last observation of the episode, for `env.final_obs_groups`, (N, O); meaningful where truncated."""
    valid: Tensor
    """Bool (N,): False where the transition means nothing: the simulation blew up, or a number was not finite or too large."""


Obs = dict[str, Tensor]


class VectorEnv(Protocol):
    """N environments in step: what a `LocalCollector` needs.  `Env` is one, and so is whatever `embodied_rl.sources` makes."""

    num_envs: int
    device: torch.device
    env_ids: Tensor
    """Global ids of the rows, int64 (N,); they key all randomness."""
    obs: Obs
    """The present observations, (N, O), at addresses that stay."""
    final_obs: Obs
    """The last observations of episodes, for the groups that are bootstrapped from, (N, O); meaningful where truncated."""
    buffers: dict[str, Tensor]
    """Among them `age`: the steps that each environment has lived, int64 (N,)."""
    physics_seconds: float
    """Time spent in the simulator since the beginning."""

    @property
    def action_space(self) -> ActionSpace:
        """What an action is."""
        ...

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph."""
        ...

    @property
    def result(self) -> Step:
        """What the last step left behind."""
        ...

    def advance(self, actions: Tensor) -> None:
        """Do one step; an environment whose episode ends begins the next one in it."""
        ...

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Make `function`, which calls `advance`, one CUDA graph where there is a device for it; else leave it as it is."""
        ...

    def begin_iteration(self, iteration: int, numbers: dict[str, Tensor]) -> None:
        """Set numbers of the page, by dotted path, before a rollout, and draw what is drawn for the iteration.

        Numbers that were never set are the page's own.
        """
        ...

    def drain_totals(self) -> dict[str, float]:
        """Read the sums over all steps since the last call, by name.

        There are `steps`, `unstable`, `episodes`, `terminated` (those that ended other than by time), `episode_length`,
        `reward/total`, and more where there is more.
        """
        ...

    def drain_unstable(self) -> list[dict]:
        """Tell what is known of environments that failed since the last call: `row`, `error`, and what replays them.

        Where it was a number that a term of the page gave, its name is `place`.
        """
        ...

    def mirror_maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Give index and sign of the left-right reflection of each observation group and of `actions`."""
        ...

    def snapshot(self, rows: Tensor) -> dict[str, Tensor]:
        """Copy all that the rows' future depends on; rows int64 (R,), every tensor (R, ...)."""
        ...

    def restore(self, rows: Tensor, state: dict[str, Tensor]) -> None:
        """Bring the rows back to what `snapshot` gave."""
        ...

    def reset(self) -> Obs:
        """Begin a new episode everywhere, in the random numbers of the present age; the first observations."""
        ...

    def close(self) -> None:
        """Free the simulator."""
        ...


def check_actions(actions: Tensor, shape: torch.Size) -> None:
    """Refuse what is no tensor of real numbers, (num_envs, num_actions): another shape would be spread over the robots.

    Raises:
        UserError: they are; one line.
    """
    if not isinstance(actions, Tensor):
        raise UserError(f"actions: {type(actions).__name__} is given, and a torch.Tensor is wanted")
    if actions.shape != shape:
        given = tuple(actions.shape)
        raise UserError(f"actions of shape {given} are given; a step takes (num_envs, num_actions) = {tuple(shape)}")
    if actions.is_complex() or actions.layout != torch.strided:
        raise UserError(
            f"actions: {actions.dtype} {actions.layout} on {actions.device}; a dense tensor of real numbers is wanted"
        )
