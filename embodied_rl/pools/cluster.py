"""Ray, started or joined: what this process started it shuts down, and nothing else."""

from __future__ import annotations

import glob
import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embodied_rl.errors import install_hint
from embodied_rl.pools.errors import PoolError
from embodied_rl.pools.session import NoFolderError, Session
from embodied_rl.waiting import Waiting

#: Nobody is told that Ray is used; and simulators are no background work, for which Ray takes them (niceness 15): on a machine
#: with any other load they would come to a stand.
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}

log = logging.getLogger("embodied_rl")

#: How often it is tried to start one: Ray gives its processes 30 s, which a busy machine with cold disks may not keep.
_STARTS = 3
#: Seconds within which somebody answers at a cluster's address.
_KNOCK_S = 10.0


class Connection:
    """This process as a driver of a Ray cluster.

    Args:
        address: `local` starts a Ray of its own on 127.0.0.1, with a token that this process alone knows, in a folder that is
            its owner's alone; both end with this process, however it ends.  `HOST:PORT` or `auto` joins a cluster.  A Ray that
            the process is connected to already is used as it is.
        num_cpus: how many cores a local one may hand out; None: all.

    Raises:
        PoolError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str = "local", num_cpus: int | None = None) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        if address == "local" and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
            # read as Ray is loaded; whoever it starts inherits it
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        try:
            import ray
        except ImportError as error:
            raise PoolError(f"pool: {error}; {install_hint('ray')}, or take pool.address: none") from None
        self.ray, self.address, self.owned = ray, address, False
        self._session: Session | None = None
        if ray.is_initialized():
            return
        try:
            if address == "local":
                self._session = Session()
                for reason in self._session.passed_over:
                    log.info("pool: Ray's files are in %s, not in %s", self._session.ray_folder, reason)
                with Waiting("starting Ray on this machine", "pool.address=none trains in this process, without Ray"):
                    self._start(self._session, num_cpus)
            else:
                _knock(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        except BaseException as error:  # of what is no interruption, Ray raises no narrower one where its processes are slow
            reason = _reason(error)
            ray.shutdown()
            self.close()
            if not isinstance(error, Exception):
                raise
            if isinstance(error, NoFolderError):
                raise PoolError(f"pool.address: local: {error}") from None
            if address == "local":
                advice = "is the machine very busy? Try again, or take pool.address: none, which needs no Ray"
                raise PoolError(f"pool.address: local: Ray does not start here ({reason}); {advice}") from None
            advice = "`ray start --head` starts one; with a token, set RAY_AUTH_MODE=token here as there"
            raise PoolError(f"pool.address: {address}: no Ray cluster answers ({reason}); {advice}") from None
        self.owned = True
        _hush(ray)

    def _start(self, session: Session, num_cpus: int | None) -> None:
        for attempt in range(1, _STARTS + 1):
            try:
                with _loopback(), session.marked():
                    self.ray.init(
                        address="local",
                        num_cpus=num_cpus,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        configure_logging=False,
                        _temp_dir=session.ray_folder,
                    )
                return
            except Exception as error:
                self.ray.shutdown()
                session.end_processes()  # a start that fails leaves those that it started
                if attempt == _STARTS:
                    raise
                log.warning("pool: Ray did not start, once more: %s", _reason(error))

    def nodes(self) -> list[dict[str, Any]]:
        """List the nodes that are alive, in an order that stays."""
        return sorted((node for node in self.ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"])

    def last_words(self, pid: int, lines: int = 3) -> str:
        """Read the end of what a worker on this machine wrote to its error log; empty where nothing is known."""
        node = self.ray._private.worker._global_node
        folder = node.get_session_dir_path() if node else ""
        for path in glob.glob(f"{folder}/logs/worker-*-{pid}.err"):
            text = [line.strip() for line in Path(path).read_text(errors="replace").splitlines()]
            return " | ".join([line for line in text if line and not line.startswith(":")][-lines:])
        return ""

    def close(self) -> None:
        """Leave the cluster, and shut it down if this process started it."""
        if self.owned and self.ray.is_initialized():
            self.ray.shutdown()
        self.owned = False
        if self._session is not None:
            self._session.close()
            self._session = None


def _reason(error: BaseException) -> str:
    """Tell an error of Ray's in one line; the last line of a file that it refers to stands for the file, which is soon gone."""

    def last_line(path: re.Match[str]) -> str:
        lines = Path(path[1]).read_text(errors="replace").split("\n") if Path(path[1]).is_file() else []
        return " ".join([line for line in lines if line.strip()][-1:])

    return re.sub(r"Please check (\S+) for details\.?", last_line, " ".join(str(error).split()))[:200]


def _hush(ray: Any) -> None:
    """Send what Ray prints of every process that dies, some ten lines, to the debug log: a pool tells it in one."""
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, **_: log.debug("%s: %s", data["pid"], " ".join(data["lines"]))


def _knock(address: str) -> None:
    """OSError where nobody listens, which Ray finds out in half a minute, or of a cluster it remembers in many."""
    if address == "auto":
        from ray._private.utils import read_ray_address

        address = os.environ.get("RAY_ADDRESS") or read_ray_address() or ""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


@contextmanager
def _loopback() -> Iterator[None]:
    """Ray on Linux takes the machine's outward address even where 127.0.0.1 is asked for; this is what it has for laptops."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
