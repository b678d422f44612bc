"""A parser of arguments that names the nearest of what is allowed."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from embodied_rl.errors import UserError
from embodied_rl.problems import did_you_mean


class Parser(argparse.ArgumentParser):
    """One whose errors name the nearest verb, choice or option."""

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Say which arguments are unknown, and end the process with status 2."""
        options = [name for action in self._actions for name in action.option_strings]
        self.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(unknown[0].partition('=')[0], options)}")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end the process with status 2."""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)$", message):
            message += did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        super().error(message)


def add_page(parser: argparse.ArgumentParser, without: str = "") -> None:
    """Add the page and its changes; `without` says what holds where the page may be left out."""
    optional: dict[str, Any] = {"nargs": "?"} if without else {}
    said = f"; {without}" if without else ""
    parser.add_argument("config", metavar="CONFIG", help=f"a page's name (see `list`) or the path of one{said}", **optional)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes: ppo.learning_rate=3e-4 env.num_envs=512")


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add how many robots there are, and where they live."""
    parser.add_argument("--num-envs", type=int, metavar="N", help="robots simulated at once")
    parser.add_argument("--device", metavar="D", help="cpu, cuda or cuda:1; cuda picks the engine warp")
    parser.add_argument("--engine", metavar="E", help="the physics engine: native, warp or mjx")
    parser.add_argument("--seed", type=int, metavar="S", help="key of every random number")


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """Take what `add_where` added."""
    return {name: getattr(options, name) for name in ("num_envs", "device", "engine", "seed")}


def length_of_time(text: str) -> float:
    """Read seconds.

    Raises:
        argparse.ArgumentTypeError: they are no length of time.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: a number of seconds, more than 0")
    return seconds


def refuse_unwritable(options: argparse.Namespace) -> None:
    """Try whether what is to be written can be, before the work that it takes; nothing is left of the trial.

    Raises:
        UserError: an output that cannot be written; one line.
    """
    for name in ("json", "video", "png", "output"):
        path: Path | None = getattr(options, name, None)
        if path is None or (path.is_dir() and name == "output"):
            continue
        missing = [one for one in (path, *path.parents) if not one.exists()]
        try:
            if name == "output":
                path.mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("ab").close()
        except OSError as error:
            raise UserError(f"--{name} {path}: cannot be written ({error.strerror}); name another") from None
        finally:
            for one in missing:
                if one.is_dir():
                    one.rmdir()
                elif one.exists():
                    one.unlink()
