"""The one kind of error that the command line shows without a traceback, and what several of them say."""


class UserError(ValueError):
    """Something that the user can mend; the message says where, what was given, what is allowed, and what to do."""


def install_hint(extra: str = "") -> str:
    """Say how an extra is installed, or the package itself: it is on no registry, so from a clone.

    Args:
        extra: one of pyproject.toml's optional dependencies; empty: none.
    """
    wanted = f'".[{extra}]"' if extra else "."
    return f"pip install -e {wanted} in the clone"
