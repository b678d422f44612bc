"""A session's folder is its owner's alone; it and the processes that were started in it end with its driver, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embodied_rl.pools import session
from embodied_rl.pools.session import MARK, NoFolderError, Session, processes, remove_left

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

#: A driver that loads the module alone, which takes a tenth of what its package takes; the process that it starts starts another,
#: in a session of its own.
DRIVER = f"""
import importlib.util, os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
spec = importlib.util.spec_from_file_location("session", {session.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
made = module.Session()
with made.marked():
    child = subprocess.Popen(["sh", "-c", "setsid sleep 60 & exec sleep 60"])
forked = os.fork()
if forked == 0:
    os.setsid()
    time.sleep(60)
while os.getsid(forked) != forked:  # before that it is of the group that may be killed
    time.sleep(0.01)
print(made._folder, made._watchdog.pid, forked, flush=True)
try:
    exec(sys.stdin.readline())
except BaseException:
    print("interrupted", flush=True)
    raise
"""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for sessions that no other test's are in, with a path that is short enough."""
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """Ids of processes that are killed after the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait(done: Callable[[], bool]) -> bool:
    """Whether it is so within the 10 s that the processes of a dead driver have."""
    deadline = time.monotonic() + 10.0
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
    return done()


def drive(ended: list[int]) -> tuple[subprocess.Popen[str], Path, int, int]:
    """A driver, its folder, its watchdog and a child that it forked."""
    command, pipe = [sys.executable, "-c", DRIVER], subprocess.PIPE
    process = subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True)
    assert process.stdout is not None
    folder, watchdog, forked = process.stdout.readline().split()
    ended += [process.pid, int(forked)]
    assert wait(lambda: len(processes(Path(folder))) == 2)
    return process, Path(folder), int(watchdog), int(forked)


def test_the_folder_is_the_owners_alone(short: Path) -> None:
    before = os.umask(0)
    try:
        made = Session()
    finally:
        os.umask(before)
    folder = made._folder
    assert folder.parent == short and folder.stat().st_mode & 0o777 == 0o700 and Path(made.ray_folder).parent == folder
    if os.geteuid() == 0:
        os.chmod(short, 0o755)
        os.chmod(made.ray_folder, 0o777)  # as Ray does
        look = ["ls", made.ray_folder]
        assert subprocess.run(look, capture_output=True).returncode == 0
        assert subprocess.run(look, capture_output=True, user="nobody").returncode != 0
    made.close()
    assert not folder.exists() and not alive(made._watchdog.pid)


@pytest.mark.parametrize(
    "end",
    ["SIGKILL", "SIGKILL of its group", "SIGTERM", "SIGINT", "raise ValueError", "os._exit(3)", "sys.exit(0)", "made.close()"],
)
def test_however_a_driver_ends_what_it_started_ends(short: Path, ended: list[int], end: str) -> None:
    other = Session()
    with other.marked():
        others = subprocess.Popen(["sleep", "60"])
    process, folder, watchdog, forked = drive(ended)
    # what has the folder in its command line or begins like it was not started there
    argument = subprocess.Popen(["sh", "-c", "sleep 60", str(folder)])
    beginning = subprocess.Popen(["sleep", "60"], env=os.environ | {MARK: f"{folder}2"})
    ended += [others.pid, argument.pid, beginning.pid]
    if end.endswith("of its group"):
        os.killpg(process.pid, signal.SIGKILL)
    elif end.startswith("SIG"):
        process.send_signal(getattr(signal, end))
    else:
        assert process.stdin is not None
        process.stdin.write(f"{end}\n")
        process.stdin.flush()
    process.wait(timeout=10.0)
    assert wait(lambda: not folder.exists() and not processes(folder) and not alive(watchdog))
    assert all(alive(pid) for pid in (forked, others.pid, argument.pid, beginning.pid, other._watchdog.pid))
    assert other._folder.exists()
    other.close()
    assert not alive(others.pid)


def test_marks_are_put_back(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Session()
    for before in (None, "/outer"):
        if before:
            monkeypatch.setenv(MARK, before)
        with made.marked():
            assert os.environ[MARK] == str(made._folder)
        assert os.environ.get(MARK) == before
    made.close()


def test_the_next_session_removes_what_nobody_could(short: Path, ended: list[int]) -> None:
    process, folder, watchdog, _ = drive(ended)
    living = Session()
    os.kill(watchdog, signal.SIGKILL)
    process.kill()
    process.wait()
    left = processes(folder)
    assert len(left) == 2 and folder.exists()
    # what only looks like one: no folder for Ray in it, a link to one, another user's
    notes, link, foreign = (short / f"embodied_rl-{name}" for name in ("mynotes1", "thelink1", "foreign1"))
    notes.mkdir()
    (short / "elsewhere" / "r").mkdir(parents=True)
    link.symlink_to(short / "elsewhere")
    (foreign / "r").mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(foreign, 1, 1)
    remove_left(short)
    assert not folder.exists() and not any(alive(pid) for pid in left)
    assert notes.exists() and (link / "r").exists() and living._folder.exists()
    assert foreign.exists() == (os.geteuid() == 0)
    living.close()


def test_a_folder_that_will_not_do_is_passed_over(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_left = 107 - len(session._LONGEST)
    longest, too_long = (short / (letter * (bytes_left - len(str(short)) - 1 + more)) for more, letter in enumerate("ab"))
    shared = short / "s"
    for folder, mode in ((longest, 0o700), (shared, 0o777)):
        folder.mkdir()
        folder.chmod(mode)
    monkeypatch.setenv("RAY_TMPDIR", str(longest))
    made = Session()
    assert made._folder.parent == longest
    made.close()

    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(short))
    for given in (too_long, shared, short / "no"):
        monkeypatch.setenv("RAY_TMPDIR", str(given))
        made = Session()
        assert made._folder.parent == short
        (reason,) = made.passed_over
        assert reason.startswith(f"{given}: ")
        made.close()

    monkeypatch.setattr(session, "_roots", lambda: [too_long, shared, short / "no"])
    with pytest.raises(NoFolderError) as raised:
        Session()
    assert str(raised.value) == (
        f"no folder for Ray ({too_long}: its path has {bytes_left + 1} bytes, {bytes_left} is what sockets leave; "
        f"{shared}: other users may exchange what is in {shared}; {short / 'no'}: No such file or directory); "
        "set TMPDIR to one with a short path that is yours"
    )
