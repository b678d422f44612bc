"""Probes of this machine: compilers, CUDA, Triton, OpenGL.  Each answers in one line why something does not work here."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GRAPH_DRIVER = (12, 4)
"""The CUDA version of the oldest driver on which Warp and torch are known to capture together."""

GL_REMEDY = "apt-get install libegl1 libgl1-mesa-dri" if sys.platform == "linux" else "run where there is a screen"
"""How to get the GL that films need."""

_RENDER = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16).render()"


def cores() -> int:
    """Count the cores that this process may use: `taskset`, a batch system or a container may give it fewer than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpp_error() -> str | None:
    """Why torch.compile cannot build its CPU kernels here, in one line; None where it can.

    The compiler is the one that torch's inductor picks: $CXX, or the platform's own.
    """
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler: {compiler} is not on the PATH"
    if sys.platform == "win32":  # cl reads no source from a pipe
        return None
    # What inductor's kernels include; Apple's clang has no OpenMP of its own, and inductor does without it there.
    headers, flags = ["Python.h", "cmath"], ["-fsyntax-only", "-I", sysconfig.get_path("include"), "-x", "c++", "-"]
    if sys.platform != "darwin":
        headers, flags = [*headers, "omp.h"], ["-fopenmp", *flags]
    source = "".join(f"#include <{header}>\n" for header in headers)
    return _failure([compiler, *flags], source=source)


def cuda_error() -> str:
    """Why torch sees no CUDA device here, in one line."""
    import torch

    if torch.version.cuda is None:
        return f"this build of torch ({torch.__version__}) is for the CPU; install one for CUDA"
    return "torch sees no NVIDIA GPU here"


def triton_error() -> str | None:
    """Why torch.compile cannot build kernels for the GPU here, in one line; None where it can."""
    try:
        import_module("triton")
    except Exception as error:  # whatever a broken binary package raises
        return f"triton does not import: {str(error).strip().partition(chr(10))[0]}"
    # Triton builds a small launcher in C
    compiler = os.environ.get("CC") or next((name for name in ("gcc", "clang") if shutil.which(name)), None)
    if compiler is None or shutil.which(compiler) is None:
        return "there is no C compiler, gcc or clang, which triton needs"
    flags = ["-fsyntax-only", "-I", sysconfig.get_path("include"), "-x", "c", "-"]
    return _failure([compiler, *flags], source="#include <Python.h>\n")


def graph_error(device: torch.device) -> str | None:
    """Why a CUDA graph cannot hold Warp's kernels on this device, in one line; None where it can."""
    import warp

    driver = warp.get_cuda_driver_version()
    if driver is None or driver < GRAPH_DRIVER:
        found = "there is no NVIDIA driver" if driver is None else f"the NVIDIA driver is one for CUDA {shown_version(driver)}"
        return f"{found}, and capturing needs one for {shown_version(GRAPH_DRIVER)}"
    if warp.config.verify_cuda:
        return "warp.config.verify_cuda is set, which synchronizes after every kernel"
    if not warp.is_mempool_enabled(str(device)):
        return f"{device} has no memory pool (cudaMallocAsync), where kernels find their memory during a capture"
    return None


def gl_backend() -> tuple[str | None, str]:
    """Find the value of MUJOCO_GL that renders without a window here.

    Returns:
        The value (empty: MuJoCo's default) and "", or None and why the first candidate failed, in one line.
    """
    given = os.environ.get("MUJOCO_GL")
    candidates = [given] if given else ["egl", "osmesa"] if sys.platform == "linux" else [""]
    reasons = []
    for backend in candidates:
        # In a process of its own: a broken driver may end the process that asks.
        reason = _failure([sys.executable, "-c", _RENDER], MUJOCO_GL=backend)
        if reason is None:
            return backend, ""
        reasons.append(f"MUJOCO_GL={backend}: {reason}")
    return None, reasons[0]


def display_error() -> str | None:
    """Why no window can be opened here, in one line; None where one can."""
    try:
        import glfw
    except ImportError as error:
        return f"glfw does not import: {error}"
    with warnings.catch_warnings(action="ignore"):  # it warns where it returns False
        return None if glfw.init() else "there is no display here"


def total_memory() -> float:
    """Tell how much memory this machine, or the container that this process is in, has [bytes]."""
    found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(path).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            found = min(found, float(limit))
    return found


def free_memory() -> float:
    """Tell how much memory programs may still take [bytes]; all there is, where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return total_memory()
    available = [float(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable")]
    return min([total_memory(), *available])


def processor() -> str:
    """Name this machine's processor, as its maker does; its architecture where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def shown_version(number: tuple[int, ...]) -> str:
    """Join the parts of a version with dots."""
    return ".".join(map(str, number))


def _failure(command: list[str], *, source: str = "", **environment: str) -> str | None:
    """Run a command; None if it succeeds, else the line of its errors that says most."""
    try:
        done = subprocess.run(
            command, input=source, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    # A compiler names the cause first ("fatal error: ..."), Python last ("ImportError: ...").
    return next((line for line in lines if "error:" in line), lines[-1]).strip()
