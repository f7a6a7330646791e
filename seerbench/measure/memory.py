"""Measure the peak memory of a call, and the memory that is still free."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import torch


def peak_mib(call: Callable[[], object], device: str) -> float:
    """Return the peak memory in MiB of one untimed call: what torch's allocator held beyond what it held before.

    Outputs and temporaries are counted; inputs and a model's weights are not. On a CPU the number comes from the
    profiler's record of allocations. It misses what kernels allocate outside torch (a few tiles per thread).
    Resident memory is no alternative: the C library keeps freed pages, so it is unreliable below 100 MiB; above,
    the two agree within 2%.

    Args:
        call: what to measure; it runs once.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # at its default the profiler prints two lines per call
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        call()
    results = profiler.kineto_results
    assert results is not None  # set when the profiler ends
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative where memory is freed
        peak = max(peak, held)
    return peak / 2**20


def available_mib() -> float:
    """Return the main memory in MiB that is free on this machine, or in its container if there is one."""
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and limit.read_text(encoding="utf-8").strip() != "max":
        free = min(free, int(limit.read_text(encoding="utf-8")) - int(used.read_text(encoding="utf-8")))
    return free / 2**20
