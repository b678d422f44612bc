"""How the scripts beside it report: a line at once for whoever waits, all figures as JSON at the end.

gpu_first_light.sh sets $OUT and collects both from there; without it they are printed alone.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def short(result: Any, skip: tuple[str, ...] = ()) -> str:
    """A few words of a result, which may be a dict of results."""
    if isinstance(result, dict):
        return "  ".join(f"{key}={short(value)}" for key, value in result.items() if key not in skip)[:420]
    return f"{result:.4g}" if isinstance(result, float) else str(result)[:420].replace("\n", " ")


def say(line: str) -> None:
    """Print a line, and note it among those that are shown of this step."""
    print(line, flush=True)
    if out := os.environ.get("OUT"):
        with (Path(out) / "brief").open("a") as file:
            file.write(line + "\n")


def attempt(figures: dict[str, Any], name: str, function: Callable[[], Any]) -> Any:
    """Put what the function returns, or why it returns nothing, into the figures."""
    started = time.perf_counter()
    try:
        figures[name] = function()
    except Exception as error:
        traceback.print_exc()
        figures[name] = f"FAILED {type(error).__name__}: {str(error)[:400]}"
    say(f"{name}: {short(figures[name])}   [{time.perf_counter() - started:.1f} s]")
    return figures[name]


def write(path: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON, whatever is in them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1, default=str))
