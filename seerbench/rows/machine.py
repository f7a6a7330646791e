"""Name the CPU and GPU of this machine and count its threads. Imports no torch."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any


def thread_count() -> int:
    """Return the number of threads that torch may use; the number of cores if nothing has imported torch."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch else (os.cpu_count() or 1)


def cpu_name() -> str:
    """Return the model name of the CPU and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = (line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name"))
        name = next(models, f": {name}").split(":", 1)[1].strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} CPU, {cores} cores"


def gpu_facts() -> dict[str, Any]:
    """Return name, uuid, driver and sm_clock_mhz (now) of the GPU in use; {} if there is none.

    That is the GPU whose UUID CUDA_VISIBLE_DEVICES names (`devices.claim_gpu` sets it), or else the first.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible.startswith("GPU-") and "," not in visible:
        handle = pynvml.nvmlDeviceGetHandleByUUID(visible)
    else:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    facts = {
        "name": pynvml.nvmlDeviceGetName(handle),
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "sm_clock_mhz": float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
    }
    pynvml.nvmlShutdown()
    return facts
