"""What goes between robots and learner in each system, how many bytes and how long on its way, measured and drawn.

    python benchmarks/speed/flows.py [PAGE] [--json F] [--plot FOLDER] [key=value ...]    the page is pool_ant
    python benchmarks/speed/flows.py --from F --plot FOLDER                               draws what was measured

Each system trains some iterations, during which what its workers and its learner send each other is kept.  Then the same objects
go the same way between two idle processes, through Ray's object store or inline, as there: from the moment that one has it to the
moment that the other has it, by the one clock of the machine.  Medians.  Between two machines the network's time is added.
What ranks of torchrun add up is measured on go2_flat by scaling.py.
`--plot` needs matplotlib (extra `plot`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from scaling import turn

from embodied_rl import training
from embodied_rl.config import load
from embodied_rl.errors import install_hint
from embodied_rl.learn.run import Run
from embodied_rl.pools.cluster import Connection
from embodied_rl.pools.dispatcher import Dispatcher
from embodied_rl.pools.traffic import Traffic
from embodied_rl.pools.turns import Turns

OFF_POLICY = ["train.learner=sac", "env.final_obs_groups=[actor]", "sac.updates=0.25", "sac.prioritized=true"]
OFF_POLICY += ["sac.learning_starts=2000"]
SYSTEMS = {
    "sync": ["pool.mode=sync"],
    "overlap": ["pool.mode=overlap"],
    "async": ["pool.mode=async"],
    "central": ["pool.inference=central"],
    "gradients": ["pool.mode=gradients", "ppo.num_learning_epochs=1", "ppo.num_mini_batches=1"],
    "apex": ["pool.mode=apex", *OFF_POLICY],
}
#: What is sent, and where that is to be seen: the method that sends or receives it, and which of its arguments it is.
SENT = {
    "weights": (Dispatcher, "publish", lambda given: {"version": 0, "weights": given[0], "numbers": given[2]}),
    "fragment": (Traffic, "receive", lambda given: dict(given[1])),
    "actions": (Turns, "_send", lambda given: given[1]),
    "observations": (Turns, "_stepped", lambda given: given[1]),
}
ITERATIONS, MOVES = 12, 100


def main() -> None:
    parser = argparse.ArgumentParser(description="What goes between robots and learner in each system.")
    parser.add_argument("page", nargs="?", default="pool_ant", metavar="PAGE")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--json", type=Path, metavar="F")
    parser.add_argument("--from", type=Path, metavar="F", dest="source", help="draw these figures, and measure nothing")
    parser.add_argument("--plot", type=Path, metavar="FOLDER")
    options = parser.parse_intermixed_args()
    result = json.loads(options.source.read_text()) if options.source else measure(options.page, options.overrides)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    for system, found in result.items():
        print(system, json.dumps(found))
    if options.plot:
        for system in SCENES:
            draw(system, result, options.plot / f"flow_{system}.svg")


# ------------------------------------------------------------------------------------------------------------- measurement


def measure(page: str, overrides: list[str]) -> dict[str, Any]:
    """Find bytes and milliseconds of what each system sends, and the milliseconds of what it does."""
    connection = Connection("local", num_cpus=4)
    try:
        post = connection.ray.remote(num_cpus=1)(Post).remote()
        result = {system: of_system(page, [*own, *overrides], connection.ray, post) for system, own in SYSTEMS.items()}
    finally:
        connection.close()
    with tempfile.TemporaryDirectory() as folder:
        options = Namespace(config="go2_flat", overrides=[], device="cpu", iterations=5)
        ranks = turn(options, 2, ["distributed.num_envs_scope=global"], Path(folder) / "figures.json")
    size = min(ranks["sums"], key=lambda size: abs(int(size) - ranks["largest"]))
    result["ranks"] = {"sum": [ranks["largest"], 1e3 * ranks["sums"][size]], "sums": ranks["collectives"]}
    return result


def of_system(page: str, overrides: list[str], ray: Any, post: Any) -> dict[str, Any]:
    """Train some iterations of a system, and send again what was sent."""
    task = load(page, ["pool.workers=2", "pool.spares=0", *overrides])
    last: dict[str, Any] = {}
    done: list[dict[str, float]] = []
    busy: list[float] = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for what, (owner, method, pick) in SENT.items():
            stack.enter_context(mock.patch.object(owner, method, tapped(getattr(owner, method), what, pick, last)))
        trainer = training.make_trainer(task, Run.create(task, Path(folder) / "run"))
        iterations = 20 * ITERATIONS if task.pool.mode == "apex" else ITERATIONS
        for metrics in trainer.train(iterations):
            done.append(metrics)
            if "fragment" in last:
                busy.append(last["fragment"]["seconds"]["busy"])
        trainer.collector.close()  # pyright: ignore[reportAttributeAccessIssue]
    half = done[len(done) // 2 :]
    middle: Callable[[str], float] = lambda name: 1e3 * statistics.median(one[name] for one in half)  # noqa: E731
    found: dict[str, Any] = {"update": middle("Perf/learning_time")}
    found["simulate"] = 1e3 * statistics.median(busy) if busy else middle("Perf/collection_time")
    for what, sent in last.items():
        if what == "fragment":
            sent |= {"snapshot": None}
        found[what] = [size_of(sent), moved(ray, post, sent, back=what in ("fragment", "observations"))]
    return found


def tapped(method: Callable, what: str, pick: Callable, last: dict[str, Any]) -> Callable:
    """Make a method that also keeps what it is given."""

    def call(self: Any, *given: Any, **named: Any) -> Any:
        last[what] = pick(given)
        return method(self, *given, **named)

    return call


def size_of(sent: Any) -> int:
    """Count the bytes of all arrays in it."""
    if isinstance(sent, dict):
        return sum(map(size_of, sent.values()))
    return len(sent) if isinstance(sent, bytes) else int(getattr(sent, "nbytes", 0))


class Post:
    """A process that takes what it is sent, or gives what it was left."""

    def take(self, sent: Any) -> float:
        """Say when it was here."""
        return time.time() if sent is not None else 0.0

    def keep(self, sent: Any) -> None:
        """Keep it for `give`."""
        self._sent = sent

    def give(self) -> tuple[float, Any]:
        """Give it, and when."""
        return time.time(), self._sent


def moved(ray: Any, post: Any, sent: Any, *, back: bool) -> float:
    """Milliseconds from one process to the other, `back` to the learner."""
    took = []
    ray.get(post.keep.remote(sent))
    for _ in range(MOVES):
        if back:
            at, _given = ray.get(post.give.remote())
            took.append(time.time() - at)
            continue
        started = time.time()
        there = ray.get(post.take.remote(sent if isinstance(sent, bytes) else ray.put(sent)))
        took.append(there - started)
    return 1e3 * statistics.median(took)


# ------------------------------------------------------------------------------------------------------------------ drawing

#: What a block is: its color.
COLORS = {"simulate": "#bcd4ee", "policy": "#cfe8c6", "update": "#f6cf9f", "gradient": "#dcc8ec", "replay": "#eeeeee"}

#: Rows from above; blocks (row, from, to, kind, words); arrows (row, when, row, when, words).  {name} is what was measured.
WORKERS = ["worker 1", "learner", "worker 2"]
SCENES: dict[str, dict[str, Any]] = {
    "local": {
        "rows": ["robots", "learner"],
        "blocks": [(0, 0.5 + k, 0.95 + k, "simulate", "step") for k in range(5)]
        + [(1, 0.05 + k, 0.4 + k, "policy", "$\\pi$") for k in range(5)]
        + [(1, 5.05, 9.2, "update", "update: all epochs and minibatches"), (1, 9.3, 9.65, "policy", "$\\pi$")],
        "arrows": [(1, 0.3 + k, 0, 0.55 + k, "") for k in range(5)] + [(0, 0.9 + k, 1, 1.1 + k, "") for k in range(5)],
        "words": [(7.1, 0, "one process, one device: the same tensors, 0 bytes move")],
    },
    "sync": {
        "rows": WORKERS,
        "blocks": [
            (0, 1.2, 5.0, "simulate", "T steps, policy beside: {simulate}"),
            (2, 1.2, 4.4, "simulate", "T steps, policy beside"),
            (1, 6.0, 9.2, "update", "update: {update}"),
        ],
        "arrows": [
            (1, 0.3, 0, 1.2, "weights {weights}"),
            (1, 0.3, 2, 1.2, ""),
            (0, 5.0, 1, 5.9, "fragment {fragment}"),
            (2, 4.4, 1, 5.9, ""),
            (1, 9.2, 0, 10.1, ""),
            (1, 9.2, 2, 10.1, ""),
        ],
    },
    "overlap": {
        "rows": WORKERS,
        "blocks": [
            (0, 1.0, 4.6, "simulate", "rollout k: {simulate}"),
            (2, 1.0, 4.3, "simulate", "rollout k"),
            (0, 6.2, 9.8, "simulate", "rollout k+1 by the policy before update k"),
            (2, 6.2, 9.5, "simulate", "rollout k+1"),
            (1, 0.5, 3.8, "update", "update k-1: {update}"),
            (1, 5.7, 9.0, "update", "update k"),
        ],
        "arrows": [
            (1, 0.3, 0, 1.0, "weights {weights}"),
            (1, 0.3, 2, 1.0, ""),
            (0, 4.6, 1, 5.5, ""),
            (2, 4.3, 1, 5.5, "fragment {fragment}"),
            (1, 5.6, 0, 6.2, ""),
            (1, 5.6, 2, 6.2, ""),
        ],
    },
    "async": {
        "rows": WORKERS,
        "blocks": [
            (0, 0.2, 2.2, "simulate", "T steps"),
            (0, 2.4, 4.4, "simulate", "T steps"),
            (0, 4.6, 6.6, "simulate", "T steps"),
            (0, 6.8, 8.8, "simulate", "T steps"),
            (2, 0.2, 3.6, "simulate", "T steps of a slow one: {simulate}"),
            (2, 3.8, 7.2, "simulate", "T steps"),
            (1, 2.9, 4.0, "update", "update"),
            (1, 5.1, 6.2, "update", "{update}"),
            (1, 7.4, 8.5, "update", "update"),
        ],
        "arrows": [
            (0, 2.2, 1, 2.85, "fragment {fragment}"),
            (1, 4.0, 0, 4.55, ""),
            (0, 4.4, 1, 5.05, ""),
            (2, 3.6, 1, 5.0, ""),
            (1, 6.2, 0, 6.75, ""),
            (1, 6.2, 2, 7.25, "weights {weights}"),
            (0, 6.6, 1, 7.35, ""),
        ],
    },
    "central": {
        "rows": WORKERS,
        "blocks": [(0, 0.7 + 2.2 * k, 1.7 + 2.2 * k, "simulate", "one step") for k in range(3)]
        + [(2, 1.8 + 2.2 * k, 2.8 + 2.2 * k, "simulate", "one step") for k in range(3)]
        + [(1, 0.1 + 1.1 * k, 0.5 + 1.1 * k, "policy", "$\\pi$") for k in range(7)]
        + [(1, 7.6, 9.9, "update", "update: {update}")],
        "arrows": [(1, 0.5 + 2.2 * k, 0, 0.75 + 2.2 * k, "") for k in range(3)]
        + [(0, 1.6 + 2.2 * k, 1, 2.35 + 2.2 * k, "observations {observations}" if k == 2 else "") for k in range(3)]
        + [(1, 1.6 + 2.2 * k, 2, 1.85 + 2.2 * k, "actions {actions}" if k == 2 else "") for k in range(3)]
        + [(2, 2.7 + 2.2 * k, 1, 3.45 + 2.2 * k, "") for k in range(2)],
    },
    "gradients": {
        "rows": WORKERS,
        "blocks": [
            (0, 0.3, 2.5, "simulate", "T steps, policy beside"),
            (0, 2.5, 3.6, "gradient", "backward"),
            (0, 5.1, 7.3, "simulate", "T steps"),
            (0, 7.3, 8.4, "gradient", "backward"),
            (2, 0.9, 4.3, "simulate", "T steps, with the gradient: {simulate}"),
            (2, 4.3, 5.4, "gradient", "backward"),
            (2, 7.0, 9.9, "simulate", "T steps"),
            (1, 4.2, 4.6, "update", "step"),
            (1, 6.0, 6.4, "update", "step"),
            (1, 9.0, 9.4, "update", "step"),
        ],
        "arrows": [
            (0, 3.6, 1, 4.15, ""),
            (1, 4.6, 0, 5.1, ""),
            (2, 5.4, 1, 6.0, ""),
            (1, 6.4, 2, 7.0, "weights {weights}"),
            (0, 8.4, 1, 9.0, "gradient {fragment}"),
        ],
    },
    "apex": {
        "rows": ["worker 1, noise 0.4", "replay, learner", "worker 2, noise 0.0007"],
        "blocks": [
            (0, 0.2, 2.8, "simulate", "T steps, priorities: {simulate}"),
            (0, 2.9, 5.5, "simulate", "T steps, priorities"),
            (0, 5.6, 8.2, "simulate", "T steps, priorities"),
            (2, 0.2, 3.8, "simulate", "T steps, priorities"),
            (2, 3.9, 7.5, "simulate", "T steps, priorities"),
            (1, 0.2, 3.3, "update", "updates on rows drawn by priority"),
            (1, 3.3, 3.5, "replay", ""),
            (1, 3.5, 6.0, "update", "updates: {update}"),
            (1, 6.0, 6.2, "replay", ""),
            (1, 6.2, 9.2, "update", "updates: the replay never leaves the device"),
        ],
        "arrows": [
            (0, 2.8, 1, 3.35, "fragment, priorities {fragment}"),
            (0, 5.5, 1, 6.05, ""),
            (2, 3.8, 1, 6.1, ""),
            (1, 6.2, 2, 7.5, ""),
            (1, 6.2, 0, 8.2, "policy, critics {weights}"),
        ],
    },
    "ranks": {
        "rows": ["rank 0", "rank 1"],
        "blocks": [(row, 0.1, 3.9, "simulate", "its own robots, its own policy") for row in (0, 1)]
        + [(row, 4.1 + 1.45 * k, 5.2 + 1.45 * k, "gradient", "minibatch") for row in (0, 1) for k in range(4)]
        + [(row, 5.28 + 1.45 * k, 5.48 + 1.45 * k, "update", "") for row in (0, 1) for k in range(4)],
        "arrows": [(row, 5.2 + 1.45 * k, 1 - row, 5.28 + 1.45 * k, "") for row in (0, 1) for k in range(4)],
        "words": [(2.0, 0.5, "{sums} sums an iteration; one of the gradient: {sum}")],
    },
}


def draw(system: str, result: dict[str, Any], path: Path) -> None:
    """Draw who does what when, and what goes where: not to scale."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit(f"--plot: matplotlib is not installed; {install_hint('plot')}") from None
    scene, rows = SCENES[system], len(SCENES[system]["rows"])
    words = {name: written(value) for name, value in result.get(system, {}).items()}
    figure = Figure(figsize=(9.0, 0.35 + 0.72 * rows), layout="constrained")
    axes = figure.subplots()
    for row, start, end, kind, text in scene["blocks"]:
        axes.barh(row, end - start, height=0.38, left=start, color=COLORS[kind], edgecolor="#666666", linewidth=0.6)
        axes.text((start + end) / 2, row, text.format(**words), ha="center", va="center", fontsize=7.5)
    for row, start, other, end, text in scene["arrows"]:
        down = 0.2 if other > row else -0.2
        axes.annotate(
            "", (end, other - down), (start, row + down), arrowprops={"arrowstyle": "-|>", "color": "#333333", "linewidth": 0.9}
        )
        if text:
            x, y = (start + end) / 2 + 0.22, (row + other) / 2
            axes.text(
                x, y, text.format(**words), ha="left", va="center", fontsize=7.5, color="#a02020", backgroundcolor="#ffffffc0"
            )
    for x, row, text in scene.get("words", ()):
        axes.text(x, row, text.format(**words), ha="center", va="center", fontsize=7.5, color="#a02020")
    axes.set(xlim=(0, 10.4), ylim=(rows - 0.62, -0.38), yticks=range(rows), xticks=[])
    axes.set_xlabel("time, not to scale", fontsize=7.5, loc="right")
    axes.set_yticklabels(scene["rows"], fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def written(value: Any) -> str:
    """Write [bytes, milliseconds], or milliseconds, or a count."""
    if isinstance(value, list):
        size, took = value
        amount = f"{size} B" if size < 1e3 else f"{size / 1e3:.3g} kB" if size < 1e6 else f"{size / 1e6:.3g} MB"
        return f"{amount}, {took:.2g} ms"
    return f"{value:.0f} ms" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
