"""A preset with a tiny random model, for evaluations of seconds."""

import pytest
from standins import make_preset

from seerbench.kernels import flex_attention
from seerbench.methods.registry import catalogue

ARMS = [{"method": "dense"}, {"method": "streaming", "sparsities": [0.5]}]


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Lock in a folder of the test, take any time as possible, compile nothing, and forget the methods added."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("seerbench.rows.timings.MAX_SPREAD", float("inf"))
    monkeypatch.setattr("seerbench.rows.timings.MAX_PARTS", float("inf"))
    monkeypatch.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)
    yield
    catalogue.cache_clear()


@pytest.fixture
def preset(tmp_path):
    """Return a preset of two contexts, one task and one timed context, whose model and texts are in its data."""
    return make_preset(tmp_path, ARMS)
