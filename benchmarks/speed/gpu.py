"""What a step costs on a GPU: the GPU's tests first, then one table.

    python benchmarks/speed/gpu.py --json F [--peer-python PYTHON] [--walk go2_flat] [key=value ...]

Per page and number of robots: the physics alone, the environment around it, the policy with it, the update on top.  Each is a
process of its own, which first trains a policy that then drives.  PYTHON is an interpreter that has mjlab 1.6, whose Go1 steps in
turns with ours.  benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from embodied_rl.env import Env

ROOT = Path(__file__).parents[2]
PEER, PEER_TASK, PEER_PAGE = "mjlab", "Mjlab-Velocity-Flat-Unitree-Go1", "go1_flat"
#: Control steps on the tape that is played to the physics and to the environment.
TAPE = 50
#: Actions beside the peer are uniform in +-AMPLITUDE: the robots shuffle on the spot, with larger ones they fall.
AMPLITUDE, CYCLE = 0.3, 64
#: Steps that a peer takes before it is timed, and over which synchronizations and kernels are counted.
WARM_UP, COUNTED = 50, 10


def main() -> None:
    options = _parse()
    report: dict[str, Any] = {"tests": None if options.no_tests else _run_tests(), **_machine(options)}
    report["steps"] = []
    for page in options.pages:
        for num_envs in options.num_envs:
            with Side(["ours", page, str(num_envs)], sys.executable, options) as side:
                report["steps"].append({"page": page, "num_envs": num_envs, **side.ask("measure")})
            _say(report["steps"][-1])
    if options.peer_python:
        report["peer"] = [_beside_peer(num_envs, options) for num_envs in options.num_envs]
    if options.walk:
        report["walk"] = _walk(options)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if report["tests"] not in (None, 0):
        sys.exit("the GPU tests fail, see above: the figures may mean nothing")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a step costs on a GPU.")
    parser.add_argument("--pages", nargs="+", default=["go1_flat", "go2_flat"], metavar="PAGE")
    parser.add_argument("--num-envs", nargs="+", type=int, default=[4096, 16384], metavar="N")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; cpu shows that the script runs")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each, of which the medians count (default 9)")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a turn lasts (default 1)")
    parser.add_argument("--iterations", type=int, default=100, help="of training, for the policy that drives (default 100)")
    parser.add_argument("--peer-python", metavar="PYTHON", help="interpreter that has mjlab 1.6")
    parser.add_argument("--walk", metavar="PAGE", help="`bench walk` of this page too")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    parser.add_argument("--json", type=Path, metavar="F", help="also write everything to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to our pages")
    options, rest = parser.parse_known_args()
    if unknown := [one for one in rest if one.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides += rest  # which argparse cannot say of a list behind options
    import torch

    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(
            f"--device {options.device}: there is no CUDA device; `embodied-rl doctor` says more, --device cpu tries it out"
        )
    return options


def _run_tests() -> int:
    """The tests that need a GPU; 0 where they pass, or where there are none to run."""
    # not all files: others need what a machine with a GPU may lack
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    return subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "-q", *files], cwd=ROOT, check=False).returncode


# ------------------------------------------------------------------------------------------------------- a process for each


class Side:
    """A process that holds robots and does what it is told, one line of JSON each way.

    Args:
        arguments: `ours PAGE N`, or `mjlab PAGE N`.
        python: the interpreter.
        options: the command line's.
    """

    def __init__(self, arguments: list[str], python: str, options: argparse.Namespace) -> None:
        self.name = " ".join(arguments)
        settings = {name: getattr(options, name) for name in ("device", "rounds", "seconds", "iterations", "overrides")}
        self._process = subprocess.Popen(
            [python, __file__, "--side", *arguments, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def ask(self, what: str, *arguments: int) -> dict:
        """Its answer."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps([what, *arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        if not (reply := self._process.stdout.readline()):
            raise SystemExit(f"{self.name}: the process is gone; its last words stand above")
        return json.loads(reply)


def serve(kind: str, page: str, num_envs: str, settings: str) -> None:
    """The process behind a `Side`."""
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
        import torch

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
        import torch

        free = torch.cuda.mem_get_info(self._device)[0] if self._cuda else 0
        with tempfile.TemporaryDirectory() as folder:
            trained, policy = self._train(Path(folder) / "run")
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
        with torch.no_grad():
            started = time.perf_counter()
            env = self._env = self._make()
            made = self._elapsed(started)
            tape = Tape(env, policy)
            started = time.perf_counter()
            env.step(tape.actions[0])
            capturing = self._elapsed(started)
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
        import torch

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

        options = self._options
        given = [f"ppo.max_iterations={options.iterations}", *options.overrides]
        page = make_env.resolve(self._page, given, num_envs=self._num_envs, device=options.device, engine="warp")
        kernels = _Kernels()
        logging.getLogger("embodied_rl").addHandler(kernels)
        started = time.perf_counter()
        trainer = training.start(page, folder)
        made, marks, iterations = self._elapsed(started), [time.perf_counter()], []
        for metrics in trainer.train(options.iterations):
            iterations.append(metrics)
            marks.append(time.perf_counter())
        logging.getLogger("embodied_rl").removeHandler(kernels)
        steps = page.ppo.num_steps_per_env * self._num_envs
        settled = iterations[len(iterations) // 2 :]  # the second half: nothing is compiled any more, and the robots walk
        rates = {
            "policy_steps_per_s": steps / statistics.median(one["Perf/collection_time"] for one in settled),
            "update_steps_per_s": steps / statistics.median(one["Perf/iteration_time"] for one in settled),
        }
        start = {"make_s": made, "first_iteration_s": marks[1] - marks[0], **kernels.figures}
        policy = embodied_rl.load(folder, device=str(self._device)).policy
        return {**rates, **start, "iterations": len(iterations), "reward": iterations[-1].get("Train/mean_reward")}, policy

    def _alternate(self, env: Env, physics: PhysicsAlone, tape: Tape) -> dict[str, Any]:
        """Physics and environment in turns on one tape, each from the state that the tape begins with."""
        import torch

        rows = torch.arange(env.num_envs, device=env.device)

        def environment() -> None:
            for action in tape.actions:
                env.step(action)

        sides: dict[str, Callable[[], None]] = {"physics": physics.play, "env": environment}
        repeats, seconds = {}, {name: [] for name in sides}
        for name, side in sides.items():
            env.restore(rows, tape.state)
            once = min(self._time(side, 1) for _ in range(2))
            repeats[name] = max(1, round(self._options.seconds / once))
        for index in range(self._options.rounds):
            for name in list(sides)[:: -1 if index % 2 else 1]:
                env.restore(rows, tape.state)
                seconds[name].append(self._time(sides[name], repeats[name]) / repeats[name])
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
        import torch

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

    def _time(self, function: Callable[[], None], repeats: int) -> float:
        self._wait()
        started = time.perf_counter()
        for _ in range(repeats):
            function()
        return self._elapsed(started)

    def _elapsed(self, started: float) -> float:
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        import torch

        if self._cuda:
            torch.cuda.synchronize(self._device)


class Tape:
    """What a policy made an environment ask of its engine: controls, resets and pushes, to be played again.

    Args:
        env: the environment; it is stepped operation by operation.
        policy: actions of observations.
    """

    def __init__(self, env: Env, policy: Callable[[dict], torch.Tensor]) -> None:
        import torch

        physics: Any = env.physics
        rows = torch.arange(env.num_envs, device=env.device)
        for _ in range(TAPE):  # away from the first episodes
            env.advance(policy(env.obs))
        self.state = env.snapshot(rows)
        self.actions, controls, writes = [], [], []
        step, write = physics.step, physics.write

        def note_step(ctrl: torch.Tensor, *rest: Any) -> None:
            controls.append(ctrl.clone())
            step(ctrl, *rest)

        def note_write(mask: torch.Tensor, **fields: torch.Tensor) -> None:
            if "qpos" in fields:
                writes.append((env.buffers["done"].clone(), mask.clone(), fields["qpos"].clone(), fields["qvel"].clone()))
            write(mask, **fields)

        physics.step, physics.write = note_step, note_write
        try:
            for _ in range(TAPE):
                self.actions.append(policy(env.obs).clone())
                env.advance(self.actions[-1])
        finally:
            del physics.step, physics.write
        self.controls = torch.stack(controls)
        """(T, N, nu) or (T, N, decimation, nu)."""
        self.done, self.written, self.qpos, self.qvel = (torch.stack(part) for part in zip(*writes, strict=True))
        """(T, N): rows that begin anew, rows that are written; and what is written, (T, N, ...)."""


class PhysicsAlone:
    """The engine and nothing else, playing a tape: controls, substeps, and the masked writes of resets and pushes.

    Args:
        env: whose engine it is.
        tape: what is played.
    """

    def __init__(self, env: Env, tape: Tape) -> None:
        import torch

        from embodied_rl.cuda_graph import CudaGraph

        self._physics: Any = env.physics
        self._tape, self._decimation = tape, env.page.physics.decimation
        self._slot = torch.zeros(1, dtype=torch.int64, device=env.device)
        self._steps = len(tape.actions)
        self.step: Callable[[], None] = self._step
        if env.captured:
            for _ in range(3):
                self._step()
            self.step = CudaGraph(self._step, env.device, env.physics)

    def play(self) -> None:
        """The whole tape."""
        self._slot.zero_()
        for _ in range(self._steps):
            self.step()

    def _step(self) -> None:
        import torch

        physics, tape, state = self._physics, self._tape, self._physics._state
        take = lambda values: values.index_select(0, self._slot)[0]  # noqa: E731
        controls, written, done = take(tape.controls), take(tape.written)[:, None], take(tape.done)[:, None]
        each = [controls] if controls.dim() == 2 else controls.unbind(1)
        for row in each:
            physics._ctrl.copy_(row)
            physics._advance(self._decimation // len(each))
        physics.qpos.copy_(torch.where(written, take(tape.qpos), physics.qpos))
        physics.qvel.copy_(torch.where(written, take(tape.qvel), physics.qvel))
        state["qacc_warmstart"].copy_(torch.where(done, 0.0, state["qacc_warmstart"]))
        self._slot.add_(1).remainder_(self._steps)


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
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(COUNTED):
            step()
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events() or [] if str(event.device_type).endswith("CUDA")]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names) / COUNTED


def _shuffle(num_envs: int, size: int, device: Any) -> Any:
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.empty(CYCLE, num_envs, size).uniform_(-AMPLITUDE, AMPLITUDE, generator=generator).to(device)


def _timed(step: Callable, actions: Any, steps: int, device: Any, packages: tuple[str, ...]) -> dict[str, Any]:
    """Seconds for so many steps, and who took them."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    started = time.perf_counter()
    for index in range(steps):
        step(actions[index % CYCLE])
    wait(device)
    return {"seconds": time.perf_counter() - started, "versions": {p: importlib.metadata.version(p) for p in packages}}


# ------------------------------------------------------------------------------------------------------------- the peer


class _Peer:
    """mjlab's Go1 on flat ground, as its own scripts make it; nothing of ours is imported here."""

    def __init__(self, page: str, num_envs: int, options: argparse.Namespace) -> None:
        import mjlab.tasks  # pyright: ignore[reportMissingImports]  registers the tasks  # noqa: F401
        import torch
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
        import torch

        with torch.inference_mode():
            return _timed(step, self._actions, steps, self._device, (PEER, "mujoco", "mujoco-warp", "warp-lang", "torch"))


def _beside_peer(num_envs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Env-steps/s of both Go1s in turns, so that what else the machine does cancels out."""
    result: dict[str, Any] = {"num_envs": num_envs}
    arguments = {"ours": (["ours", PEER_PAGE, str(num_envs)], sys.executable)}
    arguments[PEER] = ([PEER, PEER_PAGE, str(num_envs)], options.peer_python)
    sides = {name: Side(*given, options) for name, given in arguments.items()}
    steps, rates = {}, {name: [] for name in sides}
    for name, side in sides.items():
        side.ask("play", WARM_UP)
        answer = side.ask("play", WARM_UP)
        steps[name] = max(1, round(options.seconds * WARM_UP / answer["seconds"]))
        result[f"{name}_versions"] = answer["versions"]
    for index in range(options.rounds):
        for name in list(sides)[:: -1 if index % 2 else 1]:
            rates[name].append(num_envs * steps[name] / sides[name].ask("play", steps[name])["seconds"])
    alone = [sides[PEER].ask("physics", steps[PEER])["seconds"] for _ in range(options.rounds)]
    for side in sides.values():
        side.__exit__()
    result |= {f"{name}_steps_per_s": statistics.median(each) for name, each in rates.items()}
    result["times_peer"] = statistics.median(ours / theirs for ours, theirs in zip(rates["ours"], rates[PEER], strict=True))
    result["peer_physics_steps_per_s"] = num_envs * steps[PEER] / statistics.median(alone)
    return result


# ------------------------------------------------------------------------------------------------------------ the report


def _walk(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "walk.json"
        command = ["-m", "embodied_rl", "bench", "walk", options.walk, *options.overrides, "--device", options.device]
        subprocess.run([sys.executable, *command, "--engine", "warp", "--json", str(figures)], check=True)
        return {"page": options.walk, **json.loads(figures.read_text())}


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import warp

    packages = ("mujoco", "mujoco-warp", "warp-lang", "torch")
    facts: dict[str, Any] = {"versions": {name: importlib.metadata.version(name) for name in packages}, "device": options.device}
    if options.device != "cpu":
        device = torch.device(options.device)
        facts["gpu"], facts["capability"] = torch.cuda.get_device_name(device), list(torch.cuda.get_device_capability(device))
        facts["driver_cuda"] = list(warp.get_cuda_driver_version() or ())
        facts["torch_cuda"] = torch.version.cuda
        facts["memory_gib"] = torch.cuda.mem_get_info(device)[1] / 2**30
    else:
        facts["gpu"] = f"no GPU, {os.cpu_count()} cores of {platform.machine()}"
    return facts


def _say(row: dict[str, Any]) -> None:
    """A line while the others are still measured."""
    name = f"{row['page']}, {row['num_envs']} robots"
    print(f"{name}: {row['env_steps_per_s']:,.0f} env-steps/s, {row['ratio']:.2f} of the physics alone", file=sys.stderr)


def show(report: dict[str, Any]) -> None:
    """The table, and what it was measured on."""
    print(
        f"\n{'page':10}{'robots':>8}{'physics/s':>13}{'env/s':>13}{'env/phys.':>11}{'+policy/s':>13}{'+update/s':>13}"
        f"{'kernels':>9}{'of physics':>12}{'syncs':>7}{'GiB':>6}{'start [s]':>11}{'kernels [s]':>13}{'capture [s]':>13}"
    )
    number = lambda value, form: "-" if value is None else format(value, form)  # noqa: E731
    for row in report["steps"]:
        start = row["make_s"] + row["first_iteration_s"]
        print(
            f"{row['page']:10}{row['num_envs']:8}{row['physics_steps_per_s']:13,.0f}{row['env_steps_per_s']:13,.0f}"
            f"{row['ratio']:11.2f}{row['policy_steps_per_s']:13,.0f}{row['update_steps_per_s']:13,.0f}"
            f"{number(row.get('env_kernels'), '.0f'):>9}{number(row.get('physics_kernels'), '.0f'):>12}"
            f"{number(row.get('syncs'), '.1f'):>7}{number(row['memory_gib'], '.1f'):>6}"
            f"{start:11.1f}{number(row.get('kernels_s'), '.1f'):>13}{row['capture_s']:13.1f}"
        )
    for row in report.get("peer", []):
        print(
            f"go1 beside {PEER}, {row['num_envs']} robots: ours {row['ours_steps_per_s']:,.0f}/s, "
            f"{PEER} {row[f'{PEER}_steps_per_s']:,.0f}/s ({row['peer_physics_steps_per_s']:,.0f}/s of physics): "
            f"{row['times_peer']:.2f} times"
        )
    if walk := report.get("walk"):
        print(f"{walk['page']} walks after {walk['seconds_to_walk']:.0f} s and {walk['env_steps_to_walk']:,.0f} env-steps")
    tests = {None: "not run", 0: "pass", 5: "none ran"}.get(report["tests"], "FAIL")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    driver = f", driver for CUDA {'.'.join(map(str, report['driver_cuda']))}" if "driver_cuda" in report else ""
    print(f"{report['gpu']}{driver}; {versions}; GPU tests: {tests}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        serve(*sys.argv[2:])
    else:
        main()
