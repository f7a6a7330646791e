"""BlockMask: lists, flags and FlexAttention's form are one mask; split at the diagonal; refused lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.methods.protocol import realised_sparsity

SIZES = [(16, 16), (64, 64), (128, 64)]


def random_mask(tokens, heads, block_q, block_k, density, seed):
    shape = (1, heads, block_count(tokens, block_q), block_count(tokens, block_k))
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) < density


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 400),
    heads=st.integers(1, 3),
    blocks=st.sampled_from(SIZES),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_dense_lists_and_flex_are_the_same_mask(tokens, heads, blocks, density, seed):
    block_q, block_k = blocks
    dense = random_mask(tokens, heads, block_q, block_k, density, seed)
    dense &= causal_blocks(tokens, block_q, block_k)
    mask = BlockMask.from_dense(dense, tokens, block_q, block_k)
    assert torch.equal(mask.to_dense(), dense)
    assert mask.kv_indices.shape[-1] == max(1, int(dense.sum(-1).max()))
    for counts, row in zip(mask.kv_num_blocks.flatten(), mask.kv_indices.flatten(0, 2), strict=True):
        kept = row[:counts].tolist()
        assert kept == sorted(set(kept))
    assert torch.equal(BlockMask.from_flex(mask.to_flex()).to_dense(), dense)
    want = dense.sum().item() / (heads * causal_blocks(tokens, block_q, block_k).sum().item())
    assert mask.density() == pytest.approx(want)
    assert realised_sparsity(mask) == pytest.approx(1 - want)
    assert mask.flops(32) == 4 * block_q * block_k * 32 * int(dense.sum())


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 300), blocks=st.sampled_from(SIZES), density=st.floats(0, 1), seed=st.integers(0, 999))
def test_split_diagonal_parts_are_disjoint_and_complete(tokens, blocks, density, seed):
    mask = BlockMask.from_dense(random_mask(tokens, 2, *blocks, density, seed), tokens, *blocks)
    partial_num, partial, full_num, full = mask.split_diagonal()
    rows = torch.arange(mask.kv_num_blocks.shape[-1]) * mask.block_q
    found = torch.zeros_like(mask.to_dense(), dtype=torch.int)
    for head in range(2):
        for row, first_query in enumerate(rows.tolist()):
            for column in partial[0, head, row, : partial_num[0, head, row]].tolist():
                found[0, head, row, column] += 1
                # A partial block crosses the diagonal: its last key is after the row's first query.
                assert column * mask.block_k + mask.block_k - 1 > first_query
            for column in full[0, head, row, : full_num[0, head, row]].tolist():
                found[0, head, row, column] += 1
                assert column * mask.block_k + mask.block_k - 1 <= first_query
    assert torch.equal(found.bool(), mask.to_dense())
    assert found.max() <= 1


def test_bad_lists_are_refused():
    with pytest.raises(TypeError, match="int32"):
        BlockMask(torch.ones(1, 1, 2), torch.zeros(1, 1, 2, 1, dtype=torch.int32), 100)
    with pytest.raises(ValueError, match="2 query blocks of 64"):
        BlockMask(torch.ones(1, 1, 3, dtype=torch.int32), torch.zeros(1, 1, 3, 1, dtype=torch.int32), 100)
