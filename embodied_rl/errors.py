"""The one kind of error that the command line shows without a traceback, and what several of them say."""

from __future__ import annotations

from collections.abc import Iterator
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

    def tell(self) -> None:
        """Raise what was noted, a line each; nothing where all went well.

        Raises:
            UserError: something was.
        """
        if self._lines:
            raise UserError("\n".join(dict.fromkeys(self._lines)))


def install_hint(extra: str = "") -> str:
    """Say how an extra is installed, or the package itself: it is on no registry, so from a clone.

    Args:
        extra: one of pyproject.toml's optional dependencies; empty: none.
    """
    wanted = f'".[{extra}]"' if extra else "."
    return f"pip install -e {wanted} in the clone"
