"""From flags to lists: the columns where a row's flags are set, ascending. Turns any n x n map into a BlockMask.

Oracle  `BlockMask.from_dense` on a CPU: a stable sort of the flags, in torch.
Here    two launches with one program per row: the first counts, the second fills lists as wide as the longest.
        Between them the host waits for the GPU once. At 128k tokens, 32 heads and blocks of 64 the flags take
        134 MB; a sort would move a key and a 64-bit index of each several times.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.errors import KernelError
from seerbench.kernels.checks import check_on_gpu

CHUNK = 1024  # flags per step of a program: 32 per thread of its one warp


def ascending_lists(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Return int32 counts [...] and the places [..., width] of the flags that are set, for bool flags [..., n].

    width is the largest count, and at least 1; places are int32 and ascend, and the rest of a row is zero. Raises
    KernelError for flags that are not bool, are none at all, or are not on the current GPU.
    """
    if flags.dtype != torch.bool or not flags.numel():
        raise KernelError(f"lists are made of at least one bool flag, not of {flags.dtype} {list(flags.shape)}")
    check_on_gpu(flags)
    flags = flags.contiguous()
    *shape, n = flags.shape
    counts = torch.empty(shape, dtype=torch.int32, device=flags.device)
    chunk = min(CHUNK, triton.next_power_of_2(n))
    grid = (counts.numel(),)
    _lists[grid](flags, counts, counts, n, 0, FILL=False, CHUNK=chunk, num_warps=1)
    places = torch.zeros(*shape, max(1, int(counts.max())), dtype=torch.int32, device=flags.device)
    _lists[grid](flags, counts, places, n, places.shape[-1], FILL=True, CHUNK=chunk, num_warps=1)
    return counts, places


@triton.jit(do_not_specialize=["n", "width"])
def _lists(flags_ptr, counts_ptr, places_ptr, n, width, FILL: tl.constexpr, CHUNK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = 0
    for start in range(0, n, CHUNK):
        at = start + tl.arange(0, CHUNK)
        flag = tl.load(flags_ptr + row * n + at, mask=at < n, other=0).to(tl.int32)
        if FILL:
            place = total + tl.cumsum(flag, 0) - 1
            tl.store(places_ptr + row * width + place, at, mask=flag > 0)
        total += tl.sum(flag, 0)
    if not FILL:
        tl.store(counts_ptr + row, total)
