"""What a control step on the engine isaacgym costs beside the physics: its process, the memory between, and the conversions.

    EMBODIED_RL_ISAACGYM_PYTHON=/path/to/python3.8 python benchmarks/speed/isaacgym.py [CONFIG] [--num-envs 4096] [--json F]

With the stand-in of the tests, whose Python `make test` makes, physics is left out, and without a variable that is what it takes:
a step then is the round trip alone.  Medians, in ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from embodied_rl import make_env
from embodied_rl.config import load
from embodied_rl.physics.isaacgym import IsaacGymPhysics
from embodied_rl.physics.isaacgym_process import STEP_S, VARIABLE

STAND_IN = Path(__file__).parents[2] / "tests/physics/isaacgym_stand_in"
#: Of this many rows one is written before a step, as resets and pushes do.
ONE_OF = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", nargs="?", default="go2_flat", metavar="CONFIG")
    parser.add_argument("--num-envs", type=int, default=4096, metavar="N")
    parser.add_argument("--steps", type=int, default=500, metavar="S", help="of which the median is taken")
    parser.add_argument("--json", type=Path, metavar="F")
    options = parser.parse_args()
    page = load(options.config, [f"env.num_envs={options.num_envs}", "physics.engine=isaacgym"])
    with tempfile.TemporaryDirectory() as folder:
        if VARIABLE not in os.environ:
            script = Path(folder) / "python"
            python = Path(sys.prefix) / "python3.8/bin/python"
            script.write_text(f'#!/bin/sh\nISAACGYM_STAND_IN_STILL=1 PYTHONPATH="{STAND_IN}" exec "{python}" "$@"\n')
            script.chmod(0o755)
            os.environ[VARIABLE] = str(script)
        found = measure(make_env.make(page).physics, options.steps)
    print(f"{options.config}, {options.num_envs} robots, {page.physics.decimation} substeps: ms")
    for name, value in found.items():
        print(f"  {name:60s} {value:.3f}")
    if options.json:
        options.json.write_text(json.dumps({"config": options.config, "num_envs": options.num_envs, "ms": found}) + "\n")


def measure(physics: object, steps: int) -> dict[str, float]:
    """Time what a step is made of [ms]."""
    assert isinstance(physics, IsaacGymPhysics)
    ctrl = physics.qpos[:, 7:].clone()
    rows = torch.arange(physics.num_envs, device=physics.device) % ONE_OF == 0
    substeps, arguments = physics._decimation, {"controls": 1, "contacts": 1, "written": 0, "fields": []}
    physics.step(ctrl)

    def written() -> None:
        physics._written |= rows
        physics._ask(substeps, ctrl[:, None], 1)

    parts: dict[str, Callable[[], object]] = {
        "a message and its answer": lambda: physics._worker.ask(
            STEP_S, do="step", substeps=0, **(arguments | {"controls": 0, "contacts": 0})
        ),
        "the other side's part": lambda: physics._worker.ask(STEP_S, do="step", substeps=substeps, **arguments),
        "the round trip, state converted": lambda: physics._ask(substeps, ctrl[:, None], 1),
        f"the same, one row of {ONE_OF} written before": written,
        "the whole step, with history and quarantine": lambda: physics.step(ctrl),
    }
    return {name: _median(part, steps) for name, part in parts.items()}


def _median(part: Callable[[], object], steps: int) -> float:
    times = []
    for _ in range(steps):
        begun = time.perf_counter()
        part()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


if __name__ == "__main__":
    main()
