"""gpu_lock."""

from __future__ import annotations

import fcntl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def exclusive(device: str) -> Iterator[None]:
    """Hold the CPU ("cpu") or the current GPU ("cuda") against every other SeerBench process that times.

    Waits, and says so, while another holds it. The lock is a file in the temporary directory, keyed by
    the GPU's UUID, and ends with the process, however that ends. Not re-entrant.
    """
    key = "cpu" if device == "cpu" else f"gpu-{torch.cuda.get_device_properties('cuda').uuid}"
    path = Path(tempfile.gettempdir()) / f"seerbench-{key}.lock"
    if not path.exists():
        path.touch(0o666)
    # Opened for reading: another user's file may not be opened for writing, and flock needs no more.
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "this CPU" if device == "cpu" else "this GPU"
            print(f"waiting: another SeerBench process is timing on {what} ({path})", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
