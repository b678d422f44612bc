"""Who gets across which ground, minute by minute of trainings on it.

    python benchmarks/learning/rough.py NAME=RUN[,RUN...] ... [--points 8] [--robots 8] [--json F] [--plot F.svg] [--rows F.svg]
    python benchmarks/learning/rough.py --from F --plot F.svg

`--plot` draws success against minutes, `--rows` that of the last checkpoints against the row: of all kinds, and of the hardest.

Each run's checkpoints, as far apart as makes so many points, are judged by the page's score, `robots` for each kind and row.
NAME says what the runs after it, one a seed, have in common: curves are their means, bands reach from the least to the greatest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from embodied_rl import runs
from embodied_rl.config import override
from embodied_rl.errors import UserError, install_hint
from embodied_rl.learn import checkpoint
from embodied_rl.learn.run import find_run

#: What is drawn, from an evaluation's figures.
CURVES = {
    "rows 0 to 3": lambda figures: 1.0 - figures["easy_failures"],
    "row 5": lambda figures: 1.0 - figures["hard_failures"],
    "all rows": lambda figures: figures["success"],
}

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def main() -> None:
    parser = argparse.ArgumentParser(description="Success on rough ground against minutes of training.")
    parser.add_argument("groups", nargs="*", metavar="NAME=RUN[,RUN...]")
    parser.add_argument("--points", type=int, default=8, metavar="N", help="checkpoints of each run that are judged")
    parser.add_argument("--robots", type=int, default=8, metavar="N", help="for each kind and row")
    parser.add_argument("--json", type=Path, metavar="F")
    parser.add_argument("--plot", type=Path, metavar="F")
    parser.add_argument("--rows", type=Path, metavar="F")
    parser.add_argument(
        "--from", type=Path, metavar="F", dest="source", action="append", help="draw these figures, and judge nothing"
    )
    options = parser.parse_args()
    try:
        result = joined(options.source) if options.source else measure(options.groups, options.points, options.robots)
    except UserError as error:
        sys.exit(str(error))
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        plot(result, options.plot)
    if options.rows:
        plot_rows(result, options.rows)


def joined(sources: list[Path]) -> dict[str, Any]:
    """Read the figures of several files, the runs of groups with one name together."""
    results = [json.loads(source.read_text()) for source in sources]
    if odd := [str(source) for source, one in zip(sources, results, strict=True) if one["robots"] != results[0]["robots"]]:
        raise UserError(f"--from {odd[0]}: judged with {results[0]['robots']} robots in others; judge with as many")
    groups: dict[str, Any] = {}
    for one in results:
        for name, each in one["groups"].items():
            groups.setdefault(name, []).extend(each)
    return {"robots": results[0]["robots"], "groups": groups}


def measure(groups: list[str], points: int, robots: int) -> dict[str, Any]:
    """Judge checkpoints of all runs."""
    found: dict[str, Any] = {}
    for group in groups:
        name, _, paths = group.partition("=")
        found[name] = [curve(path, points, robots) for path in paths.split(",")]
    return {"robots": robots, "groups": found}


def curve(path: str, points: int, robots: int) -> list[dict[str, Any]]:
    """Judge a run's checkpoints, the last one among them."""
    run, _ = find_run(path)
    saved = sorted(run.newest_checkpoints())
    chosen = sorted({round((len(saved) - 1) * (point + 1) / points) for point in range(points)})
    judged = []
    for one in (saved[index] for index in chosen):
        loaded = runs.load(one)
        figures = runs.evaluate_policy(override(loaded.page, [f"score.robots={robots}"]), loaded.policy)
        seconds = checkpoint.read(one, "cpu")["infos"]["seconds"]
        judged.append({"iteration": loaded.iteration, "env_steps": loaded.env_steps, "seconds": seconds, "figures": figures})
        print(
            f"{one}: {seconds / 60:.1f} min, " + ", ".join(f"{name} {of(figures):.3f}" for name, of in CURVES.items()), flush=True
        )
    return judged


def table(result: dict[str, Any]) -> str:
    """The last point of each run, kind by kind."""
    lines = []
    for name, each in result["groups"].items():
        for judged in each:
            last = judged[-1]
            lines.append(f"{name}: {last['seconds'] / 60:.1f} min, {last['env_steps'] / 1e6:.1f} M steps")
            lines += [f"  {kind:16s} {' '.join(f'{one:.2f}' for one in rows)}" for kind, rows in by_kind(last).items()]
    return "\n".join(lines)


def by_kind(judged: dict[str, Any]) -> dict[str, list[float]]:
    """Give the success on each kind of ground, row by row."""
    found: dict[str, dict[int, float]] = {}
    for key, value in judged["figures"].items():
        if key.startswith("success/"):
            _, kind, row = key.split("/")
            found.setdefault(kind, {})[int(row.removeprefix("row_"))] = value
    return {kind: [found[kind][row] for row in sorted(found[kind])] for kind in sorted(found)}


def new_figure(panels: int) -> Any:
    """Make an empty figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit(f"--plot: matplotlib is not installed; {install_hint('plot')}") from None
    return Figure(figsize=(4 * panels, 3.6), layout="constrained")


def draw(axes: Any, x: list[float], values: list[tuple[float, ...]], color: str, label: str) -> None:
    """Draw means over runs, and from the least to the greatest."""
    axes.plot(x, [statistics.mean(point) for point in values], color=color, marker="o", markersize=3, label=label)
    axes.fill_between(x, [min(p) for p in values], [max(p) for p in values], color=color, alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the mean over the runs of each group, and from the least to the greatest."""
    figure = new_figure(len(CURVES))
    for axes, (title, of) in zip(figure.subplots(1, len(CURVES), sharey=True), CURVES.items(), strict=True):
        for color, (name, each) in zip(COLORS, result["groups"].items(), strict=False):
            together = list(zip(*each, strict=False))  # a run that was cut short cuts the others' ends off
            minutes = [statistics.mean(one["seconds"] for one in point) / 60 for point in together]
            seeds = f", {len(each)} seeds" if len(each) > 1 else ""
            draw(axes, minutes, [tuple(of(one["figures"]) for one in point) for point in together], color, name + seeds)
        axes.set(title=title, xlabel="minutes of training", ylim=(0.0, 1.03))
    figure.axes[0].set_ylabel("share of robots that get across")
    figure.axes[0].legend()
    figure.savefig(path)


def plot_rows(result: dict[str, Any], path: Path) -> None:
    """Draw success against the row of difficulty after the last checkpoints, as `plot` does against minutes."""
    shares = {name: [by_kind(judged[-1]) for judged in each] for name, each in result["groups"].items()}
    every = [one for each in shares.values() for one in each]
    hardest = min(every[0], key=lambda kind: statistics.mean(statistics.mean(one[kind]) for one in every))
    figure = new_figure(2)
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), (None, hardest), strict=True):
        for color, (name, each) in zip(COLORS, shares.items(), strict=False):
            rows = [one[kind] if kind else [statistics.mean(row) for row in zip(*one.values(), strict=True)] for one in each]
            values = list(zip(*rows, strict=True))
            minutes = statistics.mean(judged[-1]["seconds"] for judged in result["groups"][name]) / 60
            label = f"{name}, {minutes:.0f} min, {len(each)} seeds"
            draw(axes, list(range(len(values))), values, color, label)
        axes.set(title=kind.replace("_", " ") + ", the hardest kind" if kind else "all kinds", xlabel="row", ylim=(0.0, 1.03))
    figure.axes[0].set_ylabel("share of robots that get across")
    figure.axes[0].legend(loc="lower left")
    figure.savefig(path)


if __name__ == "__main__":
    main()
