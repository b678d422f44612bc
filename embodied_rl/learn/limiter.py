"""Who waits where data come and are drawn at speeds of their own: neither side is further ahead than a band allows.

    lead = inserted * ratio - drawn, held within warm_up * ratio +- tolerance

As in Reverb's rate limiter (Cassirer et al., arXiv:2102.04736).  The learner waits below the band, whoever inserts above it.
"""

from __future__ import annotations

from embodied_rl.errors import UserError


class Limiter:
    """Counts rows that came in and rows that were drawn.

    Args:
        ratio: rows drawn for each that comes in.
        batch: rows of a draw.
        fragment: most rows that come in at once.
        warm_up: rows before the first draw.
        tolerance: rows drawn that either side may be ahead by; None: a batch and what is drawn of a fragment.

    Raises:
        UserError: the band is too narrow: both sides would wait for each other.
    """

    def __init__(self, ratio: float, *, batch: int, fragment: int, warm_up: int, tolerance: float | None = None) -> None:
        step = batch + fragment * ratio
        self.ratio, self.batch, self.warm_up, self.tolerance = ratio, batch, max(warm_up, 1), tolerance or step
        if 2.0 * self.tolerance < step:
            raise UserError(
                f"sac.insert_tolerance: {tolerance:g}: a batch of {batch} rows, and {fragment} that come in at once times "
                f"samples_per_insert: {ratio:g}, are {step:g}, and both sides would wait for each other; at least {step / 2.0:g}"
            )
        self.inserted = self.drawn = 0

    @property
    def lead(self) -> float:
        """Rows that may be drawn until what came in is used up, less those that were to be there first."""
        return (self.inserted - self.warm_up) * self.ratio - self.drawn

    def may_draw(self) -> bool:
        """Whether a batch may be drawn."""
        return self.inserted >= self.warm_up and self.lead - self.batch >= -self.tolerance

    def may_insert(self, rows: int) -> bool:
        """Whether so many rows may come in."""
        return self.inserted < self.warm_up or self.lead + rows * self.ratio <= self.tolerance

    def begin_anew(self) -> None:
        """Count from here: what there was is gone."""
        self.inserted = self.drawn = 0
