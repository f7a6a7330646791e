"""Ctrl-C ends a command with exit code 130 and no traceback, at whatever moment it comes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from seerbench.paths import ROOT

# A stand-in for the package: it imports nothing, and waits where the test interrupts it.
RUN = """
import sys, types
cli = types.ModuleType("seerbench.cli")
{body}
cli.main = main
sys.modules["seerbench.cli"] = cli
from seerbench.__main__ import main as start
print("ready", flush=True)
start()
"""
BODIES = {
    "work": "import time\ndef main(): time.sleep(30)",
    "an import that turns it into another error": (
        "import time\ndef main():\n    try: time.sleep(30)\n    except BaseException: raise ImportError('half')"
    ),
    "a destructor": (
        "import time\nclass Slow:\n    def __del__(self): time.sleep(30)\n"
        "def main():\n    Slow()\n    time.sleep(30)"
    ),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_an_interrupt_gives_130_and_no_traceback(body):
    command = [sys.executable, "-S", "-c", RUN.format(body=body)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert "Traceback" not in said


def test_a_fault_of_ours_keeps_its_traceback():
    body = "def main(): raise KeyError('ours')"
    done = subprocess.run(
        [sys.executable, "-S", "-c", RUN.format(body=body)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "KeyError: 'ours'" in done.stderr
