"""How many updates of an off-policy learner the steps of the robots are worth."""

from __future__ import annotations

import logging
from typing import Any

from embodied_rl.config.sac import SACSettings
from embodied_rl.learn.limiter import Limiter
from embodied_rl.learn.rollout import Rollout

log = logging.getLogger("embodied_rl")


class Pace:
    """Counts rows that came in and updates that were made, over all ranks, which so make as many.

    Args:
        page: the page's `sac` section.
        num_envs: robots of all ranks.
        num_steps: T.
        ranks: how many there are, each of which draws a batch in an update.

    Raises:
        UserError: the band of `samples_per_insert` is too narrow.
    """

    def __init__(self, page: SACSettings, *, num_envs: int, num_steps: int, ranks: int = 1) -> None:
        self._page, self._num_envs, self._ranks = page, num_envs, ranks
        own: dict[str, Any] = {"warm_up": page.learning_starts, "tolerance": page.insert_tolerance}
        rows = {"batch": page.batch_size * ranks, "fragment": num_envs * num_steps}
        self.limiter = None if page.samples_per_insert is None else Limiter(page.samples_per_insert, **rows, **own)
        self.rows = self.updates = 0
        # where both stood when there was nothing in the replay
        self._begun = [0, 0]

    @property
    def warm(self) -> bool:
        """Whether there is enough to draw from."""
        return self.rows - self._begun[0] >= max(self._page.learning_starts, 1)

    @property
    def knows_nothing(self) -> bool:
        """Whether actions are to be uniform: before the first update of all."""
        return not self.warm and not self.updates

    def may_draw(self) -> bool:
        """Whether an update may be made now."""
        return self.warm and (self.limiter is None or self.limiter.may_draw())

    def take_in(self, rollout: Rollout) -> int:
        """Count a rollout's rows; the updates that are due: none before there is enough to draw from.

        Of all robots' steps it is what `updates` or `samples_per_insert` say.  Where rows come from workers as they are done,
        `updates` for T steps, whatever came, as far as `samples_per_insert` lets them.
        """
        page, streams = self._page, rollout.lanes is not None
        rows = rollout.rewards.numel() if streams else len(rollout.rewards) * self._num_envs
        self.rows += rows
        if self.limiter:
            self.limiter.inserted += rows
        if not self.warm:
            return 0
        since = self.rows - self._begun[0] - page.learning_starts
        owed = int(since / self._num_envs * page.updates) - (self.updates - self._begun[1])
        most = max(1, int(len(rollout.rewards) * page.updates)) if streams else None if self.limiter else max(0, owed)
        count = most or 0
        if self.limiter:
            count = 0
            while count != most and self.limiter.may_draw():
                self.limiter.drawn += page.batch_size * self._ranks
                count += 1
        return count

    def begin_anew(self, *, tell: bool) -> None:
        """Fill the replay once more before anything is drawn: what was in it was not kept."""
        self._begun = [self.rows, self.updates]
        if self.limiter:
            self.limiter.begin_anew()
        if tell:
            rows = self._page.learning_starts
            log.info("goes on with an empty replay (sac.save_replay: false): %d rows come in before the next update", rows)

    def metrics(self, updates: int, steps: int) -> dict[str, float]:
        """Say how many updates there are for steps: in this iteration for those of all robots, in all for those of one."""
        rows, made = self.rows - self._begun[0] - self._page.learning_starts, self.updates - self._begun[1]
        told = {"Replay/updates_per_vector_step": updates / max(steps, 1), "Replay/updates_per_robot_step": made / max(rows, 1)}
        if self.limiter:
            told["Replay/samples_per_insert"] = self.limiter.drawn / max(self.limiter.inserted - self.limiter.warm_up, 1)
        return told

    def state_dict(self) -> dict[str, Any]:
        """Return all counts."""
        counts = {"rows": self.rows, "updates": self.updates, "begun": list(self._begun), "num_envs": self._num_envs}
        limiter = self.limiter
        return counts | ({"inserted": limiter.inserted, "drawn": limiter.drawn} if limiter else {})

    def load_state_dict(self, state: dict[str, Any], *, tell: bool) -> None:
        """Go on from there; of another number of robots it is said what is held."""
        self.rows, self.updates, self._begun = state["rows"], state["updates"], list(state["begun"])
        if self.limiter:
            self.limiter.inserted, self.limiter.drawn = state.get("inserted", 0), state.get("drawn", 0)
        if tell and state["num_envs"] != self._num_envs:
            held, before, now = self._page.updates, state["num_envs"], self._num_envs
            log.warning(
                "sac.updates: %g for each step of all robots, as before: %.3g for each step of a robot now, %.3g before (%d "
                "robots, and %d)",
                *(held, held / now, held / before, now, before),
            )
