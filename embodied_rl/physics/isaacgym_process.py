"""The process that Isaac Gym runs in, and the memory that it shares with us.

Nothing of it has a name: a socket pair, memory without a file, and a pipe that the kernel closes when we end, however we end.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np

from embodied_rl.errors import UserError

#: Names the interpreter that has isaacgym.
VARIABLE = "EMBODIED_RL_ISAACGYM_PYTHON"
#: The release that the worker is written for: Preview 4.
RELEASE = "1.0rc4"
PREVIEW = "Isaac Gym Preview 4, which NVIDIA gives away at https://developer.nvidia.com/isaac-gym"
_WORKER = Path(__file__).with_name("isaacgym_worker.py")
_PROTOCOL, _LARGEST = 1, 1 << 20
#: Pythons that its binaries load in.
_PYTHONS = ("3.6", "3.7", "3.8")
#: Seconds that a step may take, and what comes before the first.
STEP_S, START_S = 60.0, 600.0
_ENGINE = "physics.engine: isaacgym"


def interpreter() -> str:
    """Find the Python that has isaacgym.

    Raises:
        UserError: none is named, or what is named cannot be run; one line.
    """
    named = os.environ.get(VARIABLE, "")
    if not named:
        raise UserError(
            f"{_ENGINE}: it runs in a Python 3.8 of its own, and {VARIABLE} is not set: install {PREVIEW}, in one, "
            f"and set {VARIABLE}=/path/to/python3.8; or take engine: native, warp or mjx"
        )
    path = Path(named).expanduser()
    if not path.is_file() or not os.access(path, os.X_OK):
        why = "is no file" if not path.is_file() else "cannot be executed"
        raise UserError(f"{_ENGINE}: {VARIABLE}={named}: {why}; name a Python 3.8 that has isaacgym")
    return str(path)


class Worker:
    """A process with the simulator; it lives no longer than this object.

    Raises:
        UserError: it cannot be started, or has no isaacgym that we know; one line.
    """

    def __init__(self) -> None:
        python = interpreter()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for one in (ours, theirs):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
        self._memory = os.memfd_create("embodied_rl")
        lifeline, held = os.pipe()
        self._said = tempfile.TemporaryFile("w+b")  # noqa: SIM115  (it lives as long as the process)
        command = [python, "-u", str(_WORKER), *(str(one) for one in (theirs.fileno(), self._memory, lifeline))]
        # what is meant for our Python is not for that one
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        environment["PYTHONNOUSERSITE"] = "1"
        # isaacgym's binaries are linked against their interpreter's own library, and its first import builds an extension with
        # the ninja that stands beside the interpreter
        beside = {"LD_LIBRARY_PATH": Path(python).resolve().parent.parent / "lib", "PATH": Path(python).absolute().parent}
        for name, folder in beside.items():
            environment[name] = ":".join(filter(None, (str(folder), os.environ.get(name, ""))))
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), self._memory, lifeline),
                env=environment,
                start_new_session=True,  # an interrupt is ours to handle
            )
        except OSError as error:
            for one in (held, self._memory):
                os.close(one)
            ours.close()
            self._said.close()
            raise UserError(f"{_ENGINE}: {VARIABLE}={python}: {error.strerror}; name a Python 3.8 that has isaacgym") from None
        finally:
            theirs.close()
            os.close(lifeline)
        self._channel, self._read = ours, 0
        self._end = weakref.finalize(self, _end, self._process, ours, held, self._memory, self._said)
        try:
            self._greet(python)
        except BaseException:
            self.close()
            raise

    def _greet(self, python: str) -> None:
        token = secrets.token_hex(8)
        try:
            found = self.ask(START_S, do="hello", token=token)
        except UserError as error:
            if "No module named 'isaacgym'" in str(error):
                raise UserError(
                    f"{_ENGINE}: {python} has no isaacgym; install {PREVIEW}: pip install -e isaacgym/python"
                ) from None
            raise
        if found.get("protocol") != _PROTOCOL or found.get("token") != token:
            raise UserError(f"{_ENGINE}: what {python} started does not speak our protocol {_PROTOCOL}: it says {found}")
        if found["python"].rpartition(".")[0] not in _PYTHONS:
            raise UserError(
                f"{_ENGINE}: {python} is Python {found['python']}, and isaacgym loads in {', '.join(_PYTHONS)}; name one of these"
            )
        if found["isaacgym"] != RELEASE:
            raise UserError(f"{_ENGINE}: {python} has isaacgym {found['isaacgym']}, and this is written for {RELEASE}: {PREVIEW}")
        self.versions = {name: found[name] for name in ("isaacgym", "torch", "python")}
        """Of what runs there."""

    def share(self, shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
        """Make arrays that both sides see, zero at first: kind and shape by name."""
        layout, size = {}, 0
        for name, (kind, shape) in shapes.items():
            layout[name] = size, kind, shape
            size += -(-int(np.prod(shape)) * np.dtype(kind).itemsize // 64) * 64 or 64
        os.ftruncate(self._memory, size)
        memory = mmap.mmap(self._memory, size)
        self.memory = np.frombuffer(memory, np.uint8)
        """All of it."""
        self.ask(START_S, do="share", size=size, arrays=layout)
        return {
            name: np.frombuffer(memory, kind, int(np.prod(shape)), start).reshape(shape)
            for name, (start, kind, shape) in layout.items()
        }

    def ask(self, patience: float, **request: Any) -> dict[str, Any]:
        """Ask for something, and wait for the answer.

        Args:
            patience: how long [s].
            request: what, as `do`, and with what.

        Raises:
            UserError: it failed, died, or did not answer in time; one line. In the latter cases it is no more.
        """
        try:
            self._channel.send(json.dumps(request).encode())
            waiting = select.poll()
            waiting.register(self._channel, select.POLLIN)
            if not waiting.poll(1000.0 * patience):
                raise UserError(f"{_ENGINE}: no answer to {request['do']!r} in {patience:g} s: its process hung, and was ended")
            message = self._channel.recv(_LARGEST)
        except OSError:  # its end of the socket is gone, or ours
            message = b""
        except BaseException:  # an interrupt too: the answer that nobody took would be the next request's
            self.close()
            raise
        if not message:
            raise UserError(self._death())
        answer = json.loads(message)
        if "error" in answer:  # what was asked for is done in part
            self.close()
            raise UserError(f"{_ENGINE}: {answer['error']}")
        return answer

    def _death(self) -> str:
        """Say how the process ended, and what it said last; it is no more after this."""
        if not self._end.alive:
            return f"{_ENGINE}: its process was ended before"
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            code = None
        how = "closed its socket" if code is None else f"ended with {code}" if code >= 0 else f"was ended by {_signal(-code)}"
        last = _last_line(self._said)
        self.close()
        return f"{_ENGINE}: its process {how}{f'; it last said: {last}' if last else ''}"

    def complaints(self) -> list[str]:
        """Read what the process has said of errors and overflows since the last look, each line once."""
        if not self._end.alive:
            return []
        text = os.pread(self._said.fileno(), _LARGEST, self._read).decode(errors="replace")
        whole = text[: text.rfind("\n") + 1]
        self._read += len(whole.encode(errors="replace"))
        lines = [" ".join(line.split()) for line in whole.splitlines()]
        return [line for line in dict.fromkeys(lines) if re.search("error|overflow", line, re.IGNORECASE)]

    def close(self) -> None:
        """End the process; what both sides see stays ours to read."""
        self._end()


def _end(process: subprocess.Popen, channel: socket.socket, held: int, memory: int, said: IO[bytes]) -> None:
    channel.close()
    try:
        process.wait(0.5)  # it ends by itself when it reads the end of its requests
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in (held, memory):
        os.close(one)
    said.close()


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in signal.Signals._value2member_map_ else f"signal {number}"


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = re.sub(r"[^\x20-\x7e\n]", "", said.read().decode(errors="replace")).strip().splitlines()
    return " ".join(lines[-1].split())[:300] if lines else ""
