"""What a step costs on a GPU: the GPU's tests first, then one table.

    python benchmarks/speed/gpu.py --json F [--peer-python PYTHON] [--walk go2_flat] [key=value ...]

Per page and number of robots: the physics alone, the environment around it, the policy with it, the update on top.  Each is a
process of its own, which first trains a policy that then drives.  PYTHON is an interpreter that has mjlab 1.6, whose Go1 steps in
turns with ours.  benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PEER, PEER_PAGE = "mjlab", "go1_flat"
#: Steps that a peer takes before it is timed.
WARM_UP = 50


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
            [python, str(Path(__file__).with_name("gpu_side.py")), *arguments, json.dumps(settings)],
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
    main()
