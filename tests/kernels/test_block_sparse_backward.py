"""The backward kernels in Triton's interpreter (fp16 and fp32) against float64 autograd, and the transposed lists.

The interpreter's bf16 is silently wrong, so bf16 is tested on a GPU only (tests/gpu).
"""

import pytest
import torch
from gpu.kernel_cases import INTERPRETED, MASKS, build_mask, check_gradients, draw, far_apart, run_in_interpreter

from seerbench.errors import KernelError, MaskError
from seerbench.kernels.block_sparse import triton as forward

if not INTERPRETED:

    @pytest.mark.slow(seconds=14)
    def test_kernels_in_the_interpreter():
        run_in_interpreter(__file__)

    @pytest.mark.parametrize("blocks", [(64, 64), (128, 64), (64, 128)])
    @pytest.mark.parametrize("kind", MASKS)
    @pytest.mark.parametrize("n", [1, 65, 700])
    def test_transposed_lists_are_the_columns_of_the_mask(n, kind, blocks):
        mask = build_mask(kind, n, 2, 6, *blocks)
        offsets, readers = mask.transposed(2)
        assert (offsets.dtype, readers.dtype) == (torch.int32, torch.int32)
        by_group = mask.to_dense().unflatten(1, (2, 3))  # [B, Hk, group, nq, nk]
        for batch, kv_head, column in torch.cartesian_prod(*map(torch.arange, (2, 2, by_group.shape[-1]))).tolist():
            first, last = offsets[batch, kv_head, column : column + 2].tolist()
            want = by_group[batch, kv_head, :, :, column].T.flatten().nonzero().flatten()  # query block, then head
            assert readers[first:last].tolist() == want.tolist()

    def test_lists_that_32_bits_cannot_count_are_refused(monkeypatch):
        mask = build_mask("full", 700, 1, 2, 64, 64)
        monkeypatch.setattr("seerbench.core.block_mask.MAX_TRANSPOSED", mask.kv_indices.numel() - 1)
        with pytest.raises(MaskError, match="at most"):
            mask.transposed(1)

else:
    from seerbench.kernels.block_sparse import triton_backward as backward

    def check(n, group, kind, dtype=torch.float16, head_dim=16, blocks=(64, 64), kv_heads=1, batch=1, views=False):
        q, k, v = draw(n, group * kv_heads, kv_heads, head_dim, dtype, batch=batch)
        do = torch.randn(q.shape).to(dtype)
        if views:  # [B, N, H, D] projections seen as [B, H, N, D], which models pass
            q, k, v, do = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, do))
        mask = build_mask(kind, n, batch, group * kv_heads, *blocks)
        o, lse = torch.empty_like(q), torch.empty(q.shape[:3])
        forward.launch(q, k, v, mask, o, lse)
        gradients = [torch.full_like(x, torch.nan) for x in (q, k, v)]
        backward.launch(q, k, v, o, lse, do, mask, *gradients)
        check_gradients(q, k, v, mask, do, gradients)
        unread = mask.to_token_mask().any(-1).logical_not()
        assert (gradients[0][unread] == 0).all()

    @pytest.mark.parametrize("n", [1, 63, 64, 65, 330])
    @pytest.mark.parametrize("kind", MASKS)
    def test_every_mask_at_every_length(n, kind):
        check(n, group=2 if n < 330 else 1, kind=kind)

    @pytest.mark.parametrize("blocks", [(128, 64), (64, 128), (128, 128)])
    @pytest.mark.parametrize("kind", MASKS)
    def test_other_block_sizes(blocks, kind):
        check(270, group=1, kind=kind, blocks=blocks)

    @pytest.mark.parametrize("group", [1, 4, 8])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_grouped_heads_batch_and_views(group, dtype):
        check(70, group=group, kind="random", dtype=dtype, kv_heads=2, batch=2 if group < 8 else 1, views=True)

    @pytest.mark.parametrize("head_dim", [64, 128])
    def test_head_dims(head_dim):
        check(200, group=2, kind="random", head_dim=head_dim)

    @pytest.mark.parametrize(("dimension", "step"), [(0, 2**31 + 64), (1, 2**31 + 64), (2, 2**24)])
    def test_offsets_beyond_32_bits(dimension, step):
        """Put batch entries, heads or tokens so far apart that an offset in 32 bits would wrap around."""
        near = draw(130, 2, 2, 16, torch.float16, batch=2 if dimension == 0 else 1)
        near.append(torch.randn(near[0].shape).half())  # the gradient of the output
        unwritten = [torch.full_like(x, torch.nan) for x in near[:3]]
        q, k, v, do, *gradients = far_apart(near + unwritten, dimension, step)
        mask = build_mask("random", 130, q.shape[0], 2, 64, 64)
        o, lse = torch.empty_like(near[0]), torch.empty(q.shape[:3])
        forward.launch(*near[:3], mask, o, lse)
        backward.launch(q, k, v, o, lse, do, mask, *gradients)
        check_gradients(*near[:3], mask, near[3], gradients)

    def test_one_gradient_for_all_entries_and_blocks_without_a_kernel():
        """A sum's gradient is one number, expanded: a view whose strides are all zero."""
        q, k, v = draw(70, 4, 2, 16, torch.float16)
        mask = build_mask("random", 70, 2, 4, 64, 64)
        o, lse = torch.empty_like(q), torch.empty(q.shape[:3])
        forward.launch(q, k, v, mask, o, lse)
        do = torch.ones((), dtype=torch.float16).expand_as(q)
        check_gradients(q, k, v, mask, do, list(backward.gradients(q, k, v, o, lse, do, mask)))
        with pytest.raises(KernelError, match="32 x 32"):
            backward.gradients(q, k, v, o, lse, do, build_mask("full", 70, 2, 4, 32, 32))
