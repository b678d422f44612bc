"""Shows what a machine can do and whether the learner works on it: compilers, CUDA, torch, captures, the update.

    python benchmarks/gpu/gpu_probe.py [--device cuda] [--json F] [--only CHECK ...]

No physics: it needs no MuJoCo Warp.  Every check stands alone: one that fails says why and the next one runs.  With --device cpu
the checks that need a GPU say so.  Exit status: 0 where none failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_report import say, short, write

#: What a check found.  Under "wrong" it says what should be otherwise.
Found = dict[str, Any]
CHECKS: dict[str, Callable[[str], Found]] = {}

PROGRAMS = ("gcc", "g++", "clang", "cc", "nvcc", "git", "ninja", "ncu", "nsys", "xz")
PACKAGES = (
    *("torch", "triton", "numpy", "jax", "jaxlib", "onnx", "onnxscript", "onnxruntime", "tensorboard", "pytest", "rich"),
    *("pytest-xdist", "pyyaml", "setuptools", "pip", "scipy", "typing-extensions", "mujoco", "mujoco-core", "mujoco-warp"),
    *("warp-lang", "rsl-rl-lib", "tensordict", "pydantic", "pydantic-core", "etils", "absl-py"),
)
MODULES = (
    *("torch", "triton", "pydantic", "tensordict", "rsl_rl.algorithms", "mujoco", "mujoco.batch", "onnx", "onnxscript"),
    *("tensorboard", "yaml", "rich", "embodied_rl.training", "embodied_rl.runs", "embodied_rl.learn.ppo", "rsl_rl.runners"),
)
IMPORT = """
import importlib, sys, time
for name in sys.argv[1:]:
    started = time.time()
    try:
        importlib.import_module(name)
        print(name, f"{time.time() - started:.1f} s", flush=True)
    except BaseException as error:
        print(name, "FAILS", type(error).__name__, " ".join(str(error).split())[:300], flush=True)
"""
#: The update that is tried on a GPU, of the sizes that are usual there, and elsewhere.
OBS = {"actor": 47, "critic": 59}
STEPS, ENVS, HIDDEN = 24, {"cuda": 4096, "cpu": 64}, "[512, 256, 128]"
#: Metrics that graphs and torch.compile leave as they are, but for this share of them.
KEPT, OFF_BY = ("Loss/surrogate", "Loss/value", "Loss/kl", "Loss/grad_norm", "Loss/skipped"), 0.05


class NeedsGpuError(Exception):
    """There is nothing to check on a CPU."""


def check(function: Callable[[str], Found]) -> Callable[[str], Found]:
    """Register a check, which is given the device."""
    CHECKS[function.__name__] = function
    return function


def check_on_gpu(function: Callable[[str], Found]) -> Callable[[str], Found]:
    """Register a check that means nothing on a CPU."""

    def checked(device: str) -> Found:
        if device == "cpu":
            raise NeedsGpuError
        return function(device)

    CHECKS[function.__name__] = checked
    return checked


@check
def machine(device: str) -> Found:
    """Look at compilers, headers, driver."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem"
    shown = ("CUDA", "TORCH", "TRITON", "LD_", "PATH")
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory": said("sh", "-c", "free -g | sed -n 2p"),
        "disk": said("sh", "-c", "df -h . | tail -1"),
        "found": {name: shutil.which(name) for name in PROGRAMS},
        "gcc": said("gcc", "--version").partition("\n")[0],
        "Python.h": header.is_file(),
        "libcuda": said("sh", "-c", "ldconfig -p | grep libcuda.so"),
        "gpu": said("nvidia-smi", query, "--format=csv,noheader"),
        "environment": {name: value for name, value in os.environ.items() if any(word in name for word in shown)},
    }


def said(*command: str) -> str:
    """What a command prints, or why it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return (done.stdout + done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"


@check
def versions(device: str) -> Found:
    """Look up what is installed."""
    from importlib import metadata

    found: Found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@check
def imports(device: str) -> Found:
    """Import one after the other in a process of their own; one that fails does not hide the others."""
    done = subprocess.run([sys.executable, "-c", IMPORT, *MODULES], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.partition(" ")[0] in MODULES]
    reached = {line.partition(" ")[0] for line in lines}
    bad = [line for line in lines if " FAILS " in line]
    missing = [name for name in MODULES if name not in reached]
    needed = [line for line in (*bad, *missing) if line.startswith("embodied_rl")]
    return {"bad": bad, "never reached": missing, "all": lines, "rc": done.returncode, "wrong": needed}


@check_on_gpu
def torch_sees(device: str) -> Found:
    """Look at the GPU."""
    import torch

    properties, (free, total) = torch.cuda.get_device_properties(device), torch.cuda.mem_get_info(device)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "capability": [properties.major, properties.minor],
        "free_gib": free / 2**30,
        "total_gib": total / 2**30,
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": torch.backends.cudnn.version(),
    }


@check_on_gpu
def ceilings(device: str) -> Found:
    """Measure bytes and operations a second: what a lower bound is reckoned with."""
    import torch

    def seconds(function: Callable[[], Any], times: int = 10) -> float:
        for _ in range(3):
            function()
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        for _ in range(times):
            function()
        after.record()
        torch.cuda.synchronize()
        return before.elapsed_time(after) / 1000.0 / times

    x = torch.randn(2**29, device=device)
    y = torch.empty_like(x)
    result: Found = {"copy_TB_s": 2 * x.nbytes / seconds(lambda: y.copy_(x)) / 1e12}
    a, b = (torch.randn(8192, 8192, device=device) for _ in range(2))
    for name, precision in (("fp32_TFLOP_s", "highest"), ("tf32_TFLOP_s", "high")):
        torch.set_float32_matmul_precision(precision)
        result[name] = 2 * 8192**3 / 1e12 / seconds(lambda: a @ b)
    torch.set_float32_matmul_precision("highest")
    small = torch.zeros(1, device=device)
    result["launch_us"] = 1e6 * seconds(lambda: small.add_(1.0), 1000)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(1000):
            small.add_(1.0)
    result["kernel_in_graph_us"] = 1e6 * seconds(graph.replay) / 1000
    return result


@check
def compiled_random_numbers(device: str) -> Found:
    """Draw what the CPU draws, eagerly and compiled: inductor, Triton and the C compiler work."""
    import torch

    from embodied_rl import random

    ids = torch.arange(4096)
    result: Found = {}
    for draw in (random.uniform, random.normal):
        wanted = draw(random.stream_key(1, "step"), ids, ids * 3, 77)
        given = (random.stream_key(1, "step", torch.device(device)), ids.to(device), (ids * 3).to(device))
        compiled = torch.compile(lambda *a, draw=draw: draw(*a, 77), fullgraph=True, dynamic=False)
        for name, function in (("eager", lambda *a, draw=draw: draw(*a, 77)), ("compiled", compiled)):
            result[f"{draw.__name__}_{name}_off_by"] = float((function(*given).cpu() - wanted).abs().max())
    return result | {"wrong": [name for name, off in result.items() if not off < 1e-5]}


@check_on_gpu
def captured_adam(device: str) -> Found:
    """Capture a fused step, with a rate and a found_inf that are tensors; torch refuses where it is not capturable."""
    import torch

    result: Found = {}
    for capturable in (True, False):
        name = f"capturable={capturable}"
        parameter = torch.nn.Parameter(torch.ones(1000, device=device))
        parameter.grad = torch.ones_like(parameter)
        rate, found_inf = torch.tensor(1e-2, device=device), torch.zeros((), device=device)
        adam: Any = torch.optim.Adam([parameter], lr=rate, fused=True, capturable=capturable)
        adam.found_inf = found_inf
        adam.step()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                adam.step()
        except RuntimeError as error:
            result[name] = str(error).partition("\n")[0]
            continue
        result[name] = []
        for given, skip in ((1e-2, 0.0), (1e-1, 0.0), (1e-1, 1.0)):
            before = parameter.detach().clone()
            rate.fill_(given)
            found_inf.fill_(skip)
            graph.replay()
            result[name].append(round(float((before - parameter).detach().mean()), 4))
    return result | {"wrong": "" if result["capturable=True"] == [0.01, 0.1, 0.0] else "capturable=True"}


@check_on_gpu
def a_capture_that_fails(device: str) -> Found:
    """Fail in three ways, and look at what is left of torch after it: streams, memory, another capture, random numbers."""
    import torch

    from embodied_rl.cuda_graph import CudaGraph
    from embodied_rl.errors import UserError

    where, x = torch.device(device, torch.cuda.current_device()), torch.ones(1000, device=device)
    ways: dict[str, Callable[[], Any]] = {
        "python": lambda: 1 / 0,
        "sync": lambda: x.sum().item(),
        "half": lambda: (x.add(1.0), x.sum().item()),
    }
    result: Found = {"wrong": []}
    for name, function in ways.items():
        try:
            CudaGraph(function, where)
            result[name] = "did not fail"
        except UserError as error:
            result[name] = str(error)
        try:
            assert torch.cuda.current_stream() == torch.cuda.default_stream(), "on the capturing stream still"
            torch.cuda.empty_cache()
            y = torch.zeros(1000, device=device)

            def add(y: Any = y) -> None:
                y.add_(1.0)

            good = CudaGraph(add, where)
            good()
            good()
            result[f"{name}, after it"] = after = float(y.mean())
            torch.randn(3, device=device)
            assert after == 2.0, "two launches are not two"
        except Exception as error:
            result[f"{name}, after it"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            result["wrong"].append(name)
    return result


@check
def the_update(device: str) -> Found:
    """Update with graphs and torch.compile, each off and on: the same metrics, and what an update takes."""
    result: Found = {"wrong": []}
    reference: dict[str, float] = {}
    for compiled in (False, True):
        for graph in (False, True):
            name = f"compile={compiled} graph={graph}"
            try:
                result[name] = found = update(device, compiled, graph)
            except Exception as error:
                traceback.print_exc()
                result[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                result["wrong"].append(name)
                continue
            reference = reference or {key: found[key] for key in KEPT}
            off = max(abs(found[key] - reference[key]) / (abs(reference[key]) + 1e-3) for key in KEPT)
            found["off_by"] = off
            if not off < OFF_BY or found["captured"] != (graph and device != "cpu"):
                result["wrong"].append(name)
    return result


def update(device: str, compiled: bool, graph: bool) -> Found:
    """Some updates by a fresh learner, all from the same rollout."""
    import torch

    from embodied_rl.learn.ppo import PPO
    from embodied_rl.make_env import compiler, identity, resolve
    from embodied_rl.vector_env import ActionSpace

    where = torch.device(device)
    envs = ENVS[where.type]
    wide = [f"ppo.{part}_hidden_dims={HIDDEN}" for part in ("actor", "critic")] if where.type == "cuda" else []
    page = resolve("go2_flat", [f"env.num_envs={envs}", *wide], device="cpu")
    sizes = {**OBS, "actions": 12}
    mirrors = {name: (torch.arange(size, device=where).flip(0), torch.ones(size, device=where)) for name, size in sizes.items()}
    obs = {name: torch.zeros(envs, size, device=where) for name, size in OBS.items()}
    wrap = compiler(page, where) if compiled else identity
    torch.manual_seed(1)
    learner = PPO(obs, ActionSpace(12), page.ppo, mirrors, 1, where, compiler=wrap, graph=graph)
    rollout, times = drawn_rollout(learner, envs, where), []
    for iteration in range(6 if where.type == "cuda" else 2):
        started = time.perf_counter()
        metrics = learner.update(rollout, iteration)
        times.append(time.perf_counter() - started)
    captured = learner.steps.captures and bool(learner.steps.graphs)
    return {"first_s": times[0], "update_ms": 1000 * min(times[1:]), "captured": captured, **{key: metrics[key] for key in KEPT}}


def drawn_rollout(learner: Any, envs: int, device: Any) -> Any:
    """A rollout of random numbers, drawn on the CPU; its actions are the learner's policy's."""
    import torch

    from embodied_rl.learn.models import standard_deviation
    from embodied_rl.learn.rollout import Rollout

    torch.manual_seed(0)
    with torch.no_grad():
        obs = {name: torch.randn(STEPS, envs, size).to(device) for name, size in OBS.items()}
        mean = learner.actor.mlp(learner.actor.obs_normalizer(obs["actor"]))
        std = standard_deviation(learner.actor).clone()
        ends = torch.rand(STEPS, envs)
        return Rollout(
            obs=obs,
            actions=mean + std * torch.randn(mean.shape).to(device),
            output=mean,
            std=std,
            rewards=torch.randn(STEPS, envs).to(device),
            terminated=(ends < 0.01).to(device),
            truncated=(ends > 0.999).to(device),
            valid=torch.ones(STEPS, envs, dtype=torch.bool, device=device),
            final_obs={"critic": torch.randn(STEPS, envs, OBS["critic"]).to(device)},
            last_obs={name: torch.randn(envs, size).to(device) for name, size in OBS.items()},
        )


def run(function: Callable[[str], Found], device: str) -> tuple[Found, str]:
    """What a check found, and in a word how it went."""
    try:
        found = function(device)
    except NeedsGpuError:
        return {"skipped": "it needs a GPU"}, "skipped"
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}, "FAILED"
    return found, "FAILED" if found.get("wrong") else "ok"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=tuple(ENVS))
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures to this file")
    parser.add_argument("--only", nargs="*", choices=CHECKS, metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    options = parser.parse_args()
    results: dict[str, Found] = {}
    failed = []
    for name in options.only or CHECKS:
        started = time.perf_counter()
        results[name], mark = run(CHECKS[name], options.device)
        say(f"{name}: {mark}, {time.perf_counter() - started:.1f} s  {short(results[name], skip=('environment', 'all'))}")
        failed += [name] if mark == "FAILED" else []
        if options.json:
            write(options.json, results)
    print(f"{len(results) - len(failed)} of {len(results)} checks hold" + (f", failed: {', '.join(failed)}" if failed else ""))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
