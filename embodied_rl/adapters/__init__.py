"""Our environments as others want them."""

from __future__ import annotations

from typing import Any

from embodied_rl.env import Env
from embodied_rl.errors import UserError


def check_is_ours(env: Any) -> None:
    """Refuse what `embodied_rl.make` did not make.

    Raises:
        UserError: it is something else; one line.
    """
    if not isinstance(env, Env):
        raise UserError(f"env: {type(env).__name__} is given, and what embodied_rl.make gives is wanted")
