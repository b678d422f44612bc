"""Checkpoints: written whole or not at all, and read without running code.

The file is rsl_rl's layout (`actor_state_dict`, `critic_state_dict`, `optimizer_state_dict`, `iter`, `infos`), which its
runner loads, with the environments' state and the run's counters beside it.
"""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import torch

from embodied_rl.errors import UserError

_KEYS = {"actor_state_dict": dict, "critic_state_dict": dict, "optimizer_state_dict": dict, "iter": int}


class CheckpointError(UserError):
    """The file is no checkpoint of this package or rsl_rl; one line."""


def save(path: Path, state: dict) -> None:
    """Write to a temporary file, sync it, rename it: a crash leaves the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: Path, device: torch.device | str = "cpu") -> dict:
    """The checkpoint; only tensors and plain values are unpickled, so that a file from a stranger runs no code.

    Raises:
        CheckpointError: truncated, empty, malicious, or something else altogether.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        # torch.load passes over the check sums, and would read flipped bits as weights
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: refused: it holds more than tensors and plain values, so reading it could run code"
        ) from None
    except Exception as error:  # what a damaged file makes the readers raise is anyone's guess
        reason = "empty" if path.stat().st_size == 0 else "truncated or damaged"
        raise CheckpointError(f"{path}: {reason} ({type(error).__name__}); use an earlier checkpoint of the run") from None
    missing = [key for key, kind in _KEYS.items() if not isinstance(state, dict) or not isinstance(state.get(key), kind)]
    if missing:
        raise CheckpointError(f"{path}: not a checkpoint: {', '.join(missing)} missing")
    return state
