"""Define BlockMask, which says which key blocks each query block reads: what methods plan and kernels run.

Letters in shapes, here and everywhere: B batch, Hq query heads, Hk key/value heads, N tokens, D head dimension,
nq = ceil(N / block_q) query blocks, nk = ceil(N / block_k) key blocks. Query head h reads key/value head
h // (Hq / Hk). Attention is causal prefill, with as many queries as keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask as FlexMask


def block_count(tokens: int, block: int) -> int:
    """Return the number of blocks of `block` tokens that cover `tokens`; the last block may be partial."""
    return -(-tokens // block)


def causal_blocks(tokens: int, block_q: int, block_k: int, device: torch.device | str = "cpu") -> Tensor:
    """Return flags of the key blocks that have a key visible to the query block, bool [nq, nk]."""
    last_query = torch.arange(block_count(tokens, block_q), device=device) * block_q + block_q - 1
    first_key = torch.arange(block_count(tokens, block_k), device=device) * block_k
    return first_key[None, :] <= last_query.clamp(max=tokens - 1)[:, None]


@dataclass(frozen=True)
class BlockMask:
    """The key blocks that each query block reads, as one list per query head and row.

    Only causal blocks may be listed. Inside a listed block attention is causal.

    Attributes:
        kv_num_blocks: number of blocks in each row, int32 [B, Hq, nq]. A row may have none; its output is 0.
        kv_indices: the blocks of each row, int32 [B, Hq, nq, width]. The first `kv_num_blocks` entries of a row
            ascend and differ, the rest are 0. The width is that of the longest row, so a sparse mask of 128k tokens
            stays small.
        tokens: N.
        block_q: tokens per query block.
        block_k: tokens per key block.

    Raises:
        TypeError: the lists are not int32.
        ValueError: their shapes do not fit `tokens`.
    """

    kv_num_blocks: Tensor
    kv_indices: Tensor
    tokens: int
    block_q: int = 64
    block_k: int = 64

    def __post_init__(self) -> None:
        rows = block_count(self.tokens, self.block_q)
        if self.kv_num_blocks.dtype != torch.int32 or self.kv_indices.dtype != torch.int32:
            raise TypeError("BlockMask takes int32 kv_num_blocks and kv_indices; convert them with .int()")
        if self.kv_num_blocks.shape[-1] != rows or self.kv_indices.shape[:-1] != self.kv_num_blocks.shape:
            raise ValueError(
                f"BlockMask of {self.tokens} tokens has {rows} query blocks of {self.block_q}; got "
                f"kv_num_blocks {tuple(self.kv_num_blocks.shape)}, kv_indices {tuple(self.kv_indices.shape)}"
            )

    @classmethod
    def from_dense(cls, kept: Tensor, tokens: int, block_q: int = 64, block_k: int = 64) -> BlockMask:
        """Return the mask of flags `kept`, bool [B, Hq, nq, nk]; flags above the diagonal are dropped.

        Plain torch on any device. Methods that run on a GPU take `methods.block_selection.mask_from_flags`.
        """
        kept = kept & causal_blocks(tokens, block_q, block_k, kept.device)
        counts = kept.sum(-1, dtype=torch.int32)
        width = max(1, int(counts.max()))
        # A stable sort of "not kept" puts the kept columns first and keeps them ascending.
        order = torch.sort((~kept).to(torch.uint8), dim=-1, stable=True).indices[..., :width].int()
        listed = torch.arange(width, device=kept.device) < counts[..., None]
        return cls(counts, torch.where(listed, order, 0).contiguous(), tokens, block_q, block_k)

    def to_dense(self) -> Tensor:
        """Return the mask as flags, bool [B, Hq, nq, nk]."""
        columns = block_count(self.tokens, self.block_k)
        listed = self._listed()
        dense = torch.zeros(*self.kv_num_blocks.shape, columns + 1, dtype=torch.bool, device=self.kv_indices.device)
        # Unlisted entries go to a spare last column, so that a padding zero cannot clear block 0.
        target = torch.where(listed, self.kv_indices, columns).long()
        return dense.scatter_(-1, target, True)[..., :columns]

    def to_token_mask(self) -> Tensor:
        """Return the pairs of query and key that are computed, causality included, bool [B, Hq, N, N]."""
        n = self.tokens
        dense = self.to_dense().repeat_interleave(self.block_q, -2)[..., :n, :]
        dense = dense.repeat_interleave(self.block_k, -1)[..., :n]
        return dense & torch.ones(n, n, dtype=torch.bool, device=dense.device).tril()

    def split_diagonal(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split the lists into blocks that cross the diagonal and blocks below it.

        FlexAttention and FlashAttention-4 take the two separately: only partial blocks, which cross the diagonal,
        need the causal comparison of positions.

        Returns:
            (partial_num, partial_indices, full_num, full_indices): counts int32 [B, Hq, nq] and lists int32
            [B, Hq, nq, width] of partial and of full blocks.
        """
        first_query = torch.arange(self.kv_num_blocks.shape[-1], device=self.kv_indices.device) * self.block_q
        last_key = self.kv_indices * self.block_k + self.block_k - 1
        partial = self._listed() & (last_key > first_query[:, None])
        partial_num = partial.sum(-1, dtype=torch.int32)
        full_num = self.kv_num_blocks - partial_num
        # Rows ascend, so the partial blocks are the tail of each row's list.
        width = max(1, int(partial_num.max()))
        slots = full_num[..., None] + torch.arange(width, device=partial.device)
        slots = slots.clamp(max=self.kv_indices.shape[-1] - 1).long()
        partial_indices = self.kv_indices.gather(-1, slots)
        used = torch.arange(width, device=partial.device) < partial_num[..., None]
        return partial_num, torch.where(used, partial_indices, 0), full_num, self.kv_indices

    def transposed(self, kv_heads: int) -> tuple[Tensor, Tensor]:
        """List the readers of each key block for each key/value head, in ascending order.

        All sizes follow from the shapes, so the host never waits for a GPU.

        Args:
            kv_heads: Hk.

        Returns:
            (offsets, readers). readers, int32 [entries], has query block * group + query head within the group,
            with group = Hq / Hk. offsets, int32 [B, Hk, nk + 1], says where the readers of block j are:
            readers[offsets[b, h, j] : offsets[b, h, j + 1]].
        """
        batch, heads, rows, width = self.kv_indices.shape
        group, columns = heads // kv_heads, block_count(self.tokens, self.block_k)
        block = torch.where(self._listed(), self.kv_indices, columns)  # unlisted entries go behind the last column
        block = block.view(batch * kv_heads, group, rows, width).transpose(1, 2)
        of_head = torch.arange(batch * kv_heads, dtype=torch.int32, device=block.device) * (columns + 1)
        # One stable sort by (key/value head, key block) keeps the entries of each in the order of their queries.
        key, place = (block + of_head[:, None, None, None]).flatten().sort(stable=True)
        starts = torch.arange(batch * kv_heads * (columns + 1), dtype=torch.int32, device=block.device)
        offsets = torch.searchsorted(key, starts, out_int32=True).view(batch, kv_heads, columns + 1)
        return offsets, (place // width % (rows * group)).int()

    def to_flex(self) -> FlexMask:
        """Return the mask in FlexAttention's form, without the lists that its backward pass reads."""
        # Imported here because importing FlexAttention is slow, and most masks never become its own.
        from torch.nn.attention.flex_attention import BlockMask as FlexBlockMask

        partial_num, partial_indices, full_num, full_indices = self.split_diagonal()
        # FlexAttention takes the number of key blocks from the width of its lists.
        columns = block_count(self.tokens, self.block_k)
        partial_indices, full_indices = (
            torch.nn.functional.pad(indices, (0, columns - indices.shape[-1]))
            for indices in (partial_indices, full_indices)
        )
        return FlexBlockMask.from_kv_blocks(
            partial_num,
            partial_indices,
            full_num,
            full_indices,
            BLOCK_SIZE=(self.block_q, self.block_k),
            mask_mod=_causal,
            seq_lengths=(self.tokens, self.tokens),
            compute_q_blocks=False,
        )

    @classmethod
    def from_flex(cls, mask: FlexMask) -> BlockMask:
        """Return the full and partial blocks of a causal FlexAttention mask as one mask.

        Raises:
            ValueError: the mask does not have as many queries as keys.
        """
        tokens, kv_tokens = mask.seq_lengths
        if tokens != kv_tokens:
            raise ValueError(f"SeerBench masks are square; this one is {tokens} x {kv_tokens}")
        return cls.from_dense(mask.to_dense().bool(), tokens, *mask.BLOCK_SIZE)

    def density(self) -> float:
        """Return the share of the causal blocks that is kept, averaged over batch and heads."""
        return float(self.head_density().mean())

    def head_density(self) -> Tensor:
        """Return the share of the causal blocks that each head keeps, float64 [B, Hq]."""
        rows = torch.arange(block_count(self.tokens, self.block_q))
        last_query = (rows * self.block_q + self.block_q - 1).clamp(max=self.tokens - 1)
        causal = int((last_query // self.block_k + 1).sum())
        return self.kv_num_blocks.sum(-1, dtype=torch.int64).double() / causal

    def flops(self, head_dim: int) -> int:
        """Return the floating-point operations of the two matrix products over the kept blocks, whole batch.

        They are 4 * block_q * block_k * head_dim per kept block.
        """
        kept = int(self.kv_num_blocks.sum(dtype=torch.int64))
        return 4 * self.block_q * self.block_k * head_dim * kept

    def _listed(self) -> Tensor:
        """Flag the entries of kv_indices that are blocks and not padding, bool like kv_indices."""
        width = self.kv_indices.shape[-1]
        return torch.arange(width, device=self.kv_indices.device) < self.kv_num_blocks[..., None]


def _causal(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key
