"""What every test needs: one torch thread a worker, rendering without a window, and skips with their reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before anything imports torch or mujoco.  The workers share the cores, and subprocesses inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")


#: A robot of one joint and one foot, which is soon compiled.
HOPPER = """
<mujoco>
  <option {option}>
  <worldbody>
    <body name="base">
      <freejoint/> <geom type="box" size="0.1 0.1 0.05"/>
      <body name="leg" pos="0.1 0 0">
        <joint name="knee" axis="0 1 0"/>
        <geom name="foot" type="sphere" size="0.02" pos="0 0 -0.2"/> <site name="foot" pos="0 0 -0.2"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
HOPPER_PAGE = """
name: hopper
model: hopper.xml
base: base
base_height: 0.22
joints:
  knee: {default: 0.0, stiffness: 20.0, damping: 0.5, effort_limit: 20.0}
feet:
  foot: {geoms: [foot], site: foot}
bodies: {}
mirror: {}
"""


@pytest.fixture
def hopper() -> Callable[[Path, str], None]:
    """`hopper(folder, option)`: writes the robot, with MuJoCo's options as XML has them."""

    def write(folder: Path, option: str) -> None:
        (folder / "hopper.xml").write_text(HOPPER.format(option=option))
        (folder / "robot.yaml").write_text(HOPPER_PAGE)

    return write


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
