"""What works on this machine, and for what does not, one line on how to get it: `embodied-rl doctor`."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module, metadata

from rich.console import Console
from rich.text import Text

from embodied_rl import machine
from embodied_rl.errors import install_hint
from embodied_rl.waiting import Waiting

MINIMUM = {"torch": "2.11", "mujoco": "4.0", "rsl-rl-lib": "5.5", "mujoco-warp": "4.0", "mujoco-mjx": "3.17"}
"""The oldest versions that training works with."""

MJX_PARITY = {"mujoco-mjx": "3.17", "mujoco": "4.0", "jax": "0.10"}
"""Versions with which the engine mjx passes its parity tests; MJX has no release of MuJoCo's 4.0."""


_EXTRAS = (
    ("gymnasium", "gymnasium", "gym"),
    ("ray", "ray", "ray"),
    ("wandb", "wandb", "wandb"),
    ("dm-control", "dm_control", "dmc"),
    ("shimmy", "shimmy", "dmc"),
    ("envpool", "envpool", "envpool"),
)
"""Packages that some pages need, what is imported of them, and the extra that brings them."""

_WIDTH = 15
"""Room for the longest name."""


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


def report() -> Iterator[Check]:
    """Look at one thing after the other; takes some seconds, opens no window, writes no file."""
    yield from (_python(), _machine())
    for look in (_torch, _mujoco, _learner, _export, _extras):
        yield from look()
    for look in (_film, _display, _compiler):
        yield look()


def main() -> int:
    """Print the report.

    Returns:
        0 if training works here, else 1.
    """
    console = Console(soft_wrap=True)
    works = True
    checks = report()
    while check := _next(checks):  # each line as it is found
        works = works and (check.works or not check.required)
        mark, style = ("ok", "green") if check.works else ("missing", "red") if check.required else ("no", "yellow")
        line = Text.assemble((f"{mark:<8}", style), f"{check.name:<{_WIDTH}}  {check.detail}")
        if check.remedy:
            line.append(f"; {check.remedy}", style="bold")
        console.print(line)
    if works:
        console.print("Training works here: embodied-rl train go2_flat")
        return 0
    console.print("Training does not work here: see the lines that begin with 'missing'.")
    return 1


def _next(checks: Iterator[Check]) -> Check | None:
    with Waiting("looking at this machine"):
        return next(checks, None)


def _python() -> Check:
    works = sys.version_info >= (3, 11)
    remedy = "" if works else "install Python 3.11 or newer and make a new virtual environment with it"
    return Check("python", works, f"{platform.python_version()} ({sys.executable})", remedy, required=True)


def _machine() -> Check:
    return Check("machine", True, f"{platform.system()} {platform.machine()}, {machine.cores()} cores")


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
        _isaacgym(),
    ]


def _warp() -> Check:
    package = _package("mujoco-warp", "mujoco_warp", extra="cuda", required=False)
    if not package.works:
        return replace(package, name="engine warp")
    import torch
    import warp

    detail = f"mujoco-warp {package.detail}, warp-lang {metadata.version('warp-lang')}"
    if not torch.cuda.is_available():
        return Check("engine warp", True, f"{detail}, slowly on the CPU: {machine.cuda_error()}")
    if not warp.is_cuda_available():
        return Check("engine warp", False, f"{detail} sees no GPU, though torch does", "pip install --force-reinstall warp-lang")
    device = torch.device("cuda", torch.cuda.current_device())
    free, total = torch.cuda.mem_get_info(device)
    driver = machine.shown_version(warp.get_cuda_driver_version() or ())
    detail += f", driver for CUDA {driver}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    reasons = [reason for reason in (machine.graph_error(device), machine.triton_error()) if reason]
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


def _isaacgym() -> Check:
    from embodied_rl.errors import UserError
    from embodied_rl.physics.isaacgym_process import PREVIEW, VARIABLE, Worker

    if not os.environ.get(VARIABLE):
        return Check(
            "engine isaacgym",
            False,
            "not installed",
            f"legacy: unpack {PREVIEW}, pip install -e isaacgym/python in a Python 3.8 with torch, and set "
            f"{VARIABLE}=/path/to/python3.8; GPUs up to RTX 40, for RTX 50 no torch is built for Python 3.8",
        )
    try:
        worker = Worker()
    except UserError as error:
        return Check("engine isaacgym", False, str(error).removeprefix("physics.engine: isaacgym: "), "docs/engines.md")
    worker.close()
    return Check("engine isaacgym", True, ", ".join(f"{name} {version}" for name, version in worker.versions.items()))


def _learner() -> list[Check]:
    return [_package("rsl-rl-lib", "rsl_rl"), _package("tensorboard", "tensorboard")]


def _export() -> list[Check]:
    return [_package(name, name, required=False) for name in ("onnx", "onnxscript", "onnxruntime")]


def _extras() -> Iterator[Check]:
    """Look at what pages of pools, of others' environments and of wandb need."""
    for name, module, extra in _EXTRAS:
        yield _package(name, module, extra=extra, required=False)


def _display() -> Check:
    reason = machine.display_error()
    return Check("windows", reason is None, reason or "a display is there", (reason and "film instead: play --video") or "")


def _film() -> Check:
    video = _package("av", "av", required=False)
    if not video.works:
        return video
    backend, reason = machine.gl_backend()
    if backend is None:
        return Check("films", False, reason, f"without GL there are no films: {machine.GL_REMEDY}")
    return Check("films", True, f"av {metadata.version('av')}, MUJOCO_GL={backend}")


def _compiler() -> Check:
    reason = machine.cpp_error()
    if reason is None:
        return Check("compiler", True, "torch.compile can build its C++ kernels")
    remedy = {"linux": "apt-get install g++ python3-dev", "darwin": "xcode-select --install"}.get(
        sys.platform, "install Microsoft C++ Build Tools"
    )
    return Check(
        "compiler", False, reason, f"the step runs without torch.compile, slower, and on rough ground not at all: {remedy}"
    )


def _package(name: str, module: str, *, extra: str = "", required: bool = True) -> Check:
    """Whether a distribution is there, is not older than MINIMUM, and imports."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed", install_hint(extra), required)
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


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
