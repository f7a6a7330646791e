"""Presets: the schema, the paths, and which files each step reads."""

import numpy as np
import pytest
import yaml

from seerbench.errors import ConfigError
from seerbench.paths import ROOT
from seerbench.presets import preset as presets_preset
from seerbench.presets.preset import check, expand, known_presets, load_preset

SMOKE = str(ROOT / "tests" / "smoke.yaml")


def edited(tmp_path, **changes):
    config = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text()) | changes
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.mark.parametrize("name", known_presets())
def test_every_preset_fits_the_schema(name):
    assert load_preset(name).name == name


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"colour": "red"}, "'colour' was unexpected"),
        ({"seed": "zero"}, "at seed: 'zero' is not of type 'integer'"),
        ({"device": "tpu"}, "at device: 'tpu' is not one of"),
        ({"maps": {"model": "long"}}, "at maps"),
    ],
)
def test_what_the_schema_refuses_is_named_with_its_place(tmp_path, changes, text):
    with pytest.raises(ConfigError, match=text):
        load_preset(edited(tmp_path, **changes))


def test_unknown_presets_and_bad_yaml(tmp_path):
    with pytest.raises(ConfigError, match="known presets: cpu"):
        load_preset("gpux")
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1,\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_preset(str(path))
    with pytest.raises(ConfigError, match="not of type 'object'"):
        check([], "a list")


def test_arms_expand_over_sparsities():
    arms = [
        {"method": "dense"},
        {"method": "seer", "model": "joint-{sparsity}", "gate": "joint-{sparsity}:v1", "sparsities": [0.5, 0.9]},
    ]
    assert expand(arms) == [
        {"method": "dense", "sparsity": None},
        {"method": "seer", "model": "joint-0.5", "gate": "joint-0.5:v1", "sparsity": 0.5},
        {"method": "seer", "model": "joint-0.9", "gate": "joint-0.9:v1", "sparsity": 0.9},
    ]


def test_steps_read_what_they_need(tmp_path):
    preset = load_preset(SMOKE, tmp_path)
    run = tmp_path / "smoke"
    tokens = run / "corpora/toy/tokens.parquet"
    assert preset.reads("train", "long") == [
        tokens,
        run / "tokenizer/tokenizer.json",
        run / "models/short/config.json",
    ]
    assert preset.reads("distill", "post") == [tokens, run / "models/yarn/config.json"]
    assert preset.reads("perplexity", "yarn") == [
        tokens,
        run / "models/yarn/config.json",
        run / "gates/post.safetensors",
        run / "models/joint-0.5/config.json",
        run / "models/joint-0.5/gates.safetensors",
    ]
    assert run / "plans/moa-long-0.50.json" in preset.reads("perplexity", "contexts")
    assert preset.reads("latency", "kernel") == []


def test_unknown_names_list_what_there_is(tmp_path):
    preset = load_preset(SMOKE, tmp_path)
    with pytest.raises(ConfigError, match="it has short, long, yarn, joint"):
        preset.model("tall")
    with pytest.raises(ConfigError, match="it has contexts, rope, yarn, pooling"):
        preset.reads("perplexity", "context")


def test_rows_for_matches_patterns(tmp_path):
    preset = load_preset(SMOKE, tmp_path)
    files, unmet = preset.rows_for([("cells", "training_kernel-*"), ("perplexity", "yarn"), ("recall", "none")])
    assert [file.name for file in files] == [
        "training_kernel-128.parquet",
        "training_kernel-256.parquet",
        "yarn.parquet",
    ]
    assert unmet == ["recall/none"]


def test_a_machine_without_a_gpu_draws_the_published_run(tmp_path, monkeypatch):
    monkeypatch.setattr(presets_preset, "has_gpu", lambda: False)
    assert load_preset(SMOKE, tmp_path).drawn_from() == tmp_path / "smoke"
    with pytest.raises(ConfigError, match="names no published run"):
        load_preset(edited(tmp_path, device="cuda"), tmp_path).drawn_from()
    preset = load_preset(edited(tmp_path, device="cuda", published="box"), tmp_path)
    assert preset.drawn_from() == ROOT / "results" / "published" / "box"
    monkeypatch.setattr(presets_preset, "has_gpu", lambda: True)
    assert preset.drawn_from() == tmp_path / "smoke"


def test_the_data_folder_can_be_moved(tmp_path, monkeypatch):
    preset = load_preset(SMOKE, tmp_path)
    monkeypatch.setenv("SEERBENCH_DATA", "/elsewhere")
    assert str(preset.data("books.parquet")) == "/elsewhere/books.parquet"


def test_the_gpu_preset_measures_the_artefacts_about_quality():
    from seerbench.artefacts import ARTEFACTS

    preset = load_preset("gpu")
    for name in ("table1", "table2", "table3", "fig4", "fig7", "fig9", "fig10", "recall"):
        assert preset.rows_for(ARTEFACTS[name].needs)[1] == [], name
    for model in preset.config["models"].values():
        longest = [max(np.atleast_1d(stage["context"])) for stage in model["stages"]]
        assert longest == [1024, 2048, 8192]
