"""Trains a page and keeps what its learner was given and what became of it: what same_bits.py runs, with either commit's code.

    python benchmarks/parity/record.py FOLDER 1,10,20 PAGE [key=value ...]

It holds on to what does not move: the command line, and `Trainer.learner.update(rollout, iteration, ...)`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import embodied_rl.tasks
from embodied_rl import cli
from embodied_rl.learn.train import Trainer

#: Totals that are seconds, or by the second.
TIMED = ("Pool/idle", "Pool/MB_per_s_per_worker")


def main() -> int:
    """Train; the exit status."""
    folder, kept, page, *overrides = sys.argv[1:]
    iterations = [int(number) for number in kept.split(",")]
    check_origin(Path(os.environ["PYTHONPATH"]))
    record(Path(folder), iterations)
    # the page's own number of iterations, which schedules go over
    return cli.main(["train", page, *overrides, "--run-dir", str(Path(folder) / "run")])


def check_origin(side: Path) -> None:
    """The code is the side's: an editable install of another checkout must not answer in its place."""
    for module in (embodied_rl, embodied_rl.tasks):
        (origin,) = module.__path__
        if not Path(origin).is_relative_to(side):
            raise SystemExit(f"{module.__name__} was imported from {origin}, not from {side}")


def record(folder: Path, iterations: list[int]) -> None:
    """Let every trainer keep its rollouts, as its learner gets them, and the learner after them."""
    initialize = Trainer.__init__

    def initialized(trainer: Trainer, *arguments: Any, **settings: Any) -> None:
        initialize(trainer, *arguments, **settings)
        update = trainer.learner.update

        def recorded(rollout: Any, iteration: int, *others: Any, **named: Any) -> dict[str, float]:
            number = iteration + 1
            given = {name: value for name, value in vars(rollout).items() if name != "seconds"}
            given["totals"] = {name: value for name, value in rollout.totals.items() if not name.endswith(TIMED)}
            given = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu().clone(), given) if number in iterations else {}
            metrics = update(rollout, iteration, *others, **named)
            if number in iterations:
                rank = os.environ.get("RANK", "0")
                state = {"rollout": given, "learner": trainer.learner.state_dict()}
                torch.save(state, folder / f"iteration_{number:02d}_rank_{rank}.pt")
            if number == iterations[-1]:
                trainer.stop()
            return metrics

        trainer.learner.update = recorded

    setattr(Trainer, "__init__", initialized)  # noqa: B010  pyright has no word for it


if __name__ == "__main__":
    sys.exit(main())
