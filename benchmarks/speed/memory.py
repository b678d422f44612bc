"""Memory of 4096 robots above that of a process which has only imported torch.

    python benchmarks/speed/memory.py [--num-envs N] [--json F] [CONFIG]

The peak counts, so what the compiler of the step needed is in it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of many robots above a process that has only imported torch.")
    parser.add_argument("config", nargs="?", default="go2_flat", metavar="CONFIG")
    parser.add_argument("--num-envs", type=int, default=4096, metavar="N")
    parser.add_argument("--json", type=Path, metavar="F")
    options = parser.parse_args()
    empty, robots = _peak_of(), _peak_of(options.config, str(options.num_envs))
    figures = {
        "config": options.config,
        "num_envs": options.num_envs,
        "torch_alone_mb": empty,
        "robots_mb": robots,
        "above_mb": robots - empty,
        "kb_per_robot": 1000 * (robots - empty) / options.num_envs,
    }
    print(
        f"{options.num_envs} robots of {options.config}: {robots:.0f} MB, torch alone {empty:.0f} MB: "
        f"{figures['above_mb']:.0f} MB above, {figures['kb_per_robot']:.1f} kB each"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _peak_of(*arguments: str) -> float:
    """Peak memory [MB] of a fresh process."""
    command = [sys.executable, __file__, "--measure", *arguments]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.split()[-1])


def measure(config: str | None = None, num_envs: str = "0") -> None:
    """Import torch, step robots if any are asked for, print this process's peak memory [MB]."""
    import torch

    if config:
        import embodied_rl

        env = embodied_rl.make(config, num_envs=int(num_envs))
        with torch.inference_mode():
            for _ in range(STEPS):
                env.step(torch.zeros(env.num_envs, env.num_actions))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6)  # bytes there, KiB elsewhere


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main()
