"""Test the time to first token of a whole model."""

from measure.toy import CONFIG, QUICK, SOURCE, TOKENS, frames
from seerbench.measure.sweeps import (
    ttft_sweep,
)
from seerbench.methods.registry import create
from seerbench.models.random_weights import random_model


def test_ttft_sweep_times_the_whole_model(model, uncompiled):
    group = {"dense": create("dense"), "streaming": create("streaming", sparsity=0.5)}
    cells, samples = frames(ttft_sweep(model, SOURCE, TOKENS, group.items(), QUICK, "run"))
    assert set(cells.status) == {"measured"}
    assert cells.set_index("method").sparsity_realised["streaming"] > 0.3
    wide = samples.pivot_table(index=["method", "round"], columns="stage", values="ms")
    assert list(wide) == ["attend", "plan", "ttft"]
    assert (wide.plan + wide.attend < wide.ttft).all()
    assert set(cells.cell) == {"ttft-500"}  # All names differ, so there is one cell.
    assert (cells.peak_mib > 0).all()
    assert cells.flops.isna().all()
    case = cells.iloc[0][["q_heads", "kv_heads", "head_dim", "context", "dtype"]].tolist()
    assert case == [4, 2, 32, 500, "float32"]
    assert model.config._attn_implementation == "sdpa"  # The model is unchanged.


def test_ttft_records_a_refusal_that_comes_from_inside_the_model(model):
    group = {"dense": create("dense"), "odd": create("streaming", sparsity=0.5)}
    wide = random_model(CONFIG, "cpu", "bfloat16")
    cells, samples = frames(ttft_sweep(wide, SOURCE, TOKENS, group.items(), QUICK, "run"))
    assert cells.set_index("method").status.to_dict() == {"dense": "measured", "odd": "refused"}
    assert set(samples.method) == {"dense"}
