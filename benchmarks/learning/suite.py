"""Trains every shipped page, judges the policies, and writes docs/results.md of what came out.

    python benchmarks/learning/suite.py [PAGE ...] [key=value ...] [--seeds N] [--minutes M] [--full] [--ship] [--output DIR]
    python benchmarks/learning/suite.py --report

One page after the other, all that have a task unless some are named, each until its policy has passed or the page's
`train.iterations` are over.  What is done is not done again, and a training that was interrupted goes on: give the same command.

Each training's record lies in DIR/PAGE/seed_N/record.json, and for the table in benchmarks/learning/results/, where those of
other machines lie beside it.  `--ship` packs a page's best policy that met its criterion, in both physics, into policies/.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import re
import sys
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

import torch

from embodied_rl import __version__, machine, paths, runs, training
from embodied_rl.config import Page, config_names, load
from embodied_rl.errors import UserError, in_short
from embodied_rl.learn import checkpoint
from embodied_rl.learn.checkpoint import CheckpointError, merit
from embodied_rl.learn.examiner import margin
from embodied_rl.learn.packing import pack
from embodied_rl.learn.report import Report
from embodied_rl.learn.run import Run, RunError, git
from embodied_rl.make_env import device_of
from embodied_rl.mdp.score import failures_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS, TABLE = ROOT / "benchmarks" / "learning" / "results", ROOT / "docs" / "results.md"

#: The evaluation's seed that judges; a training tries its policies on seed 1, and on this one those that it ends with.
SEED = 2

Record = dict[str, Any]

HEAD = f"""\
# Results

Every shipped page, trained and judged. `python benchmarks/learning/suite.py` makes the rows, and writes this page from the \
records in `benchmarks/learning/results/`; nothing on it is typed by hand, and `suite.py --report` writes it again. A training \
ends once its policy has passed (`train.stop_when=passed`, [families.md](families.md)), or with what its row says. Env steps and \
minutes are those of the policy that is judged: collecting and learning, compilation included, evaluations on the way not. It is \
judged as `embodied-rl eval --seed {SEED}` does, without and with `--reference`: a training tries its policies on seed 1, and \
has passed with the first that passes again on seed {SEED}. So figures come out just within their limits, and a little better \
than on a seed that decides nothing; with `--full` no seed has decided. Each figure stands beside its limit.
"""

COLUMNS = ("page", "robot", "engine", "machine", "seed", "env steps", "minutes", "ended by", "in training physics")
COLUMNS += ("in reference physics", "criterion", "commit", "date")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code: 0 well, 2 a mistake in what was asked for, 130 stopped."""
    parser = argparse.ArgumentParser(description="Train every shipped page, judge the policies, write docs/results.md.")
    parser.add_argument("pages", nargs="*", metavar="PAGE|key=value", help="default: all that have a task")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 1 to N of each page")
    parser.add_argument("--minutes", type=float, metavar="M", help="of training, at most, for each page and seed")
    parser.add_argument("--full", action="store_true", help="all of train.iterations, also once the policy has passed")
    parser.add_argument("--ship", action="store_true", help="pack the best policy of each page that met its criterion")
    parser.add_argument("--report", action="store_true", help="write docs/results.md from the records, and train nothing")
    parser.add_argument("--output", type=Path, default=Path("runs") / "suite", metavar="DIR", help="default runs/suite")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"argument --seeds: {options.seeds}: at least 1")
    options.overrides = [one for one in options.pages if "=" in one]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for name in [] if options.report else chosen_pages([one for one in options.pages if "=" not in one]):
            records = [done(name, seed, options) for seed in range(1, options.seeds + 1)]
            if options.ship:
                ship(name, records, options.output)
        if options.report:
            write_table()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def chosen_pages(named: list[str]) -> list[str]:
    """Give the pages that are trained: those that are named, or all with a task.

    Raises:
        UserError: one that is named does not ship, or has no task.
    """
    for name in named:
        page = load(name)
        if name not in config_names() or page.task is None:
            why = untrained(page) if name in config_names() else "does not ship"
            raise UserError(f"{name}: {why}; name shipped pages that have a task")
    return named or [name for name in config_names() if load(name).task]


# ---------------------------------------------------------------------------------------------------- one training


def done(name: str, seed: int, options: argparse.Namespace) -> Record:
    """Train and judge a page with a seed, or give the record of when that was done; its row is in the table then.

    Raises:
        UserError: its folder holds another training, or cannot be written.
        KeyboardInterrupt: a signal stopped it; its checkpoint is there to go on from.
    """
    run = Run(options.output / name / f"seed_{seed}")
    place = run.path / "record.json"
    if place.is_file() and is_enough(record := json.loads(place.read_text()), options):
        print(f"{name}, seed {seed}: done before, {criterion(record)}; its record: {place}", flush=True)
        keep(record)
        return record
    changes = [*options.overrides, f"env.seed={seed}", f"train.stop_when={'end' if options.full else 'passed'}"]
    page = load(name, changes)
    if (run.path / "config.yaml").is_file():
        differing = [key for key in run.page.differing(page) if key != "train.stop_when"]
        if differing:
            few = ", ".join(differing[:3])
            raise UserError(f"{run.path}: holds a training of a page that differs in {few}; remove it, or name another --output")
    record = described(page, seed, options.overrides)
    try:
        record |= {"ended": train(page, changes, run, options.minutes), **judged(page, run)}
    except (RunError, CheckpointError):
        raise  # of the folder, and not of the page
    except UserError as error:
        record["reason"] = str(error).partition("\n")[0]
    except Exception as error:  # the pages after it are trained nevertheless
        traceback.print_exc()
        record["reason"] = in_short(error)
    print(f"{name}, seed {seed}: {record.get('reason') or criterion(record)}", flush=True)
    run.path.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(record, indent=1) + "\n")
    keep(record)
    gc.collect()  # the robots' memory, before the next page's
    return record


def is_enough(record: Record, options: argparse.Namespace) -> bool:
    """Whether what was done is what is asked for: a training that was cut short is not, where it may take longer now."""
    if "reason" in record or record["overrides"] != options.overrides:
        return False
    if record["ended"] == "minutes":
        return options.minutes is not None and record["trained"]["seconds"] >= 60.0 * options.minutes
    return record["ended"] == "iterations" or not options.full


def described(page: Page, seed: int, overrides: list[str]) -> Record:
    """Say what is trained, and where."""
    record: Record = {"page": page.name, "robot": page.robot, "task": page.task, "seed": seed, "overrides": overrides}
    there: Record = {"cores": machine.cores(), "processor": machine.processor()}
    if torch.cuda.is_available() and device_of(page).type == "cuda":
        there["gpu"] = torch.cuda.get_device_name(device_of(page))
    record |= {"engine": page.physics.engine, "machine": there, "robots": page.env.num_envs, "iterations": page.train.iterations}
    record |= {"versions": {"embodied_rl": __version__, "torch": torch.__version__}, "date": time.strftime("%Y-%m-%d")}
    return record


def train(page: Page, changes: list[str], run: Run, minutes: float | None) -> str:
    """Train a shipped page with these changes, or go on with it; what ended it: see `how_it_ended`.

    Raises:
        UserError: it cannot be trained here, or went wrong.
        KeyboardInterrupt: a signal stopped it.
    """
    if ended := how_it_ended(page, run, minutes):
        return ended
    trainer = training.resume("auto", page.name, changes, path=run.path)
    total, words = page.train.iterations, (failures_of(page), trainer.learner.panel)
    print(f"{page.name}, seed {page.env.seed}: {trainer.num_envs} robots, {total} iterations at most, in {run.path}", flush=True)
    with Report(run.path, total, trainer.iteration, page.train.logger, *words) as report:
        for _ in trainer.train(total, report):
            if minutes is not None and trainer.seconds >= 60.0 * minutes:
                trainer.stop()
    trainer.group.close()
    if ended := how_it_ended(page, run, minutes):
        return ended
    raise KeyboardInterrupt  # a signal's, which the trainer has taken for it to save first


def how_it_ended(page: Page, run: Run, minutes: float | None) -> str:
    """Say which of `passed`, `iterations` and `minutes` has ended a training; empty where there is something left to train."""
    states = [state for path in run.newest_checkpoints() if (state := whole(path))]
    if page.train.stop_when == "passed" and any(merit(state).verified for state in states):
        return "passed"
    if states and states[0]["iter"] >= page.train.iterations:
        return "iterations"
    return "minutes" if states and minutes is not None and states[0]["infos"]["seconds"] >= 60.0 * minutes else ""


def whole(path: Path) -> dict | None:
    """Read a checkpoint; None where it is damaged."""
    try:
        return checkpoint.read(path)
    except CheckpointError:
        return None


def judged(page: Page, run: Run) -> Record:
    """Judge the policy of a training, in both physics: that which was verified, or came out best; else the newest."""
    loaded = runs.load(chosen(page, run))
    policy, last = checkpoint.read(loaded.checkpoint), next(filter(None, map(whole, run.newest_checkpoints())))
    record: Record = {
        "checkpoint": loaded.checkpoint.name,
        "iteration": loaded.iteration,
        "env_steps": loaded.env_steps,
        "seconds": policy["infos"]["seconds"],
        "trained": {"iterations": last["iter"], **{name: last["infos"][name] for name in ("env_steps", "seconds")}},
        "commit": commit_of(run),
        "evaluation_seed": SEED,
    }
    for name, reference in (("training", False), ("reference", True)):
        result, limits, verdict = runs.evaluate_run(loaded, seed=SEED, reference=reference)
        figures = {key: value for key, value in result.items() if isinstance(value, float)}
        record[name] = {"physics": result["physics"], "figures": figures, "limits": limits, **verdict._asdict()}
    return record


def chosen(page: Page, run: Run) -> Path:
    """Choose the checkpoint that is judged, by evaluations alone: with levels, reward falls as the ground gets harder.

    Of a training that went to its end without them the newest counts, whatever it had passed with before it went on.
    """
    if page.train.stop_when == "end" and page.train.evaluate_every is None:
        return run.path
    try:
        best = run.best_checkpoint()
    except RunError:
        return run.path
    return best if merit(checkpoint.read(best)).evaluated else run.path


def commit_of(run: Run) -> str:
    """Say at which commit a training began, and at which one it went on, where that is another."""
    now = git("rev-parse", "--short=7", "HEAD")
    begun = run.code or "unknown"
    return begun if not now or begun.startswith(now) else f"{begun} to {now}"


def ship(name: str, records: list[Record], output: Path) -> None:
    """Pack the page's best policy that met its criterion in both physics."""
    passed = [record for record in records if criterion(record) == "met"]
    if not passed:
        print(f"{name}: no policy met its criterion, and none ships", flush=True)
        return
    best = max(passed, key=lambda record: margin(record["training"]["figures"], record["training"]["limits"]))
    folder = paths.shipped("policies") / name
    pack(output / name / f"seed_{best['seed']}" / "checkpoints" / best["checkpoint"], folder)
    print(f"{name}: the policy of seed {best['seed']} ships in {folder}", flush=True)


# ------------------------------------------------------------------------------------------------------- the table


def keep(record: Record) -> None:
    """Put a record where the table is made of, and make it."""
    there = re.sub(r"[^A-Za-z0-9]+", "_", f"{record['engine']} on {on(record)}").strip("_")
    changed = f".changed_{zlib.crc32(' '.join(record['overrides']).encode()):08x}" if record["overrides"] else ""
    RESULTS.mkdir(exist_ok=True)
    name = f"{record['page']}.seed_{record['seed']}.{there}{changed}.json"
    (RESULTS / name).write_text(json.dumps(record, indent=1) + "\n")
    write_table()


def write_table() -> None:
    """Write docs/results.md."""
    TABLE.write_text(table([json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]))


def table(records: list[Record]) -> str:
    """Make docs/results.md of records: a row for each training, and one for each page that ships and was never trained."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for name in sorted({*config_names(), *(record["page"] for record in records)}):
        own = sorted((record for record in records if record["page"] == name), key=lambda record: (on(record), record["seed"]))
        trained = [record for record in own if "reason" not in record]
        rows += [row(record) for record in trained]
        if not trained:
            reasons = [f"{record['reason']} ({on(record)}, {record['date']})" for record in own]
            rows += [empty(load(name), "; ".join(reasons))] if name in config_names() else []
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in one) + " |" for one in rows]
    return "\n".join([HEAD, *lines]) + "\n"


def row(record: Record) -> tuple[str, ...]:
    """Make the row of a training."""
    ended = {"passed": "passing", "iterations": "its iterations", "minutes": "`--minutes`"}[record["ended"]]
    name = " ".join((record["page"], *(f"`{one}`" for one in record["overrides"])))
    counts = (str(record["seed"]), f"{record['env_steps']:,}", f"{record['seconds'] / 60.0:.1f}", ended)
    figures = (beside_limits(record["training"]), beside_limits(record["reference"]))
    there = (name, record["robot"], record["engine"], on(record))
    return (*there, *counts, *figures, criterion(record), record["commit"], record["date"])


def empty(page: Page, reason: str) -> tuple[str, ...]:
    """Make the row of a page that was never trained."""
    engine = (page.env.source or page.physics.engine).partition(":")[0]
    return (page.name, page.robot or "-", engine, *("-",) * (len(COLUMNS) - 6), reason or untrained(page), "-", "-")


def untrained(page: Page) -> str:
    """Say why a page was never trained, as far as it says so itself."""
    if page.task is None:
        return f"no task judges it: env.source: {page.env.source}" if page.env.source else "no task judges it"
    return "wants a GPU" if "cuda" in page.physics.device or page.physics.engine != "native" else "not trained yet"


def on(record: Record) -> str:
    """Say on which machine."""
    there = record["machine"]
    cores = "1 core" if there["cores"] == 1 else f"{there['cores']} cores"
    return ", ".join((cores, there["processor"], *([there["gpu"]] if "gpu" in there else [])))


def beside_limits(evaluation: Record) -> str:
    """Write each figure that has a limit beside it."""
    figures = evaluation["figures"]
    pairs = ((name, figures[name], limit) for name, limit in evaluation["limits"].items())
    return ", ".join(f"{name} {value:.4g} {'<=' if value <= limit else '>'} {limit:g}" for name, value, limit in pairs)


def criterion(record: Record) -> str:
    """Say whether a policy met the criterion of its page: in both physics, or where."""
    if "reason" in record:
        return "not met"
    passed = [name for name in ("training", "reference") if record[name]["passed"]]
    return "met" if len(passed) == 2 else f"in {passed[0]} physics alone" if passed else "not met"


if __name__ == "__main__":
    sys.exit(main())
