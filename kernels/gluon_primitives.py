"""Define what Gluon kernels for Hopper share: TMA descriptors, rings of shared memory, barriers, causal masking.

Import it only where a Hopper kernel is about to run: Gluon is not part of every Triton.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Triton 3.9 has only the first name, 3.6 only the second.
tma_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


class Ring(NamedTuple):
    """Slots of shared memory that a producer fills and consumers empty, in turn.

    A barrier knows its phase only as odd or even, so each side keeps its current slot and phase.
    """

    slots: Any  # [number of slots, ...]
    full: Any  # one barrier per slot: the slot was written
    empty: Any  # one barrier per slot: every consumer has read it


def descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """Return TMA's view of x [B, H, N, D] in boxes of `rows` x D. Rows past N are read as zero."""
    shape = [1, 1, rows, x.shape[-1]]
    return TensorDescriptor(x, list(x.shape), list(x.stride()), shape, _layout(*shape, x.dtype))


@functools.cache  # called at each launch, like the next function; launching takes most of a short kernel's time
def _layout(*shape_and_dtype: Any) -> gl.NVMMASharedLayout:
    *shape, dtype = shape_and_dtype
    return gl.NVMMASharedLayout.get_default_for(shape, gl.float16 if dtype == torch.float16 else gl.bfloat16)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@gluon.jit
def barriers(slots: gl.constexpr, arrivals: gl.constexpr):
    """Allocate one barrier per slot. Its phase ends when `arrivals` parties have arrived."""
    allocated = gl.allocate_shared_memory(gl.int64, [slots, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(slots):
        mbarrier.init(allocated.index(i), count=arrivals)
    return allocated


@gluon.jit
def keys_of(k_ring, slot, KEYS: gl.constexpr, HEAD_DIM: gl.constexpr):
    """Return a slot of the K ring transposed: [HEAD_DIM, KEYS]."""
    return k_ring.slots.index(slot).reshape([KEYS, HEAD_DIM]).permute((1, 0))


@gluon.jit
def mask_future(s, first, block, KEYS: gl.constexpr, S_LAYOUT: gl.constexpr):
    """Return scores s [64, KEYS] with -inf for keys after the query; keys past the end are after every query.

    first: position of the first of the 64 queries; block: number of the block of KEYS keys.
    """
    queries = first + gl.arange(0, 64, gl.SliceLayout(1, S_LAYOUT))
    keys = block * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, S_LAYOUT))
    return gl.where(gl.expand_dims(queries, 1) >= gl.expand_dims(keys, 0), s, float("-inf"))
