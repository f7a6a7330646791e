"""A mutated preset is refused in one line, or all of its jobs resolve: no value gives any other exception."""

import copy
import math

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seerbench.errors import ConfigError
from seerbench.paths import CONFIG, ROOT
from seerbench.presets.load import parse
from seerbench.presets.preset import Preset

FILES = [*sorted(CONFIG.glob("*.yaml")), ROOT / "tests" / "smoke.yaml"]
PRESETS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
# Values of every type that YAML or JSON has, likely ones and absurd ones.
NUMBERS = [0, 1, -1, 2, 15, 16, 17, 31, 64, 100, 2**31, 2**63, 10**30, -(10**30)]
NUMBERS += [0.0, -0.0, 1.0, 0.5, 1e-3, 1e300, -1e300, math.inf, -math.inf, math.nan]
TEXTS = ["", " ", ".", "..", "a/b", "-x", "a;b", "a b", "1e-3", "yes", "0x10", "long:v1", "long:v9", ":", "all:all"]
TEXTS += ["{sparsity}", "joint-{sparsity}", "joint-{sparsity:v1}", "{0}", "{", "yarn", "seer", "dense", "moa"]
TEXTS += [
    "cuda",
    "cpu",
    "stdlib",
    "union",
    "v1",
    "all poolings",
    "~/x",
    "a\nb",
    "a\0b",
    "\ud800",
    "\u2028",
    "x" * 2000,
]
TEXTS += ["\ud800", "\u2028", "x" * 2000]
NESTED = [[], {}, [[]], [{}], [None], [0.5], [0.5, 0.5], [512, 256], [256, 512], ["dense"], {"a": 1}, {"v1": {}}]
NESTED += [{"kind": "union", "of": []}, {"method": "seer"}, [{"method": "dense"}, {"method": "dense"}]]
ODD = st.one_of(
    st.sampled_from([None, True, False, b"x", *NUMBERS, *TEXTS, *NESTED]),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
)


def places(value, place=()):
    """Yield the place of every value below a preset."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from places(item, (*place, key))


def changed(preset, place, change, value):
    """Return the preset after one change: a value replaced, removed, doubled or added beside."""
    preset = copy.deepcopy(preset)
    *before, last = place
    parent = preset
    for key in before:
        parent = parent[key]
    if change == "replace":
        parent[last] = value
    elif change == "remove":
        del parent[last]
    elif isinstance(parent, list):
        parent.insert(last, copy.deepcopy(parent[last]) if change == "double" else value)
    else:
        parent["another" if change == "double" else str(value)] = copy.deepcopy(parent[last])
    return preset


def resolve(preset):
    """Make every job of a preset, as Snakemake and the steps do."""
    file = preset.file
    preset.setup, preset.settings_of_all_jobs(), preset.moa_budgets(), preset.tokenizer_settings()
    for table in ("cells", "samples", "training", "maps", "perplexity", "tasks", "recall"):
        preset.rows_for((table, part) for part in preset.parts(table))
    if file.tokenizer:
        preset.tokenizer()
    for name in file.corpora:
        preset.corpus(name), preset.corpus_settings(name)
    for name in preset.trained_models():
        assert preset.pretrain(name).identity()
    for name in preset.finetuned_models():
        assert preset.finetune(name).identity()
    for name in preset.trained_gates():
        assert preset.distill(name).identity()
    for name in preset.released_gates():
        preset.import_gates(name)
    for name in file.model_names:
        preset.model(name)
        if file.profile and name not in file.profile.published:
            preset.profile(name), preset.patterns(name)
    for table in ("perplexity", "tasks", "recall"):
        for name in getattr(file, table):
            job = getattr(preset, table)(name)
            job.model_files, job.gate_files, job.plan_files, preset.settings(table, name)
    if file.maps:
        preset.maps()
    for name, sweep in file.sweeps().items():
        preset.latency_settings(name)
        for context in sweep.contexts:
            preset.latency(name, context)


@pytest.mark.parametrize("name", PRESETS)
def test_shipped_presets_resolve(name, tmp_path):
    resolve(Preset(parse(PRESETS[name], name), tmp_path, name))


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_mutated_preset_is_refused_in_one_line_or_resolves(tmp_path_factory, data):
    preset = PRESETS[data.draw(st.sampled_from(sorted(PRESETS)))]
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(sorted(places(preset), key=str)))
        change = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "add"]))
        preset = changed(preset, place, change, data.draw(ODD))
    try:
        file = parse(preset, "mine.yaml")
    except ConfigError as error:
        text = str(error)
        assert text.startswith("mine.yaml: ")
        assert len(text.splitlines()) == 1, text
        text.encode()
        return
    resolve(Preset(file, tmp_path_factory.getbasetemp() / file.preset, "mine.yaml"))
