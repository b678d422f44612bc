"""What takes longer than two seconds says so: what is done, how far it is, and how to do without."""

from __future__ import annotations

import logging
import threading
import time
from typing import Self

log = logging.getLogger("embodied_rl")

#: Seconds before the first line, and between those that follow.
_FIRST_S, _NEXT_S = 2.0, 15.0

#: What is waited for now; of what holds the other, the innermost speaks.
_open: list[Waiting] = []


class Waiting:
    """Work that may take long; a context manager, silent where it is soon done.

    Its lines are warnings: they are seen in a program that has set up no logging, too.

    Args:
        what: what is done: "compiling the step".
        skip: how to do without it, or when it is not done again; said once.
    """

    def __init__(self, what: str, skip: str = "") -> None:
        self.far = ""
        """How far it is: "3 of 10 s"; whoever works sets it."""
        self._what, self._skip = what, skip
        self._done = threading.Event()

    def __enter__(self) -> Self:
        _open.append(self)
        threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        _open.remove(self)

    def _tell(self) -> None:
        started, hint, pause = time.monotonic(), f" ({self._skip})" if self._skip else "", _FIRST_S
        while not self._done.wait(pause):
            pause = _NEXT_S
            if _open[-1:] != [self]:
                continue
            far = f": {self.far}" if self.far else ""
            log.warning("%s%s, %.0f s%s", self._what, far, time.monotonic() - started, hint)
            hint = ""
