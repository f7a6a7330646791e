"""machine."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any


def thread_count() -> int:
    """Threads that torch may use, asked of torch only if something already imported it."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else (os.cpu_count() or 1)


def cpu_name() -> str:
    """The CPU's model name and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next(lines, f": {name}").split(":", 1)[1].strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} CPU, {cores} cores"


def gpu_facts() -> dict[str, Any]:
    """Name, UUID, driver and current SM clock of the first GPU; {} where there is none. No torch import."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    facts = {
        "name": pynvml.nvmlDeviceGetName(handle),
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "sm_clock_mhz": float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
    }
    pynvml.nvmlShutdown()
    return facts
