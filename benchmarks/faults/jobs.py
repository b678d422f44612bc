"""Training jobs of two ranks that can be killed, and what two of them left behind beside each other; see survival.py."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

RANKS, ITERATIONS, INTERVAL = 2, 24, 4
PAGE = [
    *("env.compile=false", "env.num_envs=8", "distributed.num_envs_scope=per_rank", "env.episode_s=0.5", "physics.num_threads=1"),
    *("train.steps=8", "ppo.actor_hidden_dims=[16]", "ppo.critic_hidden_dims=[16]"),
    *("ppo.num_learning_epochs=2", "ppo.num_mini_batches=2", f"train.save_every={INTERVAL}", "train.keep_checkpoints=3"),
]
#: Seconds that anything may take on a busy machine.
PATIENCE = 300.0
#: Metrics of the clock, which no two runs share.
CLOCK = ("Perf/", "Train/seconds")


class Job:
    """Ranks, and the launcher that restarts them: torchrun.

    Args:
        folder: where the run, and the log of all processes, are written.
        arguments: of `embodied-rl train`.
        restarts: how often the launcher starts the ranks again.
        environment: variables of the processes.
        launcher: options of torchrun.
        inside: a command that runs the launcher, to put it into a network namespace.
    """

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        *,
        restarts: int = 3,
        environment: dict[str, str] | None = None,
        launcher: list[str] | None = None,
        inside: list[str] | None = None,
    ) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        options = launcher or ["--nproc-per-node", str(RANKS)]
        options = [*options, "--max-restarts", str(restarts), "--shutdown-timeout", "3"]
        command = [*(inside or []), sys.executable, "-m", "torch.distributed.run", *options, "-m", "embodied_rl", *arguments]
        with self.log.open("a") as log:
            self.process: Any = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=os.environ | (environment or {}), cwd=folder
            )
        self.pid: int = self.process.pid

    @property
    def text(self) -> str:
        """Everything that was said."""
        return self.log.read_text(errors="replace")

    def ranks(self) -> list[int]:
        """Process ids of the ranks that live, by local rank."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.pid and fields[0] != "Z":
                    variables = (stat.parent / "environ").read_bytes().split(b"\0")
                    rank = next((one.partition(b"=")[2] for one in variables if one.startswith(b"LOCAL_RANK=")), None)
                    if rank is not None:
                        found[int(rank)] = int(stat.parent.name)
            except (OSError, IndexError):
                continue
        return [found[rank] for rank in sorted(found)]

    def reach(self, iteration: int) -> None:
        """Wait until an iteration is done, for the first time since now or before."""
        wait_for(lambda: done_iterations(self.text)[-1:] >= [iteration], f"iteration {iteration}", self)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one process."""
        os.kill(pid, number)

    def finish(self) -> int:
        """Wait for the launcher's end; its exit code."""
        wait_for(lambda: self.process.poll() is not None, "the end", self)
        return self.process.returncode

    def close(self) -> None:
        """End everything that still lives."""
        for pid in (*self.ranks(), self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


class _Forked:
    """A forked process, as far as `Job` looks at `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> None:
        while self.poll() is None:
            time.sleep(0.01)


class Forks(Job):
    """The same with forked processes."""

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        *,
        restarts: int = 3,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        self.log.touch()
        self._ranks = folder / "ranks.json"
        self._store, port = _fork_store()
        variables = (environment or {}) | {
            "WORLD_SIZE": str(RANKS),
            "LOCAL_WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": str(port),
        }
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.chdir(folder)
            os._exit(self._launch(arguments, restarts, variables))
        self.process = _Forked(self.pid)

    def ranks(self) -> list[int]:
        try:
            return [pid for pid in json.loads(self._ranks.read_text()) if alive(pid)]
        except (OSError, ValueError):
            return []

    def close(self) -> None:
        super().close()
        self._store.kill()

    def _launch(self, arguments: list[str], restarts: int, variables: dict[str, str]) -> int:
        """What torchrun does: start all, and again when one fails."""
        asked: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        for _ in range(restarts + 1):
            ranks = [_Forked(self._fork(rank, arguments, variables)) for rank in range(RANKS)]
            temporary = self._ranks.with_suffix(".tmp")
            temporary.write_text(json.dumps([rank.pid for rank in ranks]))
            temporary.replace(self._ranks)
            while any(rank.poll() is None for rank in ranks) and not asked and not any(rank.poll() for rank in ranks):
                time.sleep(0.02)
            for wait, number in ((3.0, signal.SIGTERM), (1.0, signal.SIGKILL)):
                living = [rank for rank in ranks if rank.poll() is None]
                for rank in living:
                    os.kill(rank.pid, number)
                deadline = time.monotonic() + (wait if not asked else PATIENCE)
                while any(rank.poll() is None for rank in living) and time.monotonic() < deadline:
                    time.sleep(0.02)
            if asked or all(rank.returncode == 0 for rank in ranks):
                return 1 if asked else 0
        return 1

    def _fork(self, rank: int, arguments: list[str], variables: dict[str, str]) -> int:
        pid = os.fork()
        if pid:
            return pid
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        os.environ.update(variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            from embodied_rl import cli

            code = cli.main(arguments)
            sys.stdout.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            import atexit

            atexit._run_exitfuncs()
            os._exit(code)


def _fork_store() -> tuple[_StoreHost, int]:
    """A process that keeps the store, and its port."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        os.setsid()
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        os.write(writer, str(store.port).encode())
        os.close(writer)
        while os.getppid() != 1:
            time.sleep(1.0)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return _StoreHost(pid), int(pipe.read())


class _StoreHost:
    def __init__(self, pid: int) -> None:
        self._pid = pid

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended does not, whether anybody has waited for it or not."""
    from embodied_rl.learn.ranks import shared

    return shared.alive(pid)


def wait_for(condition: Callable[[], bool], what: str, job: Job | None = None, patience: float = PATIENCE) -> float:
    """Wait until it holds; the seconds it took."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > patience:
            said = "\n" + job.text[-4000:] if job else ""
            raise AssertionError(f"waited {patience:.0f} s for {what}{said}")
        time.sleep(0.01)
    return time.monotonic() - started


def done_iterations(text: str) -> list[int]:
    """What a log says was done, in its order."""
    return [int(found) for found in re.findall(r"^(\d+)/\d+  elapsed ", text, flags=re.MULTILINE)]


def train_arguments(*more: str) -> list[str]:
    """Of `embodied-rl`."""
    return ["train", "go2_flat", *PAGE, "--device", "cpu", "--run-dir", "run", "--iterations", str(ITERATIONS), *more]


# ----------------------------------------------------------------------------------------------------------- what a run left


def result(folder: Path, iteration: int = ITERATIONS) -> dict[str, Any]:
    """What a run has come to: a hash of networks, optimizer and robots, its counters, its curves."""
    from embodied_rl.learn import checkpoint
    from embodied_rl.learn.ranks.group import Group, fingerprint

    path = folder / "run" / "checkpoints" / f"model_{iteration:06d}.pt"
    state = checkpoint.read(path)
    envs = checkpoint.Checkpoints(path.parent, Group()).read_envs(path, state, range(8 * RANKS))
    learner = {name: value for name, value in state.items() if name not in ("infos", "shards")}
    return {
        "learner": fingerprint(learner),
        "envs": fingerprint([each for _, each in envs]),
        "iteration": state["iter"],
        "env_steps": state["infos"]["env_steps"],
        "seconds": state["infos"]["seconds"],
        "curves": curves(folder),
    }


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in sorted(events.Tags()["scalars"])}


def check(folder: Path, reference: dict[str, Any]) -> None:
    """The run is the undisturbed one."""
    found = result(folder)
    for name in ("learner", "envs", "iteration", "env_steps"):
        assert found[name] == reference[name], f"{name} is {found[name]} and not {reference[name]}"
    check_curves(found, reference)


def check_curves(found: dict[str, Any], reference: dict[str, Any], missing: tuple[int, ...] = ()) -> None:
    """Each iteration stands there once, with the undisturbed run's values; counters go on."""
    mine, theirs = found["curves"], reference["curves"]
    assert mine.keys() == theirs.keys(), mine.keys() ^ theirs.keys()
    for tag, values in theirs.items():
        steps = [step for step, _ in values if step not in missing]
        assert [step for step, _ in mine[tag]] == steps, f"{tag}: {[step for step, _ in mine[tag]]}"
        if not tag.startswith(CLOCK):
            assert mine[tag] == [one for one in values if one[0] in steps], tag
    seconds = [value for _, value in mine["Train/seconds"]]
    assert seconds == sorted(seconds) and abs(seconds[-1] - found["seconds"]) < 1e-3 * found["seconds"]


def newest_whole(folder: Path) -> int:
    """The iteration of the newest checkpoint, which can be read with all its robots."""
    from embodied_rl.learn import checkpoint
    from embodied_rl.learn.ranks.group import Group

    path = max(folder.glob("model_*.pt"), default=None)
    if path is None:
        return 0
    state = checkpoint.read(path)
    envs = checkpoint.Checkpoints(folder, Group()).read_envs(path, state, range(8 * RANKS))
    assert sum(len(each["age"]) for _, each in envs) == 8 * RANKS
    return int(state["iter"])


def lost(text: str) -> list[int]:
    """How many iterations were done again after each resumption that a log tells of."""
    done, again = done_iterations(text), []
    for before, after in pairwise(done):
        if after <= before:
            again.append(before - after + 1)
    return again
