"""Test that only one process at a time measures on a device."""

import subprocess
import sys
import time

import pytest

from seerbench.measure.gpu_lock import exclusive

HOLD = "from seerbench.measure.gpu_lock import exclusive\nwith exclusive('cpu'):\n    print('held', flush=True)"


def test_a_second_process_waits_for_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {"TMPDIR": str(tmp_path), "PATH": ""}
    with exclusive("cpu"):
        second = subprocess.Popen(
            [sys.executable, "-c", HOLD],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        message = second.stderr.readline()
        assert "waiting" in message
        time.sleep(0.2)
        assert second.poll() is None
    assert second.communicate(timeout=60)[0] == "held\n"
    assert second.returncode == 0


def test_the_lock_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(KeyError), exclusive("cpu"):
        raise KeyError
    with exclusive("cpu"):
        pass
