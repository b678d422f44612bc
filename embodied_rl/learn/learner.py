"""Who learns: what the trainer asks of a learner, and which one a page names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn

from embodied_rl.config.learner_numbers import LEARNER_NUMBERS
from embodied_rl.config.page import LEARNERS, Page
from embodied_rl.errors import UserError, in_short, last_in
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.rollout import Collector, Rollout
from embodied_rl.own import find_own
from embodied_rl.problems import lacking


class Learner(Protocol):
    """Improves a policy on rollouts."""

    numbers: ClassVar[tuple[str, ...]] = ()
    """Those of `config.learner_numbers.LEARNER_NUMBERS` that its updates are told of and follow; curricula may move no others."""
    policy: Policy
    networks: Mapping[str, nn.Module]
    """All that it learns, by name."""
    gradient_steps: int
    """How many an update takes."""
    critic_group: str
    """The observation group that the values are of."""

    @classmethod
    def make(
        cls, page: Page, collector: Collector, device: torch.device, *, group: Group, compiler: Callable = lambda f: f
    ) -> Self:
        """Make the page's learner, for what the collector gives, on its own or as one of a group's.

        Raises:
            UserError: it cannot learn the page.
        """
        ...

    @classmethod
    def load_policy(cls, page: Page, state: dict, device: torch.device | str) -> Policy:
        """Make the policy of what `state_dict` gave, without an environment: the sizes stand in the state itself.

        Raises:
            KeyError, RuntimeError: it is not the one that the page describes.
        """
        ...

    def update(self, rollout: Rollout, iteration: int, numbers: Mapping[str, float] | None = None) -> dict[str, float]:
        """Learn from a rollout; the metrics, by TensorBoard name.

        Args:
            rollout: what happened.
            iteration: the trainer's.
            numbers: of its `numbers`, by dotted path, those that curricula have moved since the run began; they hold in place of
                the page's, in this update.
        """
        ...

    def skipped(self, metrics: dict[str, float]) -> float:
        """Say which share of an update's steps was left out because a loss or gradient was not finite."""
        ...

    def panel(self, metrics: dict[str, float]) -> str:
        """Say in a line what there is to watch in the metrics of an update."""
        ...

    def state_dict(self) -> dict:
        """Return all that it knows: by names that end in `_state_dict` its networks and optimizers, by others whatever else.

        The weights of each of `networks` are its `NAME_state_dict`; an optimizer's name has `optimizer` in it.  PPO's is rsl_rl's
        layout, and its Adam's moments are the actor's, then the critic's.
        """
        ...

    def load_state_dict(self, state: dict) -> None:
        """Take up what `state_dict` gave; RuntimeError where the networks have other shapes."""
        ...


def numbers_of(page: Page) -> tuple[str, ...]:
    """Give the numbers that the page's learner follows; ours, which takes long to import, is not imported for it.

    Raises:
        UserError: see `learner_class`.
    """
    return LEARNER_NUMBERS if page.train.learner in LEARNERS else learner_class(page).numbers


def learner_class(page: Page) -> type[Learner]:
    """Import the class that a page's `train.learner` names.

    Raises:
        UserError: there is none of that name, or it lacks methods of a learner.
    """
    given = page.train.learner
    advice = f"write {', '.join(LEARNERS)}, or module:Class, like rsl_rl.algorithms:PPO"
    found: Any = find_own(f"train.learner: {given}", LEARNERS.get(given, given), advice)
    if missing := lacking(found, vars(Learner)):
        from embodied_rl.learn.rsl_rl_ppo import adapted

        if (found := adapted(found)) is None:
            raise UserError(
                f"train.learner: {given}: is no learner, for it lacks {', '.join(missing)} (embodied_rl/learn/learner.py says "
                "what it needs), and is no PPO of rsl_rl's"
            )
    return found


def make_learner(
    page: Page, collector: Collector, device: torch.device, group: Group | None = None, *, compiler: Callable = lambda f: f
) -> Learner:
    """Make the page's learner, for what the collector gives; its networks begin as the page's seed has it.

    Raises:
        UserError: `train.learner` is none, or cannot learn the page.
    """
    torch.manual_seed(page.env.seed)
    made = learner_class(page).make(page, collector, device, group=group or Group(), compiler=compiler)
    if missing := lacking(made, Learner.__annotations__):
        lacks = f"lacks {', '.join(missing)}, as it was made"
        raise UserError(f"train.learner: {page.train.learner}: {lacks}; embodied_rl/learn/learner.py says what it needs")
    return made


def is_own(method: Callable) -> bool:
    """Whether a method of a learner is one's own, and not of a learner that ships."""
    return method.__module__.partition(".")[0] != __name__.partition(".")[0]


@contextmanager
def naming_own(page: Page, method: Callable) -> Iterator[None]:
    """Say whose mistake it is where a method of a learner of one's own, which is called within, goes wrong.

    Raises:
        UserError: it has; one line.  What a learner that ships raises goes through.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever the code of a learner may raise
        if not is_own(method):
            raise
        file = inspect.getfile(method)
        last = last_in(error, (file,))
        where = f"{Path(file).name}:{last[1]}" if last else Path(file).name
        raise UserError(f"train.learner: {page.train.learner}.{method.__name__}: {in_short(error)} ({where})") from error
