"""Name the CPU and GPU of this machine and count its threads. Imports no torch."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def nvml_gpu(uuid: str | None = None) -> Iterator[Any]:
    """Give pynvml's handle of a GPU by its UUID ("GPU-..."); None if there is no GPU.

    Without a UUID it is the GPU whose UUID CUDA_VISIBLE_DEVICES names (`devices.claim_gpu` sets it), or else the
    first.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        visible = uuid or os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if visible.startswith("GPU-") and "," not in visible:
            yield pynvml.nvmlDeviceGetHandleByUUID(visible)
        else:
            yield pynvml.nvmlDeviceGetHandleByIndex(0)
    finally:
        pynvml.nvmlShutdown()


def gpu_facts() -> dict[str, Any]:
    """Return name, uuid, driver and sm_clock_mhz (now) of the GPU in use; {} if there is none."""
    import pynvml

    with nvml_gpu() as gpu:
        if gpu is None:
            return {}
        return {
            "name": pynvml.nvmlDeviceGetName(gpu),
            "uuid": pynvml.nvmlDeviceGetUUID(gpu),
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "sm_clock_mhz": float(pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)),
        }


def gpu_used_by_others(uuid: str, since: float) -> bool | None:
    """Return whether another process than this one has computed on a GPU since a moment.

    A process that only holds memory there does not count. None where the driver does not say: it has no samples of
    the processes' use, or, in a container, it reports one process under a number that is not this process's.

    Args:
        uuid: the UUID of the GPU, as "GPU-...".
        since: the moment, in seconds since the epoch.
    """
    import pynvml

    try:
        with nvml_gpu(uuid) as gpu:
            uses = [] if gpu is None else pynvml.nvmlDeviceGetProcessUtilization(gpu, int(since * 1e6))
    except pynvml.NVMLError:
        return None
    # Drivers are known to add entries without a process, or with a share beyond all bounds.
    active = {use.pid for use in uses if use.pid and use.timeStamp > since * 1e6 and 0 < use.smUtil <= 100}
    return len(active) > 1 if os.getpid() in active or len(active) > 1 else None
