"""Looks at one thing of training on a new GPU, in a process of its own.

    python benchmarks/gpu/gpu_steps.py STEP [--device cuda] [--num-envs N] [--page PAGE] [--combo] [key=value ...]

    engine     MuJoCo Warp alone: eager, as a graph that torch owns, as a graph of Warp's own; are they the same, how fast
    capture    the environment: captured is eager, without and with torch.compile; milliseconds a step
    train      a few iterations of training with everything on, and what is captured
    profile    kernels of a rollout and of an update by where they come from, how busy the GPU is, a trace
    sweep      physics alone: numbers of robots, the solver's iterations, a loop that ends early (conditional nodes)
    allocator  the graph's temporaries from torch's pool in place of allocation nodes
    tf32       an update with TF32 products

Prints JSON last, and writes it to $OUT/figures/STEP.json where OUT is set.
Exit status: 0 where everything was as it should be.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import tempfile
import time
import traceback
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from gpu_measure import gpu_work, milliseconds, wait
from gpu_physics import allocator, engine, sweep
from gpu_report import attempt, say, short, write
from torch import Tensor

#: How far a robot's numbers may be from the eager step's, and the share of robots that may be farther.  Contacts are found and
#: summed in any order: the last bits differ, and a few robots are at a contact's edge.
TOLERANCE, ROWS_OFF = 1e-3, 0.01


def main() -> None:
    steps = {step.__name__: step for step in (engine, capture, train, profile, sweep, allocator, tf32)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=steps, help="see the top of this file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-envs", type=int, default=4096, metavar="N")
    parser.add_argument("--page", default="go2_flat")
    parser.add_argument(
        "--combo", action="store_true", help="inductor's horizontal fusion: half as many kernels around the physics"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    if options.combo:
        import torch._inductor.config as inductor

        inductor.combo_kernels, inductor.combo_kernels_autotune, inductor.benchmark_combo_kernel = True, 0, False
    where = "cpu" if options.device == "cpu" else torch.cuda.get_device_name()
    figures: dict[str, Any] = {"device": where, "num_envs": options.num_envs}
    try:
        steps[options.step](options, figures)
    except Exception as error:
        traceback.print_exc()
        figures["error"] = f"FAILED {type(error).__name__}: {error}"
    print(json.dumps(figures, indent=1, default=str))
    if out := os.environ.get("OUT"):
        write(Path(out) / "figures" / f"{options.step}{'_combo' if options.combo else ''}.json", figures)
    failed = [f"{name}: {value}" for name, value in figures.items() if str(value).startswith("FAILED")]
    print("; ".join(failed) or "done")
    raise SystemExit(1 if failed else 0)


def captures(options: Namespace) -> bool:
    """Whether CUDA graphs are asked for."""
    return options.device != "cpu" and "physics.graph=false" not in options.overrides


@torch.no_grad()
def capture(options: Namespace, figures: dict[str, Any]) -> None:
    """Compare a captured step with an eager one, without and with torch.compile, and time both."""
    for compiled in ("auto",) if options.combo else ("false", "auto"):
        part: dict[str, Any] = {}
        name = f"compile={compiled}"
        try:
            _capture(options, compiled, part)
        except Exception as error:
            traceback.print_exc()
            part["failed"] = f"{type(error).__name__}: {str(error)[:400]}"
        figures[compiled] = part
        say(f"{name}: {short(part, skip=('totals', 'longest', 'memory_gib'))}")
        if wrong := part.get("failed") or _wrong(options, part):
            figures[name] = f"FAILED {wrong}"


def _capture(options: Namespace, compiled: str, part: dict[str, Any]) -> None:
    from embodied_rl import make_env

    given = [f"env.compile={compiled}", *options.overrides]
    started = time.perf_counter()
    env = make_env.make(options.page, given, num_envs=options.num_envs, device=options.device, engine="warp")
    wait()
    part["make_s"] = time.perf_counter() - started
    noise = torch.randn(options.num_envs, env.num_actions, generator=torch.Generator().manual_seed(0))
    actions = (0.3 * noise).to(env.device)
    started = time.perf_counter()
    for _ in range(3):
        env.advance(actions)
    wait()
    part["first_three_steps_s"] = time.perf_counter() - started
    part["eager_ms"] = milliseconds(lambda: env.advance(actions), 0.3, 3)
    started = time.perf_counter()
    env.step(actions)  # the first one captures
    wait()
    part["capture_s"], part["captured"] = time.perf_counter() - started, env.captured
    rows = torch.arange(options.num_envs, device=env.device)
    state = env.snapshot(rows)
    env.advance(actions)
    wanted = {name: value.clone() for name, value in _outputs(env).items()}
    env.restore(rows, state)
    env.step(actions)
    part["rows_off"] = {name: _rows_off(value, wanted[name]) for name, value in _outputs(env).items()}
    part["step_ms"] = milliseconds(lambda: env.step(actions))
    part["env_steps_per_s"] = 1000.0 * options.num_envs / part["step_ms"]
    if options.device != "cpu":
        part |= gpu_work(lambda: env.step(actions), 5)
        part["memory_gib"] = [size / 2**30 for size in torch.cuda.mem_get_info()]
    part["totals"] = env.drain_totals()
    env.close()


def _outputs(env: Any) -> dict[str, Tensor]:
    return {**env.obs, "reward": env.result.rewards, "qpos": env.physics.qpos}


def _rows_off(found: Tensor, wanted: Tensor) -> float:
    """The share of robots that have a number beyond the tolerance."""
    return float(((found - wanted).abs().reshape(len(found), -1) > TOLERANCE).any(1).float().mean())


def _wrong(options: Namespace, part: dict[str, Any]) -> str:
    """What a captured step should be and is not."""
    if captures(options) and not part["captured"]:
        return "it was not captured; the log says why"
    off = {name: share for name, share in part["rows_off"].items() if share > ROWS_OFF}
    return f"captured differs from eager: {short(off)}" if off else ""


def make_trainer(options: Namespace, folder: str, *overrides: str) -> Any:
    """A trainer of the page in a fresh run directory."""
    from embodied_rl import make_env, training

    given = [*options.overrides, *overrides]
    page = make_env.resolve(options.page, given, num_envs=options.num_envs, device=options.device, engine="warp")
    return training.start(page, Path(folder) / "run")


def train(options: Namespace, figures: dict[str, Any]) -> None:
    """Train six iterations, resume the run, load its policy."""
    from embodied_rl import runs, training

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        trainer = make_trainer(options, folder, "train.save_every=4")
        figures["make_s"], figures["iterations"] = time.perf_counter() - started, []
        for metrics in trainer.train(6):
            keys = ("Perf/collection_time", "Perf/learning_time", "Perf/total_fps", "Loss/kl", "Loss/skipped", "Loss/value")
            figures["iterations"].append({key: metrics[key] for key in keys} | {"reward": metrics.get("Train/mean_reward")})
            say(short(figures["iterations"][-1]))
        collector, learner = trainer.collector._env, trainer.learner
        figures["captured"] = captured = {
            "collector": collector.captured,
            "learner": learner.steps.captures and sorted({half for half, _ in learner.steps.graphs}),
        }
        say(f"captured: {short(captured)}; {figures['make_s']:.1f} s to make")
        if captures(options) and not all(captured.values()):
            figures["not captured"] = "FAILED one by one instead; the log says why"
        if options.device != "cpu":
            allocated, free = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[0]
            figures["memory_gib"] = {"allocated": allocated / 2**30, "free": free / 2**30}
        path = Path(folder) / "run"
        attempt(figures, "resumed", lambda: training.resume(str(path), options.page, device=options.device).iteration)
        obs = torch.zeros_like(collector.obs["actor"][:2])  # of the robots' device; the policy is loaded on the CPU
        attempt(figures, "loaded", lambda: str(runs.load(path).policy(obs).device))


def profile(options: Namespace, figures: dict[str, Any]) -> None:
    """Look at one rollout and one update, once everything is compiled and captured."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options, folder)
        iterations = trainer.train(8)
        for _ in range(5):
            next(iterations)
        rollouts: list[Any] = []
        parts = {
            "collect": lambda: rollouts.append(trainer.collector.collect(trainer.learner.policy, trainer.iteration)),
            "update": lambda: trainer.learner.update(rollouts[-1], trainer.iteration),
        }
        for name, function in parts.items():
            trace = Path(folder) / f"{name}.json"
            figures[name] = work = gpu_work(function, trace=trace)
            busy = 100.0 * work["busy_share"]
            say(f"{name}: {work['wall_ms']:.1f} ms, the GPU busy {busy:.0f} %: {short(work['origins'])}")
            if (out := os.environ.get("OUT")) and options.device != "cpu":
                packed = Path(out) / "traces" / f"{name}.json.gz"
                packed.parent.mkdir(parents=True, exist_ok=True)
                with trace.open("rb") as source, gzip.open(packed, "wb", 6) as target:
                    shutil.copyfileobj(source, target)
        iterations.close()


def tf32(options: Namespace, figures: dict[str, Any]) -> None:
    """Train with products in float32 and in TF32, in turns."""
    if options.device == "cpu":
        say("TF32: a CPU has none; this shows that the step runs")
    for turn, precision in enumerate(("highest", "high", "highest", "high")):

        def seconds(precision: str = precision) -> dict[str, float]:
            torch.set_float32_matmul_precision(precision)
            with tempfile.TemporaryDirectory() as folder:
                metrics = list(make_trainer(options, folder).train(8))[3:]
            return {key: statistics.median(one[key] for one in metrics) for key in ("Perf/collection_time", "Perf/learning_time")}

        attempt(figures, f"{precision}, turn {turn // 2}", seconds)


if __name__ == "__main__":
    main()
