"""The script that compares engines is the oracle's side of the tests too."""

from __future__ import annotations

import importlib.util
import sys
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
