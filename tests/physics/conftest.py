"""The script that compares engines is the oracle's side of the tests too."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/parity/engines.py"


@pytest.fixture(scope="session")
def parity() -> ModuleType:
    """`benchmarks/parity/engines.py`, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("parity", SCRIPT)
    assert spec and spec.loader
    # dataclasses look their module up by name
    module = sys.modules["parity"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def python38() -> Path:
    """A Python 3.8 with NumPy; `make test` makes it where there is such a Python."""
    python = Path(os.environ.get("EMBODIED_RL_PYTHON38") or Path(sys.prefix) / "python3.8/bin/python")
    if not python.is_file():
        pytest.skip(f"no Python 3.8 with NumPy at {python}: make test makes it where there is one, of pyenv, uv or the system")
    return python


@pytest.fixture(scope="module")
def isaacgym_stand_in(python38: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """In that Python, `isaacgym` is a stand-in."""
    script = tmp_path_factory.mktemp("isaacgym") / "python"
    folder = Path(__file__).parent / "isaacgym_stand_in"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{python38}" "$@"\n')
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBODIED_RL_ISAACGYM_PYTHON", str(script))
        yield
