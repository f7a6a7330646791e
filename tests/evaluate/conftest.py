"""A preset with a tiny random model, for evaluations of seconds."""

import numpy as np
import pandas as pd
import pytest
import yaml
from standins import TEXT, make_llama_checkpoint

from seerbench.kernels import flex_attention
from seerbench.methods.registry import catalogue
from seerbench.presets.load import load_preset

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
    data = tmp_path / "data"
    make_llama_checkpoint(data / "tiny")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(TEXT.split(), 800)) for _ in range(5)]
    splits = ["train", "validation", "test", "test", "test"]
    pd.DataFrame({"id": list("abcde"), "text": texts, "split": splits}).to_parquet(data / "texts.parquet")
    measured = {"model": "tiny", "corpus": "texts"}
    config = {
        "preset": "small",
        "scale": "a tiny model with random weights",
        "scale_kind": "toy",
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "block": 16,
        "data": str(data),
        "corpora": {"texts": {"kind": "parquet", "path": "texts.parquet", "tokenizer": "tiny"}},
        "models": {"tiny": {"source": "tiny"}},
        "perplexity": {"contexts": measured | {"contexts": [128, 256], "documents": 3, "arms": ARMS}},
        "tasks": {
            "retrieval": measured
            | {"contexts": [128, 256], "examples": 4, "tasks": ["passkey"], "batch": 4, "arms": ARMS}
        },
        "latency": {
            "rounds": 10,
            "cap_s": 0,
            "naive_limit_mib": 64,
            "shape": {"batch": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "block": 16},
            "sweeps": {"methods": measured | {"layer": 1, "contexts": [256], "arms": ARMS}},
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    return load_preset(str(tmp_path / "small.yaml"), tmp_path / "results")
