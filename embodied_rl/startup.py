"""A verb starts sooner when nobody looks for garbage in what it has just imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Leave off collecting garbage while torch is imported for the first time, and never look through what is there then.

    An import makes half a million objects that stay; Python would go through them again and again on the way, and once more at
    the end of the process: a sixth of the time of `check`.  Where torch is there already, nothing changes.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
