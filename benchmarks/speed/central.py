"""Where a pool's policy is better off, by its size: with the robots (`inference: local`) or with the learner (`central`).

    python benchmarks/speed/central.py [CONFIG] [--workers W] [--rounds 5] [--device cpu] [--json F] [key=value ...]

Two pools of the same page collect in turns, without a learner; env-steps/s are medians of the rounds, after one that does not
count.  Of `local` the weights on their way to the workers are part of the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from embodied_rl import machine
from embodied_rl.config import Page, load, override
from embodied_rl.learn.models import build_actor, policy_of
from embodied_rl.learn.rollout import Collector
from embodied_rl.pools import make_collector
from embodied_rl.pools.cluster import Connection

#: Widths of the actor's hidden layers.
SIZES = ([64, 64], [256, 256], [512, 512, 512], [1024, 1024, 1024], [2048, 2048, 2048])
WAYS = ("local", "central")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", nargs="?", default="pool_ant", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--workers", type=int, default=machine.cores(), metavar="W")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each way has its turn")
    parser.add_argument("--device", default="cpu", metavar="D", help="the learner's")
    parser.add_argument("--json", type=Path, metavar="F")
    options = parser.parse_args()
    # cores enough, by name, for the workers of two pools: one of them waits while the other works
    connection = Connection("local", num_cpus=2 * options.workers)
    page = load(options.config, [*options.overrides, f"pool.workers={options.workers}", "pool.spares=0"])
    try:
        result = [measure(page, widths, options.rounds, torch.device(options.device)) for widths in SIZES]
    finally:
        connection.close()
    print(report(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(page: Page, widths: list[int], rounds: int, device: torch.device) -> dict:
    """Both ways in turn, for one size of the policy; its name, its parameters, and env-steps/s of each way."""
    page = override(page, [f"ppo.actor_hidden_dims={widths}"])
    ids = torch.arange(page.env.num_envs)
    pools: dict[str, Collector] = {
        way: make_collector(override(page, [f"pool.inference={way}"]), ids, device=device) for way in WAYS
    }
    torch.manual_seed(page.env.seed)
    obs = {name: value.cpu() for name, value in pools["local"].observe().items()}
    actor = build_actor(obs, pools["local"].action_space, page.ppo).to(device)
    policy, speeds = policy_of(actor), {way: [] for way in WAYS}
    try:
        for iteration in range(rounds + 1):
            for way in WAYS if iteration % 2 else WAYS[::-1]:
                started = time.perf_counter()
                pools[way].collect(policy, iteration)
                speeds[way].append(page.env.num_envs * page.train.steps / (time.perf_counter() - started))
    finally:
        for pool in pools.values():
            pool.close()  # pyright: ignore[reportAttributeAccessIssue]
    one = {"widths": widths, "parameters": sum(parameter.numel() for parameter in policy.network.parameters())}
    one |= {way: statistics.median(found[1:]) for way, found in speeds.items()}
    print(f"{name_of(widths):10s} local {one['local']:8,.0f}  central {one['central']:8,.0f} env-steps/s", flush=True)
    return one


def name_of(widths: list[int]) -> str:
    """As 64x64 or 512x3."""
    return f"{widths[0]}x{widths[1]}" if widths == [64, 64] else f"{widths[0]}x{len(widths)}"


def crossover(result: list[dict]) -> str:
    """Say from which size on `central` is ahead at every size that was measured."""
    ahead = [one["central"] >= one["local"] for one in result]
    if all(ahead):
        return "central is ahead at every size"
    if not ahead[-1]:
        return "local is ahead at the largest size: there is no crossover up to it"
    first = max(index for index, is_ahead in enumerate(ahead) if not is_ahead) + 1
    return f"the crossover lies between {name_of(result[first - 1]['widths'])} and {name_of(result[first]['widths'])}"


def report(result: list[dict]) -> str:
    """Write the figures as a table, and the crossover."""
    lines = ["| policy | parameters | local, env-steps/s | central | ratio |", "| --- | --- | --- | --- | --- |"]
    for one in result:
        ratio = one["central"] / one["local"]
        figures = f"{one['parameters']:,} | {one['local']:,.0f} | {one['central']:,.0f} | {ratio:.2f}"
        lines.append(f"| {name_of(one['widths'])} | {figures} |")
    return "\n".join([*lines, "", f"{crossover(result)}."])


if __name__ == "__main__":
    main()
