"""BlockMask: lists, flags and FlexAttention's form are one mask; split at the diagonal; refused lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.errors import MaskError
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
    assert torch.equal(mask.to_flex().to_dense().bool(), dense)
    mask.check()
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


def full_lists(tokens, block, heads=2):
    return BlockMask.from_dense(
        torch.ones(1, heads, block_count(tokens, block), block_count(tokens, block), dtype=torch.bool),
        tokens,
        block,
        block,
    )


# Name of a fault -> what it does to counts and lists of a dense mask at row `row` of at least 2 blocks.
def list_twice(counts, lists, row):
    lists[..., row, 1] = lists[..., row, 0]


def out_of_order(counts, lists, row):
    lists[..., row, :2] = lists[..., row, :2].flip(-1)


def negative(counts, lists, row):
    lists[..., row, 0] = -1


def too_large(counts, lists, row):
    lists[..., row, int(counts[0, 0, row]) - 1] = lists.shape[-1]


def future(counts, lists, row):
    lists[..., row, int(counts[0, 0, row]) - 1] = row + 1


def not_zero_past_the_count(counts, lists, row):
    counts[..., row] -= 1


def count_too_large(counts, lists, row):
    counts[..., row] = lists.shape[-1] + 1


def count_negative(counts, lists, row):
    counts[..., row] = -1


FAULTS = {
    list_twice: "ascend", out_of_order: "ascend", negative: "ascend|exist", too_large: "exist", future: "future",
    not_zero_past_the_count: "beyond", count_too_large: "count", count_negative: "count",
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    fault=st.sampled_from(list(FAULTS)),
    rows=st.integers(3, 9),
    tail=st.integers(0, 15),
    head=st.integers(0, 1),
    data=st.data(),
)
def test_one_fault_anywhere_is_refused_and_named(fault, rows, tail, head, data):
    mask = full_lists(rows * 16 - tail, 16)
    counts, lists = mask.kv_num_blocks.clone(), mask.kv_indices.clone()
    row = data.draw(st.integers(1, rows - 2))
    fault(counts[:, head : head + 1], lists[:, head : head + 1], row)
    with pytest.raises(MaskError, match=FAULTS[fault]) as refusal:
        BlockMask(counts, lists, mask.tokens, 16, 16)
    assert f"head {head}, query block {row}" in str(refusal.value)
    with pytest.raises(MaskError, match=FAULTS[fault]):
        BlockMask.unchecked(counts, lists, mask.tokens, 16, 16).check()


def test_what_is_made_without_a_check_reads_no_entry():
    """Tensors on the device "meta" have no entries, so reading one raises an error."""
    counts = torch.zeros(2, 4, 3, dtype=torch.int32, device="meta")
    lists = torch.zeros(2, 4, 3, 2, dtype=torch.int32, device="meta")
    mask = BlockMask.unchecked(counts, lists, 150)
    assert mask.expand(2, 4).kv_indices.shape == lists.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        mask.check()


INT = {"dtype": torch.int32}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((torch.ones(1, 1, 2, dtype=torch.int64), torch.zeros(1, 1, 2, 1, **INT), 100), "int32"),
        ((torch.ones(1, 1, 3, **INT), torch.zeros(1, 1, 3, 1, **INT), 100), "2 query blocks of 64"),
        ((torch.ones(1, 2, **INT), torch.zeros(1, 2, 1, **INT), 100), "B, Hq"),
        ((torch.ones(1, 2, 2, **INT), torch.zeros(1, 1, 2, 1, **INT), 100), "B, Hq"),
        ((torch.ones(0, 2, 2, **INT), torch.zeros(0, 2, 2, 1, **INT), 100), "B, Hq"),
        ((torch.ones(1, 1, 0, **INT), torch.zeros(1, 1, 0, 1, **INT), 0), "positive"),
        ((torch.ones(1, 1, 2, **INT), torch.zeros(1, 1, 2, 1, **INT), 100.0), "positive integer"),
        ((torch.ones(1, 1, 2, **INT), torch.zeros(1, 1, 2, 1, **INT), 100, 64, 0), "block_k"),
        ((torch.ones(1, 1, 2, **INT), torch.zeros(1, 1, 2, 1, **INT, device="meta"), 100), "meta"),
    ],
)
def test_shapes_dtypes_and_sizes_are_checked_with_and_without_the_entries(arguments, word):
    for make in (BlockMask, BlockMask.unchecked):
        with pytest.raises(MaskError, match=word):
            make(*arguments)


@pytest.mark.parametrize(
    "flags",
    [
        torch.ones(1, 1, 2, 2, dtype=torch.uint8),
        torch.ones(1, 1, 2, 3, dtype=torch.bool),
        torch.ones(1, 1, 2, 1, dtype=torch.bool),
        torch.ones(1, 2, 2, dtype=torch.bool),
        torch.ones(1, 0, 2, 2, dtype=torch.bool),
    ],
)
def test_flags_of_another_shape_or_dtype_are_refused(flags):
    with pytest.raises(MaskError, match=r"bool \[B, Hq, 2, 2\]"):
        BlockMask.from_dense(flags, 100)


def test_one_heads_lists_serve_all_heads_when_asked():
    mask = BlockMask.from_dense(torch.rand(1, 1, 4, 4) < 0.5, 200)
    wide = mask.expand(2, 3)
    assert torch.equal(wide.to_dense(), mask.to_dense().expand(2, 3, 4, 4))
    assert wide.kv_indices.data_ptr() == mask.kv_indices.data_ptr()  # a view
    assert wide.flops(16) == 6 * mask.flops(16)
    wide.check()
    for target in [(2, 4), (1, 3)]:
        with pytest.raises(MaskError, match="expanded"):
            wide.expand(*target)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_lists_without_an_entry_convert_too(kv_heads):
    counts = torch.zeros(1, 2, 3, **INT)
    mask = BlockMask(counts, counts.new_zeros(1, 2, 3, 0), 40, 16, 16)
    assert not mask.to_dense().any()
    assert not mask.to_flex().to_dense().any()
    assert mask.transposed(kv_heads)[0].max() == 0
