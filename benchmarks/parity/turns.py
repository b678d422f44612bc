"""One side of a pair that is timed in turns: what same_bits.py runs with either commit's code.

    python benchmarks/parity/turns.py step PAGE [key=value ...]
    python benchmarks/parity/turns.py train PAGE [key=value ...]

It prints `ready`, waits for a line on its standard input, does a turn's work, prints the seconds that took, and waits again.
While one side works the other sleeps, and what else a machine does meanwhile meets both.  Like record.py it holds on to what
does not move: `embodied_rl.make`, `env.step`, the command line, and the generator `Trainer.train`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from record import check_origin

import embodied_rl
from embodied_rl import cli
from embodied_rl.learn.train import Trainer

#: Steps of a turn, and turns that nothing counts: by then everything is compiled, and robots are away from their first episodes.
STEPS, ITERATIONS, WARMUP = 50, 2, 4


def main() -> int:
    """Work turn by turn until standard input ends; the exit status."""
    what, page, *overrides = sys.argv[1:]
    check_origin(Path(os.environ["PYTHONPATH"]))
    if what == "step":
        for _ in turns(steps(page, overrides)):
            pass
        return 0
    train = Trainer.train

    def in_turns(trainer: Trainer, *arguments: Any, **settings: Any) -> Generator[dict[str, float]]:
        yield from turns(train(trainer, *arguments, **settings), ITERATIONS)

    setattr(Trainer, "train", in_turns)  # noqa: B010  pyright has no word for it
    with tempfile.TemporaryDirectory() as folder:
        run = ["--iterations", "100000", "--run-dir", str(Path(folder) / "run")]
        return cli.main(["train", page, *overrides, *run])


def steps(page: str, overrides: list[str]) -> Iterator[dict[str, float]]:
    """Step an environment for ever, with the threads of a collector and the same actions on both sides."""
    torch.set_num_threads(1)
    with torch.no_grad():
        env = embodied_rl.make(page, overrides)
        actions = torch.rand(STEPS, env.num_envs, env.num_actions, generator=torch.Generator().manual_seed(0)) - 0.5
        while True:
            for now in actions:
                env.step(now)
            yield {}


def turns(work: Iterator[dict[str, float]], pieces: int = 1) -> Generator[dict[str, float]]:
    """Do so many pieces of the work at each line of standard input, and print the seconds they took."""
    for _ in range(WARMUP * pieces):
        yield next(work)
    answer("ready")
    for _ in sys.stdin:
        started = time.perf_counter()
        done = [next(work) for _ in range(pieces)]
        answer(f"{time.perf_counter() - started}")
        yield from done


def answer(line: str) -> None:
    """Tell the one who asks, beside whatever else is printed."""
    print(f"turn: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
