"""Split-KV flash decoding over lists of blocks: attention of one new token over a part of the cache.

    O[h] = sum_{j listed} softmax_j(q_h . k_j / sqrt(D)) v_j      for the query heads h of one key/value head

Paper   SeerAttention-R (arXiv:2506.08889), its kernel for sparse decoding; Flash-Decoding for the split.
Oracle  `reference.decode_attention` in float64.
Here    one program per key/value head, sequence and share of its list. The query heads of the group are the rows
        of its tile, so each key is read once for all of them. It writes an output and a log-sum-exp of its share,
        fp32; a second kernel, one program per query head, merges the shares.

A list is divided by its own length, which the host does not know: each of `splits` programs takes as many tiles,
rounded up, and the last ones may have none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seerbench.kernels.decode.lists import CacheLists
from seerbench.kernels.primitives import INTERPRETED, LOWEST, addressable, base_2_scale, softmax_step

BLOCKS = (16, 32, 64, 128)  # tokens per block
MAX_GROUP = 64  # query heads per key/value head: rows of one tile
MAX_KEYS = 64  # keys per tile; a block of 128 takes two
MAX_SPLITS = 64  # the merging kernel holds all shares of a head
# Programs per multiprocessor that the split aims at, and the fewest tiles of a share. Both are guesses.
PROGRAMS_PER_MULTIPROCESSOR, MIN_TILES = 4, 4


def decode_attention(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists, splits: int | None = None) -> Tensor:
    """Return attention over the listed blocks on a GPU, [B, Hq, 1, D] in q's dtype.

    The arguments are those of `api.decode_attention`. splits: shares of each list, a power of two up to MAX_SPLITS;
    by default `split_of` decides.
    """
    batch, heads, _, head_dim = q.shape
    tiles = lists.blocks.shape[-1] * max(1, lists.block // MAX_KEYS)
    splits = splits or split_of(batch * k.shape[1], tiles, multiprocessors(q.device))
    shares = torch.empty(batch, heads, splits, head_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, heads, splits, dtype=torch.float32, device=q.device)
    launch_shares(q, k, v, lists, shares, lse)
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    launch_merge(shares, lse, o)
    return o


def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU; 1 where Triton's interpreter runs."""
    return 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def split_of(pairs: int, tiles: int, multiprocessors: int) -> int:
    """Return into how many shares a list is divided, a power of two from 1 to MAX_SPLITS.

    pairs: sequences times key/value heads; tiles: of the longest list.
    """
    wanted = max(1, min(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // pairs, tiles // MIN_TILES, MAX_SPLITS))
    return 2 ** (wanted.bit_length() - 1)


def launch_shares(q: Tensor, k: Tensor, v: Tensor, lists: CacheLists, shares: Tensor, lse: Tensor) -> None:
    """Run `_attend` into shares fp32 [B, Hq, splits, D] and their log-sum-exps in base 2, fp32 [B, Hq, splits]."""
    (batch, heads, _, head_dim), kv_heads, splits = q.shape, k.shape[1], lse.shape[2]
    q, k, v = q.contiguous(), addressable(k), addressable(v)
    group = heads // kv_heads
    _attend[(splits, kv_heads, batch)](
        q, k, v, lists.counts.contiguous(), lists.blocks.contiguous(), lists.first.contiguous(),
        lists.end.contiguous(), shares, lse,
        *k.stride()[:3], *v.stride()[:3], group, lists.blocks.shape[-1], base_2_scale(head_dim),
        HEAD_DIM=head_dim, BLOCK=lists.block, KEYS=min(lists.block, MAX_KEYS),
        ROWS=max(16, triton.next_power_of_2(group)), num_warps=4, num_stages=3,
    )  # fmt: skip


def launch_merge(shares: Tensor, lse: Tensor, o: Tensor) -> None:
    """Run `_merge` from what `launch_shares` wrote into o [B, Hq, 1, D], which is contiguous."""
    *_, splits, head_dim = shares.shape
    _merge[(lse.numel() // splits,)](shares, lse, o, SPLITS=splits, HEAD_DIM=head_dim, num_warps=4)


@triton.jit(do_not_specialize=["group", "width"])
def _attend(
    q_ptr, k_ptr, v_ptr, counts_ptr, blocks_ptr, first_ptr, end_ptr, o_ptr, lse_ptr,
    k_b, k_h, k_n, v_b, v_h, v_n, group, width, scale,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    split, splits = tl.program_id(0), tl.num_programs(0)
    kv_head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    pair = batch * tl.num_programs(1) + kv_head
    local = tl.arange(0, ROWS)  # the query heads of the group, and rows that nothing reads
    keys = tl.arange(0, KEYS)
    offs_d = tl.arange(0, HEAD_DIM)
    head = pair * group + local  # over the batch
    in_group = local < group
    q = tl.load(q_ptr + head[:, None] * HEAD_DIM + offs_d[None, :], mask=in_group[:, None], other=0.0)
    k_base = k_ptr + batch * k_b + kv_head * k_h
    v_base = v_ptr + batch * v_b + kv_head * v_h
    first, end = tl.load(first_ptr + batch), tl.load(end_ptr + batch)

    TILES: tl.constexpr = BLOCK // KEYS  # per block
    tiles = tl.load(counts_ptr + pair) * TILES
    share = tl.cdiv(tiles, splits)
    list_ptr = blocks_ptr + pair * width
    row_max = tl.full([ROWS], LOWEST, tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for tile in range(split * share, tl.minimum(tiles, (split + 1) * share)):
        start = first + tl.load(list_ptr + tile // TILES) * BLOCK + tile % TILES * KEYS
        real = start + keys < end  # [KEYS]
        # Only the tile's start needs 64 bits.
        k_ptrs = k_base + start.to(tl.int64) * k_n + keys[None, :] * k_n + offs_d[:, None]  # [HEAD_DIM, KEYS]
        v_ptrs = v_base + start.to(tl.int64) * v_n + keys[:, None] * v_n + offs_d[None, :]  # [KEYS, HEAD_DIM]
        s = tl.dot(q, tl.load(k_ptrs, mask=real[None, :], other=0.0), input_precision="ieee")  # [ROWS, KEYS]
        s = tl.where(real[None, :], s, -float("inf"))
        p, row_max, row_sum, alpha = softmax_step(s, row_max, row_sum, scale)
        v = tl.load(v_ptrs, mask=real[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")

    seen = row_sum > 0  # a share without a key has the output 0 and the log-sum-exp -inf
    row_sum = tl.where(seen, row_sum, 1.0)
    out = head * splits + split
    tl.store(o_ptr + out[:, None] * HEAD_DIM + offs_d[None, :], acc / row_sum[:, None], mask=in_group[:, None])
    tl.store(lse_ptr + out, tl.where(seen, row_max + tl.log2(row_sum), -float("inf")), mask=in_group)


@triton.jit
def _merge(shares_ptr, lse_ptr, o_ptr, SPLITS: tl.constexpr, HEAD_DIM: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)  # over the batch
    splits = tl.arange(0, SPLITS)
    offs_d = tl.arange(0, HEAD_DIM)
    lse = tl.load(lse_ptr + head * SPLITS + splits)
    largest = tl.maximum(tl.max(lse, 0), LOWEST)  # finite, also where no share has a key
    weights = tl.exp2(lse - largest)
    total = tl.sum(weights, 0)
    weights = weights / tl.where(total > 0, total, 1.0)
    rows = (head * SPLITS + splits)[:, None] * HEAD_DIM + offs_d[None, :]
    o = tl.sum(tl.load(shares_ptr + rows) * weights[:, None], 0)
    tl.store(o_ptr + head * HEAD_DIM + offs_d, o.to(o_ptr.dtype.element_ty))
