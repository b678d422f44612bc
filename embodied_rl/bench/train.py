"""Training against its physics alone."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from embodied_rl import make_env, training
from embodied_rl.bench.clock import now
from embodied_rl.bench.policy import driving_policy
from embodied_rl.bench.tape import Tape, physics_alone
from embodied_rl.config import Page, override
from embodied_rl.learn.progress import Progress
from embodied_rl.learn.run import Run
from embodied_rl.vector_env import Obs

#: The size at which learners are compared.
COMPARABLE = [
    *("env.num_envs=1024", "train.steps=24", "ppo.actor_hidden_dims=[128, 128]", "ppo.critic_hidden_dims=[128, 128]"),
    *("ppo.num_learning_epochs=5", "ppo.num_mini_batches=4", "ppo.symmetry=none"),
]
#: Rounds that count, iterations of training before them, and in each of them.
_ROUNDS, _WARMUP, _ITERATIONS = 9, 5, 2


def bench_train(page: Page) -> dict[str, float]:
    """Training against its physics alone, in turn: at a size that any learner can be compared at, and as the page is.

    The tape of the physics is recorded as in `bench_env`.

    Returns:
        train_steps_per_s: all of training, checkpoints aside, at 1024 robots x 24 steps, networks 128-128, 5 epochs of 4
        minibatches, no symmetry; physics_steps_per_s: the engine alone, as in `bench_env`; ratio of the two; share_physics,
        share_env, share_policy, share_update: where training's time went (share_rollout for the first three where they are one
        CUDA graph).  The same with `shipped_` before it, of the page unmodified.  Medians of rounds.
    """
    policy, page = driving_policy(page), override(page, ["train.stop_when=end"])
    shipped = _train_rounds(page, policy)
    return _train_rounds(override(page, COMPARABLE), policy) | {f"shipped_{name}": value for name, value in shipped.items()}


def _train_rounds(page: Page, policy: Callable[[Obs], Tensor]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(page, Run.create(page, Path(folder) / "run"))
        trainer.progress = Progress(page.name, None)  # what so few iterations earn is no news
        env = make_env.make(page)
        torch.set_num_threads(1)
        tape = Tape(env, policy)
        physics = physics_alone(env, tape)
        iterations, rounds = trainer.train(_WARMUP + _ROUNDS * _ITERATIONS), []
        for _ in range(_WARMUP):
            next(iterations)
        for _ in range(_ROUNDS):
            physics.rewind()
            started = now(env.device)
            physics.play()
            alone = (now(env.device) - started) / (env.num_envs * len(tape.actions))
            metrics = [next(iterations) for _ in range(_ITERATIONS)]
            each = sum(m["Perf/iteration_time"] for m in metrics) / (_ITERATIONS * page.env.num_envs * page.train.steps)
            shares = {
                name.removeprefix("Perf/"): statistics.mean(m[name] for m in metrics)
                for name in metrics[0]
                if name.startswith("Perf/share_")
            }
            rounds.append({"train_steps_per_s": 1.0 / each, "physics_steps_per_s": 1.0 / alone, "ratio": alone / each} | shares)
        iterations.close()
    result: dict[str, float] = {"num_envs": page.env.num_envs}
    return result | {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
