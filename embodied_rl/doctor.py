"""What works on this machine, and for what does not, one line on how to get it: `embodied-rl doctor`."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    import torch

MINIMUM = {"torch": "2.11", "mujoco": "4.0", "rsl-rl-lib": "5.5", "mujoco-warp": "4.0", "mujoco-mjx": "3.17"}
"""The oldest versions that training works with."""

MJX_PARITY = {"mujoco-mjx": "3.17", "mujoco": "4.0", "jax": "0.10"}
"""Versions with which the engine mjx passes its parity tests; MJX has no release of MuJoCo's 4.0."""

GRAPH_DRIVER = (12, 4)
"""The CUDA version of the oldest driver on which Warp and torch are known to capture together."""

GL_REMEDY = "apt-get install libegl1 libgl1-mesa-dri" if sys.platform == "linux" else "run where there is a screen"
"""How to get the GL that films need."""

_RENDER = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16).render()"


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    """What was looked at."""
    works: bool
    """Whether it works here."""
    detail: str
    """What was found."""
    remedy: str = ""
    """How to get it, where it does not work."""
    required: bool = False
    """Whether training needs it."""


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
        found = "there is no NVIDIA driver" if driver is None else f"the NVIDIA driver is one for CUDA {_version(driver)}"
        return f"{found}, and capturing needs one for {_version(GRAPH_DRIVER)}"
    if warp.config.verify_cuda:
        return "warp.config.verify_cuda is set, which synchronizes after every kernel"
    if not warp.is_mempool_enabled(str(device)):
        return f"{device} has no memory pool (cudaMallocAsync), where kernels find their memory during a capture"
    return None


def gl_backend() -> tuple[str | None, str]:
    """The value of MUJOCO_GL that renders without a window here.

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


def report() -> list[Check]:
    """Look at everything; takes some seconds, opens no window, writes no file."""
    return [_python(), _machine(), *_torch(), *_mujoco(), *_learner(), *_export(), _film(), _compiler(), _gymnasium()]


def main() -> int:
    """Print the report.

    Returns:
        0 if training works here, else 1.
    """
    console = Console(soft_wrap=True)
    checks = report()
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark, style = ("ok", "green") if check.works else ("missing", "red") if check.required else ("no", "yellow")
        line = Text.assemble((f"{mark:<8}", style), f"{check.name:<{width}}  {check.detail}")
        if check.remedy:
            line.append(f"; {check.remedy}", style="bold")
        console.print(line)
    if all(check.works for check in checks if check.required):
        console.print("Training works here: embodied-rl train go2_flat")
        return 0
    console.print("Training does not work here: see the lines that begin with 'missing'.")
    return 1


def _python() -> Check:
    works = sys.version_info >= (3, 11)
    remedy = "" if works else "install Python 3.11 or newer and make a new virtual environment with it"
    return Check("python", works, f"{platform.python_version()} ({sys.executable})", remedy, required=True)


def _machine() -> Check:
    return Check("machine", True, f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")


def _torch() -> list[Check]:
    package = _package("torch", "torch")
    if not package.works:
        return [package]
    import torch

    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return [package, Check("devices", True, ", ".join(devices))]


def _mujoco() -> list[Check]:
    return [
        _package("mujoco", "mujoco.batch"),
        Check("engine native", True, "mujoco.batch, on all CPU cores"),
        _warp(),
        _mjx(),
        Check("engine isaacgym", False, "planned", "take native, warp or mjx"),
    ]


def _warp() -> Check:
    package = _package("mujoco-warp", "mujoco_warp", extra="cuda", required=False)
    if not package.works:
        return replace(package, name="engine warp")
    import torch
    import warp

    detail = f"mujoco-warp {package.detail}, warp-lang {metadata.version('warp-lang')}"
    if not torch.cuda.is_available():
        return Check("engine warp", True, f"{detail}, slowly on the CPU: {cuda_error()}")
    if not warp.is_cuda_available():
        return Check("engine warp", False, f"{detail} sees no GPU, though torch does", "pip install --force-reinstall warp-lang")
    device = torch.device("cuda", torch.cuda.current_device())
    free, total = torch.cuda.mem_get_info(device)
    driver = _version(warp.get_cuda_driver_version() or ())
    detail += f", driver for CUDA {driver}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    reasons = [reason for reason in (graph_error(device), triton_error()) if reason]
    slower = "; ".join(reasons) + ": the step runs without a CUDA graph or fused terms, slower" if reasons else ""
    return Check("engine warp", True, detail, slower)


def _mjx() -> Check:
    # or looking at a GPU takes three quarters of its memory, from a training that may run there
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    for name, module in (("jax", "jax"), ("mujoco-mjx", "mujoco.mjx")):
        package = _package(name, module, extra="mjx", required=False)
        if not package.works:
            return replace(package, name="engine mjx")
    import jax
    import torch

    logging.getLogger("jax").setLevel(logging.WARNING)  # which accelerators it looks for in vain is no news
    versions = {name: metadata.version(name) for name in MJX_PARITY}
    detail = f"mujoco-mjx {versions['mujoco-mjx']}, jax {versions['jax']} on {jax.default_backend()}"
    remedies = []
    if any(_number(version) != _number(MJX_PARITY[name]) for name, version in versions.items()):
        known = ", ".join(f"{name} {version}" for name, version in MJX_PARITY.items())
        remedies.append(f"known to agree with C: {known}; `pytest tests/physics/test_parity.py` says whether these do")
    if torch.cuda.is_available() and jax.default_backend() == "cpu":
        remedies.append('for the GPU: pip install "jax[cuda12]"')
    return Check("engine mjx", True, detail, "; ".join(remedies))


def _learner() -> list[Check]:
    return [_package("rsl-rl-lib", "rsl_rl"), _package("tensorboard", "tensorboard")]


def _export() -> list[Check]:
    return [_package(name, name, required=False) for name in ("onnx", "onnxscript", "onnxruntime")]


def _gymnasium() -> Check:
    return _package("gymnasium", "gymnasium", extra="gym", required=False)


def _film() -> Check:
    video = _package("av", "av", required=False)
    if not video.works:
        return video
    backend, reason = gl_backend()
    if backend is None:
        remedy = "apt-get install libegl1 libgl1-mesa-dri" if sys.platform == "linux" else "run on a machine with a screen"
        return Check("films", False, reason, f"without GL there are no films: {remedy}")
    return Check("films", True, f"av {metadata.version('av')}, MUJOCO_GL={backend}")


def _compiler() -> Check:
    reason = cpp_error()
    if reason is None:
        return Check("compiler", True, "torch.compile can build its C++ kernels")
    remedy = {"linux": "apt-get install g++ python3-dev", "darwin": "xcode-select --install"}.get(
        sys.platform, "install Microsoft C++ Build Tools"
    )
    return Check("compiler", False, reason, f"the step runs without torch.compile, slower: {remedy}")


def _package(name: str, module: str, *, extra: str = "", required: bool = True) -> Check:
    """Whether a distribution is there, is not older than MINIMUM, and imports."""
    install = f'pip install "embodied-rl{f"[{extra}]" if extra else ""}"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed", install, required)
    minimum = MINIMUM.get(name, "0")
    if _number(version) < _number(minimum):
        return Check(name, False, f"{version} is too old", f'pip install --upgrade "{name}>={minimum}"', required)
    try:
        import_module(module)
    except Exception as error:  # whatever a broken binary package raises, the report goes on
        reason = str(error).strip().split("\n")[0]
        detail = f"{version} does not import: {type(error).__name__}: {reason}"
        return Check(name, False, detail, f"pip install --force-reinstall {name}", required)
    return Check(name, True, version, required=required)


def _version(number: tuple[int, ...]) -> str:
    return ".".join(map(str, number))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


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
