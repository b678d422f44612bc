"""Contacts of balls with height fields that are as those with planes: `field_contacts.cpp`, in MuJoCo's place for it.

MuJoCo in C takes a height field for prisms side by side, whose inner edges push a ball sideways.  It exports the table of the
functions that find contacts, and this replaces the one of a field and a ball, for the whole process.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mujoco

from embodied_rl import machine
from embodied_rl.compiled import build
from embodied_rl.errors import UserError

_SOURCE = Path(__file__).with_suffix(".cpp")
#: The results are the same whatever processor it is built for.
_FLAGS = ("-ffp-contract=off",)

_installed: list[ctypes.CDLL] = []


@contextmanager
def mujocos_own() -> Iterator[None]:
    """Let this thread have MuJoCo's prisms meanwhile, of which other engines make as many contacts."""
    for library in _installed:
        library.take_prisms(1)
    try:
        yield
    finally:
        for library in _installed:
            library.take_prisms(0)


@functools.cache
def smooth_fields() -> None:
    """Let height fields push balls as planes do, from now on and everywhere in this process.

    Raises:
        UserError: this machine cannot build what does it; one line.
    """
    error = "Windows has no g++ that MuJoCo's headers are known to work with" if sys.platform == "win32" else machine.cpp_error()
    if error is None:
        try:
            own = build(_SOURCE, flags=(*_FLAGS, "-I", str(Path(mujoco.HEADERS_DIR).parent)), of=mujoco.__version__)
            mujocos = next(Path(mujoco.__file__).parent.glob("libmujoco.*"))  # loaded already: this finds it again
            table = ctypes.c_char.in_dll(ctypes.CDLL(str(mujocos)), "mjCOLLISIONFUNC")
            library = ctypes.CDLL(str(own))
            library.install(ctypes.byref(table))
            _installed.append(library)
        except (OSError, StopIteration, ValueError, subprocess.SubprocessError) as reason:
            error = f"{_SOURCE.name} does not build: {str(reason).partition(chr(10))[0]}"
        else:
            return
    raise UserError(
        f"patches: {error}; MuJoCo's own contacts of feet with rough ground push sideways at the edges of cells, and what stands "
        "in their place is compiled here: install g++ (`embodied-rl doctor` says how), or take the patches off the page"
    )
