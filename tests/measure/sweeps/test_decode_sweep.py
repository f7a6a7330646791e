"""Test the sweep of decoding: cells, stages and columns, what it refuses, and that a step can be timed again."""

import dataclasses

import pytest
import torch

from measure.toy import MEANINGLESS, QUICK, frames
from seerbench.core.problem import AttentionProblem
from seerbench.kernels.decode import api
from seerbench.measure import inputs as measure_inputs
from seerbench.measure.correctness import check_decoding
from seerbench.measure.inputs import random_cache
from seerbench.measure.names import DECODE_METHODS
from seerbench.measure.sweeps import decode, decode_sweep

SMALL = AttentionProblem("cpu", "float32", 1, q_heads=4, kv_heads=2, head_dim=16, context=1600, block_k=16)


def test_cells_stages_and_columns():
    cells, samples = frames(decode_sweep(SMALL, (1, 3), (0.5, 0.9), DECODE_METHODS, QUICK, "run"))
    assert set(cells.status) == {"measured"}
    assert set(cells.cell) == {f"decode-1600-b{batch}-{share}" for batch in (1, 3) for share in ("0.50", "0.90")}
    assert not cells.duplicated(["cell", "method"]).any()
    assert (cells.batch == cells.cell.str.extract(r"-b(\d+)-")[0].astype(int)).all()
    assert (cells.error_vs_oracle <= cells.error_budget).all()
    stages = samples.groupby("method").stage.agg(set).to_dict()
    assert stages.pop("dense") == {"attend"}
    assert all(found == {"plan", "attend", "total"} for found in stages.values())
    sparse = cells[cells.method != "dense"]
    assert ((sparse.sparsity_realised - sparse.sparsity_requested).abs() < 0.02).all()
    assert (cells[cells.method == "dense"].sparsity_realised == 0).all()
    assert set(cells.block_q) == {1}
    by_method = cells.drop_duplicates("method").set_index("method")
    assert by_method["mask"].to_dict() == {
        "dense": "dense",
        "seer-r": "gate",
        "quest": "pattern",
        "streaming": "pattern",
        "oracle": "pattern",
    }
    assert by_method.gate.dropna().to_dict() == {"seer-r": "random weights"}
    assert by_method.inputs["quest"] == by_method.inputs["seer-r"] == MEANINGLESS
    assert by_method.inputs["streaming"] == "random"
    # The gate keeps one vector per block and an unfinished block, Quest two vectors per block, each with room for
    # 64 blocks to come.
    per_vector = 2 * 16 * 4 / 2**20
    kept = by_method.kept_mib / per_vector
    assert kept.to_dict() == pytest.approx(
        {"dense": 0, "streaming": 0, "oracle": 0, "seer-r": 100 + 64 + 16, "quest": 2 * (100 + 64)}
    )
    dense = by_method.flops["dense"]
    assert dense == 4 * 4 * 16 * 1601
    assert (sparse.flops / sparse.batch).to_numpy() == pytest.approx(dense * (1 - sparse.sparsity_realised))


@pytest.mark.parametrize(("sparsity", "budget"), [(0.5, 49), (0.9, 9), (0.95, 4), (0.999, 1)])
def test_the_budget_leaves_room_for_the_first_and_the_current_block(sparsity, budget):
    """Of the 101 blocks that 1600 tokens and a new one have, 51, 11, 6 and 1 are to be read."""
    assert decode.budget_of(sparsity, 1600, 16) == 16 * budget


@pytest.mark.parametrize("name", DECODE_METHODS)
def test_a_step_may_be_timed_again_and_again(name):
    q, k, _ = random_cache(dataclasses.replace(SMALL, batch=2), 0)
    method = decode._method(name, 0.9, SMALL, SMALL.context, 0)
    state, plan = decode._step(method, q, k)
    plans = [plan() for _ in range(3)]
    assert state.lengths == (1601, 1601)
    for again in plans[1:]:
        assert torch.equal(again.blocks, plans[0].blocks)
        assert torch.equal(again.counts, plans[0].counts)


def test_a_wrong_output_is_not_within_the_budget():
    q, k, v = random_cache(SMALL, 0)
    read = torch.rand(k.shape[:3]) < 0.5
    other = read.clone()
    other[0, 0, 700] ^= True
    scores = (q.unflatten(1, (2, 2))[:, :, :, 0] @ k.mT / 4).masked_fill(~read[:, :, None], -torch.inf)
    out = (scores.softmax(-1) @ v).flatten(1, 2)[:, :, None]
    assert check_decoding(out, q, k, v, read).passed
    assert not check_decoding(out, q, k, v, other).passed
    assert not check_decoding(out, q, k, v, None).passed


def test_a_shape_that_the_kernel_does_not_take_is_refused_and_dense_is_timed(monkeypatch):
    monkeypatch.setattr(api, "refuses", lambda *shape: f"the kernel takes no head_dim of {shape[1]}")
    problem = dataclasses.replace(SMALL, device="cuda", context=64)
    q, k, v = (torch.zeros(1, heads, 1, 16) for heads in (4, 2, 2))
    entries = {name: decode._entry(name, 0.5, problem, 0, q, k, v) for name in ("dense", "quest")}
    assert entries["dense"].refusal is None
    assert entries["quest"].refusal == "the kernel takes no head_dim of 16"


def test_a_cache_that_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(measure_inputs, "available_mib", lambda: 1.0)
    with pytest.raises(measure_inputs.MeasureError, match="smaller batch or context"):
        random_cache(dataclasses.replace(SMALL, batch=32), 0)
