"""Kills a training job in every way it may die, and compares what comes of it with a job that nobody touched.

    python benchmarks/faults/survival.py [SCENARIO ...] [--forks] [--kills 100] [--json F]

Two ranks train a small page on the CPU.  After each scenario the run has to have gone on by itself, from a checkpoint that is no
older than one interval, and its result has to be the undisturbed run's to the last bit: networks, optimizer, every robot's state,
counters, and every curve in TensorBoard, each iteration once.

With --forks, processes are forked from this one, which has imported everything, by something that does what torchrun does (the
same environment variables, one store that outlives restarts, SIGTERM and then SIGKILL to survivors): seconds a scenario, and a
hundred kills in minutes.  Without, it is torchrun itself.  docs/distributed.md shows measured figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jobs import (
    INTERVAL,
    ITERATIONS,
    RANKS,
    Forks,
    Job,
    alive,
    check,
    done_iterations,
    lost,
    newest_whole,
    result,
    train_arguments,
    wait_for,
)

#: Seconds that a stopped rank is waited for, in the scenario `stop`.
HANG_S = 5.0


class Ground:
    """Where scenarios play.

    Args:
        folder: a directory for each scenario is made in it.
        job: what starts ranks.
        kills: how often, in the scenario `torn`.
    """

    def __init__(self, folder: Path, job: type[Job], kills: int = 100) -> None:
        self.folder, self.job, self.kills = folder, job, kills
        self._reference: dict[str, Any] | None = None

    @property
    def reference(self) -> dict[str, Any]:
        """What comes of it if nobody interferes."""
        if self._reference is None:
            with self.start("undisturbed") as job:
                assert job.finish() == 0, job.text
            self._reference = result(job.folder)
        return self._reference

    @contextmanager
    def start(self, name: str, *more: str, **options: Any) -> Iterator[Job]:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        job = self.job(folder, train_arguments(*more), **options)
        try:
            yield job
        finally:
            job.close()


def kill_rank(ground: Ground, rank: int) -> dict[str, Any]:
    """SIGKILL of one rank: the launcher starts all again, and they go on from the last checkpoint."""
    with ground.start(f"kill_rank_{rank}") as job:
        job.reach(10)
        before = job.ranks()
        job.kill(before[rank])
        killed = time.monotonic()
        wait_for(lambda: len(job.ranks()) == RANKS and not set(job.ranks()) & set(before), "a restart", job)
        count = len(done_iterations(job.text))
        wait_for(lambda: len(done_iterations(job.text)) > count, "the next iteration", job)
        seconds = time.monotonic() - killed
        assert job.finish() == 0, job.text
    check(job.folder, ground.reference)
    assert max(lost(job.text)) <= INTERVAL, lost(job.text)
    return {"iterations_done_again": lost(job.text), "seconds_until_the_next_iteration": seconds}


def kill_rank_0(ground: Ground) -> dict[str, Any]:
    return kill_rank(ground, 0)


def kill_rank_1(ground: Ground) -> dict[str, Any]:
    return kill_rank(ground, 1)


def kill_launcher(ground: Ground) -> dict[str, Any]:
    """SIGKILL of torchrun: its ranks notice, save and end; the same command, given again at once, goes on after them."""
    with ground.start("kill_launcher", "--resume", "auto") as job:
        job.reach(10)
        orphans = job.ranks()
        job.kill(job.pid)
        job.process.wait()
        with ground.start("kill_launcher", "--resume", "auto") as again:
            took = wait_for(lambda: not any(map(alive, orphans)), "the end of the orphans", job)
            assert again.finish() == 0, again.text
    check(job.folder, ground.reference)
    return {"iterations_done_again": lost(job.text), "seconds_until_orphans_ended": took}


def terminate(ground: Ground) -> dict[str, Any]:
    """SIGTERM to the launcher, as before a preemption: all ranks save and end well; the same command goes on."""
    with ground.start("terminate", "--resume", "auto") as job:
        job.reach(10)
        ranks = job.ranks()
        job.kill(job.pid, signal.SIGTERM)
        took = wait_for(lambda: not any(map(alive, ranks)), "the end", job)
        code = job.finish()
        assert re.search(r"^stopped after \d+ iterations; go on with", job.text, flags=re.MULTILINE), job.text
        assert job.text.count("stopped after") == 1
    with ground.start("terminate", "--resume", "auto") as again:
        assert again.finish() == 0, again.text
    assert lost(again.text) == []  # it goes on exactly where it stopped
    check(job.folder, ground.reference)
    return {"iterations_done_again": 0, "seconds_until_all_had_saved_and_ended": took, "exit_code_of_the_launcher": code}


def terminate_rank(ground: Ground) -> dict[str, Any]:
    """SIGTERM to one rank alone: all save and exit with 0, and so does the launcher."""
    with ground.start("terminate_rank", "--resume", "auto") as job:
        job.reach(10)
        job.kill(job.ranks()[1], signal.SIGTERM)
        started = time.monotonic()
        assert job.finish() == 0, job.text
        took = time.monotonic() - started
    with ground.start("terminate_rank", "--resume", "auto") as again:
        assert again.finish() == 0, again.text
    assert lost(again.text) == []
    check(job.folder, ground.reference)
    return {"iterations_done_again": 0, "seconds_until_all_had_saved_and_ended": took}


def stop(ground: Ground) -> dict[str, Any]:
    """SIGSTOP of a rank: found after `distributed.timeout_s`, named, and everyone is started again."""
    with ground.start("stop", f"distributed.timeout_s={HANG_S}") as job:
        job.reach(10)
        stopped = job.ranks()[1]
        job.kill(stopped, signal.SIGSTOP)
        started = time.monotonic()
        named = wait_for(
            lambda: f"rank 1 ({socket.gethostname()}, pid {stopped}) hangs: not at collective" in job.text, "a name", job
        )
        wait_for(lambda: not alive(stopped), "its end", job)
        count = len(done_iterations(job.text))
        wait_for(lambda: len(done_iterations(job.text)) > count, "the next iteration", job)
        seconds = time.monotonic() - started
        assert job.finish() == 0, job.text
    assert job.text.count(" hangs: ") == 1
    check(job.folder, ground.reference)
    return {
        "timeout_s": HANG_S,
        "seconds_until_named": named,
        "seconds_until_the_next_iteration": seconds,
        "iterations_done_again": lost(job.text),
    }


def torn(ground: Ground) -> dict[str, Any]:
    """SIGKILL of a rank at random moments around the writing of a checkpoint, again and again."""
    random.seed(1)
    kills = torn_states = job_number = 0
    again: list[int] = []
    while kills < ground.kills:
        job_number += 1
        name, newest = f"torn_{job_number}", 0
        folder = ground.folder / name / "run" / "checkpoints"
        with ground.start(name, "train.save_every=1", restarts=ground.kills) as job:
            while kills < ground.kills:
                old = files(folder)
                written = lambda: {name for name, _ in files(folder) - old}  # noqa: B023, E731
                begun = lambda: any(name.endswith(".tmp") for name in written())  # noqa: B023, E731
                wait_for(lambda: begun() or job.process.poll() is not None, "a checkpoint that is written", job)  # noqa: B023
                time.sleep(random.uniform(0.0, 0.01))
                before = job.ranks()
                if len(before) < RANKS:
                    break  # it was the last one
                job.kill(random.choice(before))
                kills += 1
                wait_for(lambda before=before: not set(before) & set(job.ranks()), "their end", job)
                shards = {name[5:11] for name in written() if name.startswith("envs_")}
                torn_states += begun() or bool(shards - {path.name[6:12] for path in folder.glob("model_*.pt")})
                found = newest_whole(folder)
                assert found >= newest, f"checkpoint {found} after {newest}"
                newest = found
            assert job.finish() == 0, job.text
        check(job.folder, ground.reference)
        again += lost(job.text)
    # had one been loaded, the end would not be the undisturbed run's
    return {
        "kills": kills,
        "jobs": job_number,
        "torn_on_disk": torn_states,
        "torn_loaded": 0,
        "most_iterations_done_again": max(again, default=0),
    }


def files(folder: Path) -> set[tuple[str, int]]:
    """What lies there, by name and the time it was written [ns]."""
    found = set()
    for path in folder.glob("*.*"):
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except OSError:  # it was renamed meanwhile
            continue
    return found


def disk_full(ground: Ground) -> dict[str, Any]:
    """A run directory on a file system that fills up and is cleared again: the run goes on, and misses checkpoints meanwhile."""
    folder = ground.folder / "disk_full"
    (folder / "run").mkdir(parents=True)
    with ExitStack() as stack:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder / "run")], check=True)
        stack.callback(subprocess.run, ["umount", "-l", str(folder / "run")], check=True)
        with ground.start("disk_full") as job:
            job.reach(6)
            ballast = folder / "run" / "ballast"
            with ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
            job.reach(18)
            kept = newest_whole(folder / "run" / "checkpoints")
            ballast.unlink()
            assert job.finish() == 0, job.text
        found = result(folder)
    assert kept == 4, kept
    missed = [
        int(one)
        for one in re.findall(r"(?:model|envs)_(\d+)\S*: not written \(No space left on device\); the run goes on", job.text)
    ]
    assert missed[0] == 8 and "Traceback" not in job.text, job.text
    reference = ground.reference
    assert all(found[name] == reference[name] for name in ("learner", "envs", "iteration", "env_steps"))
    steps = [step for step, _ in found["curves"]["Loss/value"]]
    assert steps == sorted(set(steps)) and steps[-1] == ITERATIONS
    return {"checkpoints_missed": missed, "kept_meanwhile": kept, "iterations_without_curves": ITERATIONS - len(steps)}


def flipped_bit(ground: Ground) -> dict[str, Any]:
    """One bit of the newest checkpoint, in the learner or in a shard: the one before is taken, with a line."""
    again = {}
    for part in ("model_{}.pt", "envs_{}_0_of_2.pt", "envs_{}_1_of_2.pt"):
        folder = f"flipped_bit_{part[:4]}{part[8:9]}"
        with ground.start(folder, "--resume", "auto") as job:
            job.reach(14)
            for pid in (job.pid, *job.ranks()):  # at once, so that nobody saves any more
                job.kill(pid)
            job.process.wait()
        checkpoints = job.folder / "run" / "checkpoints"
        path = checkpoints / part.format(f"{newest_whole(checkpoints):06d}")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x04
        path.write_bytes(data)
        with ground.start(folder, "--resume", "auto") as job:
            assert job.finish() == 0, job.text
        assert re.search(rf"{path.name}: (truncated or )?damaged", job.text), job.text
        check(job.folder, ground.reference)
        again[path.name] = lost(job.text)
    return {"iterations_done_again": again}


# ---------------------------------------------------------------------------------------------------------------- two nodes


def nodes(ground: Ground) -> dict[str, Any]:
    """Two launchers as two nodes: network namespaces with an address each, joined by a cable; one is killed and comes back."""
    folder = ground.folder / "nodes"
    with network() as namespaces:

        def launch(node: int) -> Job:
            place = folder / f"node_{node}"
            place.mkdir(parents=True, exist_ok=True)
            options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "survival"]
            options += ["--rdzv-endpoint", "10.77.0.1:29517", "--local-addr", f"10.77.0.{node + 1}"]
            # on real nodes torchrun finds out by name; these two share theirs
            options += ["--rdzv-conf", f"is_host={node == 0},timeout=120"]
            arguments = train_arguments("--resume", "auto", f"distributed.timeout_s={HANG_S}")
            arguments[arguments.index("run")] = str(folder / "run")
            inside = ["ip", "netns", "exec", namespaces[node]]
            # else torchrun of torch 2.13 never tells a node that comes later where the ranks' store is
            variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
            return Job(place, arguments, launcher=options, inside=inside, restarts=5, environment=variables)

        jobs = [launch(node) for node in range(2)]
        try:
            speaker = jobs[0]
            wait_for(lambda: any(done_iterations(job.text)[-1:] >= [10] for job in jobs), "iteration 10", speaker)
            (victim,) = (node for node, job in enumerate(jobs) if not done_iterations(job.text))
            for pid in (*jobs[victim].ranks(), jobs[victim].pid):
                os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            jobs[victim].process.wait()
            jobs[victim] = launch(victim)
            count = sum(len(done_iterations(job.text)) for job in jobs)
            wait_for(lambda: sum(len(done_iterations(job.text)) for job in jobs) > count, "the next iteration", speaker)
            seconds = time.monotonic() - killed
            codes = [job.finish() for job in jobs]
            assert codes == [0, 0], "\n".join(job.text for job in jobs)
        finally:
            for job in jobs:
                job.close()
    check(folder, ground.reference)
    again = [count for job in jobs for count in lost(job.text)]
    return {"node_killed": victim, "seconds_until_the_next_iteration": seconds, "iterations_done_again": again}


@contextmanager
def network() -> Iterator[list[str]]:
    """Two network namespaces, 10.77.0.1 and 10.77.0.2."""
    names = [f"embodied-{os.getpid()}-{node}" for node in range(2)]
    ip = lambda *arguments: subprocess.run(["ip", *arguments], check=True)  # noqa: E731
    try:
        for name in names:
            ip("netns", "add", name)
            own = Path("/etc/netns") / name  # what `ip netns exec` puts over /etc: no name server is asked, for none answers
            own.mkdir(parents=True)
            (own / "resolv.conf").touch()
            (own / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 node-0\n10.77.0.2 node-1\n")
        ends = [f"veth{os.getpid()}{end}" for end in "ab"]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for node, (name, end) in enumerate(zip(names, ends, strict=True)):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{node + 1}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


SCENARIOS: dict[str, Callable[[Ground], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        kill_rank_1,
        kill_rank_0,
        kill_launcher,
        terminate,
        terminate_rank,
        stop,
        torn,
        disk_full,
        flipped_bit,
        nodes,
    )
}


def main() -> None:
    """Play the scenarios that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--forks", action="store_true", help="fork the ranks from this process instead of starting torchrun")
    parser.add_argument("--kills", type=int, default=100, help="of the scenario `torn` (default 100)")
    parser.add_argument("--folder", type=Path, help="keep the runs there")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures to this file")
    options = parser.parse_args()
    if unknown := set(options.scenarios) - SCENARIOS.keys():
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.forks:
        import embodied_rl.training  # noqa: F401  what takes seconds is imported once
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="survival_"))).resolve()
    ground, figures = Ground(folder, Forks if options.forks else Job, options.kills), {}
    for name in options.scenarios or SCENARIOS:
        started = time.monotonic()
        figures[name] = SCENARIOS[name](ground)
        print(f"{name:16s} held  {json.dumps(figures[name])}  ({time.monotonic() - started:.0f} s)", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if not options.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
