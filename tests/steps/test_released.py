"""Released gates take the place of training, and a model whose context YaRN extends is timed, through the steps."""

import numpy as np
import pandas as pd
import pytest
import standins
import yaml

from seerbench.errors import ConfigError
from seerbench.kernels import flex_attention
from seerbench.methods.gate_files import gate_set_names, load_gates
from seerbench.presets.load import load_preset
from seerbench.rows.store import read_rows
from seerbench.steps import data, training
from seerbench.steps import latency as steps_latency


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a Llama-3 checkpoint, released gates for it and a few texts; return their folder."""
    folder = tmp_path_factory.mktemp("paper")
    standins.make_llama_checkpoint(folder / "llama", rope=None, instruct=True)
    standins.make_gate_file(folder / "released", "v2", block=32)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["fox", "dog", "word", "the", "lazy"], 2000)) for _ in range(4)]
    frame = pd.DataFrame({"id": list("abcd"), "text": texts, "split": ["train", "train", "validation", "test"]})
    frame.to_parquet(folder / "texts.parquet")
    return folder


def preset_of(folder, tmp_path, **changes):
    config = {
        "preset": "tiny",
        "scale": "stand-ins: random weights, nothing learned",
        "scale_kind": "toy",
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "block": 32,
        "data": str(folder),
        "corpora": {"texts": {"kind": "parquet", "path": "texts.parquet"}},
        "tokenizer": {"source": str(folder / "llama")},
        "models": {"llama": {"source": "llama", "yarn": 4}},
        "gates": {
            "released": {"model": "llama", "source": "released"},
            "own": {
                "model": "llama",
                "corpus": "texts",
                "sets": {"v1": {}},
                "context": 256,
                "batch": 2,
                "mix": {"repeat": 0.0, "passkey": 0.0, "kv": 0.0, "repeat_length": [16, 32], "repeat_apart": 0.5}
                | {"answer_weight": 1.0},
                "steps": 2,
                "learning_rate": 0.001,
                "warmup": 1,
                "checkpoint_seconds": 60,
            },
        },
        "latency": {
            "rounds": 12,
            "cap_s": 0,
            "naive_limit_mib": 100,
            "shape": {"batch": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "block": 32},
            "sweeps": {
                "ttft": {
                    "model": "llama",
                    "corpus": "texts",
                    "contexts": [256, 1024],
                    "rounds": 5,
                    "min_rounds": 3,
                    "arms": [
                        {"method": "dense"},
                        {"method": "seer", "gate": "released:v2", "sparsity_by_context": [0.5, 0.8]},
                        {"method": "streaming", "sparsity_by_context": [0.3, 0.3]},
                    ],
                }
            },
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return load_preset(str(path), tmp_path / "results")


def test_released_gates_take_the_place_of_training(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)  # it would compile
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # a lock of its own
    preset = preset_of(folder, tmp_path)
    assert preset.parts("training") == ["distill-own"]
    with pytest.raises(ConfigError, match="seerbench import-gates tiny released"):
        training.distill_gates(preset, "released")
    with pytest.raises(ConfigError, match="seerbench distill tiny own"):
        training.import_gates(preset, "own")
    training.import_gates(preset, "released")
    assert gate_set_names(preset.gates("released")) == ["v2"]

    data.make_tokenizer(preset)
    data.make_corpus(preset, "texts")
    steps_latency.measure_latency(preset, "ttft", [256, 1024])
    for context, sparsity in ((256, 0.5), (1024, 0.8)):
        cells = pd.read_parquet(preset.paths.rows("cells", f"ttft-{context}")).set_index("method")
        samples = pd.read_parquet(preset.paths.rows("samples", f"ttft-{context}"))
        assert set(cells.inputs) == {"captured:llama"}
        assert set(cells.status) == {"measured"}
        (run,) = read_rows(preset.paths.rows("cells", f"ttft-{context}"))[1]
        assert run["corpus_source"].startswith("texts.parquet with sha256 ")
        assert cells.sparsity_requested["seer"] == sparsity
        assert samples["round"].max() == 2  # the sweep's own least number of rounds; a cap of 0 s allows no more

    training.distill_gates(preset, "own")
    assert len(load_gates(preset.gates("own"))) == 2
    assert len(pd.read_parquet(preset.paths.rows("training", "distill-own"))) == 2
