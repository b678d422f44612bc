"""What a call costs: its time on the clock, and the kernels that a GPU ran meanwhile, by where they come from."""

from __future__ import annotations

import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler


def wait() -> None:
    """Wait until the GPU has done what it was given, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def milliseconds(function: Callable[[], Any], at_least: float = 0.5, rounds: int = 5) -> float:
    """The median of some rounds of calls, of one call; the rounds take `at_least` seconds in all."""
    function()
    wait()
    started = time.perf_counter()
    function()
    wait()
    times = max(1, min(1000, round(at_least / rounds / max(time.perf_counter() - started, 1e-6))))
    taken = []
    for _ in range(rounds):
        wait()
        started = time.perf_counter()
        for _ in range(times):
            function()
        wait()
        taken.append((time.perf_counter() - started) / times)
    return 1000.0 * statistics.median(taken)


def host_microseconds(function: Callable[[], Any], times: int = 20) -> float:
    """What launching a call takes on the host, which does not wait for its end."""
    wait()
    started = time.perf_counter()
    for _ in range(times):
        function()
    taken = time.perf_counter() - started
    wait()
    return 1e6 * taken / times


def gpu_work(function: Callable[[], Any], times: int = 1, *, trace: Path | None = None) -> dict[str, Any]:
    """What the GPU did in a call: kernels, copies and fills, how long it was busy, the origins and the longest of its kernels.

    Args:
        function: what is called; it has run before.
        times: how often; all figures are those of one call.
        trace: where to write what chrome://tracing shows, with the host's side.
    """
    with profiler(activities=[ProfilerActivity.CUDA, *([ProfilerActivity.CPU] if trace else [])]) as taken:
        wait()
        started = time.perf_counter()
        for _ in range(times):
            function()
        wait()
        wall = 1000.0 * (time.perf_counter() - started) / times
    if trace:
        taken.export_chrome_trace(str(trace))
    by_name: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    by_origin: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in taken.events() or []:
        if str(event.device_type).endswith("CUDA"):
            for table, key in ((by_name, event.name[:90]), (by_origin, _origin(event.name))):
                table[key][0] += 1.0 / times
                table[key][1] += event.time_range.elapsed_us() / 1000.0 / times
    busy = sum(ms for _, ms in by_origin.values())
    longest = sorted(by_name.items(), key=lambda item: -item[1][1])
    return {
        "wall_ms": wall,
        "busy_ms": busy,
        "busy_share": busy / wall,
        "kernels": sum(count for origin, (count, _) in by_origin.items() if origin not in ("copies", "fills")),
        "origins": {name: {"count": count, "ms": round(ms, 3)} for name, (count, ms) in sorted(by_origin.items())},
        "longest": [[name, count, round(ms, 3)] for name, (count, ms) in longest[:45]],
    }


def _origin(name: str) -> str:
    """Who launched a kernel, by its name."""
    if name.startswith("Memcpy"):
        return "copies"
    if name.startswith("Memset"):
        return "fills"
    if name.startswith("triton"):
        return "inductor"
    if re.search(r"gemm|cutlass|cublas|sm90_xmma|sm80_xmma|gemv|splitK", name, re.I):
        return "products"
    if "at::native" in name or name.startswith(("void at::", "void (anonymous")):
        return "torch, eager"
    return "warp"
