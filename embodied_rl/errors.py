"""The one kind of error that the command line shows without a traceback, and what several of them say."""

from __future__ import annotations

import traceback
from collections.abc import Container, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something that the user can mend; the message says where, what was given, what is allowed, and what to do."""


class Faults:
    """What a person has to mend, gathered, so that all of it is told at once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the UserError that is raised within, and go on."""
        try:
            yield
        except UserError as error:
            self._lines += str(error).splitlines()

    def note(self, line: str) -> None:
        """Note what is wrong; a line."""
        self._lines.append(line)

    def tell(self) -> None:
        """Raise what was noted, a line each; nothing where all went well.

        Raises:
            UserError: something was.
        """
        if self._lines:
            raise UserError("\n".join(dict.fromkeys(self._lines)))


def in_short(error: BaseException) -> str:
    """Write an error as its kind and the first line of what it says."""
    if isinstance(error, SystemExit):
        return f"ends the process (SystemExit {error.code})"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def last_in(error: BaseException, files: Container[str]) -> tuple[str, int] | None:
    """Find the innermost line of these files through which an error came: file and line; None where it came through none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return (frames[-1].filename, frames[-1].lineno or 0) if frames else None


def install_hint(extra: str = "") -> str:
    """Say how an extra is installed, or the package itself: it is on no registry, so from a clone.

    Args:
        extra: one of pyproject.toml's optional dependencies; empty: none.
    """
    wanted = f'".[{extra}]"' if extra else "."
    return f"pip install -e {wanted} in the clone"
