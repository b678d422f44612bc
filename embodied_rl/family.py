"""A task family: a folder with the terms, the score and the demo of one kind of task, shipped or one's own.

Reading one runs none of its code and imports no torch; `score_class` and `demo` import its modules when they are called.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from embodied_rl import paths
from embodied_rl.config.terms import TermSignature, read_terms
from embodied_rl.errors import UserError
from embodied_rl.problems import Problem, did_you_mean, lacking, shown
from embodied_rl.strict_yaml import display


class FamilyError(UserError):
    """No task family can be had from what the page names; one line."""


@dataclass(frozen=True)
class Family:
    """What the files of a task family say, unimported."""

    name: str
    folder: Path
    package: str
    """`embodied_rl.tasks.NAME`; that of one's own folder ends in a hash of its path."""
    score: TermSignature
    """The class in score.py that judges policies."""
    own: bool
    """Whether it is one's own folder and not shipped."""
    term_files: tuple[tuple[Path, str], ...]
    """Files with terms that a page adds to the shipped ones, with the names of their modules: none of a shipped family."""

    def score_class(self) -> Any:
        """Import score.py; the class in it."""
        return getattr(self._import("score"), self.score.name)

    def part(self, name: str, protocol: type) -> Any:
        """Import a file that a family may have, and check it; None where there is none.

        Raises:
            FamilyError: it cannot be imported, or lacks parts of the protocol.
        """
        path = self.folder / f"{name}.py"
        if not path.is_file():
            return None
        module = self._import(name)
        check_parts(module, protocol, path)
        return module

    def deployment(self) -> Path | None:
        """Find deploy.py, where there is one: how a robot knows what policies of the family see, in NumPy alone."""
        path = self.folder / "deploy.py"
        return path if path.is_file() else None

    def import_terms(self) -> None:
        """Import the files with terms that a page adds to the shipped ones."""
        for path, _ in self.term_files:
            self._import(path.stem)

    def _import(self, name: str) -> ModuleType:
        try:
            if self.own:
                _make_package(self.package, self.folder)
            return importlib.import_module(f"{self.package}.{name}")
        except Exception as error:  # whatever the code of a family may raise
            last = [one for one in traceback.extract_tb(error.__traceback__) if Path(one.filename).parent == self.folder]
            line = error.lineno if isinstance(error, SyntaxError) else last[-1].lineno if last else None
            path = Path(last[-1].filename) if last else self.folder / f"{name}.py"
            said = (str(error).splitlines() or [""])[0]
            where = f"{display(path)}:{line}" if line else display(path)
            raise FamilyError(f"task: {where}: cannot be imported: {type(error).__name__}: {said}") from error


def family_names() -> list[str]:
    """List the families that ship with the package."""
    return sorted(path.parent.name for path in paths.shipped("tasks").glob("*/score.py"))


def load_family(name_or_path: str) -> Family:
    """Read a shipped family, or one in a folder.

    Raises:
        FamilyError: there is none, or its score cannot be read.
    """
    shipped = name_or_path in family_names()
    folder = paths.shipped("tasks") / name_or_path if shipped else Path(name_or_path).resolve()
    if not folder.is_dir():
        near = did_you_mean(name_or_path, family_names())
        known = ", ".join(family_names())
        raise FamilyError(f"task: {shown(name_or_path)}: no such family{near} (shipped: {known}; or a folder with score.py)")
    score = _read_score(folder)
    if shipped:
        return Family(name_or_path, folder, f"embodied_rl.tasks.{name_or_path}", score, False, ())
    # one name for each folder: two pages may have a my_family each
    name, key = re.sub(r"\W", "_", folder.name), hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    package = f"embodied_rl.tasks.{name}_{key}"
    files = ((path, f"{package}.{path.stem}") for path in sorted(folder.glob("*.py")) if path.stem != "__init__")
    return Family(folder.name, folder, package, score, True, tuple(filter(_has_terms, files)))


def imported_terms(task: str | None) -> tuple[tuple[Path, str], ...]:
    """Import the terms of a page's own family; their files, with the names of their modules.

    Args:
        task: the page's.

    Raises:
        FamilyError: a file of the family cannot be imported.
    """
    if task is None:
        return ()
    family = load_family(task)
    family.import_terms()
    return family.term_files


def check_parts(brought: Any, protocol: type, where: Path) -> None:
    """Check that what a family brought has all parts of a protocol.

    Raises:
        FamilyError: it lacks some.
    """
    if missing := lacking(brought, {**protocol.__annotations__, **vars(protocol)}):
        source = f"{protocol.__module__.replace('.', '/')}.py"
        raise FamilyError(f"task: {display(where)}: lacks {', '.join(missing)}; {source} says what it needs")


def _read_score(folder: Path) -> TermSignature:
    path = folder / "score.py"
    if not path.is_file():
        raise FamilyError(f"task: {display(folder)}: has no score.py; a family is a folder with one")
    found = list(read_terms(path, "score"))
    for problem in (one for one in found if isinstance(one, Problem)):
        raise FamilyError(f"task: {problem}")
    scores = [one for one in found if isinstance(one, TermSignature) and one.kind == "score"]
    if len(scores) != 1:
        names = f" ({', '.join(one.name for one in scores)})" if scores else ""
        raise FamilyError(f"task: {display(path)}: has {len(scores)} classes decorated @score(){names}; a family has one")
    return scores[0]


def _has_terms(file: tuple[Path, str]) -> bool:
    """Whether a file declares terms, readable or not."""
    return any(isinstance(one, Problem) or one.kind != "score" for one in read_terms(*file))


def _make_package(name: str, folder: Path) -> None:
    """Have the modules of a folder imported as a package of this name."""
    if name in sys.modules:
        return
    code = folder / "__init__.py"
    loader = importlib.util.spec_from_file_location(name, code, submodule_search_locations=[str(folder)])
    assert loader is not None and loader.loader is not None
    sys.modules[name] = package = importlib.util.module_from_spec(loader)
    if code.is_file():
        try:
            loader.loader.exec_module(package)
        except BaseException:
            del sys.modules[name]
            raise
