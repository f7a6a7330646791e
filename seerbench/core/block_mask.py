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

from seerbench.errors import MaskError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask as FlexMask


# Largest number of entries that `transposed` lists. A kernel counts tiles in 32 bits, two per entry.
MAX_TRANSPOSED = 2**30


def block_count(tokens: int, block: int) -> int:
    """Return the number of blocks of `block` tokens that cover `tokens`; the last block may be partial."""
    return -(-tokens // block)


def causal_blocks(tokens: int, block_q: int, block_k: int, device: torch.device | str = "cpu") -> Tensor:
    """Return flags of the key blocks that have a key visible to the query block, bool [nq, nk]."""
    last_query = torch.arange(block_count(tokens, block_q), device=device) * block_q + block_q - 1
    first_key = torch.arange(block_count(tokens, block_k), device=device) * block_k
    return first_key[None, :] <= last_query.clamp(max=tokens - 1)[:, None]


def check_flags(kept: Tensor, tokens: int, block_q: int, block_k: int) -> None:
    """Check that `kept` has one flag per block, bool [B, Hq, nq, nk]. It reads no entries.

    Raises:
        MaskError: it has another dtype or shape.
    """
    _check_sizes(tokens, block_q, block_k)
    rows, columns = block_count(tokens, block_q), block_count(tokens, block_k)
    if kept.dtype != torch.bool or kept.dim() != 4 or kept.shape[2:] != (rows, columns) or not kept.numel():
        raise MaskError(
            f"flags of blocks of {block_q} x {block_k} over {tokens} tokens are bool [B, Hq, {rows}, {columns}], "
            f"not {kept.dtype} {list(kept.shape)}"
        )


def _check_sizes(tokens: int, block_q: int, block_k: int) -> None:
    for name, size in (("tokens", tokens), ("block_q", block_q), ("block_k", block_k)):
        if not isinstance(size, int) or size < 1:
            raise MaskError(f"{name} of a block mask is a positive integer, not {size!r}")


@dataclass(frozen=True)
class BlockMask:
    """The key blocks that each query block reads, as one list per query head and row.

    Only causal blocks may be listed. Inside a listed block attention is causal. The constructor checks every entry
    and waits for a GPU once; a planner whose lists are right by construction takes `unchecked`.

    Attributes:
        kv_num_blocks: number of blocks in each row, int32 [B, Hq, nq]. A row may have none; its output is 0.
        kv_indices: the blocks of each row, int32 [B, Hq, nq, width]. The first `kv_num_blocks` entries of a row
            ascend and differ, the rest are 0. The width is that of the longest row, so a sparse mask of 128k tokens
            stays small.
        tokens: N.
        block_q: tokens per query block.
        block_k: tokens per key block.

    Raises:
        MaskError: a shape, dtype, device or size does not fit, or `check` finds a fault.
    """

    kv_num_blocks: Tensor
    kv_indices: Tensor
    tokens: int
    block_q: int = 64
    block_k: int = 64

    def __post_init__(self) -> None:
        self._check_form()
        self.check()

    @classmethod
    def unchecked(
        cls, kv_num_blocks: Tensor, kv_indices: Tensor, tokens: int, block_q: int = 64, block_k: int = 64
    ) -> BlockMask:
        """Return a mask of lists that are right by construction; entries are not checked, so no GPU is waited for.

        The arguments are the attributes. Raises MaskError where a shape, dtype, device or size does not fit.
        """
        mask = cls.__new__(cls)
        # The class is frozen, so attributes cannot be set by name.
        mask.__dict__.update(
            kv_num_blocks=kv_num_blocks, kv_indices=kv_indices, tokens=tokens, block_q=block_q, block_k=block_k
        )
        mask._check_form()
        return mask

    def _check_form(self) -> None:
        """Check sizes, dtypes, shapes and devices, none of which waits for a GPU."""
        counts, indices = self.kv_num_blocks, self.kv_indices
        _check_sizes(self.tokens, self.block_q, self.block_k)
        if counts.dtype != torch.int32 or indices.dtype != torch.int32:
            raise MaskError(
                f"a block mask takes int32 kv_num_blocks and kv_indices, not {counts.dtype} and {indices.dtype}; "
                "convert them with .int()"
            )
        rows = block_count(self.tokens, self.block_q)
        right = counts.dim() == 3 and counts.shape[-1] == rows and indices.shape[:-1] == counts.shape
        if not right or not counts.numel():
            raise MaskError(
                f"a block mask of {self.tokens} tokens has {rows} query blocks of {self.block_q}: kv_num_blocks "
                f"[B, Hq, {rows}] and kv_indices [B, Hq, {rows}, width], not {list(counts.shape)} and "
                f"{list(indices.shape)}"
            )
        if counts.device != indices.device:
            raise MaskError(f"kv_num_blocks is on {counts.device}, kv_indices on {indices.device}")

    def check(self) -> None:
        """Check every entry of the lists; if they are on a GPU, the host waits for it once.

        Raises:
            MaskError: a count is below 0 or above the width, a row's blocks do not ascend, do not exist or lie in
                the future, or an entry beyond the count is not 0. The text names the first such row.
        """
        counts, indices, listed = self.kv_num_blocks, self.kv_indices, self._listed()
        columns, device = block_count(self.tokens, self.block_k), indices.device
        last_query = torch.arange(1, counts.shape[-1] + 1, device=device) * self.block_q - 1
        last_block = last_query.clamp(max=self.tokens - 1) // self.block_k
        faults = {
            f"a count below 0 or above the lists' width of {indices.shape[-1]}": (counts < 0)
            | (counts > indices.shape[-1]),
            "key blocks that do not ascend, or one listed twice": (
                (indices[..., 1:] <= indices[..., :-1]) & listed[..., 1:]
            ).any(-1),
            f"a key block that does not exist (there are {columns})": (
                listed & ((indices < 0) | (indices >= columns))
            ).any(-1),
            "a key block of the future": (listed & (indices > last_block[:, None])).any(-1),
            "an entry other than 0 beyond its count": (~listed & (indices != 0)).any(-1),
        }
        found = torch.stack([rows.any() for rows in faults.values()]).tolist()
        for (fault, rows), present in zip(faults.items(), found, strict=True):
            if present:
                batch, head, row = rows.nonzero()[0].tolist()
                raise MaskError(f"a block mask has {fault}: batch entry {batch}, head {head}, query block {row}")

    @classmethod
    def from_dense(cls, kept: Tensor, tokens: int, block_q: int = 64, block_k: int = 64) -> BlockMask:
        """Return the mask of flags `kept`, bool [B, Hq, nq, nk]; flags above the diagonal are dropped.

        Plain torch on any device. Methods that run on a GPU take `methods.block_selection.mask_from_flags`.
        Raises MaskError for flags of another dtype or shape.
        """
        check_flags(kept, tokens, block_q, block_k)
        kept = kept & causal_blocks(tokens, block_q, block_k, kept.device)
        counts = kept.sum(-1, dtype=torch.int32)
        width = max(1, int(counts.max()))
        # A stable sort of "not kept" puts the kept columns first and keeps them ascending.
        order = torch.sort((~kept).to(torch.uint8), dim=-1, stable=True).indices[..., :width].int()
        listed = torch.arange(width, device=kept.device) < counts[..., None]
        return cls.unchecked(counts, torch.where(listed, order, 0).contiguous(), tokens, block_q, block_k)

    def expand(self, batch: int, heads: int) -> BlockMask:
        """Return the mask with the lists of one batch entry or one head repeated for all, as views.

        Args:
            batch: B of the result.
            heads: Hq of the result.

        Raises:
            MaskError: the mask has lists for another number of batch entries or heads, and for more than one.
        """
        have = self.kv_num_blocks.shape[:2]
        if any(size not in (1, wanted) for size, wanted in zip(have, (batch, heads), strict=True)):
            raise MaskError(f"a mask of {list(have)} (batch, heads) cannot be expanded to [{batch}, {heads}]")
        counts = self.kv_num_blocks.expand(batch, heads, -1)
        indices = self.kv_indices.expand(batch, heads, -1, -1)
        return BlockMask.unchecked(counts, indices, self.tokens, self.block_q, self.block_k)

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
        indices = self.kv_indices
        if not indices.shape[-1]:
            indices = indices.new_zeros(*indices.shape[:-1], 1)  # gather needs an entry, used or not
        first_query = torch.arange(indices.shape[-2], device=indices.device) * self.block_q
        last_key = indices * self.block_k + self.block_k - 1
        listed = torch.arange(indices.shape[-1], device=indices.device) < self.kv_num_blocks[..., None]
        partial = listed & (last_key > first_query[:, None])
        partial_num = partial.sum(-1, dtype=torch.int32)
        full_num = self.kv_num_blocks - partial_num
        # Rows ascend, so the partial blocks are the tail of each row's list.
        width = max(1, int(partial_num.max()))
        slots = full_num[..., None] + torch.arange(width, device=partial.device)
        slots = slots.clamp(max=indices.shape[-1] - 1).long()
        partial_indices = indices.gather(-1, slots)
        used = torch.arange(width, device=partial.device) < partial_num[..., None]
        return partial_num, torch.where(used, partial_indices, 0), full_num, indices

    def transposed(self, kv_heads: int) -> tuple[Tensor, Tensor]:
        """List the readers of each key block for each key/value head, in ascending order.

        All sizes follow from the shapes, so the host never waits for a GPU.

        Args:
            kv_heads: Hk.

        Returns:
            (offsets, readers). readers, int32 [entries], has query block * group + query head within the group,
            with group = Hq / Hk. offsets, int32 [B, Hk, nk + 1], says where the readers of block j are:
            readers[offsets[b, h, j] : offsets[b, h, j + 1]].

        Raises:
            MaskError: the lists have more entries than the kernels can count in 32 bits.
        """
        if self.kv_indices.numel() > MAX_TRANSPOSED:
            raise MaskError(
                f"a backward pass takes block masks of at most {MAX_TRANSPOSED} list entries, not "
                f"{self.kv_indices.numel()}; take a smaller batch"
            )
        batch, heads, rows, width = self.kv_indices.shape
        group, columns = heads // kv_heads, block_count(self.tokens, self.block_k)
        block = torch.where(self._listed(), self.kv_indices, columns)  # unlisted entries go behind the last column
        block = block.reshape(batch * kv_heads, group, rows, width).transpose(1, 2)
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
