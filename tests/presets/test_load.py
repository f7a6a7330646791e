"""Tests of load.py: mistakes in a preset are refused, with the place in the file and the nearest known key."""

import copy

import pytest
import yaml

from seerbench.errors import ConfigError
from seerbench.paths import ROOT
from seerbench.presets.load import known_presets, load_preset, parse

SMOKE = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text())


def mistake(change) -> str:
    """Return the error message for the smoke preset after a change."""
    content = copy.deepcopy(SMOKE)
    change(content)
    with pytest.raises(ConfigError) as raised:
        parse(content, "mine.yaml")
    text = str(raised.value)
    assert text.startswith("mine.yaml: ")
    assert "\n" not in text
    return text.removeprefix("mine.yaml: ")


@pytest.mark.parametrize("name", [*known_presets(), str(ROOT / "tests" / "smoke.yaml")])
def test_every_preset_fits_the_types(name):
    assert load_preset(name).name in (name, "smoke")


def arm(section, name, number, **changes):
    return lambda preset: preset[section][name]["arms"][number].update(changes)


@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        (lambda preset: preset.update(sead=1), "sead", "'seed'"),
        (arm("perplexity", "contexts", 1, sparsitys=[0.5]), "perplexity/contexts/arms/1/sparsitys", "'sparsities'"),
        (
            lambda preset: preset["gates"]["long"]["sets"]["v1"].update(kpool="max"),
            "gates/long/sets/v1/kpool",
            "k_pool",
        ),
        (
            lambda preset: preset["models"].update(long={"source": "x", "revisio": "a"}),
            "models/long/revisio",
            "revision",
        ),
        (lambda preset: preset["latency"]["sweeps"].update(kernels={}), "latency/sweeps/kernels", "'kernel'"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest_known_one(change, place, said):
    told = mistake(change)
    assert told.startswith(f"{place}: unknown key")
    assert said in told


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda preset: preset.update(seed="zero"), "seed"),
        (lambda preset: preset.update(seed=True), "seed"),
        (lambda preset: preset.update(device="tpu"), "device"),
        (lambda preset: preset.pop("seed"), "seed"),
        (lambda preset: preset.update(maps={"model": "long"}), "maps/corpus"),
        (lambda preset: preset["extend"].update(factor=float("inf")), "extend/factor"),
        (lambda preset: preset["extend"].update(gate_learning_rate=float("nan")), "extend/gate_learning_rate"),
        (lambda preset: preset["models"].update({".hidden": preset["models"]["long"]}), "models/.hidden"),
        (lambda preset: preset["recall"].update({"a/b": preset["recall"]["gates"]}), "recall/a/b"),
        (lambda preset: preset["corpora"].update(toy={"kind": "foldr"}), "corpora/toy"),
        (lambda preset: preset["gates"]["long"].update(packing=3), "gates/long"),
        (lambda preset: preset["gates"]["long"].update(batch=2, processes=3), "gates/long"),
        (lambda preset: preset["gates"]["long"]["sets"]["v2"].update(k_pool="median"), "gates/long/sets"),
        (lambda preset: preset["models"]["short"]["stages"][0].update(tokens=3), "models/short/stages/0"),
        (
            lambda preset: preset["perplexity"]["contexts"].update(contexts=[256, 256]),
            "perplexity/contexts/contexts",
        ),
        (lambda preset: preset["tasks"]["retrieval"].update(tasks=["chess"]), "tasks/retrieval/tasks/0"),
        (arm("perplexity", "contexts", 1, sparsities=[1.0]), "perplexity/contexts/arms/1/sparsities/0"),
        (arm("perplexity", "contexts", 1, gate="long"), "perplexity/contexts/arms/1/gate"),
        (arm("perplexity", "contexts", 1, block=32), "perplexity/contexts/arms/1"),
        (arm("perplexity", "contexts", 2, sparsity_by_context=[0.5, 0.5]), "perplexity/contexts"),
        (arm("recall", "gates", 2, sparsities=None), "recall/gates"),
        (arm("recall", "gates", 0, method="magic"), "recall/gates/arms/0/method"),
    ],
)
def test_a_value_that_does_not_fit_names_its_place(change, place):
    assert mistake(change).startswith(f"{place}: ")


@pytest.mark.parametrize(
    ("change", "place", "name"),
    [
        (lambda preset: preset["models"]["short"].update(corpus="tox"), "models/short", "toy"),
        (lambda preset: preset["models"]["long"].update(init="shirt"), "models/long/init", "short"),
        (lambda preset: preset["gates"]["post"].update(model="yarm"), "gates/post", "yarn"),
        (lambda preset: preset["extend"].update(gates="bas"), "extend", "base"),
        (lambda preset: preset["profile"].update(corpus="tox"), "profile", "toy"),
        (lambda preset: preset["maps"].update(gate="lon:v1"), "maps/gate", "long"),
        (lambda preset: preset["maps"].update(gate="long:untraine"), "maps/gate", "untrained"),
        (arm("perplexity", "contexts", 1, gate="lon:v1"), "perplexity/contexts/arms/1", "long"),
        (arm("perplexity", "contexts", 1, model="lon"), "perplexity/contexts/arms/1", "long"),
    ],
)
def test_a_name_that_is_not_in_the_preset_is_refused_with_the_nearest(change, place, name):
    told = mistake(change)
    assert told.startswith(f"{place}: no ") or "have no set" in told
    assert told.endswith(f"did you mean {name!r}?")


def test_a_timing_in_a_trained_model_needs_text():
    assert "needs a corpus" in mistake(lambda preset: preset["latency"]["sweeps"]["ttft"].pop("corpus"))


def test_a_sparsity_by_context_is_as_long_as_the_contexts():
    def change(preset):
        preset["latency"]["sweeps"]["ttft"]["arms"][2] = {"method": "streaming", "sparsity_by_context": [0.5, 0.7]}

    assert mistake(change).startswith("latency/sweeps/ttft: ")


def test_what_is_searched_for_a_model_needs_a_profile():
    assert "profile" in mistake(lambda preset: preset.pop("profile"))


@pytest.mark.parametrize("content", [[], None, "a word"])
def test_a_file_that_is_no_mapping(content):
    with pytest.raises(ConfigError):
        parse(content, "mine.yaml")


def test_files_that_are_no_presets(tmp_path):
    with pytest.raises(ConfigError, match="known presets: cpu"):
        load_preset("gpux")
    with pytest.raises(ConfigError, match="known presets: cpu"):
        load_preset("../tests/smoke")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_preset(str(tmp_path / "folder.yaml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_preset(str(tmp_path / ("x" * 300 + ".yaml")))


def test_every_spelling_of_a_preset_is_the_same_reference(tmp_path, monkeypatch):
    own = tmp_path / "my presets" / "mine.yaml"
    own.parent.mkdir()
    own.write_text((ROOT / "tests" / "smoke.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "link.yaml").symlink_to(own)
    for folder, spellings in (
        (own.parent, ["mine.yaml", "./mine.yaml", "../my presets/mine.yaml", str(own)]),
        (tmp_path, ["my presets/mine.yaml", "link.yaml"]),
    ):
        monkeypatch.chdir(folder)
        for spelling in spellings:
            preset = load_preset(spelling)
            assert (preset.reference, preset.setup.reference) == (str(own), str(own))
    monkeypatch.chdir(ROOT / "docs")
    for spelling in ("../tests/smoke.yaml", str(ROOT / "tests" / "smoke.yaml"), "tests/smoke.yaml"):
        assert load_preset(spelling).reference == "tests/smoke.yaml"
    for spelling in ("cpu", "../config/cpu.yaml", "../seerbench/config/cpu.yaml"):
        assert load_preset(spelling).reference == "cpu"


def test_a_reference_finds_its_file_although_the_current_folder_has_another_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "smoke.yaml").write_text("preset: other\n")
    monkeypatch.chdir(tmp_path)
    reference = load_preset(str(ROOT / "tests" / "smoke.yaml")).reference
    assert load_preset(reference).name == "smoke"
