"""What every test needs: one torch thread a worker, rendering without a window, and skips with their reason."""

from __future__ import annotations

import os
import sys

import pytest

# Before anything imports torch or mujoco.  The workers share the cores, and subprocesses inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")


@pytest.fixture(scope="session")
def gl() -> str:
    """Skips the test where MuJoCo cannot render; the value of MUJOCO_GL that it renders with."""
    from embodied_rl.machine import gl_backend

    backend, reason = gl_backend()
    if backend is None:
        pytest.skip(f"MuJoCo cannot render here: {reason}")
    return backend


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]  # a folder's name would be a keyword too
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
