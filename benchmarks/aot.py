"""Compile the physics kernels of a page for a GPU that is not here, into Warp's cache: a trial.

    python benchmarks/aot.py [--arch 90] [--cache DIR] [PAGE ...]

Warp brings NVRTC along, so that neither a GPU nor a CUDA toolkit is needed.  A step on the CPU shows which modules of kernels
there are; each is then compiled as it would be for a launch on a GPU.  docs/engines.md says what came of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import warp
from warp._src import context

import embodied_rl

#: Threads of a block where a launch on a GPU names none.
_DEFAULT = 256


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile a page's physics kernels for a GPU that is not here.")
    parser.add_argument("pages", nargs="*", default=["go1_flat", "go2_flat"], metavar="PAGE")
    parser.add_argument("--arch", type=int, default=90, help="compute capability, 90 for sm_90 (default)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where to; default Warp's cache")
    options = parser.parse_args()
    if options.cache:
        warp.config.kernel_cache_dir = str(options.cache.resolve())
    with launches() as launched:
        for page in options.pages:
            env = embodied_rl.make(page, ["env.compile=false"], num_envs=2, engine="warp", device="cpu")
            with torch.no_grad():
                env.step(torch.zeros(2, env.num_actions))
            env.close()
    report(compile_for(options.arch, launched), options)


@contextmanager
def launches() -> Iterator[dict[tuple[Any, int], None]]:
    """Modules that are launched meanwhile, each with the block that a GPU would be asked for; an ordered set."""
    found: dict[tuple[Any, int], None] = {}
    asked = [0]
    launch, tiled, load = warp.launch, warp.launch_tiled, context.Module.load

    def noting(function: Any) -> Any:
        def noted(*args: Any, **named: Any) -> Any:
            # the CPU's launches replace it by 1 on their way
            asked[0] = named.get("block_dim") or _DEFAULT
            return function(*args, **named)

        return noted

    def note_module(self: Any, device: Any, block_dim: int | None = None, *rest: Any, **named: Any) -> Any:
        found[self, asked[0]] = None
        return load(self, device, block_dim, *rest, **named)

    warp.launch, warp.launch_tiled, context.Module.load = noting(launch), noting(tiled), note_module
    try:
        yield found
    finally:
        warp.launch, warp.launch_tiled, context.Module.load = launch, tiled, load


def compile_for(arch: int, launched: dict[tuple[Any, int], None]) -> list[dict[str, Any]]:
    """Compile each; name, block, seconds, bytes or the error of each."""
    results = []
    for module, block in launched:
        before, started = module.options["block_dim"], time.perf_counter()
        module.options["block_dim"] = block
        result: dict[str, Any] = {"module": module.name, "block": block}
        try:
            (binary,) = warp.compile_aot_module(module, arch=arch, use_ptx=False)
            result["bytes"] = Path(binary).stat().st_size
        except Exception as error:  # whatever NVRTC says, the others are tried
            result["error"] = str(error).partition("\n")[0]
        finally:
            module.options["block_dim"] = before
        results.append(result | {"seconds": time.perf_counter() - started})
    return results


def report(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """What was compiled, the slowest first."""
    done = [result for result in results if "bytes" in result]
    for result in sorted(done, key=lambda one: -one["seconds"])[:5]:
        print(f"{result['seconds']:7.1f} s  {result['bytes']:10,} bytes  {result['module']}, blocks of {result['block']}")
    for result in results:
        if "error" in result:
            print(f"failed: {result['module']}, blocks of {result['block']}: {result['error']}")
    seconds, size = sum(one["seconds"] for one in results), sum(one["bytes"] for one in done) / 1e6
    print(
        f"{len(done)} of {len(results)} modules compiled for sm_{options.arch} in {seconds:.0f} s: "
        f"{size:.1f} MB of cubins in {warp.config.kernel_cache_dir}"
    )


if __name__ == "__main__":
    main()
