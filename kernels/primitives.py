"""Define what several kernels share: constants, the order of programs, one step of the online softmax, strides.

The online softmax works in base 2, since the GPU's exponential is exp2: scores are scaled by log2(e) / sqrt(D).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x * log2(e)), and log(x) = log2(x) / log2(e)
# The running maximum starts far below any score but finite. A row whose first tiles are all masked then computes
# exp2(-inf - LOWEST) = 0; from -inf it would compute -inf - -inf, which is NaN.
LOWEST = tl.constexpr(-1.0e30)
# Largest stride between tokens, in entries, at which an offset inside a tile of up to 1,024 tokens has 32 bits.
MAX_TOKEN_STRIDE = 2**21 - 1


def base_2_scale(head_dim: int) -> float:
    """Return the factor on q . k whose exp2 is exp(q . k / sqrt(head_dim))."""
    return head_dim**-0.5 * LOG2_E.value


def addressable(x: Tensor) -> Tensor:
    """Return x [..., N, D], or a contiguous copy if a kernel could not address its entries.

    Kernels take channels as adjacent in memory, and offsets inside a tile of tokens in 32 bits.
    """
    return x if x.stride(-1) == 1 and x.stride(-2) <= MAX_TOKEN_STRIDE else x.contiguous()


def tma_readable(x: Tensor) -> Tensor:
    """Return x [B, H, N, D], or a contiguous copy if the tensor memory accelerator could not read it.

    It takes a base and strides that are multiples of 16 bytes, and no stride of zero (an expanded tensor).
    """
    batch, head, token, _ = x.stride()
    # A size of two bytes or four divides 16, so the bits of all strides together say whether each is a multiple.
    aligned = x.data_ptr() % 16 == 0 and (batch | head | token) * x.element_size() % 16 == 0
    return (
        addressable(x) if aligned and batch and head and token else x.clone(memory_format=torch.contiguous_format)
    )


def vector_width(n: int) -> int:
    """Return how many floats one load of a row of n scores takes; every row starts at a multiple of it."""
    return 4 if n % 4 == 0 else 1


@triton.jit
def program_order(program, tiles, heads, group):
    """Return the (batch, query head, tile of rows) of a program, for `tiles` tiles per head.

    The query heads of a group run side by side (they read the same K and V), then tiles from the last, which has
    the most keys, to the first, then key/value heads. The K and V in use at one time then belong to one head and
    stay in L2, and the launch ends with short rows. heads: query heads; group: query heads per key/value head.
    """
    kv_head, rest = program // (group * tiles), program % (group * tiles)  # kv_head counts over the batch
    tile = tiles - 1 - rest // group
    kv_heads = heads // group
    batch, head = kv_head // kv_heads, (kv_head % kv_heads) * group + rest % group
    return batch, head, tile


@triton.jit
def softmax_step(s, row_max, row_sum, scale):
    """Take one tile of raw scores s [ROWS, KEYS] into the online softmax of each row.

    Returns (p, row_max, row_sum, alpha): weights [ROWS, KEYS] relative to the new maximum, the new running maximum
    and sum [ROWS], and the factor by which the output so far must be rescaled. scale: from `base_2_scale`.
    """
    new_max = tl.maximum(row_max, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - new_max[:, None])
    alpha = tl.exp2(row_max - new_max)
    return p, new_max, row_sum * alpha + tl.sum(p, 1), alpha


# Whether Triton's interpreter runs the kernels of this process, on a CPU (TRITON_INTERPRET=1).
INTERPRETED = not isinstance(softmax_step, triton.JITFunction)
