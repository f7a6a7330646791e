"""Fixtures of the tests of comparisons."""

import pytest


@pytest.fixture(autouse=True)
def _own_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture(autouse=True)
def _spread(monkeypatch):
    """Take any time as possible, since these kernels run for microseconds and the machine may be busy."""
    monkeypatch.setattr("seerbench.rows.timings.MAX_SPREAD", float("inf"))
    monkeypatch.setattr("seerbench.rows.timings.MAX_PARTS", float("inf"))
