"""Fixtures of the tests of measurements."""

import pytest

from measure.toy import CONFIG
from seerbench.kernels import flex_attention
from seerbench.models.random_weights import random_model


@pytest.fixture(autouse=True)
def _own_lock(tmp_path, monkeypatch):
    """Use a lock of these tests alone, since their timings mean nothing and need not wait for real ones."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, "cpu", "float32")


@pytest.fixture
def uncompiled(monkeypatch):
    """Put masked SDPA in place of FlexAttention, which would compile; test_kernel_sweep runs the real one."""
    monkeypatch.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)
