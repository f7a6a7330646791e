"""Selection rules: the top-k rule by the paper's numbers, ties, dense last rows, the threshold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seerbench.core.block_mask import causal_blocks
from seerbench.core.top_k import (
    MIN_BLOCKS,
    TOLERANCE,
    blocks_per_row,
    budget_limit,
    select_budget,
    select_threshold,
    select_top_k,
    top_k_count,
    top_k_density,
    top_k_rows,
)
from seerbench.errors import Refused

# The v1 rule by hand (arXiv:2410.13276v1, blocks of 64): blocks, requested sparsity, k, realised sparsity.
TOP_K_TABLE = [
    (128, 0.4, 47, 0.4023),
    (128, 0.5, 37, 0.5070),
    (128, 0.6, 28, 0.6117),
    (128, 0.7, 20, 0.7129),
    (128, 0.8, 13, 0.8079),
    (128, 0.9, 6, 0.9088),
    (256, 0.5, 74, 0.5062),
    (256, 0.6, 57, 0.6049),
    (256, 0.9, 13, 0.9012),
    (512, 0.5, 149, 0.5031),
    (512, 0.7, 83, 0.7023),
    (512, 0.9, 26, 0.9011),
    (1024, 0.8, 108, 0.8003),
    (1024, 0.9, 52, 0.9011),
    (2048, 0.5, 599, 0.5007),
    (2048, 0.9, 105, 0.9001),
    (2048, 0.95, 51, 0.9508),
]


def causal_scores(n, heads=2, seed=0):
    scores = torch.randn(1, heads, n, n, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~causal_blocks(n, 1, 1), -torch.inf)


@pytest.mark.parametrize(("blocks", "sparsity", "k", "realised"), TOP_K_TABLE)
def test_the_papers_top_k_table(blocks, sparsity, k, realised):
    assert top_k_count(blocks, sparsity) == k
    assert top_k_rows(blocks, sparsity)[:2] == (k, 0)
    assert 1 - top_k_density(blocks, sparsity) == pytest.approx(realised, abs=5e-5)


# Where rounding k down misses the request by more than two points, the last rows keep one block more. By hand:
# blocks, requested sparsity, k, longer rows. 32 blocks have 528 causal ones; k = 9 keeps 252 of the 264.
@pytest.mark.parametrize(
    ("blocks", "sparsity", "k", "longer"),
    [(32, 0.5, 9, 12), (32, 0.9, 1, 21), (32, 0.6, 7, 0), (64, 0.8, 6, 47), (8, 0.5, 2, 3)],
)
def test_few_blocks_meet_the_request_with_longer_rows(blocks, sparsity, k, longer):
    assert top_k_rows(blocks, sparsity)[:2] == (k, longer)


@pytest.mark.parametrize("blocks", [1, 9, 32, 64])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("dense", [0, 1])
def test_top_k_keeps_the_best_blocks_of_each_row(blocks, sparsity, dense):
    scores = causal_scores(blocks)
    mask = select_top_k(scores, sparsity, blocks * 16, 16, dense)
    k, longer, density = top_k_rows(blocks, sparsity, dense)
    end = blocks - dense
    counts = [min(row + 1, k + (row >= end - longer)) for row in range(end)] + list(range(end + 1, blocks + 1))
    assert mask.kv_num_blocks[0, 0].tolist() == counts
    assert mask.density() == pytest.approx(density)
    assert density == pytest.approx(1 - sparsity, abs=TOLERANCE if blocks >= MIN_BLOCKS else 1.0)
    kept = mask.to_dense()
    worst_kept = scores.masked_fill(~kept, torch.inf).amin(-1)
    best_left = scores.masked_fill(kept, -torch.inf).amax(-1)
    assert (worst_kept >= best_left).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.floats(0, 0.999), st.integers(0, 9), st.integers(1, 4))
def test_a_budget_is_met_or_refused(blocks, sparsity, dense, height):
    rows = -(-blocks // height)
    try:
        counts = blocks_per_row(blocks, sparsity, dense, height)
    except Refused:
        return
    visible = torch.tensor([min((row + 1) * height, blocks) for row in range(rows)])
    kept = float(torch.minimum(counts, visible).sum() / visible.sum())
    assert kept == pytest.approx(top_k_rows(blocks, sparsity, dense, height).kept)
    assert blocks < MIN_BLOCKS or abs(1 - kept - sparsity) <= TOLERANCE + 1e-9


def test_a_request_that_no_row_can_meet_is_refused():
    with pytest.raises(Refused, match=r"skips 77\.8% of the blocks where 90\.0% was requested: every row"):
        top_k_rows(8, 0.9)
    with pytest.raises(Refused, match="the last 2 rows keep all of theirs"):
        top_k_rows(32, 0.9, last_rows_dense=2)


def test_ties_go_to_the_lower_index():
    scores = torch.zeros(1, 1, 8, 8).masked_fill(~causal_blocks(8, 1, 1), -torch.inf)
    mask = select_top_k(scores, 0.7, 8 * 64, 64)
    k = top_k_count(8, 0.7)
    assert mask.kv_indices[0, 0, -1, :k].tolist() == list(range(k))


def test_dense_last_rows_are_paid_from_the_budget():
    mask = select_top_k(causal_scores(8), 0.4, 8 * 64, 64, last_rows_dense=2)
    assert mask.kv_num_blocks[0, 0].tolist() == [1, 1, 1, 1, 1, 2, 7, 8]  # 22 of 36 blocks


def test_threshold_keeps_what_exceeds_it_and_never_an_empty_row():
    scores = causal_scores(16)
    mask = select_threshold(scores, 0.2, 16 * 64, 64)
    kept, weights = mask.to_dense(), scores.softmax(-1)
    above = weights > 0.2
    assert (kept >= above).all()
    lonely = ~above.any(-1)
    assert lonely.any()  # the input has rows without a block above the threshold
    assert (kept.sum(-1)[lonely] == 1).all()
    assert (weights[kept & lonely[..., None]] == weights.amax(-1)[lonely]).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8])
def test_a_budget_keeps_the_cheapest_blocks_of_all_heads_together(sparsity):
    cost = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    mask = select_budget(cost, sparsity, 12 * 16, 16)
    kept, visible = mask.to_dense(), causal_blocks(12, 1, 1)
    limit = budget_limit(cost, sparsity)
    for batch in range(2):
        chosen = kept[batch] & ~torch.eye(12, dtype=torch.bool)
        assert (cost[batch][chosen] <= limit[batch]).all()
        assert (cost[batch][~kept[batch] & visible & ~torch.eye(12, dtype=torch.bool)] > limit[batch]).all()
    assert mask.density() == pytest.approx(1 - sparsity, abs=TOLERANCE)


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_budget_pays_for_dense_rows(diagonal):
    cost = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    kept = select_budget(cost, 0.6, 16 * 16, 16, last_rows_dense=1, diagonal=diagonal).to_dense()
    assert kept[..., -1, :].all()
    assert float(kept.sum()) == pytest.approx(0.4 * 2 * 136, abs=1)
    assert bool(kept.diagonal(dim1=-2, dim2=-1).all()) == diagonal


def test_blocks_that_are_always_kept_may_not_exceed_the_budget():
    cost = torch.rand(1, 2, 16, 16)
    cost[..., :8] = -torch.inf
    with pytest.raises(Refused, match="it always keeps these, at 16 blocks"):
        select_budget(cost, 0.7, 16 * 16, 16)


def test_of_equal_costs_the_first_are_kept():
    cost = torch.zeros(1, 2, 8, 8)
    kept = select_budget(cost, 0.5, 8 * 16, 16).to_dense()
    assert int(kept.sum()) == 36  # half of 2 * 36
    others = kept & ~torch.eye(8, dtype=torch.bool)
    assert int(others[0, 0].sum()) == 20  # 36 minus both diagonals, all in the first head
    assert not others[0, 1].any()


def test_a_limit_keeps_or_skips_equal_costs_together():
    cost = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    cost[0, 0, 5:, :3] = 1.4
    for sparsity in (0.4, 0.5, 0.6):
        limit = budget_limit(cost, sparsity)
        kept = (cost <= limit) | torch.eye(8, dtype=torch.bool)
        assert len(kept[0, 0, 5:, :3].unique()) == 1
        kept &= causal_blocks(8, 1, 1)
        assert abs(int(kept.sum()) - (1 - sparsity) * 72) <= 5


def test_a_sparsity_of_one_is_refused():
    with pytest.raises(ValueError, match="sparsity"):
        top_k_count(8, 1.0)
