"""Test the way from a preset with methods for decoding to the figure of their quality, on a tiny model."""

import numpy as np
import pandas as pd
import pytest
import tiny_gguf
import yaml
from standins import TEXT

from seerbench import artefacts
from seerbench.kernels import flex_attention
from seerbench.paths import PAPER
from seerbench.presets.load import load_preset
from seerbench.rows import requests
from seerbench.rows.store import Run
from seerbench.steps import accuracy, data, models, training

BUDGETS = [32, 128]
ARMS = [
    {"method": "dense", "decode": {"method": "dense"}},
    {"method": "dense", "decode": {"method": "seer-r", "gate": "decode:r", "budgets": BUDGETS}},
    {"method": "dense", "decode": {"method": "seer-r", "gate": "decode:r", "thresholds": [0.05]}},
    *(
        {"method": "dense", "decode": {"method": name, "budgets": BUDGETS}}
        for name in ("quest", "streaming", "oracle")
    ),
    {"method": "streaming", "sparsities": [0.4], "decode": {"method": "quest", "budgets": BUDGETS, "block": 32}},
]
SETTINGS = 1 + 2 + 1 + 3 * 2 + 2


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """Write a preset whose model is in a wheel in its data folder, and measure it; return the preset."""
    folder = tmp_path_factory.mktemp("decoding")
    tiny_gguf.make_gguf(folder / "tiny.gguf")
    _, sha256 = tiny_gguf.make_wheel(folder / "data", (folder / "tiny.gguf").read_bytes())
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(TEXT.split(), 1500)) for _ in range(6)]
    splits = ["train", "train", "validation", "test", "test", "test"]
    frame = pd.DataFrame({"id": list("abcdef"), "text": texts, "split": splits})
    frame.to_parquet(folder / "data" / "texts.parquet")
    asked = {"model": "tiny", "corpus": "texts", "arms": ARMS}
    config = {
        "preset": "tiny",
        "scale": "a tiny model with random weights, in a wheel",
        "scale_kind": "toy",
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "block": 16,
        "data": str(folder / "data"),
        "corpora": {"texts": {"kind": "parquet", "path": "texts.parquet", "tokenizer": "tiny"}},
        "models": {"tiny": {"source": {"wheel": tiny_gguf.REQUIREMENT, "file": tiny_gguf.FILE, "sha256": sha256}}},
        "gates": {
            "decode": {
                "model": "tiny",
                "corpus": "texts",
                "sets": {"r": {"recipe": "r"}},
                "context": 256,
                "batch": 2,
                "packing": 2,
                "steps": 2,
                "learning_rate": 0.001,
                "warmup": 1,
                "checkpoint_seconds": 60,
            }
        },
        "perplexity": {"decode": asked | {"contexts": [320], "documents": 3, "decoded": 20, "batch": 3}},
        "tasks": {"decode": asked | {"contexts": [320], "examples": 2, "tasks": ["passage"], "batch": 2}},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    preset = load_preset(str(path), folder / "results")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)  # it would compile
        models.fetch_model(preset, "tiny")
        data.make_corpus(preset, "texts")
        training.distill_gates(preset, "decode")
        accuracy.measure_perplexity(preset, "decode")
        accuracy.measure_tasks(preset, "decode")
    return preset


def test_every_way_to_decode_has_its_rows(preset):
    run = Run(preset.folder)
    key = [
        "method",
        "sparsity_requested",
        "decode",
        "decode_gate",
        "decode_block",
        "decode_budget",
        "decode_threshold",
    ]
    for table, count in (("perplexity", 3), ("tasks", 2)):
        rows = requests.decoded_rows(run, table)
        assert requests.rows(run, table).empty
        assert rows.groupby(key, dropna=False).size().tolist() == [count] * SETTINGS
        assert rows.reason.isna().all()
        dense = rows.decode == "dense"
        assert (rows.decode_sparsity[dense] == 0).all()
        assert rows.decode_sparsity[~dense].gt(0).all()
        skipped = rows[rows.decode == "quest"].groupby("decode_budget").decode_sparsity.mean()
        assert skipped[32] > skipped[128]
    assert set(requests.decoded_rows(run, "perplexity").tokens) == {20}


def test_the_figure_has_a_line_per_way_to_decode(preset, tmp_path):
    csv = next(
        file for file in artefacts.make("decode_quality", preset.folder, PAPER, tmp_path) if file.suffix == ".csv"
    )
    frame = pd.read_csv(csv)
    assert list(frame.groupby("panel").size()) == [SETTINGS] * 2
    rows = requests.decoded_rows(Run(preset.folder), "perplexity")
    nll = rows.assign(budget=rows.decode_budget).groupby(["method", "decode", "budget"]).nll.mean()
    dense = rows[rows.decode == "dense"].nll.mean()
    losses = frame[frame.metric == "loss"].set_index(["prefill", "method", "budget"]).y
    for setting, loss in nll.items():
        assert losses[setting] == pytest.approx(loss - dense, abs=1e-9)
    scores = requests.decoded_rows(Run(preset.folder), "tasks")
    assert frame[(frame.metric == "score") & (frame.method == "dense")].y.item() == pytest.approx(
        100 * scores[scores.decode == "dense"].score.mean()
    )
    quest = frame[(frame.method == "quest") & (frame.budget == 32) & (frame.prefill == "dense")]
    assert quest.x.between(32, 32 + 2 * 16 + 6).all()  # its budget, the first and the current block; contexts vary
