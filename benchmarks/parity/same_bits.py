"""Whether two commits learn the same, to the last bit: the proof of value of a refactoring.

    python benchmarks/parity/same_bits.py OLD NEW [--pages NAME ...] [--speed 40] [--json F]

Both commits are laid out as they would be installed, and train the same pages on this machine, with `env.compile=false`.  What
the learner was given and what it became of it is kept at iterations 1, 10 and 20, and compared number by number.  `.` is the
working tree as it stands, uncommitted files included.

Where networks leave one implementation for another, rounding differs and all that follows; so `everything` is trained a second
time by torch alone (without a C++ compiler), where both sides have the same networks.

Exit status: 0 where all pages that must be equal are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
#: Folders that stand beside the package in a checkout, and are installed into it.
SHIPPED = ("configs", "robots", "tasks")
#: Finished iterations whose rollout and networks are compared.
KEPT = (1, 10, 20)


@dataclass(frozen=True)
class Case:
    """A page and how it is trained."""

    page: str
    overrides: tuple[str, ...] = ("env.compile=false",)
    ranks: int = 1
    compiler: bool = True
    must_be_equal: bool = True


#: The gate.
CASES = {
    "go2_flat": Case("go2_flat"),
    "go1_flat_full": Case("go1_flat_full"),
    "pool_go2_flat": Case("pool_go2_flat", ("env.compile=false", "pool.workers=2", "pool.mode=sync")),
    "go2_flat_two_ranks": Case("go2_flat", ranks=2),
    "everything": Case("everything"),
    "everything_by_torch": Case("everything", compiler=False),
    "go2_flat_by_torch": Case("go2_flat", compiler=False),
    "go2_flat_compiled": Case("go2_flat", (), must_be_equal=False),
}


def main() -> int:
    """Compare; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", metavar="OLD", help="a commit, or . for the working tree")
    parser.add_argument("new", metavar="NEW", help="another")
    parser.add_argument("--pages", nargs="*", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--speed", type=int, default=0, metavar="ROUNDS", help="then time env.step and training in turns")
    parser.add_argument("--json", type=Path, metavar="F", help="write what was found to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = [lay_out(commit, Path(folder) / name) for commit, name in ((options.old, "old"), (options.new, "new"))]
        found: dict[str, Any] = {"commits": [options.old, options.new], "pages": {}}
        for name in options.pages:
            kept = [train(side, CASES[name], Path(folder) / f"{side.name}_{name}") for side in sides]
            differences = compare(*kept)
            found["pages"][name] = differences
            needed = "" if CASES[name].must_be_equal else "   (reported only)"
            said = "; ".join(differences[:3]) + (f"; {len(differences) - 3} more" if len(differences) > 3 else "")
            print(f"{name:22s} {said or 'equal'}{needed}", flush=True)
        if options.speed:
            found["speed"] = speed(sides, options.speed)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(found["pages"][name] for name in options.pages if CASES[name].must_be_equal))


def lay_out(commit: str, folder: Path) -> Path:
    """The commit's package in a folder, with what stands beside it in a checkout inside, as in a wheel; tests and pages too."""
    folder.mkdir()
    if commit == ".":
        names = git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
        for name in names:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
    else:
        archive = folder / "commit.tar"
        git("archive", "--output", str(archive), commit)
        shutil.unpack_archive(archive, folder, filter="data")
        archive.unlink()
    for name in SHIPPED:
        shutil.move(folder / name, folder / "embodied_rl" / name)
    return folder


def git(*arguments: str) -> str:
    """What git answers."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def train(side: Path, case: Case, folder: Path) -> Path:
    """Train a page with a side's code; the folder of what was kept.

    A page that is not shipped is the side's own in tests/, or, where the side is older than the page, ours.
    """
    folder.mkdir()
    page = case.page
    if not (side / "embodied_rl" / "configs" / f"{page}.yaml").is_file():
        page = str(next(path for tree in (side, ROOT) if (path := tree / "tests" / f"{page}.yaml").is_file()))
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.ranks)] if case.ranks > 1 else []
    recorder = [str(Path(__file__).resolve().with_name("record.py")), str(folder), ",".join(map(str, KEPT))]
    environment = {} if case.compiler else {"CXX": "no-such-compiler"}
    run(side, [*several, *recorder, page, *case.overrides], folder, environment)
    return folder


def run(side: Path, arguments: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    """Python with a side's code and no other on its path; its output shows where it fails."""
    variables = os.environ | {"PYTHONPATH": str(side), "PYTHONWARNINGS": "ignore"} | (environment or {})
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
        raise SystemExit(f"{side.name}: {' '.join(arguments[-4:])}: exit status {done.returncode}")


def compare(old: Path, new: Path) -> list[str]:
    """What differs, a line each."""
    names = {path.name for folder in (old, new) for path in folder.glob("*.pt")}
    found = []
    for name in sorted(names):
        sides = [folder / name for folder in (old, new)]
        if not all(side.is_file() for side in sides):
            found.append(f"{name}: only one side has it")
            continue
        values = [renamed(dict(leaves(torch.load(side, weights_only=True)))) for side in sides]
        keys = sorted({*values[0], *values[1]})
        reasons = ((key, difference(values[0].get(key), values[1].get(key))) for key in keys)
        found += [f"{name.removesuffix('.pt')}: {key}: {why}" for key, why in reasons if why]
    return found or ([] if names else ["nothing was kept"])


#: Keys that bear another name since: a name is no bit.
RENAMED = {"rollout.totals.falls": "rollout.totals.terminated"}


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Give what an older commit kept the names of today."""
    return {RENAMED.get(key, key): value for key, value in values.items()}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested dicts and sequences, by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield path, value
        return
    for key, one in items:
        yield from leaves(one, f"{path}.{key}" if path else str(key))


def difference(old: Any, new: Any) -> str:
    """Empty where two leaves are the same: -0.0 is 0.0, and NaN is NaN."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        if old.shape != new.shape or old.dtype != new.dtype:
            return f"{old.dtype} {tuple(old.shape)} and {new.dtype} {tuple(new.shape)}"
        if torch.equal(old, new) or bool(((old == new) | (old.isnan() & new.isnan())).all()):
            return ""
        apart = (old.double() - new.double()).abs()
        return f"{int((old != new).sum())} of {old.numel()} differ, by {float(apart.nan_to_num().max()):.2g} at most"
    return "" if old == new or (old != old and new != new) else f"{old!r} and {new!r}"


def speed(sides: list[Path], rounds: int) -> dict[str, dict[str, float]]:
    """New / old: medians over rounds in which both sides take a turn of about a second, the order turned round each time.

    Longer turns would measure the machine: what a shared one gives differs by a third from one minute to the next.
    """
    quotients: dict[str, dict[str, float]] = {}
    for what in ("step", "train"):
        with ExitStack() as stack:
            players = [stack.enter_context(Player(side, what)) for side in sides]
            for player in players:
                player.answer()
            found = []
            for number in range(rounds):
                taken = {player.side.name: player.turn() for player in (players if number % 2 else players[::-1])}
                found.append(taken["old"] / taken["new"])
        low, middle, high = statistics.quantiles(found, n=4)
        quotients[what] = {"median": middle, "lower_quartile": low, "upper_quartile": high, "rounds": rounds}
        print(f"{what}: new / old {middle:.3f} (quartiles {low:.3f} to {high:.3f}, {rounds} rounds)", flush=True)
    return quotients


class Player:
    """A process of a side that works when it is asked to; see turns.py."""

    def __init__(self, side: Path, what: str) -> None:
        self.side = side
        script = Path(__file__).resolve().with_name("turns.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), what, "go2_flat"],
            cwd=side,
            env=os.environ | {"PYTHONPATH": str(side), "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def turn(self) -> float:
        """Let it work; the seconds it took."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self.answer())

    def answer(self) -> str:
        """Wait for what it says."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("turn: "):
                return line.removeprefix("turn: ").strip()
        raise SystemExit(f"{self.side.name}: turns.py ended with exit status {self._process.wait()}")


if __name__ == "__main__":
    sys.exit(main())
