"""Whether a training that earns more does more: a reward that rises by itself pays for something else than the task."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("embodied_rl")

#: Share of a run over which both are compared, and of that its beginning and its end; in fewer iterations robots learn no more
#: than not to fall, which pays on every page.
_WINDOW, _END, _FEW = 0.2, 0.25, 20
#: By which share a reward has to rise to have risen, and by how much of what is asked for what is done.
_RISE, _DONE = 0.1, 0.02
#: Who does so much of what is asked for does not stand by.
_ENOUGH = 0.5


class Progress:
    """Compares what robots earn with what they do, and says once in a fifth of a run where the one rises without the other.

    Args:
        name: the page, for the line.
        measure: the metric of what is done, in [0, 1], by its TensorBoard name, as the family's score says; None: no line.
        say: where a line goes.
    """

    def __init__(self, name: str, measure: str | None, say: Callable[[str], None] = log.warning) -> None:
        self._name, self._measure, self._say = name, measure, say
        self._seen: list[tuple[float, float]] = []

    def look(self, iterations: int, metrics: dict[str, float]) -> None:
        """Take note of an iteration of so many."""
        if self._measure is None or self._measure not in metrics or "Train/mean_reward" not in metrics:
            return
        self._seen.append((metrics["Train/mean_reward"], metrics[self._measure]))
        window = max(round(_WINDOW * iterations), _FEW)
        if len(self._seen) < window:
            return
        seen, part = self._seen[-window:], max(round(_END * window), 1)
        (earned, done), (earns, does) = (
            tuple(sum(one) / part for one in zip(*few, strict=True)) for few in (seen[:part], seen[-part:])
        )
        if earns - earned > _RISE * abs(earned) and does - done < _DONE and does < _ENOUGH:
            self._say(
                f"{self._name}: in the last {window} iterations the reward has risen from {earned:.1f} to {earns:.1f}, and "
                f"robots do no more of what is asked for ({self._measure} {does:.2f}): it pays for something else; "
                f"`embodied-rl audit {self._name}` says what standing still earns"
            )
            self._seen.clear()
