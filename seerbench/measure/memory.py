"""memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from seerbench.measure.sampler import Call


def peak_mib(call: Call, device: str) -> float:
    """MiB that torch's allocator held at most during `call`, beyond what it held before: one untimed call.

    The same meaning on both devices: outputs and temporaries are counted, the inputs (and a model's
    weights) are not. On a CPU the figure comes from the profiler's record of allocations and misses
    what kernels allocate outside torch (a few tiles a thread). Resident memory was not used: it is too
    noisy below 100 MiB, since the C library keeps freed pages; above, the two agree within 2%.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its default prints two lines a profile
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative where memory is freed
        peak = max(peak, held)
    return peak / 2**20


def available_mib() -> float:
    """Main memory that this process may still take: what the machine has free, or what its container leaves."""
    import psutil

    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free / 2**20
