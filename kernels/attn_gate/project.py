"""AttnGate's linear layers and RoPE: pooled blocks -> the vectors whose products are the scores.

Oracle  seerbench.methods.gate.AttnGate.project. One program computes 64 blocks of one head in fp32 and rounds once,
        after RoPE. Q and K share a launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from seerbench.core.block_mask import block_count


def project(layers: Sequence[tuple[Tensor, Tensor | None]], tables: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    """Apply a gate's linear layers and RoPE in one launch, in fp32; return [B, H, n, D] in x's dtype per layer.

    Args:
        layers: one or two (x [B, Hk, n, W], weight [H, W, D]), where H is a multiple of Hk and x holds pools side
            by side. A weight None means that x is used as it is, with W = D and H = Hk. n and D agree between two
            layers.
        tables: cos and sin [n, D], or None for no RoPE.
    """
    inputs, outs, sizes, all_heads = [], [], {}, 0
    for at, (x, weight) in enumerate((layers[0], layers[-1]), 1):  # one layer alone is passed twice
        batch, kv_heads, n, width = x.shape
        heads, _, head_dim = weight.shape if weight is not None else (kv_heads, width, width)
        inputs += [x.contiguous(), weight.contiguous() if weight is not None else x, heads // kv_heads]
        if at <= len(layers):
            outs.append(x.new_empty(batch, heads, n, head_dim))
            all_heads += heads
        sizes |= {f"WIDTH_{at}": width, f"LINEAR_{at}": weight is not None}
    cos, sin = (t.contiguous() for t in tables) if tables is not None else (x, x)
    first = outs[0].shape[1]
    _project[(block_count(n, 64), all_heads, batch)](
        *inputs, outs[0], outs[-1], cos, sin, n, first, all_heads - first,
        HEAD_DIM=head_dim, TILE=64, **sizes, ROPE=tables is not None, num_warps=4,
    )  # fmt: skip
    return outs


# Suffixes 1 and 2 are the two layers of the launch, Q's and K's in a plan; program ids along axis 1 count the heads
# of the first and then those of the second. group: heads of the output per head of x.
@triton.jit(do_not_specialize=["group_1", "group_2", "n", "heads_1", "heads_2"])
def _project(
    x_ptr_1, w_ptr_1, group_1, x_ptr_2, w_ptr_2, group_2, out_ptr_1, out_ptr_2, cos_ptr, sin_ptr,
    n, heads_1, heads_2,
    HEAD_DIM: tl.constexpr, TILE: tl.constexpr, WIDTH_1: tl.constexpr, LINEAR_1: tl.constexpr,
    WIDTH_2: tl.constexpr, LINEAR_2: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    if head < heads_1:
        x_row, out_row = (batch * (heads_1 // group_1) + head // group_1) * n, (batch * heads_1 + head) * n
        _project_tile(
            x_ptr_1 + x_row * WIDTH_1, w_ptr_1 + head * WIDTH_1 * HEAD_DIM, cos_ptr, sin_ptr,
            out_ptr_1 + out_row * HEAD_DIM, n,
            WIDTH_1, HEAD_DIM, TILE, LINEAR_1, ROPE,
        )  # fmt: skip
    else:
        head -= heads_1
        x_row, out_row = (batch * (heads_2 // group_2) + head // group_2) * n, (batch * heads_2 + head) * n
        _project_tile(
            x_ptr_2 + x_row * WIDTH_2, w_ptr_2 + head * WIDTH_2 * HEAD_DIM, cos_ptr, sin_ptr,
            out_ptr_2 + out_row * HEAD_DIM, n,
            WIDTH_2, HEAD_DIM, TILE, LINEAR_2, ROPE,
        )  # fmt: skip


@triton.jit
def _project_tile(
    x_ptr, w_ptr, cos_ptr, sin_ptr, out_ptr, n,
    WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr, LINEAR: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Compute tile program_id(0), TILE blocks, of one head."""
    HALF: tl.constexpr = HEAD_DIM // 2
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    real = (rows < n)[:, None]
    left = tl.arange(0, HALF)[None, :]  # RoPE rotates each dimension of the left half with one of the right
    x_rows = x_ptr + rows[:, None] * WIDTH
    if LINEAR:
        a = tl.zeros([TILE, HALF], tl.float32)  # the output's left half, and b its right half
        b = tl.zeros([TILE, HALF], tl.float32)
        for start in tl.static_range(0, WIDTH, HEAD_DIM):
            inputs = start + tl.arange(0, HEAD_DIM)
            x = tl.load(x_rows + inputs[None, :], mask=real, other=0.0)
            w = w_ptr + inputs[:, None] * HEAD_DIM + left
            a = tl.dot(x, tl.load(w).to(x.dtype), a, input_precision="ieee")
            b = tl.dot(x, tl.load(w + HALF).to(x.dtype), b, input_precision="ieee")
    else:
        a = tl.load(x_rows + left, mask=real, other=0.0).to(tl.float32)
        b = tl.load(x_rows + left + HALF, mask=real, other=0.0).to(tl.float32)
    if ROPE:
        at = rows[:, None] * HEAD_DIM + left
        cos_a, cos_b = (tl.load(cos_ptr + at, mask=real), tl.load(cos_ptr + at + HALF, mask=real))
        sin_a, sin_b = (tl.load(sin_ptr + at, mask=real), tl.load(sin_ptr + at + HALF, mask=real))
        a, b = a * cos_a - b * sin_a, b * cos_b + a * sin_b
    out = out_ptr + rows[:, None] * HEAD_DIM + left
    tl.store(out, a.to(out_ptr.dtype.element_ty), mask=real)
    tl.store(out + HALF, b.to(out_ptr.dtype.element_ty), mask=real)
