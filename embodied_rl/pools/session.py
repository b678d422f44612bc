"""What a Ray of one's own leaves on the machine: a folder that is its owner's alone, and nothing once its driver is gone.

Ray opens its folders to every user of the machine (mode 0777): logs, and sockets that no token guards.  Here they lie in a
folder of mode 0700, past which nobody else gets.  And when a driver is killed, two of Ray's agents wait a minute for a server
that is dead; a process beside the driver, this file as a script, ends them and removes the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Every process of a Ray that was started here has this variable from its birth on, with the folder: so it is found, and nobody
#: else.  Ray's agents change their command lines, with setproctitle, which takes the beginning of the environment for it too
#: unless it is told not to.
MARK, _KEEP = "EMBODIED_RL_RAY", "SPT_NOENV"

#: Bytes that the path of a Unix socket may have (sockaddr_un: 108, on macOS 104, with the zero at its end), and the longest that
#: Ray makes under a root: with process ids of 22 bits.
_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
_PREFIX, _RAY = "embodied_rl-", "r"
_LONGEST = f"/{_PREFIX}12345678/{_RAY}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"

#: Who owns what belongs to users that a container's user namespace has no name for: the machine's root, of /tmp in Apptainer.
_NOBODY = 65534

#: Seconds after which a process that was killed and is still there (one that waits for a disk, say) is left alone.
_END_S = 10.0


class NoFolderError(OSError):
    """There is no folder for Ray; the message says what became of each that was tried."""


class Session:
    """A folder for Ray, its owner's alone, that is removed with all of Ray's processes when this process ends, however it ends.

    What was left by drivers that are dead, where nobody lived to clean up, is removed first.

    Raises:
        NoFolderError: There is none in which one can be made.
    """

    def __init__(self) -> None:
        self.passed_over: list[str] = []
        """Folders that it would rather have been in, each with the reason."""
        for root in _roots():
            remove_left(root)
            try:
                self._folder, self._lock = _make_folder(root)
                break
            except OSError as error:
                self.passed_over.append(f"{root}: {error.strerror or error}")
        else:
            raise NoFolderError(
                f"no folder for Ray ({'; '.join(self.passed_over)}); set TMPDIR to one with a short path that is yours"
            )
        environment = {name: value for name, value in os.environ.items() if name != MARK}
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self._folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            start_new_session=True,  # what ends the driver's group, or Ctrl-C, does not end it
        )
        os.register_at_fork(after_in_child=self._leave)

    @property
    def ray_folder(self) -> str:
        """The folder for Ray: it opens this one to everybody, who cannot reach it."""
        return str(self._folder / _RAY)

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Count processes that start meanwhile, and those that they start, to this session."""
        before = {name: os.environ.get(name) for name in (MARK, _KEEP)}
        os.environ |= {MARK: str(self._folder), _KEEP: "1"}
        try:
            yield
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value

    def end_processes(self) -> None:
        """End what was started in the session."""
        end_processes(self._folder)

    def close(self) -> None:
        """End what was started in the session, and remove its folder."""
        _remove(self._folder)
        self._watchdog.kill()
        self._watchdog.wait()
        self._leave()

    def _leave(self) -> None:
        """Let go of the folder: in a child of this process, which does not keep it alive, or as it is gone."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def processes(folder: Path) -> list[int]:
    """List the ids of the processes that were started in a session, as far as this user may see; on Linux alone."""
    mark, found = f"{MARK}={folder}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def end_processes(folder: Path) -> None:
    """Kill the processes that were started in a session, and those that they start meanwhile, until none is left."""
    deadline = time.monotonic() + _END_S
    while (found := processes(folder)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def remove_left(root: Path) -> None:
    """Remove the sessions under `root` whose driver and watchdog are both dead, of this user alone."""
    for folder in root.glob(f"{_PREFIX}????????"):
        with contextlib.suppress(OSError):  # BlockingIOError: its driver lives
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (folder / _RAY).is_dir():  # made under the lock: it is no folder of another's with such a name, nor half made
                    _remove(folder)
            finally:
                os.close(lock)


def watch(folder: Path) -> None:
    """Wait until a session's driver is gone, then end what it left."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    fcntl.flock(lock, fcntl.LOCK_EX)
    _remove(folder)


def _roots() -> list[Path]:
    """Folders to make one in, the first choice first: Ray's own variable, the system's, /tmp."""
    given = [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp"]
    return list(dict.fromkeys(Path(os.path.realpath(root)) for root in given if root))


def _make_folder(root: Path) -> tuple[Path, int]:
    """Make a folder of mode 0700, and lock it; the lock goes with the process, and keeps systemd-tmpfiles from a long run."""
    if len(os.fsencode(root)) + len(_LONGEST) > _SOCKET_PATH:
        raise OSError(f"its path has {len(os.fsencode(root))} bytes, {_SOCKET_PATH - len(_LONGEST)} is what sockets leave")
    for above in (root, *root.parents):
        about = above.stat()
        if about.st_uid not in {0, _NOBODY, os.geteuid()} or (about.st_mode & 0o022 and not about.st_mode & stat.S_ISVTX):
            raise OSError(f"other users may exchange what is in {above}")
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / _RAY).mkdir()
    except OSError:  # a file system without locks
        os.close(lock)
        folder.rmdir()
        raise
    return folder, lock


def _remove(folder: Path) -> None:
    end_processes(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
