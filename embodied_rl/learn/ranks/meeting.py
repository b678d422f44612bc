"""How the ranks of a job find each other: backend, network interface, and a name for this attempt."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
import uuid
from typing import Any

import torch

from embodied_rl.config.page import DistributedSettings
from embodied_rl.errors import UserError

#: SIOCGIFADDR of Linux: the address of an interface.
_INTERFACE_ADDRESS = 0x8915


def backend_of(settings: DistributedSettings, device: torch.device) -> str:
    """Name torch's backend for networks on this device, beside gloo for what is on the CPU.

    Raises:
        UserError: the page's backend cannot serve the device.
    """
    if device.type != "cuda":
        if settings.backend == "nccl":
            raise UserError("distributed.backend: nccl: the networks are on the CPU; take gloo, or leave the key out")
        return "gloo"
    return "cpu:gloo,cuda:gloo" if settings.backend == "gloo" else "cpu:gloo,cuda:nccl"


def name_this_attempt(store: Any, rank: int, size: int, patience: float) -> str:
    """Agree on a name that only the processes at hand share.

    torchrun keeps its store over restarts (torch 2.13), with the addresses of processes that are dead, and counts restarts by
    node.  So rank 0 gives each process that introduces itself a name, until all whom it has named have answered: an
    introduction left behind by a dead process is never answered, and is replaced by its successor's.

    Raises:
        RuntimeError: not all came within so many seconds.
    """
    hello, welcome = "embodied_rl/hello/{}".format, "embodied_rl/welcome/{}".format
    own = uuid.uuid4().hex
    if rank:
        store.set(hello(rank), own)
        name = store.get(welcome(own)).decode()
        store.set(f"{name}/{rank}", "here")
        store.wait([f"{name}/all"])
        return name
    missing, named, deadline = set(range(1, size)), {}, time.monotonic() + patience
    while missing:
        for other in sorted(missing):
            if store.check([hello(other)]) and named.get(other) != (introduced := store.get(hello(other))):
                named[other] = introduced
                store.set(welcome(introduced.decode()), own)
        missing = {other for other in missing if not store.check([f"{own}/{other}"])}
        if missing and time.monotonic() > deadline:
            raise RuntimeError(f"rank {', '.join(map(str, sorted(missing)[:4]))} did not come within {patience:.0f} s")
        time.sleep(0.01)
    store.set(f"{own}/all", "here")
    return own


def choose_interface() -> None:
    """Talk over the loopback where all ranks are on this machine, else over the interface that leads to rank 0's.

    Whoever has named an interface is left alone.
    """
    alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    name = _loopback() if alone else _interface_to(os.environ["MASTER_ADDR"])
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _loopback() -> str | None:
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)


def _interface_to(host: str) -> str | None:
    """Find the interface whose address this machine has on the way to a host; None where that cannot be found out."""
    if sys.platform != "linux":
        return None
    import fcntl

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((socket.gethostbyname(host), 9))  # nothing is sent
            address = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                try:
                    reply = fcntl.ioctl(probe.fileno(), _INTERFACE_ADDRESS, struct.pack("256s", name.encode()[:15]))
                except OSError:  # it has no address
                    continue
                if socket.inet_ntoa(reply[20:24]) == address:
                    return name if name != _loopback() else None
    except OSError:
        return None
    return None
