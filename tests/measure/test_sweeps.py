"""The sweeps end to end at toy size: statuses, rows that fit the schema, memory, what is not timed."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

from seerbench.baselines.minference.methods import MInference
from seerbench.core import rope
from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem
from seerbench.core.rope import rope_of
from seerbench.kernels import flex_attention
from seerbench.kernels.pooled.reference import naive_pooled_attention
from seerbench.measure import inputs as measure_inputs
from seerbench.measure.arm import Arm
from seerbench.measure.inputs import RANDOM_INPUTS, InputSource, captured_from, random_inputs
from seerbench.measure.memory import peak_mib
from seerbench.measure.sampler import Timing
from seerbench.measure.sweeps import (
    entries,
    kernel_sweep,
    methods_sweep,
    training_kernel,
    training_kernel_sweep,
    ttft_sweep,
)
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.protocol import BlockSparse
from seerbench.methods.registry import catalogue, create
from seerbench.models.hugging_face import attention_layers
from seerbench.models.random_weights import random_model
from seerbench.paths import ROOT
from seerbench.presets.load import load_preset
from seerbench.rows.gate_ref import GateRef
from seerbench.rows.store import to_table
from seerbench.steps import arms as steps_arms
from seerbench.steps import latency

QUICK = Timing(rounds=10, cap_s=0.0)
SMALL = AttentionProblem("cpu", "float32", batch=1, q_heads=4, kv_heads=2, head_dim=32, context=500)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
}
SOURCE = InputSource("random_weights", "tiny")
MEANINGLESS = f"random: {measure_inputs.MEANINGLESS}"
TOKENS = torch.randint(97, (1, 500), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _own_lock(tmp_path, monkeypatch):
    """These timings mean nothing, so they need not wait for one that does."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, "cpu", "float32")


@pytest.fixture
def uncompiled(monkeypatch):
    """Masked SDPA for FlexAttention, which compiles once a memory layout; test_kernel_sweep runs the real one."""
    monkeypatch.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)


def frames(rows):
    """Both tables, through the schema's own check."""
    return tuple(to_table(name, part).to_pandas() for name, part in zip(("cells", "samples"), rows))


class NeverRuns(BlockSparse):
    """A sparse kernel that no test may reach."""

    name, sparsity = "never", 0.5

    def attend(self, q, k, v, plan):
        raise AssertionError("was run")


class Refuses(NeverRuns):
    def refuses(self, case):
        return f"takes no context of {case.context}"


class Wrong(BlockSparse):
    """Skips nothing, so it is not the attention that was asked for. Counts its calls."""

    calls = 0

    def attend(self, q, k, v, plan):
        self.calls += 1
        return create("dense").attend(q, k, v, None)


class NotANumber(BlockSparse):
    def attend(self, q, k, v, plan):
        return torch.full_like(q, torch.nan)


class OutOfMemory(BlockSparse):
    def attend(self, q, k, v, plan):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")


@pytest.mark.parametrize("device", DEVICES)
def test_kernel_sweep(device):
    dtype = "float32" if device == "cpu" else "bfloat16"
    case = AttentionProblem(
        device, dtype, batch=1, q_heads=4, kv_heads=2, head_dim=32, context=1100
    )  # checked on fewer tokens
    cells, samples = frames(kernel_sweep(case, [0.5, 0.9], QUICK, "run"))
    assert list(cells.cell) == ["kernel-1100-0.50"] * 2 + ["kernel-1100-0.90"] * 2
    assert list(cells.method) == ["dense", "block_sparse"] * 2
    assert set(cells.status) == {"measured"}
    assert (cells.error_vs_oracle <= cells.error_budget).all()
    assert (cells.peak_mib >= 1100 * 4 * 32 * (4 if device == "cpu" else 2) / 2**20).all()  # the output at least
    dense, sparse = (cells[cells.method == name] for name in ("dense", "block_sparse"))
    assert set(dense["mask"]) == {"dense"}
    assert dense.sparsity_requested.isna().all()
    assert set(sparse["mask"]) == {"random"}
    assert list(sparse.sparsity_requested) == [0.5, 0.9]
    assert sparse.sparsity_realised.to_numpy() == pytest.approx([0.5, 0.9], abs=0.08)
    kept = 1 - sparse.sparsity_realised.to_numpy()
    assert sparse.flops.to_numpy() == pytest.approx(kept * dense.flops.to_numpy())
    counts = samples.groupby(["cell", "method", "stage"]).ms.agg(["count", "min"])
    assert len(counts) == 4
    assert (counts["count"] == 10).all()
    assert (counts["min"] > 0).all()


class LaidOut(BlockSparse):
    """A kernel with a layout of its own for masks."""

    def layout(self, mask):
        return [mask]

    def attend(self, q, k, v, plan):
        return super().attend(q, k, v, plan[0])


def test_a_cell_holds_every_dense_kernel_block_and_kind_of_mask(uncompiled):
    kernels, dense = {"block_sparse": BlockSparse(), "mine": LaidOut()}, {"other": create("dense")}
    kinds = ("random", "gate-shaped")
    cells, samples = frames(kernel_sweep(SMALL, [0.5], QUICK, "run", kernels, dense, (64, 128), kinds))
    cells = cells.set_index("method")
    assert set(cells.status) == {"measured"}
    assert set(samples.method) == set(cells.index)
    names = [name + block + kind for block in ("", "-128") for kind in ("", "-gate-shaped") for name in kernels]
    assert list(cells.index) == ["dense", "other", *names]
    assert cells.block_k["mine"] == 64
    assert cells.block_k["mine-128-gate-shaped"] == 128
    assert cells["mask"]["mine-128-gate-shaped"] == "gate-shaped"
    assert cells.sparsity_realised["block_sparse"] == cells.sparsity_realised["mine"]


def test_gate_shaped_rows_share_more_blocks_than_random_ones():
    case = AttentionProblem("cpu", "float32", batch=1, q_heads=2, kv_heads=1, head_dim=16, context=64 * 64)
    q, k, _ = random_inputs(case, 0)

    def shared(make):
        kept = make(q, k, 0.7, case, 0).to_dense()[..., 32:, :].float()
        return float((kept[..., 1:, :] * kept[..., :-1, :]).sum() / kept[..., 1:, :].sum())

    assert shared(measure_inputs.gate_shaped_mask) > 1.5 * shared(measure_inputs.random_mask)


@pytest.mark.parametrize("kernel", [Wrong(), NotANumber()])
def test_a_wrong_kernel_is_not_timed(kernel):
    cells, samples = frames(kernel_sweep(SMALL, [0.5], QUICK, "run", {"wrong": kernel}))
    row = cells.set_index("method").loc["wrong"]
    assert row.status == "failed"
    assert "reference" in row.reason
    assert not row.error_vs_oracle <= row.error_budget
    assert set(samples.method) == {"dense"}
    if isinstance(kernel, Wrong):
        assert kernel.calls == 1  # the check and nothing else


def test_a_refusal_and_a_full_memory_become_rows():
    kernels = {"no": Refuses(), "big": OutOfMemory()}
    cells, samples = frames(kernel_sweep(SMALL, [0.5], QUICK, "run", kernels))
    cells = cells.set_index("method")
    assert cells.loc["no", ["status", "reason"]].tolist() == ["refused", "takes no context of 500"]
    assert cells.loc["big", ["status", "reason"]].tolist() == ["out_of_memory", "tried to allocate 20 GiB"]
    assert pd.isna(cells.loc["no", "sparsity_realised"])
    assert set(samples.method) == {"dense"}


def test_any_other_error_is_not_swallowed():
    with pytest.raises(AssertionError, match="was run"):
        kernel_sweep(SMALL, [0.5], QUICK, "run", {"broken": NeverRuns()})


def test_cells_of_one_sweep_share_inputs_and_rounds_pair(uncompiled):
    _, samples = frames(kernel_sweep(SMALL, [0.5], QUICK, "run"))
    order = samples.pivot(index="round", columns="method", values="order")
    assert (order.sum(axis=1) == 1).all()  # places 0 and 1 in every round
    assert order.dense.nunique() == 2  # and not always the same


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
    assert stages["dense"] == ["attend"]  # which is all of it
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


def test_rope_of_random_attention_is_the_model_s(model):
    theirs = rope_of(model)(torch.arange(9))
    ours = rope.plain_rope(32, model.config.rope_parameters["rope_theta"])(torch.arange(9))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


def test_captured_layer_is_the_middle_one_unless_said(model):
    assert measure_inputs.capture(model, TOKENS)[3].index == 1
    assert measure_inputs.capture(model, TOKENS, 2)[3].index == 2
    with pytest.raises(ValueError, match="no layer 7"):
        measure_inputs.capture(model, TOKENS, 7)


def test_ttft_sweep_times_the_whole_model(model, uncompiled):
    group = {"dense": create("dense"), "streaming": create("streaming", sparsity=0.5)}
    cells, samples = frames(ttft_sweep(model, SOURCE, TOKENS, group.items(), QUICK, "run"))
    assert set(cells.status) == {"measured"}
    assert cells.set_index("method").sparsity_realised["streaming"] > 0.3
    wide = samples.pivot_table(index=["method", "round"], columns="stage", values="ms")
    assert list(wide) == ["attend", "plan", "ttft"]
    assert (wide.plan + wide.attend < wide.ttft).all()
    assert set(cells.cell) == {"ttft-500"}  # no two of one name: one cell
    assert (cells.peak_mib > 0).all()
    assert cells.flops.isna().all()
    case = cells.iloc[0][["q_heads", "kv_heads", "head_dim", "context", "dtype"]].tolist()
    assert case == [4, 2, 32, 500, "float32"]
    assert model.config._attn_implementation == "sdpa"  # left as it was


def test_ttft_records_a_refusal_that_comes_from_inside_the_model(model):
    group = {"dense": create("dense"), "odd": create("streaming", sparsity=0.5)}
    wide = random_model(CONFIG, "cpu", "bfloat16")
    cells, samples = frames(ttft_sweep(wide, SOURCE, TOKENS, group.items(), QUICK, "run"))
    assert cells.set_index("method").status.to_dict() == {"dense": "measured", "odd": "refused"}
    assert set(samples.method) == {"dense"}


def test_training_kernel_sweep_and_the_naive_form_s_memory():
    case = AttentionProblem("cpu", "float32", batch=1, q_heads=4, kv_heads=2, head_dim=32, context=700)
    cells, samples = frames(training_kernel_sweep(case, QUICK, "run"))
    peak = cells.set_index("method").peak_mib
    assert set(cells.status) == {"measured"}
    assert (cells.error_vs_oracle <= cells.error_budget).all()
    assert peak["naive"] > 10 * peak["pooled"] > peak["dense"]
    assert set(samples.stage) == {"forward"}
    assert set(samples.method) == {"dense", "pooled", "naive"}


@pytest.mark.parametrize("context", [640, 1000])
def test_the_naive_form_needs_no_more_than_is_estimated(context):
    case = AttentionProblem("cpu", "float32", batch=1, q_heads=4, kv_heads=2, head_dim=32, context=context)
    q, k, v = random_inputs(case, 0)
    peak = peak_mib(lambda: naive_pooled_attention(q, k, v), "cpu")
    assert training_kernel.naive_over_memory(case, peak) is not None  # the estimate is above what it takes
    assert training_kernel.naive_over_memory(case, 1.1 * peak) is None  # and not far above


def test_the_naive_form_over_its_limit_is_refused():
    cells, samples = frames(training_kernel_sweep(SMALL, QUICK, "run", memory_limit_mib=10))
    row = cells.set_index("method").loc["naive"]
    assert row.status == "refused"
    assert "over the limit of 10 MiB" in row.reason
    assert set(samples.method) == {"dense", "pooled"}


@pytest.mark.parametrize("limit", [None, 1000])
def test_a_machine_with_little_free_memory_refuses_the_naive_form(monkeypatch, limit):
    monkeypatch.setattr(training_kernel, "available_mib", lambda: 4.0)
    cells, _ = frames(training_kernel_sweep(SMALL, QUICK, "run", limit))
    assert cells.set_index("method").status["naive"] == "refused"


def test_flops_by_hand():
    case = AttentionProblem(
        "cpu", "float32", batch=2, q_heads=3, kv_heads=1, head_dim=16, context=200, block_q=64, block_k=64
    )
    blocks = 10  # 4 x 4 blocks, causal
    assert entries.flops(None, case) == 4 * 64 * 64 * 16 * blocks * 2 * 3
    kept = torch.eye(4, dtype=torch.bool).expand(2, 3, 4, 4)
    assert entries.flops(BlockMask.from_dense(kept, 200), case) == 4 * 64 * 64 * 16 * 4 * 2 * 3


def test_a_cell_a_sparsity_with_dense_in_each():
    dense, *sparse = (
        create("dense"),
        create("streaming", sparsity=0.9),
        create("random", sparsity=0.5),
        create("streaming", sparsity=0.5),
    )
    methods = [("dense", dense), ("s", sparse[0]), ("r", sparse[1]), ("s", sparse[2])]
    cells = entries.by_sparsity(methods)
    assert {key: list(group) for key, group in cells.items()} == {0.5: ["dense", "r", "s"], 0.9: ["dense", "s"]}
    assert entries.by_sparsity(methods[:1]) == {None: {"dense": dense}}
    own = ("x", create("xattention"))
    cells = entries.by_sparsity([*methods, own])
    assert {key: list(group) for key, group in cells.items()} == {
        None: ["dense", "x"],
        0.5: ["dense", "r", "s"],
        0.9: ["dense", "s"],
    }
    with pytest.raises(ValueError, match="same name"):
        entries.by_sparsity([*methods, ("r", sparse[2])])
    cells = entries.by_sparsity([*methods, ("flex", create("flex"))])  # no speed-up is taken over it: once
    assert [list(group) for group in cells.values()] == [["dense", "flex", "r", "s"], ["dense", "s"]]


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


@pytest.mark.parametrize("preset", ["speed", "gpu"])
def test_the_gpu_presets_time_every_method(preset):
    arms = yaml.safe_load((ROOT / "config" / f"{preset}.yaml").read_text())["latency"]["sweeps"]["methods"]["arms"]
    ours = {card.name for card in catalogue().values() if card.module.startswith("seerbench.")}
    assert ours - {arm["method"] for arm in arms} == {"dense"}  # which is fa2 on a GPU
    assert any(arm.get("kernel") == "fa4-sparse" for arm in arms)
    gates = {arm["gate"] for arm in arms if "gate" in arm}
    assert preset == "speed" or gates == {"long:v1", "block128:v1", "long:v2"}  # speed's are untrained, as v1
    assert any(arm.get("mean_correction") for arm in arms)


def test_every_arm_of_a_gpu_preset_has_a_row_on_a_cpu(tmp_path, monkeypatch, uncompiled):
    """The arms of `speed` at a toy shape: each is measured with its stages, or refused with a reason."""
    monkeypatch.setattr(
        flex_attention, "flex_attention", lambda q, k, v, _: flex_attention.masked_attention(q, k, v)
    )
    job = load_preset("speed", tmp_path).latency("methods", 8192)
    case = AttentionProblem("cpu", "float32", 1, 4, 2, 16, 600)
    named = latency.named(steps_arms.random_arms(job.arms, case, job.setup, job.plans), 64)
    attention = measure_inputs.random_attention(case, 0)
    cells, samples = frames(methods_sweep(RANDOM_INPUTS, attention, named, Timing(rounds=1, min_rounds=1), "run"))
    refused = cells[cells.status == "refused"]
    assert set(refused.method) == {
        *("fa2", "cudnn", "fa4", "flash-attn", "minference-upstream", "seer+fa4-128"),
    }
    assert refused.reason.str.len().gt(10).all()
    measured = cells[cells.status != "refused"]
    assert set(measured.status) == {"measured"}
    stages = samples.groupby("method").stage.agg(set)
    for method in measured.method:
        assert stages[method] >= ({"attend"} if method == "flex" else {"plan", "attend", "total"}), method
    assert (cells.method == "flex").sum() == 1
    assert set(cells[cells.method == "oracle"].inputs) == {MEANINGLESS}


def test_a_dynamic_method_is_timed_at_its_threshold_and_says_what_random_inputs_mean(monkeypatch):
    """The search for a requested sparsity is over before the clock runs; MInference's rows name its budgets."""
    attention = measure_inputs.random_attention(AttentionProblem("cpu", "float32", 1, 4, 2, 16, 300, 16, 16), 0)
    looked = []
    real = MInference._factor
    monkeypatch.setattr(MInference, "_factor", lambda *inputs: looked.append(1) or real(*inputs))
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
    assert len(looked) == 1
