"""Finds the callables of a page's terms, in the shipped modules and in files of people, whose mistakes it names."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from embodied_rl.config.page import Page
from embodied_rl.config.terms import SECTIONS, TermSignature, find_terms
from embodied_rl.errors import UserError, in_short, last_in
from embodied_rl.family import imported_terms
from embodied_rl.mdp.declared import check_declared
from embodied_rl.strict_yaml import display

_IMPORTING = threading.RLock()
#: Files of people, by the name that a traceback has for them.
OWN_FILES: set[str] = set()
#: Terms that were looked at once.
_CHECKED: set[TermSignature] = set()
#: How a message begins that is about the term that is called, or declared, now: whoever says so does not know which.
_TERM = "a term"


@contextmanager
def naming_own(where: str) -> Iterator[None]:
    """Say in which line of a person's own file something went wrong that is called within.

    Args:
        where: the term, by its path; or the page.

    Raises:
        UserError: it has; one line.  What goes wrong in the shipped code alone goes through, and so does what says its place.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the code of a term may raise: sys.exit() is no end of a training
        own, said = last_in(error, OWN_FILES), str(error)
        known = isinstance(error, UserError)
        if not said.startswith(_TERM) if known else own is None:
            raise
        place = f"{display(Path(own[0]))}:{own[1]}: " if own else ""
        raise UserError(f"{where}: {place}{said.removeprefix(f'{_TERM} ') if known else in_short(error)}") from error


class Finder:
    """Finds the callable of a term; a page's own modules are imported from their files, once."""

    def __init__(self, page: Page) -> None:
        of_family = imported_terms(page.task)
        OWN_FILES.update(str(path) for path, _ in of_family)
        self._terms, _ = find_terms([Path(path) for path in page.terms], of_family)

    def signature(self, section: str, name: str) -> TermSignature:
        """Return what the source of a section's term says of it, by the term's name."""
        return self._terms[SECTIONS[section]][name]

    def __call__(self, section: str, name: str) -> Any:
        """Find the callable of a section's term by the term's name.

        Raises:
            UserError: what its file has by that name is not what is declared there; one line.
        """
        signature = self.signature(section, name)
        found = getattr(_module(signature), name, None)
        if signature not in _CHECKED:
            check_declared(found, signature)
            _CHECKED.add(signature)
        return found


def _module(signature: TermSignature) -> ModuleType:
    if signature.module_name.startswith("embodied_rl."):
        return importlib.import_module(signature.module_name)
    path = signature.module_path.resolve()
    # one name for each file: two pages may have a my_terms.py each
    name = f"embodied_rl_terms_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    with _IMPORTING:  # another thread must not find a module that is half there
        if name not in sys.modules:
            _load(name, path)
    return sys.modules[name]


def _load(name: str, path: Path) -> None:
    """Import a file as a module of this name; it leaves none behind where it fails."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    # torch.compile looks a function's module up there, and so do dataclasses and pickle
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    OWN_FILES.add(str(path))
    try:
        with naming_own("terms"):
            spec.loader.exec_module(module)
    except UserError as error:
        del sys.modules[name]
        cause = error.__cause__
        if isinstance(cause, ImportError) and (beside := _beside(cause, path.parent)):
            advice = f"a file of terms imports no other beside it, as {beside}: put both into one file"
            raise UserError(f"{error}; {advice}") from cause
        raise
    except BaseException:
        del sys.modules[name]
        raise


def _beside(error: ImportError, folder: Path) -> str:
    """Name the file beside a file of terms that it wanted to import; empty where it wanted something else."""
    if "relative import" in str(error):
        return "from . import ... would"
    name = f"{(error.name or '').partition('.')[0]}.py"
    return name if (folder / name).is_file() else ""
