"""The process behind a row of gpu.py: holds robots, ours or the peer's, and measures what it is told to.

    python benchmarks/speed/gpu_side.py ours|mjlab PAGE N SETTINGS

It reads one line of JSON at a time, and answers with one.  Beside the peer nothing of ours is imported.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import logging
import os
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from embodied_rl.bench.tape import PhysicsAlone, Tape
    from embodied_rl.env import Env

PEER, PEER_TASK = "mjlab", "Mjlab-Velocity-Flat-Unitree-Go1"
#: Actions beside the peer are uniform in +-AMPLITUDE: the robots shuffle on the spot, with larger ones they fall.
AMPLITUDE, CYCLE = 0.3, 64
#: Steps over which synchronizations and kernels are counted.
COUNTED = 10


def serve(kind: str, page: str, num_envs: str, settings: str) -> None:
    """Do what each line says."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not pass for a reply
    options = argparse.Namespace(**json.loads(settings))
    handlers: dict[str, Callable] = (_Peer if kind == PEER else _Ours)(page, int(num_envs), options).handlers
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        print(json.dumps(handlers[what](*arguments)), file=replies, flush=True)


class _Ours:
    """Our environment, the physics under it, and the trainer above."""

    def __init__(self, page: str, num_envs: int, options: argparse.Namespace) -> None:
        import embodied_rl

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self._page, self._num_envs, self._options = page, num_envs, options
        self._device = torch.device(options.device)
        self._cuda = self._device.type == "cuda"
        self._make = lambda: embodied_rl.make(page, options.overrides, num_envs=num_envs, device=options.device, engine="warp")
        self._env: Env | None = None
        self.handlers = {"measure": self.measure, "play": self.play}

    def measure(self) -> dict[str, Any]:
        """All columns of the table."""
        from embodied_rl.bench.clock import now
        from embodied_rl.bench.tape import PhysicsAlone, Tape

        free = torch.cuda.mem_get_info(self._device)[0] if self._cuda else 0
        with tempfile.TemporaryDirectory() as folder:
            trained, policy = self._train(Path(folder) / "run")
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
        with torch.no_grad():
            started = now(self._device)
            env = self._env = self._make()
            made = now(self._device) - started
            tape = Tape(env, policy)
            started = now(self._device)
            env.step(tape.actions[0])
            capturing = now(self._device) - started
            physics = PhysicsAlone(env, tape)
            rates = self._alternate(env, physics, tape)
            counts = self._counts(env, physics, tape) if self._cuda else {}
        memory = (free - torch.cuda.mem_get_info(self._device)[0]) / 2**30 if self._cuda else None
        return {
            **rates,
            **trained,
            **counts,
            "captured": env.captured,
            "make_again_s": made,
            "capture_s": capturing,
            "memory_gib": memory,
            "capacity": getattr(env.physics, "capacity", {}),
        }

    def play(self, steps: int) -> dict[str, Any]:
        """Some steps under random actions, the same as the peer's."""
        with torch.no_grad():
            if self._env is None:
                self._env = self._make()
                self._actions = _shuffle(self._num_envs, self._env.num_actions, self._device)
                self._env.step(self._actions[0])
            return _timed(self._env.step, self._actions, steps, self._device, ("mujoco", "mujoco-warp", "warp-lang", "torch"))

    def _train(self, folder: Path) -> tuple[dict[str, Any], Callable]:
        """Train for a while: what the policy and the update cost, how long the start takes, and the policy."""
        import embodied_rl
        from embodied_rl import make_env, training
        from embodied_rl.bench.clock import now

        options = self._options
        given = [f"train.iterations={options.iterations}", *options.overrides]
        page = make_env.resolve(self._page, given, num_envs=self._num_envs, device=options.device, engine="warp")
        kernels = _Kernels()
        logging.getLogger("embodied_rl").addHandler(kernels)
        started = now(self._device)
        trainer = training.start(page, folder)
        marks, iterations = [now(self._device)], []
        for metrics in trainer.train(options.iterations):
            iterations.append(metrics)
            marks.append(time.perf_counter())
        logging.getLogger("embodied_rl").removeHandler(kernels)
        steps = page.train.steps * self._num_envs
        settled = iterations[len(iterations) // 2 :]  # the second half: nothing is compiled any more, and the robots walk
        rates = {
            "policy_steps_per_s": steps / statistics.median(one["Perf/collection_time"] for one in settled),
            "update_steps_per_s": steps / statistics.median(one["Perf/iteration_time"] for one in settled),
        }
        start = {"make_s": marks[0] - started, "first_iteration_s": marks[1] - marks[0], **kernels.figures}
        policy = embodied_rl.load(folder, device=str(self._device)).policy
        return {**rates, **start, "iterations": len(iterations), "reward": iterations[-1].get("Train/mean_reward")}, policy

    def _alternate(self, env: Env, physics: PhysicsAlone, tape: Tape) -> dict[str, Any]:
        """Physics and environment in turns on one tape, each from the state that the tape begins with."""
        from embodied_rl.bench.clock import now
        from embodied_rl.bench.tape import WholeEnv

        def time_of(side: WholeEnv | PhysicsAlone, repeats: int) -> float:
            started = now(self._device)
            for _ in range(repeats):
                side.play()
            return now(self._device) - started

        sides: dict[str, WholeEnv | PhysicsAlone] = {"physics": physics, "env": WholeEnv(env, tape)}
        repeats, seconds = {}, {name: [] for name in sides}
        for name, side in sides.items():
            side.rewind()
            once = min(time_of(side, 1) for _ in range(2))
            repeats[name] = max(1, round(self._options.seconds / once))
        for index in range(self._options.rounds):
            for name in list(sides)[:: -1 if index % 2 else 1]:
                sides[name].rewind()
                seconds[name].append(time_of(sides[name], repeats[name]) / repeats[name])
        steps = env.num_envs * len(tape.actions)
        ratios = [p / e for p, e in zip(seconds["physics"], seconds["env"], strict=True)]
        return {
            "physics_steps_per_s": steps / statistics.median(seconds["physics"]),
            "env_steps_per_s": steps / statistics.median(seconds["env"]),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }

    def _counts(self, env: Env, physics: PhysicsAlone, tape: Tape) -> dict[str, Any]:
        """Kernels of a step, and synchronizations of the host in it."""

        def step() -> None:
            env.step(tape.actions[0])

        torch.set_warn_always(True)
        torch.cuda.synchronize(self._device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            for _ in range(COUNTED):
                step()
            torch.cuda.set_sync_debug_mode("default")
        syncs = sum("synchronizing CUDA operation" in str(one.message) for one in caught) / COUNTED
        return {"syncs": syncs, "env_kernels": _kernels(step), "physics_kernels": _kernels(physics.step)}


class _Kernels(logging.Handler):
    """Hears how long the kernels took to build."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.match(r"built in ([\d.]+) s: (\d+) compiled, (\d+) from the cache", record.getMessage()):
            seconds, compiled, cached = found.groups()
            self.figures = {"kernels_s": float(seconds), "kernels_compiled": int(compiled), "kernels_cached": int(cached)}


def _kernels(step: Callable[[], None]) -> float:
    """Kernels that a step launches, inside its graph or not; copies and fills of memory are none."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(COUNTED):
            step()
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events() or [] if str(event.device_type).endswith("CUDA")]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names) / COUNTED


def _shuffle(num_envs: int, size: int, device: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    return torch.empty(CYCLE, num_envs, size).uniform_(-AMPLITUDE, AMPLITUDE, generator=generator).to(device)


def _timed(step: Callable, actions: Any, steps: int, device: Any, packages: tuple[str, ...]) -> dict[str, Any]:
    """Seconds for so many steps, and who took them."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    started = time.perf_counter()
    for index in range(steps):
        step(actions[index % CYCLE])
    wait(device)
    return {"seconds": time.perf_counter() - started, "versions": {p: importlib.metadata.version(p) for p in packages}}


class _Peer:
    """mjlab's Go1 on flat ground, as its own scripts make it; nothing of ours is imported here."""

    def __init__(self, page: str, num_envs: int, options: argparse.Namespace) -> None:
        import mjlab.tasks  # pyright: ignore[reportMissingImports]  registers the tasks  # noqa: F401
        from mjlab.envs import ManagerBasedRlEnv  # pyright: ignore[reportMissingImports]
        from mjlab.tasks.registry import load_env_cfg  # pyright: ignore[reportMissingImports]
        from mjlab.utils.torch import configure_torch_backends  # pyright: ignore[reportMissingImports]

        configure_torch_backends()
        config = load_env_cfg(PEER_TASK)
        config.scene.num_envs, config.seed = num_envs, 1
        device = options.device if ":" in options.device or options.device == "cpu" else f"{options.device}:0"
        self._device, self._env = torch.device(device), ManagerBasedRlEnv(cfg=config, device=device)
        self._env.reset()
        self._decimation = config.decimation
        self._actions = _shuffle(num_envs, self._env.action_manager.total_action_dim, self._device)
        self.handlers = {"play": self.play, "physics": self.physics}

    def play(self, steps: int) -> dict[str, Any]:
        """Some steps of the environment."""
        return self._time(self._env.step, steps)

    def physics(self, steps: int) -> dict[str, Any]:
        """Some control steps of its physics alone."""

        def step(_: Any) -> None:
            for _ in range(self._decimation):
                self._env.sim.step()

        return self._time(step, steps)

    def _time(self, step: Callable, steps: int) -> dict[str, Any]:
        with torch.inference_mode():
            return _timed(step, self._actions, steps, self._device, (PEER, "mujoco", "mujoco-warp", "warp-lang", "torch"))


if __name__ == "__main__":
    serve(*sys.argv[1:])
