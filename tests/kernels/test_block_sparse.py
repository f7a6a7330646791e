"""The portable block-sparse kernel in Triton's interpreter (fp16 and fp32) against the float64 reference.

The interpreter's bf16 is silently wrong, so bf16 is tested on a GPU only (tests/gpu).
"""

from dataclasses import replace

import pytest
import torch
from gpu.kernel_cases import (
    INTERPRETED,
    MASKS,
    build_mask,
    check_attention,
    draw,
    far_apart,
    run_in_interpreter,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem
from seerbench.errors import KernelError
from seerbench.kernels.block_sparse import api as kernel
from seerbench.kernels.block_sparse import triton as block_sparse_triton

if not INTERPRETED:

    @pytest.mark.slow(seconds=11)
    def test_kernel_in_the_interpreter():
        run_in_interpreter(__file__)

    def test_names_the_kernel_that_runs():
        case = AttentionProblem("cpu", "float32", 1, 4, 2, 64, 100)
        assert kernel.implementation(case) == "flex-cpu"
        small = replace(case, device="cuda", block_q=32, block_k=32)
        assert kernel.implementation(small) == "triton"  # too few rows for wgmma, on any GPU

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"dtype": "float32"}, "float32"),
            ({"head_dim": 80}, "80"),
            ({"block_q": 16}, "16"),
            ({"kv_heads": 3}, "split"),
        ],
    )
    def test_refuses_with_the_reason(change, word):
        case = {"device": "cuda", "dtype": "bfloat16", "batch": 1, "q_heads": 8, "kv_heads": 2, "head_dim": 64}
        assert kernel.refuses(AttentionProblem(**case, context=1000)) is None
        assert word in kernel.refuses(AttentionProblem(**{**case, **change}, context=1000))

else:

    def check(n, group, kind, dtype=torch.float16, head_dim=16, blocks=(64, 64), kv_heads=1, batch=1):
        q, k, v = draw(n, group * kv_heads, kv_heads, head_dim, dtype, batch=batch)
        mask = build_mask(kind, n, batch, group * kv_heads, *blocks)
        o = torch.full_like(q, torch.nan)
        lse = torch.full(q.shape[:3], torch.nan)
        block_sparse_triton.launch(q, k, v, mask, o, lse)
        check_attention(q, k, v, mask, o, lse)

    @pytest.mark.parametrize("n", [1, 63, 64, 65, 500])
    @pytest.mark.parametrize("kind", MASKS)
    def test_every_mask_at_every_length(n, kind):
        check(n, group=2 if n < 500 else 1, kind=kind)

    @pytest.mark.parametrize("blocks", [(32, 32), (128, 64), (64, 128), (128, 128)])
    @pytest.mark.parametrize("kind", MASKS)
    def test_other_block_sizes(blocks, kind):
        check(270, group=1, kind=kind, blocks=blocks)

    @pytest.mark.parametrize("group", [1, 4, 8])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_grouped_heads_and_batch(group, dtype):
        check(70, group=group, kind="random", dtype=dtype, kv_heads=2, batch=2)

    @pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
    def test_head_dims(head_dim):
        check(200, group=2, kind="random", head_dim=head_dim)

    def test_tensors_that_are_views():
        """Run on [B, N, H, D] projections seen as [B, H, N, D], which models pass."""
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in draw(130, 4, 2, 16, torch.float16))
        mask = build_mask("random", 130, 2, 4, 64, 64)
        o, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan)
        block_sparse_triton.launch(q, k, v, mask, o, lse)
        check_attention(q, k, v, mask, o, lse)

    @settings(max_examples=12, deadline=None)
    @given(
        tokens=st.integers(1, 150),
        heads=st.sampled_from([(1, 1), (2, 2), (3, 1), (4, 2)]),
        blocks=st.sampled_from([(32, 32), (64, 64), (128, 64), (64, 128), (128, 128)]),
        density=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
        batch=st.integers(1, 2),
        data=st.data(),
    )
    def test_any_valid_mask_gives_the_reference(tokens, heads, blocks, density, batch, data):
        """Draw shapes and masks; the lists of some are one head's, expanded, and some rows have none."""
        q, k, v = draw(tokens, *heads, 16, torch.float16, batch=batch)
        shared = data.draw(st.sampled_from([(1, 1), (1, heads[0]), (batch, heads[0])]))
        flags = torch.rand(*shared, *(block_count(tokens, block) for block in blocks)) < density
        mask = BlockMask.from_dense(flags, tokens, *blocks).expand(batch, heads[0])
        check_attention(q, k, v, mask, *kernel.block_sparse_attention_with_lse(q, k, v, mask))

    @pytest.mark.parametrize(
        "view", ["one for all heads", "one for the batch", "channels apart", "every other token"]
    )
    def test_views_of_other_strides(view):
        q, k, v = draw(70, 4, 2, 16, torch.float16)
        change = {
            "one for all heads": lambda x: x[:, :1].expand(-1, 2, -1, -1),
            "one for the batch": lambda x: x[:1].expand(2, -1, -1, -1),
            "channels apart": lambda x: x.mT.contiguous().mT,
            "every other token": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
        }[view]
        k, v = change(k), change(v)
        mask = build_mask("random", 70, 2, 4, 64, 64)
        check_attention(q, k, v, mask, *kernel.block_sparse_attention_with_lse(q, k, v, mask))

    @pytest.mark.parametrize(("dimension", "step"), [(0, 2**31 + 64), (1, 2**31 + 64), (2, 2**24), (2, 2**26)])
    def test_offsets_beyond_32_bits(dimension, step):
        """Put batch entries, heads or tokens so far apart that an offset in 32 bits would wrap around."""
        n = 40 if step == 2**26 else 130
        near = draw(n, 2, 2, 16, torch.float16, batch=2 if dimension == 0 else 1)
        q, k, v = far_apart(near, dimension, step)
        mask = build_mask("random", n, q.shape[0], 2, 64, 64)
        o, lse = kernel.block_sparse_attention_with_lse(q, k, v, mask)
        check_attention(*near, mask, o, lse)
        if step == 2**24:  # the kernel itself, on tokens that the function above would copy together
            again = torch.full_like(near[0], torch.nan)
            block_sparse_triton.launch(q, k, v, mask, again, lse)
            assert torch.equal(again, o)

    def test_what_no_kernel_takes_is_refused_before_a_launch():
        q, k, v = draw(100, 4, 2, 16, torch.float16, batch=1)
        with pytest.raises(KernelError, match="blocks"):
            kernel.block_sparse_attention_with_lse(q, k, v, build_mask("full", 100, 1, 4, 16, 16))
        mask = build_mask("full", 100, 1, 4, 64, 64)
        for x, word in ((q.bfloat16(), "bfloat16"), (q.double(), "float64")):  # the interpreter's bfloat16 is wrong
            with pytest.raises(KernelError, match=word):
                kernel.block_sparse_attention_with_lse(x, k.to(x.dtype), v.to(x.dtype), mask)
        for head_dim in (8, 24, 256):
            with pytest.raises(KernelError, match=f"not {head_dim}"):
                kernel.block_sparse_attention_with_lse(*draw(100, 4, 2, head_dim, torch.float16, batch=1), mask)
        o, lse = kernel.block_sparse_attention_with_lse(q.requires_grad_(), k, v, mask)
        for result in (o, lse):
            with pytest.raises(KernelError, match="no backward"):
                result.sum().backward(retain_graph=True)
