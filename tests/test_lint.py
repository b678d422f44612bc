"""Functions are documented in the imperative, and the list of files which are not yet only shrinks."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IMPERATIVE = "D401"

pytest.importorskip("ruff", reason="needs ruff: an extra, dev")


def found(*arguments: str, source: str | None = None) -> list[dict]:
    """What ruff finds in a source, or in files."""
    command = (sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", *arguments)
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


def listed() -> list[str]:
    """The files that pyproject.toml excuses."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    return [file for file, codes in lint.get("extend-per-file-ignores", {}).items() if IMPERATIVE in codes]


def test_a_file_that_complies_is_not_excused() -> None:
    files = listed()
    assert [file for file in files if not (ROOT / file).is_file()] == []
    guilty = {Path(one["filename"]).resolve() for one in found("--isolated", "--select", IMPERATIVE, *files)} if files else set()
    in_vain = [file for file in files if ROOT / file not in guilty]
    assert not in_vain, f"take out of [tool.ruff.lint.extend-per-file-ignores] (make docstrings prints what is left): {in_vain}"


@pytest.mark.parametrize(
    ("first", "complies"), [("Return one.", True), ("Returns one.", False), ("A number that is one.", False)]
)
def test_a_new_module_is_not_excused(first: str, complies: bool) -> None:
    source = f'"""A module."""\n\n\ndef one() -> int:\n    """{first}"""\n    return 1\n'
    codes = [one["code"] for one in found("--stdin-filename", str(ROOT / "embodied_rl" / "new.py"), "-", source=source)]
    assert codes == ([] if complies else [IMPERATIVE])
