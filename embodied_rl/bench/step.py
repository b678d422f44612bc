"""Speed as figures: a step against its physics, and seconds until it walks."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco import batch as mujoco_batch
from torch import Tensor

from embodied_rl import make_env, runs, training
from embodied_rl.config import Page, override
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn.evaluate import LIMITS, REFERENCE_LIMITS, SEEDS, walks
from embodied_rl.learn.run import RUNS, Run
from embodied_rl.physics.protocol import Physics
from embodied_rl.robot import load_robot
from embodied_rl.scene import build_scene

log = logging.getLogger("embodied_rl")

#: Steps of the recorded tape, and how often each side plays it.
_TAPE, _ROUNDS = 50, 9
#: Joint friction of the reference Go2 (unitreerobotics/unitree_mujoco, go2.xml) [N m], and a solver that no page moves.
_BARE_FRICTION_LOSS = 0.2
_BARE_SOLVER = ["physics.solver=newton", "physics.iterations=10", "physics.ls_iterations=20", "physics.cone=pyramidal"]
#: Iterations of training before its rounds, and in each of them.
_TRAIN_WARMUP, _TRAIN_ITERATIONS = 5, 2
_SHARES = ("physics", "env", "policy", "update")
#: The size at which learners are compared.
COMPARABLE = [
    *("env.num_envs=1024", "ppo.num_steps_per_env=24", "ppo.actor_hidden_dims=[128, 128]", "ppo.critic_hidden_dims=[128, 128]"),
    *("ppo.num_learning_epochs=5", "ppo.num_mini_batches=4", "ppo.symmetry=none"),
]
#: Iterations between evaluations of `bench walk`, which begin once the training metrics come near the limits.
_EVALUATE_EVERY, _NEAR = 10, {"Metrics/lin_vel_error": 0.30, "Metrics/ang_vel_error": 0.40}


class Tape:
    """What an environment asks of its engine during some steps: controls, resets and writes, to be played again."""

    def __init__(self, env: Env, policy: Callable[[dict[str, Tensor]], Tensor]) -> None:
        rows, physics = torch.arange(env.num_envs), _Recorder(env.physics)
        env.physics = physics  # pyright: ignore[reportAttributeAccessIssue]  it stands for the engine
        with torch.inference_mode():
            for _ in range(_TAPE):  # away from the first episodes
                env.step(policy(env.obs))
            self.state = env.snapshot(rows)
            self.actions, self.controls, self.resets = [], [], []
            for _ in range(_TAPE):
                self.actions.append(policy(env.obs).clone())
                env.step(self.actions[-1])
                self.controls.append(physics.controls)
                self.resets.append(physics.changes)
        env.physics = physics.engine


class _Recorder:
    """Stands before an engine and keeps what it was last asked."""

    def __init__(self, physics: Physics) -> None:
        self.engine = physics

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self, ctrl: Tensor) -> None:
        self.controls = ctrl.double().numpy().copy()
        self.engine.step(ctrl)

    def write(self, mask: Tensor, **fields: Tensor) -> None:
        if "qpos" in fields:
            rows = np.flatnonzero(mask.numpy())
            self.changes = (rows, fields["qpos"][rows].double().numpy(), fields["qvel"][rows].double().numpy())
        self.engine.write(mask, **fields)


def bench_env(page: Page, run: str | None = None) -> dict[str, float]:
    """One step of the environment against its physics alone, alternating on the same tape.

    Args:
        page: the task.
        run: whose policy drives; by default the page's newest run, or a short training where there is none.

    Returns:
        physics_steps_per_s: the engine alone (`mujoco.batch`), fed the recorded controls and resets; env_steps_per_s: the
        environment; ratio of the two; bare_steps_per_s: the engine on the bare robot, feet only, no sensors, with the
        reference's joint friction and a fixed solver; bare_ratio.  Medians of alternating rounds, in env steps per second.
    """
    policy = _trained_policy(page, run)
    torch.set_num_threads(1)  # as the collector has it: the physics threads have the cores
    env = make_env.make(page)
    tape = Tape(env, policy)
    scene = env.scene
    physics = _EngineAlone(
        scene.model, env, tape, bound=("sensordata", "actuator_force") if scene.joint_torque else ("sensordata",)
    )
    bare = _EngineAlone(_bare_model(page), env, tape, bound=())
    rows = torch.arange(env.num_envs)
    seconds: dict[str, list[float]] = {"physics": [], "env": [], "bare": []}
    with torch.inference_mode():
        for _ in range(_ROUNDS):
            seconds["physics"].append(physics.play())
            env.restore(rows, tape.state)
            started = time.perf_counter()
            for action in tape.actions:
                env.step(action)
            seconds["env"].append(time.perf_counter() - started)
            seconds["bare"].append(bare.play())
    steps = env.num_envs * _TAPE
    rate = {name: steps / statistics.median(times) for name, times in seconds.items()}
    ratios = [p / e for p, e in zip(seconds["physics"], seconds["env"], strict=True)]
    bare_ratios = [b / e for b, e in zip(seconds["bare"], seconds["env"], strict=True)]
    return {
        "num_envs": env.num_envs,
        "physics_steps_per_s": rate["physics"],
        "env_steps_per_s": rate["env"],
        "ratio": statistics.median(ratios),
        "bare_steps_per_s": rate["bare"],
        "bare_ratio": statistics.median(bare_ratios),
    }


class _EngineAlone:
    """`mujoco.batch` and nothing else, playing a tape."""

    def __init__(self, model: mujoco.MjModel, env: Env, tape: Tape, bound: tuple[str, ...]) -> None:
        self._batch = mujoco_batch.Batch(model, env.num_envs, env.page.physics.num_threads)
        for field in bound:
            self._batch.bind(field)
        self._decimation, self._tape = env.page.physics.decimation, tape
        self._qpos, self._qvel, self._ctrl = (self._batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self._warmstart = self._batch.bind("qacc_warmstart")
        physics = {name.removeprefix("physics."): v for name, v in tape.state.items() if name.startswith("physics.")}
        self._rows = physics["integration"].numpy()
        friction = physics.get("model.geom_friction")
        if friction is not None and friction.shape[1] == model.ngeom:
            self._batch.expand("geom_friction")[:] = friction.numpy()

    def play(self) -> float:
        """Seconds for the whole tape."""
        self._batch.state[:] = self._rows[:, : self._batch.nstate]
        started = time.perf_counter()
        for controls, (changed, qpos, qvel) in zip(self._tape.controls, self._tape.resets, strict=True):
            self._ctrl[:] = controls
            self._batch.step(nstep=self._decimation)
            self._qpos[changed], self._qvel[changed], self._warmstart[changed] = qpos, qvel, 0.0
        return time.perf_counter() - started


def bench_train(page: Page, run: str | None = None) -> dict[str, float]:
    """Training against its physics alone, in turn: at a size that any learner can be compared at, and as the page is.

    Args:
        page: the task.
        run: whose policy the tape of the physics is recorded with; see `bench_env`.

    Returns:
        train_steps_per_s: all of training, checkpoints aside, at 1024 robots x 24 steps, networks 128-128, 5 epochs of 4
        minibatches, no symmetry; physics_steps_per_s: the engine alone, as in `bench_env`; ratio of the two; share_physics,
        share_env, share_policy, share_update: where training's time went.  The same with `shipped_` before it, of the page
        unmodified.  Medians of rounds.
    """
    policy = _trained_policy(page, run)
    shipped = _train_rounds(page, policy)
    return _train_rounds(override(page, COMPARABLE), policy) | {f"shipped_{name}": value for name, value in shipped.items()}


def _train_rounds(page: Page, policy: Callable[[dict[str, Tensor]], Tensor]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(page, Run.create(page, Path(folder) / "run"))
        env = make_env.make(page)
        torch.set_num_threads(1)
        tape = Tape(env, policy)
        scene = env.scene
        bound = ("sensordata", "actuator_force") if scene.joint_torque else ("sensordata",)
        physics = _EngineAlone(scene.model, env, tape, bound=bound)
        iterations, rounds = trainer.train(page.ppo.max_iterations), []
        for _ in range(_TRAIN_WARMUP):
            next(iterations)
        for _ in range(_ROUNDS):
            alone = physics.play() / (env.num_envs * _TAPE)
            metrics = [next(iterations) for _ in range(_TRAIN_ITERATIONS)]
            seconds = sum(m["Perf/iteration_time"] for m in metrics)
            shares = {f"share_{name}": sum(m[f"Perf/share_{name}"] for m in metrics) / len(metrics) for name in _SHARES}
            each = seconds / (_TRAIN_ITERATIONS * page.env.num_envs * page.ppo.num_steps_per_env)
            rounds.append({"train": 1.0 / each, "physics": 1.0 / alone, "ratio": alone / each, **shares})
        iterations.close()
    median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    return {
        "num_envs": page.env.num_envs,
        "train_steps_per_s": median["train"],
        "physics_steps_per_s": median["physics"],
        "ratio": median["ratio"],
        **{name: value for name, value in median.items() if name.startswith("share_")},
    }


def _bare_model(page: Page) -> mujoco.MjModel:
    physics = override(page, _BARE_SOLVER).physics
    model = build_scene(load_robot(page.robot), collisions="feet", physics=physics).model
    model.dof_frictionloss[6:] = _BARE_FRICTION_LOSS
    return model


def _trained_policy(page: Page, run: str | None) -> Callable[[dict[str, Tensor]], Tensor]:
    checkpoints = sorted((RUNS / page.name).glob("*/checkpoints/model_*.pt"), key=lambda path: path.stat().st_mtime)
    if run or checkpoints:
        loaded = runs.load(run or checkpoints[-1])
        log.info("driven by the policy of %s", loaded.checkpoint)
        return loaded.policy
    log.info("no run of %s under %s: training one for 200 iterations of 256 robots first", page.name, RUNS)
    page = override(page, ["env.num_envs=256"])  # however many are measured: these learn soonest
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(page, Run.create(page, Path(folder) / "run"))
        for _ in trainer.train(200):
            pass
        return runs.load(trainer.run.path).policy


def bench_walk(page: Page) -> dict[str, float]:
    """Train the page as it is until it walks.

    Every few iterations the policy is evaluated on the side, which is not counted; compile time is.  The first of two
    evaluations in a row that pass, in training and in reference physics, is the one that counts, if it passes again on seeds
    that it was not chosen by.  Of several processes, started by torchrun, the first evaluates.

    Returns:
        seconds_to_walk, env_steps_to_walk, and the figures of that policy on the unseen seeds; `inf` where it never walked.

    Raises:
        UserError: a signal stopped it.
    """
    started, aside = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.start(page, Path(folder) / "run")
        examine = lambda policy, seed: trainer.group.lead(lambda: _passes(page, policy, seed))  # noqa: E731
        candidate: dict | None = None
        for metrics in trainer.train(page.ppo.max_iterations):
            if trainer.iteration % _EVALUATE_EVERY or any(metrics[name] > limit for name, limit in _NEAR.items()):
                continue
            seconds, paused = time.perf_counter() - started - aside, time.perf_counter()
            path = trainer.save()
            policy = runs.load(path).policy if trainer.group.rank == 0 else None
            figures, passed = examine(policy, SEEDS[0])
            log.info("%4.0f s, %s steps: %s", seconds, f"{trainer.env_steps:,}", _brief(figures))
            if passed and candidate:
                unseen, passed = examine(candidate["policy"], SEEDS[1])
                if passed:
                    return {"seconds_to_walk": candidate["seconds"], "env_steps_to_walk": candidate["steps"], **unseen}
            candidate = {"policy": policy, "seconds": seconds, "steps": trainer.env_steps} if passed else None
            aside += time.perf_counter() - paused
        if trainer.stopped:
            raise UserError(f"stopped after {trainer.iteration} iterations, before it walked")
    return {"seconds_to_walk": float("inf"), "env_steps_to_walk": float("inf")}


def _passes(page: Page, policy: Callable[[dict[str, Tensor]], Tensor], seed: int) -> tuple[dict[str, float], bool]:
    """Figures in training physics, and in reference physics where those pass."""
    figures = runs.evaluate_policy(page, policy, seed=seed)
    if not walks(figures, LIMITS):
        return figures, False
    reference = runs.evaluate_policy(page, policy, seed=seed, reference=True)
    figures |= {f"reference_{name}": reference[name] for name in LIMITS}
    return figures, walks(reference, REFERENCE_LIMITS)


def _brief(figures: dict[str, float]) -> str:
    return "  ".join(
        f"{name} {figures[name]:.3f}" for name in (*LIMITS, *(f"reference_{name}" for name in LIMITS)) if name in figures
    )
