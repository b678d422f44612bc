"""What a second rank costs and gives on this machine, and what that predicts for many.

    python benchmarks/speed/scaling.py [CONFIG] [--ranks 2] [--rounds 3] [--iterations 15] [--json F] [key=value ...]

One process with all cores, and torchrun's ranks that share them, train the page in turns; `Perf/total_fps` counts, medians.  With
`per_rank` each rank has the page's robots, with `global` they are shared out.  Sums of several sizes are timed between the ranks,
and what an iteration sends is counted.  The table that follows is a model, printed with all that it assumes: `--alpha`, `--beta`
and the rest replace an assumption by what nccl-tests says of a cluster.  On GPUs: --device cuda --ranks 8.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

#: Bytes of the sums that are timed.
SIZES = [2**power for power in range(10, 25, 2)]
#: Iterations before those that count.
WARMUP = 3
GPUS = (1, 8, 64, 1024)
#: A machine's GPUs.
NODE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", nargs="?", default="go2_flat", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--ranks", type=int, default=2, metavar="W")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each side has its turn")
    parser.add_argument("--iterations", type=int, default=15, metavar="K", help="of a turn, after the first few")
    parser.add_argument("--device", default="cpu", metavar="D")
    parser.add_argument("--json", type=Path, metavar="F")
    parser.add_argument("--worker", type=Path, metavar="F", help=argparse.SUPPRESS)
    model = parser.add_argument_group("the model's GPUs, assumed and not measured")
    model.add_argument("--collect-s", type=float, default=0.098, help="4096 robots, 24 steps, a million env steps a second")
    model.add_argument("--update-s", type=float, default=0.030, help="20 minibatches, networks 512-256-128")
    model.add_argument("--spread", type=float, default=0.01, help="deviation of a rank's collection time, as a share")
    model.add_argument("--node-s", type=float, default=25e-6, help="latency of a sum within a node (NVLink)")
    model.add_argument("--hop-s", type=float, default=8e-6, help="latency of a hop between nodes (InfiniBand)")
    model.add_argument("--node-bandwidth", type=float, default=200e9, help="of a sum within a node [B/s]")
    model.add_argument("--bandwidth", type=float, default=40e9, help="of a GPU's own network card [B/s]")
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    result = measure(options)
    print(report(result, options))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------------------- measurement


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All sides in turn."""
    sides = {
        "one process": (1, []),
        "ranks, per_rank": (options.ranks, ["distributed.num_envs_scope=per_rank"]),
        "ranks, global": (options.ranks, ["distributed.num_envs_scope=global"]),
    }
    turns: dict[str, list[dict]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name, (ranks, overrides) in sides.items():
                turns[name].append(turn(options, ranks, overrides, Path(folder) / "figures.json"))
                print(f"{name:18s} {turns[name][-1]['fps']:9,.0f} env-steps/s", flush=True)
    together = [one for name in list(sides)[1:] for one in turns[name]]
    return {
        "config": options.config,
        "ranks": options.ranks,
        "fps": {name: statistics.median(one["fps"] for one in each) for name, each in turns.items()},
        "ratio": {
            name: statistics.median(mine["fps"] / alone["fps"] for mine, alone in zip(each, turns["one process"], strict=True))
            for name, each in turns.items()
        },
        "waiting": statistics.median(one["waiting"] for one in together),
        "spread": statistics.median(one["spread"] for one in together),
        "sums": {str(size): statistics.median(one["sums"][str(size)] for one in together) for size in SIZES},
        "collectives": together[0]["collectives"],
        "bytes": together[0]["bytes"],
        "largest": together[0]["largest"],
        "minibatches": together[0]["minibatches"],
    }


def turn(options: argparse.Namespace, ranks: int, overrides: list[str], figures: Path) -> dict[str, Any]:
    """One training of one side, in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    arguments = [options.config, *options.overrides, *overrides, "--device", options.device, "--worker", str(figures)]
    command = [sys.executable, *launcher, __file__, *arguments, "--iterations", str(options.iterations)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(figures.read_text())


def work(options: argparse.Namespace) -> None:
    """One process of one side; the first writes what was seen."""
    import torch

    from embodied_rl import make_env, training
    from embodied_rl.learn.ranks.group import Ranks

    sent: list[int] = []

    def counting(function: Any) -> Any:
        def call(owner: Any, given: Any) -> Any:
            sent.append(given.nbytes if isinstance(given, torch.Tensor) else 8 * len(given))
            return function(owner, given)

        return call

    Ranks.sum, Ranks.table = counting(Ranks.sum), counting(Ranks.table)
    page = make_env.resolve(options.config, options.overrides, device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.start(page, Path(folder) / "run")
        group, seen = trainer.group, []
        iterations = trainer.train(WARMUP + options.iterations)
        for metrics in iterations:
            seen.append(metrics | {"collectives": len(sent), "bytes": sum(sent), "largest": max(sent, default=0)})
            sent.clear()
            if len(seen) == WARMUP + options.iterations:
                iterations.close()
    seen = seen[WARMUP:]
    figures: dict[str, Any] = {
        "fps": statistics.median(one["Perf/total_fps"] for one in seen),
        "minibatches": page.ppo.num_learning_epochs * page.ppo.num_mini_batches,
    }
    if group.size > 1:
        # in rank 0's eyes: how far its own part of an iteration is from its mean
        shares = [one["Perf/rank_0_fps"] for one in seen]
        figures |= {name: seen[0][name] for name in ("collectives", "bytes", "largest")}
        figures |= {"waiting": statistics.median(one["Perf/share_waiting"] for one in seen)}
        figures |= {"spread": statistics.pstdev(shares) / statistics.mean(shares)}
        figures |= {"sums": {str(size): time_sum(group, size, options.device) for size in SIZES}}
        group.close()
    if os.environ.get("RANK", "0") == "0":
        options.worker.write_text(json.dumps(figures))


def time_sum(group: Any, size: int, device: str) -> float:
    """Seconds of one sum of so many bytes, a median."""
    import torch

    tensor, seconds = torch.zeros(size // 4, device=device), []
    for _ in range(60):
        started = time.perf_counter()
        group.sum(tensor)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[10:])


# ------------------------------------------------------------------------------------------------------------------- model


def parameters(widths: tuple[int, ...]) -> int:
    """Weights and biases of a perceptron."""
    return sum((before + 1) * after for before, after in pairwise(widths))


def predict(gpus: int, options: argparse.Namespace, size: int, minibatches: int, others: int) -> dict[str, float]:
    """An iteration of so many GPUs.

    A sum goes through a node in `node_s` and between nodes up and down a tree, two hops a level; every GPU sends and takes twice
    its bytes.  All wait for the slowest collection: the expected largest of W normal deviates is about sqrt(2 ln W).
    """
    nodes = math.ceil(gpus / NODE)
    levels = math.ceil(math.log2(nodes)) if nodes > 1 else 0
    latency = (options.node_s if gpus > 1 else 0.0) + 2 * levels * options.hop_s
    transfer = (2 * size / options.node_bandwidth if gpus > 1 else 0.0) + (
        2 * size / NODE / options.bandwidth if nodes > 1 else 0
    )
    reduce = latency + transfer
    slowest = options.collect_s * options.spread * math.sqrt(2 * math.log(gpus))
    alone = options.collect_s + options.update_s
    iteration = alone + minibatches * reduce + others * latency + slowest
    return {
        "GPUs": gpus,
        "one sum [us]": 1e6 * reduce,
        "sums [ms]": 1e3 * (minibatches * reduce + others * latency),
        "slowest [ms]": 1e3 * slowest,
        "iteration [ms]": 1e3 * iteration,
        "efficiency": alone / iteration,
        "samples a batch [M]": gpus * 4096 * 24 / 1e6,
    }


def report(result: dict[str, Any], options: argparse.Namespace) -> str:
    """Everything as Markdown."""
    lines = [f"| {result['config']} | env-steps/s | of one process |", "| --- | --- | --- |"]
    lines += [f"| {name} | {fps:,.0f} | {result['ratio'][name]:.2f} |" for name, fps in result["fps"].items()]
    lines += [
        "",
        f"An iteration: {result['collectives']} collectives, {result['bytes']:,} bytes a rank, the largest {result['largest']:,}"
        f"; {result['waiting']:.1%} of the time waiting; spread of a rank's speed {result['spread']:.1%}.",
        "",
        "| bytes | " + " | ".join(f"{int(size):,}" for size in result["sums"]) + " |",
        "| --- |" + " --- |" * len(result["sums"]),
        "| a sum [us] | " + " | ".join(f"{1e6 * seconds:,.0f}" for seconds in result["sums"].values()) + " |",
        "",
    ]
    size = 4 * (parameters((48, 512, 256, 128, 12)) + parameters((75, 512, 256, 128, 1)))
    rows = [predict(gpus, options, size, 20, result["collectives"] - result["minibatches"]) for gpus in GPUS]
    lines += [
        f"Predicted, {size:,} bytes a sum, 20 a batch:",
        "",
        "| " + " | ".join(rows[0]) + " |",
        "| --- |" * 1 + " --- |" * 6,
    ]
    lines += [
        "| " + " | ".join(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in row.values()) + " |" for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
