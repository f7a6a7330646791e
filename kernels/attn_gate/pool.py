"""pool."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import block_count


def pool_blocks(x: Tensor, block: int, operators: Sequence[str] = ("max", "min", "avg")) -> dict[str, Tensor]:
    """x [B, H, N, D] -> each of `operators`, [B, H, n, D] in x's dtype; the tail over its real tokens."""
    pooled = pool_side_by_side([(x, operators)], block)[0]
    return dict(zip(operators, pooled.chunk(len(operators), -1), strict=True))


def pool_side_by_side(tensors: Sequence[tuple[Tensor, Sequence[str]]], block: int) -> list[Tensor]:
    """One or two (x [B, H, N, D], operators) in one launch -> each in one tensor, [B, H, n, D * operators].

    That is what a gate's linear layer reads. The two may differ in heads, operators and strides only.
    """
    (batch, heads, n, head_dim), blocks = tensors[0][0].shape, block_count(tensors[0][0].shape[2], block)
    sources, pools, sizes, all_heads = [], [], {}, 0
    for at, (x, operators) in enumerate((tensors[0], tensors[-1]), 1):
        x = x if x.stride(-1) == 1 else x.contiguous()
        sources += [x, *x.stride()[:3]]
        if at <= len(tensors):
            pools.append(x.new_empty(batch, x.shape[1], blocks, len(operators) * head_dim))
            all_heads += x.shape[1]
        for name in ("max", "min", "avg"):
            sizes[f"{name.upper()}_{at}"] = operators.index(name) if name in operators else -1
        sizes[f"WIDTH_{at}"] = len(operators) * head_dim
    _pool[(blocks, all_heads, batch)](
        *sources, pools[0], pools[-1], n, heads, all_heads - heads,
        HEAD_DIM=head_dim, BLOCK=block, **sizes, num_warps=1,
    )  # fmt: skip
    return pools


@triton.jit(do_not_specialize=["n", "heads_1", "heads_2"])
def _pool(
    x_1, b_1, h_1, n_1, x_2, b_2, h_2, n_2, out_1, out_2, n, heads_1, heads_2,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
    MAX_1: tl.constexpr, MIN_1: tl.constexpr, AVG_1: tl.constexpr, WIDTH_1: tl.constexpr,
    MAX_2: tl.constexpr, MIN_2: tl.constexpr, AVG_2: tl.constexpr, WIDTH_2: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    if head < heads_1:
        x_ptr = x_1 + batch * b_1 + head.to(tl.int64) * h_1
        out_row = (batch * heads_1 + head) * tl.num_programs(0)
        _pool_block(x_ptr, n_1, out_1, out_row, n, HEAD_DIM, BLOCK, MAX_1, MIN_1, AVG_1, WIDTH_1)
    else:
        head -= heads_1
        x_ptr = x_2 + batch * b_2 + head.to(tl.int64) * h_2
        out_row = (batch * heads_2 + head) * tl.num_programs(0)
        _pool_block(x_ptr, n_2, out_2, out_row, n, HEAD_DIM, BLOCK, MAX_2, MIN_2, AVG_2, WIDTH_2)


@triton.jit
def _pool_block(
    x_ptr, x_n, out_ptr, out_row, n, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
    MAX: tl.constexpr, MIN: tl.constexpr, AVG: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Block program_id(0) of one head; MAX, MIN and AVG say which place among the pools each has, -1: none."""
    i = tl.program_id(0)
    # 8 rows at a time: the reduction over rows is then elementwise until the very end.
    ROWS: tl.constexpr = 8
    local = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    base = x_ptr + (i * BLOCK).to(tl.int64) * x_n
    most = tl.full([ROWS, HEAD_DIM], -float("inf"), tl.float32)
    least = tl.full([ROWS, HEAD_DIM], float("inf"), tl.float32)
    total = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for start in tl.static_range(0, BLOCK, ROWS):
        rows = start + local
        real = (i * BLOCK + rows < n)[:, None]
        x = tl.load(base + rows[:, None] * x_n + dims[None, :], mask=real, other=0.0).to(tl.float32)
        if MAX >= 0:
            most = tl.maximum(most, tl.where(real, x, -float("inf")))
        if MIN >= 0:
            least = tl.minimum(least, tl.where(real, x, float("inf")))
        if AVG >= 0:
            total += x
    out = out_ptr + (out_row + i) * WIDTH + dims
    kind = out_ptr.dtype.element_ty
    if MAX >= 0:
        tl.store(out + MAX * HEAD_DIM, tl.max(most, 0).to(kind))
    if MIN >= 0:
        tl.store(out + MIN * HEAD_DIM, tl.min(least, 0).to(kind))
    if AVG >= 0:
        count = tl.minimum(n - i * BLOCK, BLOCK).to(tl.float32)
        tl.store(out + AVG * HEAD_DIM, (tl.sum(total, 0) / count).to(kind))
