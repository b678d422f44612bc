"""What it costs to shuffle minibatches anew in each epoch, instead of once an iteration.

    python benchmarks/shuffling.py [CONFIG] [--at 15 60 110] [--repeats 8] [--json F] [key=value ...]

A run is stopped after some iterations; from there one rollout is learned from again and again, with other permutations each
time, and what came of it is judged on two further rollouts of the policy that collected all three.  Figures are means over
permutations, and the difference has its standard error: one iteration tells what whole trainings hide in the scatter of seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embodied_rl import factory
from embodied_rl.config import load
from embodied_rl.learn.ppo import PPO
from embodied_rl.learn.rollout import Rollout
from embodied_rl.learn.run import Run

#: What is reported, by its heading: of the rollouts that were not learned from, and the mean over the update's minibatches.
FIGURES = {
    "KL": "E[log pi_old - log pi], not learned from",
    "objective": "E[min(r A, clip(r) A)], not learned from",
    "value": "E[(V - R)^2], not learned from",
    "clipped": "share of clipped transitions, while learning",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Shuffling once an iteration against once an epoch.")
    parser.add_argument("config", nargs="?", default="go2_flat", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--at", type=int, nargs="+", default=[15, 60, 110], metavar="K", help="iterations to stop after")
    parser.add_argument("--repeats", type=int, default=8, metavar="N", help="permutations of each kind")
    parser.add_argument("--json", type=Path, metavar="F")
    options = parser.parse_args()
    page = load(options.config, ["ppo.schedule=fixed", *options.overrides])
    results = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = factory.make_trainer(page, Run.create(page, Path(folder) / "run"))
        learner = trainer.learner
        assert isinstance(learner, PPO)
        for stop in options.at:
            for _ in trainer.train(stop):
                pass
            learned = copy.deepcopy(trainer.collector.collect(learner.policy, stop))
            others = [prepared(learner, trainer.collector.collect(learner.policy, stop)) for _ in range(2)]
            kinds = {
                kind: updates(learner, learned, others, options.repeats, reshuffle)
                for kind, reshuffle in (("iteration", False), ("epoch", True))
            }
            results.append({"after": stop, **kinds})
            print("\n".join(table(results[-1])), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results) + "\n")


def updates(
    learner: PPO, learned: Rollout, others: list[dict[str, Tensor]], repeats: int, reshuffle: bool
) -> dict[str, list[float]]:
    """`FIGURES` after one update from the present state, for each of some permutations; the learner stays as it is."""
    state, page = copy.deepcopy(learner.state_dict()), learner.page
    learner.page = page.model_copy(update={"reshuffle": reshuffle})
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    for repeat in range(repeats):
        metrics = learner.update(learned, iteration=repeat)
        judged = [judge(learner, one) for one in others]
        for name, values in figures.items():
            values.append(metrics["Loss/clip_fraction"] if name == "clipped" else statistics.mean(one[name] for one in judged))
        learner.load_state_dict(copy.deepcopy(state))
    learner.page = page
    return figures


def prepared(learner: PPO, rollout: Rollout) -> dict[str, Tensor]:
    """A rollout's columns as the learner would learn from them, with the values it has of them now."""
    learner._prepare(rollout)
    rows = learner._batch.take(torch.arange(rollout.rewards.numel()))
    return {name: column.clone() for name, column in learner._batch.columns(rows).items()}


@torch.no_grad()
def judge(learner: PPO, b: dict[str, Tensor]) -> dict[str, float]:
    """`FIGURES` of the present policy on another's transitions."""
    log_ratio = learner.policy.distribution(learner.actor.mlp(b["actor"])).log_prob(b["action"]) - b["log_prob"]
    ratio, advantage, clip = log_ratio.exp(), b["advantage"], learner.page.clip_param
    objective = torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)
    error = (learner.critic.mlp(b["critic"])[..., 0] - b["return"]).square()
    return {"KL": float(-log_ratio.mean()), "objective": float(objective.mean()), "value": float(error.mean())}


def table(result: dict[str, Any]) -> list[str]:
    """Rows: what, once an iteration, once an epoch, difference and its standard error."""
    rows = [f"after {result['after']} iterations | once an iteration | once an epoch | difference", "--- | --- | --- | ---"]
    for name, meaning in FIGURES.items():
        once, anew = (result[kind][name] for kind in ("iteration", "epoch"))
        apart = statistics.mean(anew) - statistics.mean(once)
        error = (statistics.variance(anew) / len(anew) + statistics.variance(once) / len(once)) ** 0.5
        rows.append(f"{meaning} | {statistics.mean(once):.4f} | {statistics.mean(anew):.4f} | {apart:+.4f} +- {error:.4f}")
    return [f"| {row} |" for row in rows]


if __name__ == "__main__":
    main()
