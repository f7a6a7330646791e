"""Selection rules: the top-k rule by the paper's numbers, ties, dense last rows, the threshold."""

import pytest
import torch

from seerbench.core.block_mask import causal_blocks
from seerbench.core.top_k import (
    budget_limit,
    select_budget,
    select_threshold,
    select_top_k,
    top_k_count,
    top_k_density,
)

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
    assert 1 - top_k_density(blocks, sparsity) == pytest.approx(realised, abs=5e-5)


@pytest.mark.parametrize("blocks", [1, 7, 64])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.999])
def test_top_k_keeps_min_of_row_and_k_and_the_best(blocks, sparsity):
    scores = causal_scores(blocks)
    mask = select_top_k(scores, sparsity, blocks * 16, 16)
    k = top_k_count(blocks, sparsity)
    assert mask.kv_num_blocks[0, 0].tolist() == [min(row + 1, k) for row in range(blocks)]
    assert mask.density() == pytest.approx(top_k_density(blocks, sparsity))
    kept = mask.to_dense()
    worst_kept = scores.masked_fill(~kept, torch.inf).amin(-1)
    best_left = scores.masked_fill(kept, -torch.inf).amax(-1)
    assert (worst_kept >= best_left).all()


def test_ties_go_to_the_lower_index():
    scores = torch.zeros(1, 1, 8, 8).masked_fill(~causal_blocks(8, 1, 1), -torch.inf)
    mask = select_top_k(scores, 0.7, 8 * 64, 64)
    k = top_k_count(8, 0.7)
    assert mask.kv_indices[0, 0, -1, :k].tolist() == list(range(k))


def test_the_last_rows_may_be_dense():
    mask = select_top_k(causal_scores(8), 0.9, 8 * 64, 64, last_rows_dense=2)
    assert mask.kv_num_blocks[0, 0].tolist() == [1, 1, 1, 1, 1, 1, 7, 8]


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


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_a_budget_keeps_the_cheapest_blocks_of_all_heads_together(sparsity):
    cost = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    mask = select_budget(cost, sparsity, 12 * 16, 16)
    kept, visible = mask.to_dense(), causal_blocks(12, 1, 1)
    limit = budget_limit(cost, sparsity)
    for batch in range(2):
        chosen = kept[batch] & ~torch.eye(12, dtype=torch.bool)
        assert (cost[batch][chosen] <= limit[batch]).all()
        assert (cost[batch][~kept[batch] & visible] > limit[batch]).all()
    assert mask.density() == pytest.approx(top_k_density(12, sparsity), abs=0.01)


def test_blocks_of_equal_cost_are_kept_or_skipped_together():
    mask = select_budget(torch.zeros(1, 1, 8, 8), 0.5, 8 * 16, 16)
    assert torch.equal(mask.to_dense()[0, 0], torch.eye(8, dtype=torch.bool))


def test_a_sparsity_of_one_is_refused():
    with pytest.raises(ValueError, match="sparsity"):
        top_k_count(8, 1.0)
