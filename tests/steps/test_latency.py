"""Tests of the latency steps: names of timed methods, and every arm of the GPU presets at a toy shape."""

import dataclasses
from types import SimpleNamespace

import pytest
from measure.toy import MEANINGLESS, frames

from seerbench.artefacts import colors
from seerbench.core.problem import AttentionProblem
from seerbench.kernels import flex_attention
from seerbench.measure import inputs as measure_inputs
from seerbench.measure.arm import Arm
from seerbench.measure.inputs import RANDOM_INPUTS
from seerbench.measure.sampler import Timing
from seerbench.measure.sweeps import (
    methods_sweep,
)
from seerbench.methods.registry import catalogue
from seerbench.presets.jobs import ArmJob
from seerbench.presets.load import load_preset
from seerbench.presets.types import OWN_KEYS
from seerbench.rows.gate_ref import GateRef
from seerbench.steps import arms as steps_arms
from seerbench.steps import latency

CASE = AttentionProblem("cpu", "float32", 1, 4, 2, 16, 1024)


def test_a_gate_set_is_named_where_there_are_several():
    def names(*gates):
        arms = [
            Arm(SimpleNamespace(name="seer", block=block, variant=None), GateRef.parse(gate))
            for gate, block in gates
        ]
        return [name for name, _ in latency.named(arms, 64)]

    assert names(("released:v2", 64)) == ["seer"]
    assert names(("long:v1", 64), ("block128:v1", 128)) == ["seer", "seer-128"]
    assert names(("long:v1", 64), ("long:v2", 64), ("wide:v2", 128)) == ["seer", "seer-v2", "seer-v2-128"]


@pytest.mark.parametrize(
    ("method", "name", "default", "other", "suffix"),
    [
        ("flashprefill", "alpha", 0.18, 0.1, "alpha0.1"),
        ("flashprefill-v2", "alpha", 0.1, 0.2, "alpha0.2"),
        ("flashprefill-v2", "dense_layers", 0, 4, "dense_layers4"),
        ("flexprefill", "gamma", 0.9, 0.95, "gamma0.95"),
        ("flexprefill", "tau", 0.1, 0.2, "tau0.2"),
        ("flexprefill", "min_budget", 512, 64, "min64"),
        ("minference-aligned", "scale", 1.0, 0.5, "scale0.5"),
        ("random", "seed", 0, 7, "seed7"),
        ("xattention", "tau", 0.9, 0.8, "tau0.8"),
        ("xattention", "stride", 8, 16, "s16"),
    ],
)
def test_arms_that_differ_in_an_option_have_names_and_settings_of_their_own(method, name, default, other, suffix):
    sparsity = 0.5 if method == "random" else None
    jobs = [ArmJob(method, sparsity, 64, options=options) for options in ({}, {name: default}, {name: other})]
    found = steps_arms.random_arms(jobs, CASE, None, None)
    assert [text for text, _ in latency.named(found, 64)] == [method, method, f"{method}-{suffix}"]
    plain, same, changed = (arm.labels()["gate"] for arm in found)
    assert plain == same != changed
    assert colors.entry_of(f"{method}-{suffix}")[1] == colors.entry_of(method)[1]


def test_every_option_that_a_preset_may_set_is_in_the_test_above():
    marks = test_arms_that_differ_in_an_option_have_names_and_settings_of_their_own.pytestmark
    tested = {values[:2] for values in marks[0].args[1]}
    taken = {(name, option) for name, card in catalogue().items() for option in card.options or ()}
    assert tested == {(name, option) for name, option in taken if option not in OWN_KEYS}


def test_arms_with_several_thresholds_have_names_of_their_own(tmp_path):
    jobs = [ArmJob("seer", None, 64, threshold=threshold) for threshold in (0.002, 0.0005)]
    setup = load_preset("speed", tmp_path).latency("methods", 8192).setup
    found = latency.named(steps_arms.random_arms(jobs, CASE, setup, tmp_path), 64)
    assert [name for name, _ in found] == ["seer+threshold-0.002", "seer+threshold-0.0005"]


def test_every_arm_of_a_gpu_preset_has_a_row_on_a_cpu(tmp_path, monkeypatch):
    """Measure each arm of `speed` at a toy shape: it has its stages, or is refused with a reason."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # a lock of its own
    monkeypatch.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)  # does not compile
    monkeypatch.setattr(
        flex_attention, "flex_attention", lambda q, k, v, _: flex_attention.masked_attention(q, k, v)
    )
    job = load_preset("speed", tmp_path).latency("methods", 8192)
    named = latency.named(steps_arms.random_arms(job.arms, CASE, job.setup, job.plans), 64)
    attention = measure_inputs.random_attention(CASE, 0)
    cells, samples = frames(methods_sweep(RANDOM_INPUTS, attention, named, Timing(rounds=1, min_rounds=1), "run"))
    refused = cells[cells.status == "refused"]
    # At this length the highest sparsities leave fewer blocks than rows.
    refused = refused[~refused.reason.str.match(r"skips .* where 9.\.0% was requested|skips .* where 80\.0%")]
    assert set(refused.method) == {
        *("fa2", "cudnn", "fa4", "flash-attn", "minference-upstream", "seer+fa4-128"),
        "minference-v1",  # its patterns are for 32 heads
    }
    assert refused.reason.str.len().gt(10).all()
    measured = cells[cells.status != "refused"]
    assert set(measured.status) == {"measured"}
    stages = samples.groupby("method").stage.agg(set)
    for method in measured.method:
        assert stages[method] >= ({"attend"} if method == "flex" else {"plan", "attend", "total"}), method
    assert (cells.method == "flex").sum() == 1
    assert set(cells[cells.method == "oracle"].inputs) == {MEANINGLESS}


def test_the_decode_sweep_of_a_gpu_preset_runs_on_a_cpu(tmp_path, monkeypatch):
    """Resolve `decode` of `speed`, and run its step at a toy shape with its own sparsities and methods."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # a lock of its own
    preset = load_preset("speed", tmp_path)
    job = preset.latency("decode", 131072)
    assert (job.batches, job.shape.kv_heads, job.cells.name) == ((1, 8, 32), 8, "decode-131072.parquet")
    assert "decode-131072" in preset.parts("cells")
    setup = dataclasses.replace(job.setup, device="cpu", dtype="float32")
    shape = job.shape.model_copy(update={"q_heads": 2, "kv_heads": 1, "head_dim": 16, "block": 16})
    job = dataclasses.replace(job, setup=setup, shape=shape, context=1000, batches=(2,))
    cells, samples = frames(latency.timed_rows(job, None, Timing(rounds=1, min_rounds=1), "run"))
    assert set(cells.status) == {"measured"}
    assert len(cells) == 5 * 5 == len(samples.groupby(["cell", "method"]))
    assert set(cells.method) == {"dense", "seer-r", "quest", "streaming", "oracle"}


def test_random_plans_that_differ_have_files_of_their_own(tmp_path):
    job = load_preset("speed", tmp_path).latency("methods", 8192)
    arm = next(arm for arm in job.arms if arm.method == "moa")
    for count, change in enumerate(({}, {"seed": 1}, {"block": 128}), 1):
        for _ in range(2):
            steps_arms.random_arms([arm], CASE, dataclasses.replace(job.setup, **change), tmp_path)
        assert len(list(tmp_path.iterdir())) == count
