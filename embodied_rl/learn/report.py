"""What a run says while it goes: a live panel on a terminal, plain lines elsewhere, TensorBoard always."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from embodied_rl.errors import UserError, install_hint

log = logging.getLogger("embodied_rl")

#: So many rewards and so many penalties have room on the panel.
_SHOWN_TERMS = 3
#: Words for shares of the time whose names in TensorBoard would not say who is waited for.
_PHASES = {"wait": "pool", "waiting": "ranks", "slowest": "stragglers"}


class Report:
    """Writes metrics to TensorBoard and shows the ones that people watch.

    Args:
        path: the run directory.
        iterations: the total that the run goes for.
        start: iterations done before; TensorBoard forgets what a killed run wrote beyond them.
        logger: `wandb` mirrors what goes to TensorBoard there.
        failures: what episodes that end other than by time are called.
        panel: the learner's own words for its metrics.
        console: where to show progress.

    Raises:
        UserError: wandb is asked for and not installed.
    """

    def __init__(
        self,
        path: Path,
        iterations: int,
        start: int,
        logger: str = "tensorboard",
        failures: str = "terminated",
        panel: Callable[[dict[str, float]], str] = lambda metrics: "",
        console: Console | None = None,
    ) -> None:
        if logger == "wandb":
            _mirror_to_wandb(path)
        self._path, self._iterations, self._failures, self._learner = path, iterations, failures, panel
        self._writer: Any = None
        self._lost, self._score = False, ""
        self._moved: dict[logging.StreamHandler, Any] = {}
        self._excepthook = threading.excepthook
        self._open(start + 1)
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None

    def __enter__(self) -> Report:
        threading.excepthook = self._on_thread_error
        if self._live:
            at_terminal, before = sys.stderr.isatty(), sys.stderr
            self._live.__enter__()
            # the panel has the terminal to itself: what is logged goes above it, by way of what it put in stderr's place
            for handler in logging.getLogger().handlers:
                if at_terminal and isinstance(handler, logging.StreamHandler) and handler.stream is before:
                    handler.setStream(sys.stderr)
                    self._moved[handler] = before
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        threading.excepthook = self._excepthook
        for handler, before in self._moved.items():
            handler.setStream(before)
        self._moved.clear()
        if self._live:
            self._live.__exit__(None, None, None)

    def show(self, iteration: int, metrics: dict[str, float], seconds_left: float) -> None:
        """After an iteration, counted from 1.  Where there is no room on the disk, the run matters more than its record."""
        try:
            if self._writer is not None:
                for name, value in metrics.items():
                    self._writer.add_scalar(name, value, iteration)
        except OSError as error:
            self._lose(error)
        if figures := {name.removeprefix("Score/"): value for name, value in metrics.items() if name.startswith("Score/")}:
            said = "passed" if figures.pop("passed") else "not passed"
            said = f"after iteration {iteration}: {said}, margin {figures.pop('margin'):+.3f}"
            self._score = "\n".join([said, *(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())])
        try:
            if self._live:
                self._live.update(self._panel(iteration, metrics, seconds_left))
            else:
                self._console.print(self._line(iteration, metrics, seconds_left), highlight=False, soft_wrap=True)
                self._console.file.flush()  # a log file is read while the run goes
        except OSError as error:
            log.warning("progress not shown (%s)", error.strerror)

    def flush(self, iteration: int) -> None:
        """Have everything up to an iteration on the disk: what a checkpoint does not repeat must not be lost with the process."""
        try:
            if self._writer is not None:
                self._writer.flush()
        except OSError as error:
            self._lose(error)
        if self._writer is None:
            self._open(iteration + 1)

    def _open(self, first: int) -> None:
        """Begin to write, from an iteration on; TensorBoard forgets what was written of it and later ones before."""
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer = SummaryWriter(str(self._path), purge_step=first)
            self._writer.flush()
            self._lost = False
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if not self._lost:
            log.warning("%s: no TensorBoard events for now (%s); tried again at every checkpoint", self._path, error.strerror)
        self._lost = True
        self._close()

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        except OSError:
            pass

    def _on_thread_error(self, arguments: Any) -> None:
        """Note that the thread that writes events has died, of a full disk; `show` says so in one line."""
        if not isinstance(arguments.exc_value, OSError):
            self._excepthook(arguments)

    def _line(self, iteration: int, m: dict[str, float], seconds_left: float) -> str:
        parts = [f"{iteration}/{self._iterations}", f"elapsed {_clock(m['Train/seconds'])}", f"eta {_clock(seconds_left)}"]
        parts += [f"{m['Perf/total_fps']:.0f} steps/s", f"reward {_reward(m)}"]
        parts += [f"{name.removeprefix('Metrics/')} {m[name]:.3f}" for name in m if name.startswith("Metrics/")]
        return "  ".join([*parts, self._ends(m), _verdict(m)])

    def _panel(self, iteration: int, m: dict[str, float], seconds_left: float) -> Table:
        table = Table(title=f"embodied-rl  {self._path}", show_header=False, title_justify="left", min_width=64)
        table.add_column(style="dim")
        table.add_column()
        clocks = f"elapsed {_clock(m['Train/seconds'])}   eta {_clock(seconds_left)}"
        table.add_row("iteration", f"{iteration} of {self._iterations}   {clocks}")
        table.add_row("env steps", f"{m['Train/env_steps']:,.0f}   {m['Perf/total_fps']:,.0f} per second")
        table.add_row("gradient steps", f"{m['Perf/gradient_steps_per_second']:,.1f} per second")
        length = f"{m['Train/mean_episode_length']:.0f} steps" if "Train/mean_episode_length" in m else "-"
        table.add_row("episode", f"reward {_reward(m)}   {self._ends(m, digits=1)}   length {length}")
        if "Train/episodes" in m:
            table.add_row("", f"[dim]means of the latest {m['Train/episodes']:,.0f} episodes[/dim]")
        terms = {name.removeprefix("Episode_Reward/"): m[name] for name in m if name.startswith("Episode_Reward/")}
        table.add_row("rewards\nper episode", _largest({name: value for name, value in terms.items() if value > 0.0}))
        table.add_row("penalties\nper episode", _largest({name: value for name, value in terms.items() if value < 0.0}))
        for name, value in m.items():
            if name.startswith("Metrics/"):
                table.add_row(name.removeprefix("Metrics/").replace("_", " "), f"{value:.3f}")
        if self._score:
            table.add_row("score", self._score)
        table.add_row("learner", self._learner(m))
        table.add_row("time", _verdict(m))
        return table

    def _ends(self, m: dict[str, float], digits: int = 0) -> str:
        """Say how many of the latest episodes ended other than by time."""
        return f"{self._failures} " + (f"{100 * m['Train/terminated']:.{digits}f} %" if "Train/terminated" in m else "-")


def _reward(m: dict[str, float]) -> str:
    return f"{m['Train/mean_reward']:.2f}" if "Train/mean_reward" in m else "-"


def _largest(terms: dict[str, float]) -> str:
    """List the terms that weigh most, one a line, the largest first."""
    names = sorted(terms, key=lambda name: -abs(terms[name]))[:_SHOWN_TERMS]
    width = max((len(f"{terms[name]:+.2f}") for name in names), default=0)
    return "\n".join(f"{terms[name]:>+{width}.2f}  {name}" for name in names) or "-"


def _verdict(m: dict[str, float]) -> str:
    """Say what takes the most time, and then the others' shares, in an order that stays, so that lines compare."""
    shares = {name.removeprefix("Perf/share_"): 100 * m[name] for name in m if name.startswith("Perf/share_")}
    if not shares:
        return "-"
    slowest = max(shares, key=lambda name: shares[name])
    # a share may be a difference of two clocks, a little below zero
    others = ", ".join(f"{_PHASES.get(name, name)} {max(share, 0.0):.0f}" for name, share in shares.items() if name != slowest)
    return f"{_PHASES.get(slowest, slowest)}-bound {shares[slowest]:.0f} %" + (f" ({others})" if others else "")


def _mirror_to_wandb(path: Path) -> None:
    try:
        import wandb  # pyright: ignore[reportMissingImports]  an extra
    except ImportError:
        raise UserError(f"train.logger: wandb is not installed; {install_hint('wandb')}, or leave the key out") from None
    # one name for a run and its resumptions
    identity = f"{path.parent.name}-{path.name}"
    wandb.init(project="embodied_rl", id=identity, name=identity, dir=str(path), resume="allow", sync_tensorboard=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
