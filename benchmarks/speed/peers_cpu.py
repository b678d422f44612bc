"""Env-steps/s of `go1_flat` and `go1_flat_full` beside EnvPool's native C++ Go1, on the same cores, in one run.

    python benchmarks/speed/peers_cpu.py --peer-python PYTHON --json F [key=value ...]

PYTHON is an interpreter that has envpool 1.2.5; by default the running one.  Each side lives in a process of its own and steps
only when it is told to, in turns, so that whatever else the machine does slows all of them.  benchmarks/README.md says what is
held equal and what is not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PEER, PEER_TASK = "envpool", "Go1JoystickFlatTerrain-v1"
PAGES = ("go1_flat", "go1_flat_full")
#: Five substeps of 4 ms, as EnvPool's task has it.
TIMING = ("physics.dt=0.004", "physics.decimation=5")
#: Actions are uniform in +-AMPLITUDE; both sides add half of them to the default pose [rad].  The robots shuffle on the spot:
#: with larger ones they fall, and each side treats the fallen differently.
AMPLITUDE = 0.3
#: Control steps before anything is timed (they compile the step and let the robots settle), and batches of actions in a cycle.
WARM_UP, CYCLE = 50, 64
#: Rounds that choose the number of robots.
SWEEP_ROUNDS = 3


def main() -> None:
    options = _parse()
    results = {}
    for name in (PEER, *PAGES):
        counts = options.peer_envs if name == PEER else options.envs
        sweep = {count: _rate_alone(name, count, options) for count in counts}
        print(f"{name}: " + "  ".join(f"{n} robots {rate:,.0f}/s" for n, rate in sweep.items()), file=sys.stderr)
        results[name] = {"num_envs": max(sweep, key=lambda count: sweep[count]), "sweep": sweep}
    _side_by_side(results, options)
    report = {"subjects": results, "amplitude": AMPLITUDE, "timing": TIMING, **_machine(options)}
    _show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Env-steps/s beside EnvPool's native C++ Go1.")
    parser.add_argument("--json", type=Path, metavar="F", help="also write everything to this file")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="interpreter that has envpool")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (default 2)")
    parser.add_argument("--peer-envs", type=int, nargs="+", default=[16, 32, 64, 128], metavar="N", help="what EnvPool tries")
    parser.add_argument("--envs", type=int, nargs="+", default=[256, 1024, 2048], metavar="N", help="what ours tries")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side (default 9)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a turn, about (default 4)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to our pages")
    options = parser.parse_intermixed_args()
    found = subprocess.run([options.peer_python, "-c", "import envpool"], capture_output=True)
    if found.returncode:
        parser.error(
            f"--peer-python {options.peer_python}: `import envpool` fails; python -m venv V && V/bin/pip install envpool==1.2.5"
        )
    return options


def _rate_alone(name: str, num_envs: int, options: argparse.Namespace) -> float:
    """Env-steps/s with nobody else at work."""
    with Side(name, num_envs, options) as side:
        return statistics.median(side.rate(side.play(side.steps_in(options.seconds / 2))["seconds"]) for _ in range(SWEEP_ROUNDS))


def _side_by_side(results: dict[str, dict], options: argparse.Namespace) -> None:
    """Turns of all sides at their best numbers; odd rounds go backwards, so that a drift of the machine cancels out."""
    sides = {name: Side(name, result["num_envs"], options) for name, result in results.items()}
    steps = {name: side.steps_in(options.seconds) for name, side in sides.items()}
    turns: dict[str, list[dict]] = {name: [] for name in sides}
    for index in range(options.rounds):
        for name in list(sides)[:: -1 if index % 2 else 1]:
            reply = sides[name].play(steps[name])
            turn = {key: value for key, value in reply.items() if key in ("seconds", "physics_seconds", "ended")}
            turns[name].append({"env_steps_per_s": sides[name].rate(turn["seconds"]), **turn})
    for name, side in sides.items():
        side.close()
        rates, result = [turn["env_steps_per_s"] for turn in turns[name]], results[name]
        ratios = [rate / turn["env_steps_per_s"] for rate, turn in zip(rates, turns[PEER], strict=True)]
        robot_steps = steps[name] * side.num_envs * options.rounds
        result |= {
            "env_steps_per_s": statistics.median(rates),
            "ratio": statistics.median(ratios),
            "mb_per_env": side.mb / side.num_envs,
            "ended_per_1000_steps": 1000 * sum(turn["ended"] for turn in turns[name]) / robot_steps,
            "rounds": turns[name],
            "versions": side.versions,
        }
        if name != PEER:
            shares = (turn["physics_seconds"] / turn["seconds"] for turn in turns[name])
            result["physics_share"] = statistics.median(shares)


class Side:
    """A process that holds robots and steps them when it is told to; warm when it is ready."""

    def __init__(self, name: str, num_envs: int, options: argparse.Namespace) -> None:
        self.name, self.num_envs = name, num_envs
        python = options.peer_python if name == PEER else sys.executable
        arguments = [name, num_envs, options.threads, *options.overrides]
        # The spin count is what the command line sets too: threads that spin while they wait take the cores from the physics
        # and torch runs on one, as the collector has it, beside the physics' own
        settings = {"GOMP_SPINCOUNT": "20000", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [python, __file__, "--side", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | settings,
            text=True,
        )
        warm = self.play(WARM_UP)
        self.mb, self.versions = warm["mb"], warm["versions"]
        self._step_seconds = self.play(WARM_UP)["seconds"] / WARM_UP

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def play(self, steps: int) -> dict:
        """Take so many control steps; how long that took and what happened."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        self._played, reply = steps, self._process.stdout.readline()
        if not reply:
            raise SystemExit(f"{self.name} with {self.num_envs} robots: the process is gone; its last words stand above")
        return json.loads(reply)

    def steps_in(self, seconds: float) -> int:
        """About how many control steps that is."""
        return max(1, round(seconds / self._step_seconds))

    def rate(self, seconds: float) -> float:
        """Env-steps/s of the last turn."""
        return self.num_envs * self._played / seconds

    def close(self) -> None:
        self._process.communicate()


def serve(name: str, num_envs: str, threads: str, *overrides: str) -> None:
    """The process behind a `Side`: read a number of steps, take them, answer with one line of JSON; until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not pass for a reply
    make = _envpool if name == PEER else _ours
    play, empty_mb, packages = make(name, int(num_envs), int(threads), overrides)
    versions = {package: importlib.metadata.version(package) for package in packages}
    for line in sys.stdin:
        started = time.perf_counter()
        happened = play(int(line))
        seconds = time.perf_counter() - started
        reply = {"seconds": seconds, **happened, "mb": _peak_mb() - empty_mb, "versions": versions}
        print(json.dumps(reply), file=replies, flush=True)


def _envpool(name: str, num_envs: int, threads: int, overrides: tuple[str, ...]) -> tuple[Callable[[int], dict], float, tuple]:
    import envpool  # pyright: ignore[reportMissingImports]
    import numpy as np

    empty_mb = _peak_mb()
    env = envpool.make(PEER_TASK, env_type="gymnasium", num_envs=num_envs, num_threads=threads, seed=1)
    env.reset()
    actions = np.random.default_rng(1).uniform(-AMPLITUDE, AMPLITUDE, (CYCLE, num_envs, 12))

    def play(steps: int) -> dict:
        ended = 0
        for step in range(steps):
            _, _, terminated, truncated, _ = env.step(actions[step % CYCLE])
            ended += int((terminated | truncated).sum())
        return {"ended": ended}

    return play, empty_mb, ("envpool", "numpy")


def _ours(name: str, num_envs: int, threads: int, overrides: tuple[str, ...]) -> tuple[Callable[[int], dict], float, tuple]:
    import torch

    import embodied_rl

    torch.set_num_threads(threads)
    empty_mb = _peak_mb()
    env = embodied_rl.make(name, [*TIMING, f"physics.num_threads={threads}", *overrides], num_envs=num_envs)
    generator = torch.Generator().manual_seed(1)
    actions = torch.empty(CYCLE, num_envs, env.num_actions).uniform_(-AMPLITUDE, AMPLITUDE, generator=generator)

    def play(steps: int) -> dict:
        env.drain_totals()
        before = env.physics_seconds
        with torch.inference_mode():
            for step in range(steps):
                env.step(actions[step % CYCLE])
        return {"ended": int(env.drain_totals()["episodes"]), "physics_seconds": env.physics_seconds - before}

    return play, empty_mb, ("mujoco", "torch")


def _peak_mb() -> float:
    """The most memory that this process has held [MB]."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes there, KiB elsewhere


def _machine(options: argparse.Namespace) -> dict:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": options.threads, "overrides": options.overrides}


def _show(report: dict) -> None:
    versions: dict[str, str] = {}
    print(f"{'':16}{'robots':>8}{'env-steps/s':>13}{'x EnvPool':>11}{'MB/robot':>10}{'physics':>9}{'ended/1000':>12}")
    for name, one in report["subjects"].items():
        versions |= one["versions"]
        share = f"{one['physics_share']:.0%}" if "physics_share" in one else "-"
        print(
            f"{name:16}{one['num_envs']:8}{one['env_steps_per_s']:13,.0f}{one['ratio']:11.2f}"
            f"{one['mb_per_env']:10.2f}{share:>9}{one['ended_per_1000_steps']:12.2f}"
        )
    named = ", ".join(f"{package} {version}" for package, version in versions.items())
    print(f"{report['threads']} threads each on {report['cores']} cores of {report['cpu']}; {named}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        serve(*sys.argv[2:])
    else:
        main()
