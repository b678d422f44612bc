"""What ends a run before it goes wrong unseen: robots that blow up or run out of room, updates that are not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import torch

from embodied_rl.config import Page
from embodied_rl.errors import UserError
from embodied_rl.learn.damage import LARGEST_WEIGHT
from embodied_rl.learn.learner import Learner, is_own
from embodied_rl.learn.ranks.group import Group
from embodied_rl.learn.rollout import Collector, Rollout
from embodied_rl.learn.run import Run

log = logging.getLogger("embodied_rl")


class UnstableError(UserError):
    """More robots blew up, or ran out of room, than the page allows, or the networks are lost; one line."""

    worth_saving = True
    """Whether the run can go on from where it was."""


class Guards:
    """Looks at every iteration, and writes down what helps to find a mistake.

    Args:
        page: the task, with its limits.
        run: where states of robots that blew up, and rollouts that could not be learned from, are written.
        group: the processes that train.
        env_ids: global ids of this rank's robots.
        num_envs: robots of all ranks.
    """

    def __init__(self, page: Page, run: Run, group: Group, env_ids: range, num_envs: int) -> None:
        self._page, self._run, self._group, self._env_ids, self._num_envs = page, run, group, env_ids, num_envs
        self._held: list[dict] = []
        self._named: set[str] = set()

    def check(self, iteration: int, collector: Collector, learner: Learner, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Look at an iteration: its robots first, then what was learned from them.

        Raises:
            UnstableError: more went wrong than the page allows.
        """
        self._check_robots(iteration, collector, rollout.totals)
        self._check_updates(iteration, learner, rollout, metrics)
        wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            change = "" if is_own(learner.update) else " with a smaller ppo.learning_rate or ppo.max_grad_norm"
            error = UnstableError(
                f"{', '.join(wrong[:3])} is not finite after iteration {iteration}, so the networks are lost; go on from "
                f"an earlier checkpoint in {self._run.checkpoints}{change}"
            )
            error.worth_saving = False
            raise error

    def _check_robots(self, iteration: int, collector: Collector, totals: dict[str, float]) -> None:
        self._held += [dump | {"row": self._env_ids[int(dump["row"])]} for dump in collector.drain_unstable()]
        dumps: list[dict] = []
        if totals["unstable"]:  # what was noted in a rollout's last step is counted in the next one
            dumps, self._held = [*chain(*self._group.gather(self._held))], []
        odd = [dump for dump in dumps if "place" in dump]  # of a number that is not finite its name is all
        for dump in dumps if self._group.rank == 0 else []:
            if "place" not in dump:
                path = self._run.path / "unstable" / f"iteration_{iteration:06d}_row_{dump['row']}.npz"
                with _if_there_is_room(path) as file:
                    np.savez_compressed(file, **dump)  # pyright: ignore[reportArgumentType]
        page = self._page.physics
        for name, rows in totals.items():
            kind, _, setting = name.partition("/")
            if kind == "overflow" and rows > page.max_overflow * self._num_envs:
                raise UnstableError(
                    f"{rows:.0f} of {self._num_envs} robots ran out of room for contacts in iteration {iteration}, "
                    f"more than physics.max_overflow ({page.max_overflow:.0%}) allows, and contacts were lost; raise {setting}"
                )
        unstable, limit = totals["unstable"], page.max_unstable
        if unstable > max(limit * self._num_envs, 1.0 if limit else 0.0):  # one of a few robots is no sign
            if odd:
                raise UnstableError(
                    f"{_sentence(odd[0])}; {unstable:.0f} times in iteration {iteration} a robot had such a number or blew up, "
                    f"of {self._num_envs} robots, more than physics.max_unstable ({limit:.0%}) allows; mend what gives it"
                )
            if self._page.env.source:
                first = dumps[0]["error"] if dumps else "what they raised is not known here"
                raise UnstableError(
                    f"{unstable:.0f} times in iteration {iteration} one of {self._num_envs} environments failed, more than "
                    f"physics.max_unstable ({limit:.0%}) allows: {first}; what replays them lies in {self._run.path / 'unstable'}"
                )
            raise UnstableError(
                f"{unstable:.0f} of {self._num_envs} robots blew up in iteration {iteration}, more than "
                f"physics.max_unstable ({limit:.0%}) allows; their last states lie in {self._run.path / 'unstable'}; try a "
                "smaller physics.dt, more physics.iterations, or softer gains"
            )
        for dump in odd:
            if dump["place"] not in self._named:
                self._named.add(dump["place"])
                log.warning("%s; the robot begins anew, and is counted in Physics/unstable", _sentence(dump))

    def _check_updates(self, iteration: int, learner: Learner, rollout: Rollout, metrics: dict[str, float]) -> None:
        limit, skipped = self._page.train.max_skipped, learner.skipped(metrics)
        if skipped <= limit:
            return
        of = f"_rank_{self._group.rank}" if self._group.size > 1 else ""
        path = self._run.path / "diverged" / f"iteration_{iteration:06d}{of}.pt"
        tensors = {name: value for name, value in vars(rollout).items() if name not in ("totals", "seconds")}
        with _if_there_is_room(path) as file:
            torch.save({"rollout": tensors, "learner": learner.state_dict()}, file)
        where = path if self._group.size == 1 else path.parent
        change = "" if is_own(learner.update) else "try a smaller ppo.learning_rate, or "
        error = UnstableError(
            f"{skipped:.0%} of iteration {iteration}'s updates had a loss or gradient that is not finite, more than "
            f"train.max_skipped ({limit:.0%}) allows; what was learned from lies in {where}; {change}look "
            "for a reward or observation that explodes"
        )
        parameters = chain(*(network.parameters() for network in learner.networks.values()))
        error.worth_saving = all(bool((parameter.abs() <= LARGEST_WEIGHT).all()) for parameter in parameters)
        raise error


def _sentence(dump: dict) -> str:
    """Say which number of which robot was not finite, and when."""
    return f"{dump['error']}, in step {dump['step']} of robot {dump['row']}"


@contextmanager
def _if_there_is_room(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for what helps to find a mistake, but must not end a run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            yield file
    except (OSError, RuntimeError) as error:
        log.warning("%s: not written (%s)", path, error)
