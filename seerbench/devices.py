"""Say which devices this machine has, and give each step its own GPU. Imports no torch.

It also says whether Triton's interpreter, which runs kernels without a GPU, works with the installed versions.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import IO

# Older releases of the interpreter make -1 an unsigned integer, and an array a scalar, in ways that NumPy refuses
# since 2.1 and 2.4.
INTERPRETER_TRITON = (3, 9)
INTERPRETER_NUMPY = (2, 0)

_claimed: list[IO[bytes]] = []  # open for as long as the process lives: closing one gives its GPU back


def has_gpu() -> bool:
    """Return whether an NVIDIA driver answers here; asks the driver's tool, not torch."""
    return shutil.which("nvidia-smi") is not None


def interpreter_refusal() -> str | None:
    """Return why Triton's interpreter (TRITON_INTERPRET=1) does not work with the installed versions, or None.

    Compiled kernels on a GPU run with every version that pyproject.toml allows.
    """
    triton, numpy = metadata.version("triton"), metadata.version("numpy")
    if _release(triton) >= INTERPRETER_TRITON or _release(numpy) <= INTERPRETER_NUMPY:
        return None
    return (
        f"the interpreter of Triton {triton} fails with NumPy {numpy}; without a GPU, install triton>=3.9 "
        "and torch's CPU build, which asks for no other Triton"
    )


def _release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def claim_gpu(device: str) -> None:
    """Let this process see one GPU alone: the usable one with the fewest steps. Call it before torch is imported.

    Does nothing on a CPU, where one GPU is usable, or in a process of torchrun, which uses the GPU of its rank. The
    claim is a lock on a file named after the GPU's UUID; it ends with the process, however that ends. It shares out
    GPUs among steps side by side; that a timing has its GPU to itself is a lock of its own (`measure/gpu_lock.py`).
    """
    if device == "cpu" or "LOCAL_RANK" in os.environ or _claimed:
        return
    gpus = usable_gpus()
    if len(gpus) > 1:
        gpu, lock = _least_claimed(gpus)
        _claimed.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def usable_gpus() -> dict[str, str]:
    """Return the GPUs that steps may use: those that CUDA_VISIBLE_DEVICES lists, or else all of this machine.

    Returns:
        What CUDA_VISIBLE_DEVICES takes for a GPU -> its UUID, or again what it takes where the driver lists no such
        GPU (a part of one). {} where there is none.
    """
    uuids = _gpu_uuids()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return {uuid: uuid for uuid in uuids}
    names = [name for name in map(str.strip, listed.split(",")) if name]
    return {name: uuids[int(name)] if name.isdigit() and int(name) < len(uuids) else name for name in names}


def _least_claimed(gpus: Mapping[str, str]) -> tuple[str, IO[bytes]]:
    """Return the GPU with the fewest claims, and the open file that holds the new claim.

    gpus: as `usable_gpus` returns them.
    """
    for claims in count():
        for gpu, uuid in gpus.items():
            path = Path(tempfile.gettempdir()) / f"seerbench-step-{uuid.replace('/', '-')}-{claims}.lock"
            if not path.exists():
                path.touch(0o666)
            lock = path.open("rb")  # for reading: another user's file may not be opened for writing
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            return gpu, lock
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
