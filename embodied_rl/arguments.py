"""A parser of arguments that names the nearest of what is allowed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

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
