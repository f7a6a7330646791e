"""Block masks, the oracle, the tolerance, and FlexAttention on the CPU against the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seerbench.core.block_mask import BlockMask, block_count, causal_blocks
from seerbench.core.problem import AttentionProblem
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.kernels import flex_attention
from seerbench.kernels.block_sparse.api import block_sparse_attention
from seerbench.kernels.flex_attention import masked_attention
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
                assert column * mask.block_k + mask.block_k - 1 > first_query  # needs the comparison
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


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_oracle_is_sdpa(kv_heads):
    q = torch.randn(2, 4, 77, 16, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, 77, 16, dtype=torch.float64)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    out, lse = reference_attention(q, k, v)
    assert torch.allclose(out, want, atol=1e-13)
    scores = q @ k.repeat_interleave(4 // kv_heads, 1).transpose(-1, -2) / 4
    scores = scores.masked_fill(~torch.ones(77, 77, dtype=torch.bool).tril(), -torch.inf)
    assert torch.allclose(lse, scores.logsumexp(-1))


def test_gqa_maps_query_head_h_to_kv_head_h_over_group():
    """Only key/value head 1 holds a value: query heads 2 and 3 of four read it, 0 and 1 do not."""
    q, k = torch.randn(1, 4, 40, 16), torch.randn(1, 2, 40, 16)
    v = torch.zeros(1, 2, 40, 16)
    v[:, 1] = 1
    mask = BlockMask.from_dense(torch.ones(1, 4, 3, 3, dtype=torch.bool), 40, 16, 16)
    for out in (
        reference_attention(q, k, v, mask)[0],
        block_sparse_attention(q, k, v, mask),
        masked_attention(q, k, v, mask),
    ):
        assert out[:, :2].abs().max() == 0
        assert torch.allclose(out[:, 2:].double(), torch.ones(1, 2, 40, 16, dtype=torch.float64), atol=1e-6)


def kinds(tokens, heads, block):
    n = block_count(tokens, block)
    generator = torch.Generator().manual_seed(tokens)
    random = torch.rand(1, heads, n, n, generator=generator) < 0.3
    return {
        "random": random,
        "full": torch.ones(1, heads, n, n, dtype=torch.bool),
        "diagonal": torch.eye(n, dtype=torch.bool).expand(1, heads, n, n),
        "empty rows": random & (torch.rand(1, heads, n, 1, generator=generator) < 0.5),
        "one far block": (torch.arange(n) == 0).expand(1, heads, n, n),
        "nothing": torch.zeros(1, heads, n, n, dtype=torch.bool),
    }


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 1000])
def test_flex_and_masked_attention_against_the_oracle(tokens):
    q = torch.randn(1, 4, tokens, 32)
    k, v = torch.randn(2, 1, 2, tokens, 32)
    for kind, dense in kinds(tokens, 4, 64).items():
        mask = BlockMask.from_dense(dense, tokens, 64, 64)
        exact, rounded = reference_attention(q, k, v, mask)[0], reference_attention(q, k, v, mask, torch.float32)[0]
        for kernel in (block_sparse_attention, masked_attention):
            assert_no_worse_than_rounding(kernel(q, k, v, mask), exact, rounded)
        if kind == "nothing":
            assert exact.abs().max() == 0


def test_sparse_attention_never_reads_a_skipped_block():
    """NaN in every key block that no row lists must not reach the output."""
    q, k, v = torch.randn(3, 1, 2, 200, 16)
    dense = kinds(200, 2, 16)["diagonal"].clone()
    dense[..., 3] = False
    k[:, :, 48:64] = v[:, :, 48:64] = torch.nan
    out = block_sparse_attention(q, k, v, BlockMask.from_dense(dense, 200, 16, 16))
    assert out.isfinite().all()
    assert (out[:, :, 48:64] == 0).all()


def test_masked_attention_has_the_dense_gradient():
    q, k, v = (torch.randn(1, 2, 50, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    full = BlockMask.from_dense(torch.ones(1, 2, 4, 4, dtype=torch.bool), 50, 16, 16)
    masked_attention(q, k, v, full).square().sum().backward()
    got = [x.grad.clone() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    reference_attention(q, k, v)[0].square().sum().backward()
    assert all(torch.allclose(g, x.grad, atol=1e-12) for g, x in zip(got, (q, k, v), strict=True))


def test_the_tolerance_fails_when_it_must():
    exact = torch.randn(100, dtype=torch.float64)
    rounded = exact.half()
    assert_no_worse_than_rounding(rounded, exact, rounded)
    with pytest.raises(AssertionError, match="over the budget"):
        assert_no_worse_than_rounding(rounded + 0.01, exact, rounded)
    for bad in (torch.nan, torch.inf):
        broken = rounded.clone()
        broken[3] = bad
        with pytest.raises(AssertionError):
            assert_no_worse_than_rounding(broken, exact, rounded)
    empty = exact.clone()
    empty[0] = -torch.inf  # the log-sum-exp of a row without keys
    assert_no_worse_than_rounding(empty.half(), empty, empty.half())
    with pytest.raises(AssertionError):
        assert_no_worse_than_rounding(rounded, empty, empty.half())


def test_refusals_have_reasons():
    case = AttentionProblem("cpu", "bfloat16", 1, 4, 2, 32, 128)
    assert "float32" in flex_attention.refuses(case)
    assert "do not split" in flex_attention.refuses(AttentionProblem("cpu", "float32", 1, 4, 3, 32, 128))
    assert flex_attention.refuses(AttentionProblem("cpu", "float32", 1, 4, 2, 32, 128)) is None
