"""Say which devices this machine has, and give each step its own GPU. Imports no torch."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import IO

_claimed: list[IO[bytes]] = []  # open for as long as the process lives: closing one gives its GPU back


def has_gpu() -> bool:
    """Return whether an NVIDIA driver answers here; asks the driver's tool, not torch."""
    return shutil.which("nvidia-smi") is not None


def claim_gpu(device: str) -> None:
    """Let this process see one GPU alone: the one with the fewest steps on it. Call it before torch is imported.

    Does nothing on a CPU, where CUDA_VISIBLE_DEVICES is set already (a cluster's scheduler does that), or in a
    process of torchrun, which uses the GPU of its rank. The claim is a lock on a file named after the GPU's UUID;
    it ends with the process, however that ends. It shares out GPUs among steps side by side; that a timing has its
    GPU to itself is a lock of its own (`measure/gpu_lock.py`).
    """
    if device == "cpu" or "CUDA_VISIBLE_DEVICES" in os.environ or "LOCAL_RANK" in os.environ or _claimed:
        return
    uuids = _gpu_uuids()
    if len(uuids) > 1:
        uuid, lock = _least_claimed(uuids)
        _claimed.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = uuid


def _least_claimed(uuids: Sequence[str]) -> tuple[str, IO[bytes]]:
    """Return the GPU with the fewest claims, and the open file that holds the new claim."""
    for claims in count():
        for uuid in uuids:
            path = Path(tempfile.gettempdir()) / f"seerbench-step-{uuid}-{claims}.lock"
            if not path.exists():
                path.touch(0o666)
            lock = path.open("rb")  # for reading: another user's file may not be opened for writing
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            return uuid, lock
    raise AssertionError("count() never ends")


def _gpu_uuids() -> list[str]:
    """Return the UUIDs of this machine's GPUs as CUDA_VISIBLE_DEVICES takes them; [] where there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(place) for place in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
    finally:
        pynvml.nvmlShutdown()
