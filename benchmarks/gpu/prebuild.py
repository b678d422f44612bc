"""Compile MuJoCo Warp's kernels for a GPU that is not here: those of the pages, of the GPU's tests and of the benchmarks.

    python benchmarks/gpu/prebuild.py CACHE [--arch 90] [--part I/N] [--pages PAGE ...]      with mujoco-warp installed

Nothing is run and nothing compiled for the CPU: a step's launches are noted and skipped, which takes seconds a page, and NVRTC
then compiles their modules into CACHE/<warp's version>, where Warp looks for them with WARP_CACHE_PATH=CACHE.  Module names are
hashes of kernels and options: the same for every Python, torch and number of robots, but not for another Warp, mujoco-warp,
page or room for contacts.  The GPU's driver has to know the CUDA of Warp's NVRTC, or a newer one of the same major version.

Exit status: 0 where all was compiled.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import torch
import warp
from warp._src import context

from embodied_rl.config import config_names, load

PAGES = ["go2_flat", "go1_flat", "go2_flat_full", "go1_flat_full", "go2_rough", "g1_legs_flat", "g1_legs_rough"]
#: Whose robots a process steps itself.
ALL = [name for name in sorted(config_names()) if (page := load(name)).env.source is None and page.pool.workers is None]
WANTED: list[tuple[str, list[str]]] = [
    *((page, []) for page in PAGES),
    ("go2_flat", ["physics.njmax=8", "physics.nconmax=8"]),  # tests/test_cuda_graph.py
    *((page, ["physics.njmax=64", "physics.nconmax=16"]) for page in ALL),  # tests/test_step_path.py
    *((page, ["physics.iterations=8", "physics.ls_iterations=50"]) for page in PAGES[:3]),  # tests/physics/test_env_parity.py
    ("go2_flat", ["physics.iterations=1"]),  # gpu_physics.py
]
#: Threads of a block where a launch does not say.
DEFAULT_BLOCK = 256

#: A module of kernels, and the block that a GPU is asked for.
Modules = dict[tuple[Any, int], None]


class NotedError(Exception):
    """A launch gets this far."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cache", type=Path, help="folder of the cache")
    parser.add_argument("--arch", type=int, default=90, help="compute capability of the GPU, 90 for 9.0 (default 90, an H100)")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th module from I on, to share the work among processes")
    parser.add_argument("--pages", nargs="*", help="only these pages, as they are")
    options = parser.parse_args()
    warp.config.kernel_cache_dir = str(options.cache.resolve())
    warp.config.log_level = warp.LOG_ERROR
    found = note_pages([(page, []) for page in options.pages] if options.pages else WANTED, parity=not options.pages)
    part, parts = map(int, options.part.split("/"))
    mine = sorted(found, key=lambda one: one[0].get_module_identifier(one[1]))[part::parts]
    print(f"{len(found)} modules, {len(mine)} of them here", flush=True)
    started = time.perf_counter()
    failed = [
        f"{module.name}, block {block}: {reason}"
        for module, block in mine
        if (reason := compile_module(module, block, options.arch))
    ]
    print(f"{len(mine) - len(failed)} compiled in {time.perf_counter() - started:.0f} s into {warp.config.kernel_cache_dir}")
    for one in failed:
        print("failed:", one)
    raise SystemExit(1 if failed else 0)


def compile_module(module: Any, block: int, arch: int) -> str:
    """Compile a module into the cache, if it is not there; why it cannot be, or nothing."""
    before, module.options["block_dim"] = module.options["block_dim"], block
    try:
        warp.compile_aot_module(module, arch=arch, use_ptx=False)
    except Exception as error:  # whatever the compiler raises, the others are compiled
        return str(error).partition("\n")[0] or type(error).__name__
    finally:
        module.options["block_dim"] = before
    return ""


def note_pages(wanted: list[tuple[str, list[str]]], *, parity: bool) -> Modules:
    """The modules that a step of each page launches, and a step of benchmarks/parity/engines.py."""
    from embodied_rl import make_env

    found: Modules = {}
    note_launches(found)
    for page, overrides in wanted:
        before = len(found)
        env = make_env.make(page, ["env.compile=false", *overrides], num_envs=2, engine="warp", device="cpu")
        with torch.no_grad():
            env.step(torch.zeros(2, env.num_actions))
        print(page, *overrides, f"{len(found) - before} more", flush=True)
    engines: Any = load_script("parity/engines.py")
    for robot in engines.ROBOTS if parity else ():
        for collisions in engines.COLLISIONS:
            for overrides in ((), engines.CONVERGED):
                before = len(found)
                one_step(engines, robot, collisions, overrides)
                print("parity", robot, collisions, *overrides, f"{len(found) - before} more", flush=True)
    return found


def note_launches(found: Modules) -> None:
    """From now on note launches, and skip them."""
    asked = [DEFAULT_BLOCK]

    def noting(function: Any) -> Any:
        def noted(*args: Any, **named: Any) -> Any:
            asked[0] = named.get("block_dim") or DEFAULT_BLOCK  # the CPU's launches replace it by 1 on their way
            try:
                return function(*args, **named)
            except NotedError:
                return None

        return noted

    def load(self: Any, device: Any, block_dim: int | None = None, *_: Any, **__: Any) -> Any:
        found[self, asked[0]] = None
        raise NotedError

    context.Module.load = load
    warp.launch, warp.launch_tiled = noting(warp.launch), noting(warp.launch_tiled)


def load_script(name: str) -> Any:
    """Another benchmark as a module."""
    path = Path(__file__).resolve().parents[1] / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


def one_step(engines: Any, robot: str, collisions: str, overrides: tuple[str, ...]) -> None:
    """Step as benchmarks/parity/engines.py does."""
    settings = engines.load_page(f"{robot}_flat", ["physics.engine=warp", *overrides]).physics
    needs = {"foot_contact", "foot_frames", "joint_torque"}
    scene = engines.build_scene(
        engines.load_robot(robot), collisions=collisions, physics=settings, needs=needs, dry_friction=False
    )
    engines.start("warp", scene, settings, 2, "cpu").step(torch.zeros(2, scene.model.nu))


if __name__ == "__main__":
    main()
