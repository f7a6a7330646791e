"""Run commands as forks of one process that has imported what they import and has compiled FlexAttention once.

Importing torch and transformers takes five CPU seconds per command, and a process's first compilation three more; a
test of the whole graph runs fifty commands. A dry run of Snakemake spends three quarters of its time on imports and
on the digest of the code. Everything else is as in the installed command: each has a process, a folder, an
environment and streams of its own, compiles what it runs, and dies with whoever started it.

    with warm_start(environment) as environment:
        subprocess.run(["seerbench", "list"], env=environment)
        subprocess.run(["snakemake", "--version"], env=environment)
        subprocess.run(["warm-python", "-c", "print(1)"], env=environment)
"""

from __future__ import annotations

import functools
import gc
import importlib
import os
import pickle
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

COMMANDS = ("seerbench", "snakemake", "warm-python")
# The command that takes the place of an installed one: it hands over its arguments, folder, environment and
# streams, and exits with the code of the fork.
CLIENT = """\
#!{python} -IS
import array, os, pickle, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = pickle.dumps((sys.argv, os.getcwd(), dict(os.environ)))
streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
connection.sendmsg([len(request).to_bytes(8, "big")], streams)
connection.sendall(request)
sys.exit(int(connection.recv(4) or b"1"))
"""


@contextmanager
def warm_start(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Start the process that forks in `environment`; yield one whose PATH finds COMMANDS."""
    folder = Path(tempfile.mkdtemp())  # Not pytest's folder: a socket's path has at most 107 bytes.
    address = str(folder / "socket")
    for name in COMMANDS:
        command = folder / name
        command.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
        command.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    descriptor = listener.fileno()
    server = subprocess.Popen(
        [sys.executable, __file__, str(descriptor)],
        pass_fds=[descriptor],
        env=dict(environment),
        stdin=subprocess.PIPE,  # The server ends when this pipe closes, however this process ends.
    )
    listener.close()
    try:
        yield {**environment, "PATH": f"{folder}{os.pathsep}{environment['PATH']}"}
    finally:
        server.communicate()
        shutil.rmtree(folder)


def _serve(listener: socket.socket) -> None:
    """Fork for every request; report the code of a fork that ended, kill one whose client has gone."""
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    running: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                process = _fork(connection)
                running[process] = connection
                selector.register(connection, selectors.EVENT_READ, process)
            elif key.fileobj is sys.stdin:
                for process in running:
                    os.kill(process, signal.SIGKILL)
                return
            elif key.fileobj is woken:
                woken.recv(4096)
                for process in list(running):
                    done, status = os.waitpid(process, os.WNOHANG)
                    if done:
                        connection = running.pop(process)
                        selector.unregister(connection)
                        _answer(connection, status)
            elif key.data in running:
                os.kill(key.data, signal.SIGKILL)


def _compile_once() -> None:
    """Compile FlexAttention for some shape, after which the next compilation takes one second."""
    import torch._inductor.config

    from seerbench.core.block_mask import BlockMask
    from seerbench.kernels.flex_attention import flex_block_sparse

    torch._inductor.config.compile_threads = 1  # A fork would inherit the locks of threads that it does not have.
    q, kept = torch.zeros(1, 1, 32, 16), torch.ones(1, 1, 2, 2, dtype=torch.bool).tril()
    flex_block_sparse(q, q, q, BlockMask.from_dense(kept, 32, 16, 16))


@functools.cache
def _prepare(command: str) -> None:
    """Import what a command imports. What is there stays: no fork's garbage collection looks through it."""
    gc.disable()
    from seerbench.rows.source_digest import source_digest

    source_digest()  # is kept, and every step writes it into its rows
    if command == "snakemake":
        modules = ["snakemake.cli", "seerbench.presets.load"]
    else:
        from seerbench.artefacts import ARTEFACTS

        steps = [f"steps.{name}" for name in ("accuracy", "latency", "search", "training")]
        drawn = [f"artefacts.{name}" for name in ARTEFACTS]
        modules = [f"seerbench.{name}" for name in ("cli", *steps, *drawn, "report.html", "report.notebooks")]
    for name in modules:
        importlib.import_module(name)
    if command == "seerbench":
        _compile_once()
    gc.freeze()
    gc.enable()


def _run(arguments: list[str]) -> None:
    """Run a command in this process."""
    command = Path(arguments[0]).name
    if command == "warm-python":
        exec(compile(arguments[2], "-c", "exec"), {"__name__": "__main__"})
    elif command == "snakemake":
        from snakemake.cli import main as snakemake

        snakemake()
    else:
        from seerbench.__main__ import main as seerbench

        seerbench()


def _fork(connection: socket.socket) -> int:
    """Read a request and run it in a fork; return the number of the fork."""
    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        arguments, folder, environment = pickle.loads(stream.read(int.from_bytes(length, "big")))
    _prepare("snakemake" if Path(arguments[0]).name == "snakemake" else "seerbench")
    process = os.fork()
    if process:
        for stream in streams:
            os.close(stream)
        return process
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
    # Objects of this process: the server's remember what its own streams could do.
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    code = 1
    try:
        _run(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _answer(connection: socket.socket, status: int) -> None:
    """Send the code of a fork to its client, in the form that a shell gives it, and close the connection."""
    code = os.waitstatus_to_exitcode(status)
    with suppress(BrokenPipeError):
        connection.sendall(str(code if code >= 0 else 128 - code).encode())
    connection.close()


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # without looking for leaks, which takes a while and prints
