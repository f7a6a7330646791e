"""Pooling for AttnGate: max, min and mean over each block of tokens, one pass over the tensor.

Oracle  reference.pool_blocks. One program of one warp owns one block of one head and keeps partial results for 8
        rows in registers, so the reduction is elementwise until the last step. Q and K share a launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.errors import KernelError
from seerbench.kernels.primitives import addressable

OPERATORS = ("max", "min", "avg")
ROWS = tl.constexpr(8)  # rows of the partial results in registers


def pool_blocks(x: Tensor, block: int, operators: Sequence[str] = ("max", "min", "avg")) -> dict[str, Tensor]:
    """Return each of `operators` over blocks of x [B, H, N, D], as [B, H, n, D] in x's dtype, n = ceil(N / block).

    A partial block at the end is pooled over its real tokens only.
    """
    pooled = pool_side_by_side([(x, operators)], block)[0]
    return dict(zip(operators, pooled.chunk(len(operators), -1), strict=True))


def pool_side_by_side(tensors: Sequence[tuple[Tensor, Sequence[str]]], block: int) -> list[Tensor]:
    """Pool one or two (x [B, H, N, D], operators) in one launch; return [B, H, n, D * operators] for each.

    A gate's linear layer reads the pools in this form. Two tensors may differ in heads, operators and strides only.
    Raises KernelError for operators that are unknown or listed twice, or a block that is no multiple of ROWS.
    """
    if block < 1 or block % ROWS.value:
        raise KernelError(f"the pooling kernel takes blocks of a multiple of {ROWS.value} tokens, not {block}")
    for _, operators in tensors:
        if not operators or len({*operators} & {*OPERATORS}) != len(operators):
            raise KernelError(f"the pools are some of {', '.join(OPERATORS)}, each once, not {list(operators)}")
    (batch, heads, n, head_dim), blocks = tensors[0][0].shape, block_count(tensors[0][0].shape[2], block)
    sources, pools, sizes, all_heads = [], [], {}, 0
    for at, (x, operators) in enumerate((tensors[0], tensors[-1]), 1):  # one tensor alone is passed twice
        x = addressable(x)
        sources += [x, *x.stride()[:3]]
        if at <= len(tensors):
            pools.append(x.new_empty(batch, x.shape[1], blocks, len(operators) * head_dim))
            all_heads += x.shape[1]
        for name in OPERATORS:
            sizes[f"{name.upper()}_{at}"] = operators.index(name) if name in operators else -1
        sizes[f"WIDTH_{at}"] = len(operators) * head_dim
    _pool[(blocks, all_heads, batch)](
        *sources, pools[0], pools[-1], n, heads, all_heads - heads,
        HEAD_DIM=head_dim, BLOCK=block, **sizes, num_warps=1,
    )  # fmt: skip
    return pools


# Suffixes 1 and 2 are the two tensors of the launch, Q and K in a plan. Program ids along axis 1 count the heads of
# the first tensor and then those of the second, of which there are none (heads_2 = 0) for one tensor alone.
@triton.jit(do_not_specialize=["n", "heads_1", "heads_2"])
def _pool(
    x_ptr_1, stride_b_1, stride_h_1, stride_n_1, x_ptr_2, stride_b_2, stride_h_2, stride_n_2, out_ptr_1, out_ptr_2,
    n, heads_1, heads_2,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
    MAX_1: tl.constexpr, MIN_1: tl.constexpr, AVG_1: tl.constexpr, WIDTH_1: tl.constexpr,
    MAX_2: tl.constexpr, MIN_2: tl.constexpr, AVG_2: tl.constexpr, WIDTH_2: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    if head < heads_1:
        x_ptr = x_ptr_1 + batch * stride_b_1 + head.to(tl.int64) * stride_h_1
        out_row = (batch * heads_1 + head) * tl.num_programs(0)
        _pool_block(x_ptr, stride_n_1, out_ptr_1, out_row, n, HEAD_DIM, BLOCK, MAX_1, MIN_1, AVG_1, WIDTH_1)
    else:
        head -= heads_1
        x_ptr = x_ptr_2 + batch * stride_b_2 + head.to(tl.int64) * stride_h_2
        out_row = (batch * heads_2 + head) * tl.num_programs(0)
        _pool_block(x_ptr, stride_n_2, out_ptr_2, out_row, n, HEAD_DIM, BLOCK, MAX_2, MIN_2, AVG_2, WIDTH_2)


@triton.jit
def _pool_block(
    x_ptr, stride_n, out_ptr, out_row, n, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
    MAX: tl.constexpr, MIN: tl.constexpr, AVG: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Pool block program_id(0) of one head. MAX, MIN and AVG are places among the pools; -1 leaves one out."""
    i = tl.program_id(0)
    local = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    base = x_ptr + (i * BLOCK).to(tl.int64) * stride_n
    running_max = tl.full([ROWS, HEAD_DIM], -float("inf"), tl.float32)
    running_min = tl.full([ROWS, HEAD_DIM], float("inf"), tl.float32)
    total = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for start in tl.static_range(0, BLOCK, ROWS):
        rows = start + local
        real = (i * BLOCK + rows < n)[:, None]
        x = tl.load(base + rows[:, None] * stride_n + dims[None, :], mask=real, other=0.0).to(tl.float32)
        if MAX >= 0:
            running_max = tl.maximum(running_max, tl.where(real, x, -float("inf")))
        if MIN >= 0:
            running_min = tl.minimum(running_min, tl.where(real, x, float("inf")))
        if AVG >= 0:
            total += x
    out = out_ptr + (out_row + i) * WIDTH + dims  # [HEAD_DIM]
    dtype = out_ptr.dtype.element_ty
    if MAX >= 0:
        tl.store(out + MAX * HEAD_DIM, tl.max(running_max, 0).to(dtype))
    if MIN >= 0:
        tl.store(out + MIN * HEAD_DIM, tl.min(running_min, 0).to(dtype))
    if AVG >= 0:
        count = tl.minimum(n - i * BLOCK, BLOCK).to(tl.float32)
        tl.store(out + AVG * HEAD_DIM, (tl.sum(total, 0) / count).to(dtype))
