"""Heights of a field on the CPU: `field_height.cpp`, as one operation that torch.compile takes whole.

A scan asks for hundreds of points of each robot in each step, three numbers from a table for each, which what torch compiles
fetches one by one.  Where there is no compiler torch does it.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from embodied_rl import machine
from embodied_rl.compiled import build

_SOURCE = Path(__file__).with_suffix(".cpp")
#: It rounds as torch does.
_FLAGS = ("-ffp-contract=off",)
_SCHEMA = "(Tensor x, Tensor y, Tensor table, int columns, float cell, float[] half, float[] most) -> Tensor"


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Load the compiled source; None where it cannot be had."""
    if sys.platform == "win32" or machine.cpp_error() is not None:
        return None
    try:
        return ctypes.CDLL(str(build(_SOURCE, flags=_FLAGS)))
    except (OSError, subprocess.SubprocessError):
        return None


@torch.library.custom_op("embodied_rl::field_height", mutates_args=(), schema=_SCHEMA)
def field_height(x: Tensor, y: Tensor, table: Tensor, columns: int, cell: float, half: list[float], most: list[float]) -> Tensor:
    """Heights [m] at points of coordinates x and y [m], (...,), float32.

    Args:
        x: along the table's first axis.
        y: along its second.
        table: heights of the field's points [m], flat.
        columns: how many there are for each x.
        cell: the distance of two of them [m].
        half: half the field's length along x and y [m].
        most: how far from its first points along x and y a point may be [cells].
    """
    library = load_library()
    assert library is not None and x.dtype == y.dtype == table.dtype == torch.float32
    x, y = x.contiguous(), y.contiguous()
    heights = torch.empty_like(x)
    places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y, table, heights)]
    numbers = [ctypes.c_float(number) for number in (cell, *half, *most)]
    library.field_height(*places, ctypes.c_int64(x.numel()), ctypes.c_int32(columns), *numbers)
    return heights


@field_height.register_fake
def _shape(x: Tensor, y: Tensor, table: Tensor, columns: int, cell: float, half: list[float], most: list[float]) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
