"""C++ sources of this package, built by the machine's own compiler and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")


def build(source: Path, headers: Iterable[Path] = (), flags: tuple[str, ...] = (), of: str = "") -> Path:
    """Build a shared library for this machine's processor, once.

    Args:
        source: one file of C++.
        headers: what it includes of this package.
        flags: more flags of g++ and clang++.
        of: whatever else it is built of, as the version of another project's headers.

    Raises:
        OSError: there is no compiler, or no place to keep what it makes.
        subprocess.SubprocessError: it does not build.
    """
    compiler = shlex.split(os.environ.get("CXX") or {"darwin": "clang++"}.get(sys.platform, "g++"))
    # what the compiler makes of -march=native names the processor's abilities, should a home be shared among machines
    target = subprocess.run([*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, check=True)
    sources = b"".join(path.read_bytes() for path in (source, *headers))
    key = hashlib.sha256(sources + target.stdout + " ".join((*_FLAGS, *flags, of)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embodied_rl"
    path = folder / f"{source.stem}-{key}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / path.name
            command = [*compiler, *_FLAGS, *flags, "-o", str(built), str(source)]
            subprocess.run(command, capture_output=True, check=True, timeout=120)
            shutil.move(built, path)  # whole or not at all, should two processes build it
    return path
