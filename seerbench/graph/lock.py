"""Let one graph at a time run in a folder, whether `make` or `snakemake` started it.

Snakemake's own lock remains when the process is killed, and has to be removed by hand. The default profile turns it
off (`nolock`), and the Snakefile takes this one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

from seerbench.errors import GraphError
from seerbench.writing import cause


def hold_folder(folder: Path) -> TextIO | None:
    """Take the lock of a folder and return the open lock file; the lock lasts until the file is closed.

    A process that ends in any way, SIGKILL included, releases it. The steps that the graph starts do not inherit
    it. The file says who holds the lock.

    Returns:
        None if the file system knows no locks. Then nothing keeps a second graph away.

    Raises:
        GraphError: another graph holds the folder, or the lock file cannot be written.
    """
    path = folder / ".snakemake" / "seerbench.lock"
    try:
        path.parent.mkdir(exist_ok=True)
        file = path.open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise GraphError(cause(error)) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise GraphError(f"the graph already runs in this folder: {holder}; wait for it, or end it") from None
    except OSError:
        file.close()
        return None
    file.truncate(0)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since} ({command})\n")
    file.flush()
    return file


class LockAtStart(logging.Filter):
    """Take the folder's lock when Snakemake starts to execute a graph, and keep it as long as the process lives.

    The Snakefile is also read to plan, to lint and to list, which need no lock. Snakemake tells them apart only by
    the event `workflow_started` in its log, which comes before it looks at any file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.held: TextIO | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass. Raises GraphError at the start of a graph if another one holds the folder."""
        if getattr(record, "event", None) == "workflow_started" and self.held is None:
            self.held = hold_folder(self.folder)
        return True
