"""Builds and loads `played_cuda.cpp`, once and before torch, which asks for CUDA when it is imported."""

import ctypes
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: What has to live as long as the process.
KEPT: list[Any] = []


def load() -> None:
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None and "torch" not in sys.modules
    root = Path(found.origin).parent
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "played_cuda.so"
        command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{root / 'include'}", "-o", str(built)]
        libraries = [f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
        subprocess.run([*command, str(Path(__file__).with_suffix(".cpp")), *libraries], check=True)
        KEPT.append(ctypes.CDLL(str(built)))


load()
