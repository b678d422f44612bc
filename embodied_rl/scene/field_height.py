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
from typing import Any

import torch
from torch import Tensor

from embodied_rl import machine
from embodied_rl.compiled import build

_SOURCE = Path(__file__).with_suffix(".cpp")
#: It rounds as torch does.
_FLAGS = ("-ffp-contract=off",)


@functools.cache
def load_function() -> Any | None:
    """Load the compiled function; None where it cannot be had."""
    if sys.platform == "win32" or machine.cpp_error() is not None:
        return None
    try:
        function = ctypes.CDLL(str(build(_SOURCE, flags=_FLAGS))).field_height
    except (OSError, subprocess.SubprocessError):
        return None
    function.argtypes = (*6 * (ctypes.c_void_p,), ctypes.c_int64, ctypes.c_int64, ctypes.c_int32)
    function.restype = None
    return function


def field_height(frames: Tensor, ahead: Tensor, left: Tensor, table: Tensor, grid: Tensor, columns: int) -> Tensor:
    """Heights [m] at points around robots, (N, P), float32.

    Args:
        frames: x and y [m] of each robot, cosine and sine of its heading, (N, 4).
        ahead: where the points lie in its frame [m], (P,).
        left: likewise.
        table: heights of the field's points [m], flat.
        grid: the distance of two of them, half the field's length along x and y [m], and how far from the first ones along x
            and y a point may be [cells], (5,).
        columns: how many points of the field there are for each x.
    """
    heights = frames.new_empty((frames.shape[0], ahead.shape[0]))
    torch.ops.embodied_rl.field_height(frames, ahead, left, table, grid, columns, heights)
    return heights


def _compute(frames: Tensor, ahead: Tensor, left: Tensor, table: Tensor, grid: Tensor, columns: int, heights: Tensor) -> None:
    function = load_function()
    tensors = (frames, ahead, left, table, grid, heights)
    assert function is not None and all(one.dtype == torch.float32 and one.is_contiguous() for one in tensors)
    function(*(one.data_ptr() for one in tensors), frames.shape[0], ahead.shape[0], columns)


# not torch.library.custom_op: what that does around each call costs as much as a thousand points
_LIBRARY = torch.library.Library("embodied_rl", "FRAGMENT")
_LIBRARY.define(
    "field_height(Tensor frames, Tensor ahead, Tensor left, Tensor table, Tensor grid, int columns, Tensor(a!) heights) -> ()",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
)
_LIBRARY.impl("field_height", _compute, "CPU")
torch.library.register_fake("embodied_rl::field_height", lambda *_: None, lib=_LIBRARY)
