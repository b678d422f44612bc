"""A Ray of one's own: nobody else's sockets, and nothing of it lives on when its driver is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs Ray: an extra, ray")

from embodied_rl.pools import session
from embodied_rl.pools.cluster import Connection, _reason
from embodied_rl.pools.errors import PoolError
from embodied_rl.pools.session import processes

#: A driver with one worker, which prints where its Ray's folder is and the worker's id, and does as it is told.
DRIVER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
from embodied_rl.pools import session  # noqa: E402
from embodied_rl.pools.cluster import Connection
connection = Connection(num_cpus=1)
import ray
worker = ray.remote(type("Worker", (), {"pid": lambda self: os.getpid()})).remote()
print(connection._session._folder, ray.get(worker.pid.remote()), flush=True)
exec(sys.stdin.readline())
"""
#: Two of Ray's, as the kernel cuts their names, that wait for a minute for a server that is dead.
AGENTS = {"ray::DashboardA", "ray::RuntimeEnv"}
#: 127.0.0.1, itself as an IPv6 address, and ::1, as /proc has them.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


class Driver:
    """A process that has started a Ray."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        command, pipe = [sys.executable, "-c", DRIVER], subprocess.PIPE
        self.process = subprocess.Popen(command, text=True, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None
        folder, worker = self.process.stdout.readline().split()
        self.folder, self.worker = Path(folder), int(worker)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def leaves_nothing(self, *pids: int) -> None:
        """Within 10 s after it has ended; of these processes neither."""
        deadline = time.monotonic() + 10.0
        while left := [*filter(Path.exists, [self.folder]), *processes(self.folder), *filter(name, pids)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


def name(pid: int) -> str:
    """What the kernel calls a process; empty where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return ""
    before, _, after = stat.rpartition(")")
    return "" if after.split()[0] == "Z" else before.partition("(")[2]


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.process.kill()
    made.process.wait()


def listening(pids: list[int]) -> set[str]:
    """Addresses, in hex, at which processes listen."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {fields[1].partition(":")[0] for fields in lines if fields[3] == "0A" and fields[9] in inodes}


def test_a_ray_of_ones_own_is_closed_to_others_and_ends_with_a_driver_that_is_killed(driver: Driver) -> None:
    inside = list(driver.folder.rglob("*"))
    sockets = [path for path in inside if path.is_socket()]
    assert {path.name for path in sockets} == {"raylet", "plasma_store"}
    # what is inside is open to everybody, as Ray makes it; the folder around it lets nobody through
    assert driver.folder.stat().st_mode & 0o777 == 0o700
    assert all(driver.folder in path.resolve().parents for path in inside)
    if os.geteuid() == 0:
        become_nobody = "os.setgroups([]); os.setegid(65534); os.seteuid(65534); "
        for first, refused in (("", False), (become_nobody, True)):
            code = f"import os, socket; {first}socket.socket(socket.AF_UNIX).connect({str(sockets[0])!r})"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert ("PermissionError" in done.stderr) == refused and (done.returncode != 0) == refused

    deadline = time.monotonic() + 30.0
    while not AGENTS.issubset(map(name, pids := processes(driver.folder))):  # once they have loaded what they need
        assert time.monotonic() < deadline, [*map(name, pids)]
        time.sleep(0.1)
    assert {"raylet", "gcs_server"} <= {*map(name, pids)} and driver.worker in pids
    pids.append(driver.process.pid)
    assert listening(pids) and listening(pids) <= LOOPBACK

    driver.process.kill()
    driver.process.wait()
    driver.leaves_nothing(*pids)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "raise ValueError", "connection.close()", "os._exit(1)"])
def test_a_ray_of_ones_own_ends_with_its_driver(driver: Driver, end: str) -> None:
    if end.startswith("SIG"):
        driver.process.send_signal(getattr(signal, end))
    else:
        driver.tell(end)
    driver.process.wait(timeout=30.0)
    driver.leaves_nothing()


def test_no_folder_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"is_initialized": lambda: False, "shutdown": lambda: None}.items():  # another test's cluster stays
        monkeypatch.setattr(f"ray.{name}", value)
    monkeypatch.setattr(session, "_roots", lambda: [Path("/missing")])
    found = r"pool.address: local: no folder for Ray \(/missing: No such file or directory\); set TMPDIR to one with a short path"
    with pytest.raises(PoolError, match=f"^{found}"):
        Connection()


def test_the_last_line_of_a_log_stands_for_the_log(tmp_path: Path) -> None:
    log = tmp_path / "gcs_server.out"
    log.write_text("starting\nMissing authorization header in request!\n\n")
    error = RuntimeError(f"Failed to start GCS.\nPlease check {log} for details. Last connection error: none")
    assert _reason(error) == "Failed to start GCS. Missing authorization header in request! Last connection error: none"
    log.unlink()
    assert _reason(error) == "Failed to start GCS.  Last connection error: none"
