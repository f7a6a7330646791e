"""Let one process at a time measure times on a device.

The lock works between independent processes: two Snakemake runs, a notebook, a script in tools/. Each
timing sweep holds it while it runs.
"""

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
    """Hold the CPU ("cpu") or the current GPU ("cuda") against every other SeerBench process that times on it.

    If another process holds the device, prints a message to stderr and waits. The lock is a file in the temporary
    directory, named after the GPU's UUID. It is released when the process ends in any way. It is not re-entrant.
    """
    key = "cpu" if device == "cpu" else f"gpu-{torch.cuda.get_device_properties('cuda').uuid}"
    path = Path(tempfile.gettempdir()) / f"seerbench-{key}.lock"
    if not path.exists():
        path.touch(0o666)
    # The file is opened for reading, since flock needs no more and another user's file may not be writable.
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "this CPU" if device == "cpu" else "this GPU"
            print(f"waiting: another SeerBench process is timing on {what} ({path})", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
