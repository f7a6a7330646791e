"""Test the methods sweep: stages, inputs, and the remark on dynamic methods with random inputs."""

from measure.toy import MEANINGLESS, QUICK, TOKENS, Refuses, frames
from seerbench.baselines.minference.methods import MInference
from seerbench.core.problem import AttentionProblem
from seerbench.measure import inputs as measure_inputs
from seerbench.measure.inputs import RANDOM_INPUTS, captured_from
from seerbench.measure.sampler import Timing
from seerbench.measure.sweeps import (
    methods_sweep,
)
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.registry import create
from seerbench.models.architectures import attention_layers


def test_methods_sweep_has_every_stage_and_captured_inputs(model, uncompiled):
    gates = [AttnGate(GateConfig(), 4, 2, 32) for _ in attention_layers(model)]
    group = {
        "dense": create("dense"),
        "seer": create("seer", gates=gates, sparsity=0.5),
        "streaming": create("streaming", sparsity=0.5),
        "seer-32": create("seer", gates=[AttnGate(GateConfig(block=32), 4, 2, 32)] * 3, sparsity=0.5),
        "odd": Refuses(),
    }
    attention = measure_inputs.capture(model, TOKENS)
    cells, samples = frames(methods_sweep(captured_from("tiny", 500, 400), attention, group.items(), QUICK, "run"))
    cells = cells.set_index("method")
    assert set(cells.cell) == {"methods-500-0.50"}
    assert set(cells.inputs) == {"captured:tiny, beyond the 400 tokens of its training"}
    assert set(cells.inputs_kind) == {"captured"}
    assert set(cells.inputs_model) == {"tiny"}
    assert set(cells.inputs_trained_context) == {400}
    assert cells.status.to_dict() == {
        "dense": "measured",
        "seer": "measured",
        "streaming": "measured",
        "seer-32": "measured",
        "odd": "refused",
    }
    assert cells.reason["odd"] == "takes no context of 500"
    assert cells.block_q.to_dict() == {"dense": 64, "seer": 64, "streaming": 64, "seer-32": 32, "odd": 64}
    masks = {"dense": "dense", "seer": "gate", "seer-32": "gate", "streaming": "pattern", "odd": "pattern"}
    assert cells["mask"].to_dict() == masks
    assert 0.3 < cells.sparsity_realised["seer"] < 0.7
    stages = samples.groupby("method").stage.unique().map(list).to_dict()
    assert stages["seer"] == ["score", "select", "plan", "attend", "total"]
    assert stages["streaming"] == ["plan", "attend", "total"]
    assert stages["dense"] == ["attend"]  # A dense method has no other stage.
    assert "odd" not in stages


def test_methods_sweep_without_a_model(uncompiled):
    case = AttentionProblem("cpu", "float32", batch=1, q_heads=4, kv_heads=2, head_dim=32, context=500)
    group = {
        "dense": create("dense"),
        "seer": create("seer", gates=[AttnGate(GateConfig(), 4, 2, 32)], sparsity=0.5),
    }
    attention = measure_inputs.random_attention(case, 0)
    cells, samples = frames(methods_sweep(RANDOM_INPUTS, attention, group.items(), QUICK, "run"))
    assert set(cells.status) == {"measured"}
    assert set(cells.inputs) == set(cells.inputs_kind) == {"random"}
    assert cells.inputs_model.isna().all()
    assert set(samples.method) == {"dense", "seer"}


def test_a_dynamic_method_is_timed_at_its_threshold_and_says_what_random_inputs_mean(monkeypatch):
    """Check that thresholds are searched before the clock runs, and that MInference's rows name its budgets."""
    attention = measure_inputs.random_attention(AttentionProblem("cpu", "float32", 1, 4, 2, 16, 300, 16, 16), 0)
    searched = []
    real = MInference.with_threshold_for
    monkeypatch.setattr(MInference, "with_threshold_for", lambda *inputs: searched.append(1) or real(*inputs))
    methods = [(name, create(name, **options)) for name, options in (
        ("dense", {}),
        ("minference", {"sparsity": 0.7, "block": 16}),
        ("xattention", {"block": 16}),
    )]  # fmt: skip
    found = methods_sweep(RANDOM_INPUTS, attention, methods, Timing(rounds=10, cap_s=0.1, seed=0), "run", 16)
    rows = {row["method"]: row for row in found.cells}
    assert rows["minference"]["gate"] == "v2 (512, 2048)"
    assert rows["minference"]["sparsity_requested"] == 0.7
    assert rows["minference"]["inputs"] == rows["xattention"]["inputs"] == MEANINGLESS
    assert rows["dense"]["inputs"] == "random"
    assert rows["xattention"]["cell"] != rows["minference"]["cell"]
    assert len(searched) == 1
