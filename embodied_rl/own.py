"""Code of a person's own, named as MODULE:NAME: found, and what it raises told in one line."""

from __future__ import annotations

import importlib
import re
import traceback
from pathlib import Path
from typing import Any

from embodied_rl.errors import UserError
from embodied_rl.problems import did_you_mean

_HERE = str(Path(__file__).parent)
#: Most letters of what an error says.
_LONG = 300


def find_own(where: str, given: str, advice: str) -> Any:
    """Import what a page names as MODULE:NAME.

    Args:
        where: what begins the error: the key, and what stands there.
        given: the name.
        advice: how it is written; ends the error where nothing has that name.

    Raises:
        UserError: there is no such module or name, or importing it raises; one line.
    """
    module, _, name = given.partition(":")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module) or not name.isidentifier():
        raise UserError(f"{where}: is not MODULE:NAME, MODULE as `import` has it; {advice}")
    try:
        found = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        parts = module.split(".")
        if error.name in [".".join(parts[: n + 1]) for n in range(len(parts))]:
            raise UserError(f"{where}: No module named '{error.name}'; {advice}") from None
        raise UserError(f"{where}: importing {module} raised {told(error)}") from None
    except BaseException as error:  # another's code may raise anything, and end the process, too
        raise UserError(f"{where}: importing {module} raised {told(error)}") from None
    if not hasattr(found, name):
        public = [one for one in vars(found) if not one.startswith("_")]
        raise UserError(f"{where}: module '{module}' has no attribute '{name}'{did_you_mean(name, public)}; {advice}")
    return getattr(found, name)


def told(error: BaseException) -> str:
    """Tell an error of another's code in one line: its kind, what it says, and the line of that code that it comes from."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONG else text[: _LONG - 3] + "..."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    at = [(frame.filename, frame.lineno) for frame in frames[-1:]]
    if at and at[0][0].startswith(_HERE):  # what it returned was refused here
        at = []
    if isinstance(error, SyntaxError) and error.filename:
        text, at = error.msg, [(error.filename, error.lineno)]
    where = f" ({at[0][0]}:{at[0][1]})" if at else ""
    return f"{type(error).__name__}{text and f': {text}'}{where}"
