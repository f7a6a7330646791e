"""Time kernels for decoding on random caches and lists: every kernel of a cell reads the same blocks.

The sweep `decode` times methods, whose plans make the lists. Here the lists are there before the clock runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seerbench.core.block_mask import block_count
from seerbench.core.problem import AttentionProblem
from seerbench.kernels.decode import api
from seerbench.kernels.decode.dense import dense_decode_attention
from seerbench.kernels.decode.lists import CacheLists
from seerbench.measure.cells import CellTimer, Entry, Prepared, Rows, joined
from seerbench.measure.correctness import Check, check_decoding, check_tokens
from seerbench.measure.gpu_lock import exclusive
from seerbench.measure.inputs import RANDOM_INPUTS, random_cache
from seerbench.measure.sampler import Timing
from seerbench.measure.sweeps.decode import CHECKED

DENSE, OURS = "dense", "split_kv"


class DenseDecodeKernel:
    """PyTorch's SDPA over the whole cache, whatever the lists say."""

    def implementation(self, problem: AttentionProblem) -> str:
        return "sdpa"

    def refuses(self, problem: AttentionProblem) -> str | None:
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
        return dense_decode_attention(q, k, v)


class SplitKVKernel:
    """Our kernel over the listed blocks."""

    def implementation(self, problem: AttentionProblem) -> str:
        return "triton-split-kv" if problem.device == "cuda" else "torch"

    def refuses(self, problem: AttentionProblem) -> str | None:
        if problem.device == "cpu":
            return None
        group, dtype = problem.q_heads // problem.kv_heads, getattr(torch, problem.dtype)
        return api.refuses(dtype, problem.head_dim, group, problem.block_k)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lists: CacheLists) -> Tensor:
        return api.decode_attention(q, k, v, lists)


DECODE_KERNELS: dict[str, Callable[[], Any]] = {DENSE: DenseDecodeKernel, OURS: SplitKVKernel}


@torch.no_grad()
def decode_kernel_sweep(
    problem: AttentionProblem,
    sparsities: Iterable[float],
    timing: Timing,
    run_id: str,
    kernels: Mapping[str, Any],
) -> Rows:
    """Time kernels for decoding, one cell per sparsity. The stage is `attend`; the rows are those of `decode`.

    Args:
        problem: shape, dtype and device; its context is the number of tokens before the new one.
        sparsities: requested shares of the blocks to skip.
        timing: the number of rounds; its seed also draws inputs and lists.
        run_id: the execution that the rows belong to.
        kernels: by name, objects with `implementation`, `refuses` and `attend`. The one called "dense" reads all.
    """
    with exclusive(problem.device):
        q, k, v = random_cache(problem, timing.seed)
        timer = CellTimer("decode", problem, RANDOM_INPUTS, timing, run_id, part=f"-b{problem.batch}")

        def entry(name: str, kernel: Any, sparsity: float, lists: CacheLists) -> Entry:
            dense = name == DENSE

            def prepare() -> Prepared:
                skipped = 0.0 if dense else 1.0 - float(lists.density())
                return Prepared(
                    {"attend": lambda: kernel.attend(q, k, v, lists)},
                    "attend",
                    skipped,
                    4.0 * q.numel() * k.shape[2] * (1.0 - skipped),
                    _check(kernel, dense, q, k, v, sparsity, problem, timing.seed),
                    dense=dense,
                )

            implementation, refusal = kernel.implementation(problem), kernel.refuses(problem)
            mask, requested = (DENSE, None) if dense else ("random", sparsity)
            return Entry(name, implementation, mask, requested, refusal, prepare, problem)

        def cell(sparsity: float) -> Rows:
            lists = random_lists(problem, sparsity, timing.seed)
            return timer.measure(sparsity, [entry(*named, sparsity, lists) for named in kernels.items()])

        return joined(map(cell, sparsities))


def random_lists(problem: AttentionProblem, sparsity: float, seed: int) -> CacheLists:
    """Return lists of random blocks, ascending, drawn per key/value head and sequence; each has the current block.

    The number of blocks is the one nearest to the requested share, and at least 1. A problem's context is the
    number of tokens before the new one.
    """
    tokens, block = problem.context + 1, problem.block_k
    n = block_count(tokens, block)
    kept = max(1, round((1 - sparsity) * n))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(problem.batch, problem.kv_heads, n, generator=generator)
    scores[..., -1] = 2.0
    flags = torch.zeros(scores.shape, dtype=torch.bool).scatter_(-1, scores.topk(kept).indices, True)
    first = torch.zeros(problem.batch, dtype=torch.int32, device=problem.device)
    return CacheLists.from_flags(flags.to(problem.device), first, first + tokens, block, kept)


def _check(
    kernel: Any,
    dense: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sparsity: float,
    problem: AttentionProblem,
    seed: int,
) -> Check:
    """Compare the attention of CHECKED new tokens with the reference; one has few numbers to judge rounding by."""
    tokens, of_batch = check_tokens(k.shape[2]), torch.arange(CHECKED, device=q.device) % len(q)
    generator = torch.Generator(q.device).manual_seed(seed)
    q = torch.randn(CHECKED, *q.shape[1:], generator=generator, dtype=q.dtype, device=q.device)
    k, v = (x[of_batch, :, :tokens] for x in (k, v))
    lists = random_lists(replace(problem, batch=CHECKED, context=tokens - 1), sparsity, seed)
    return check_decoding(kernel.attend(q, k, v, lists), q, k, v, None if dense else lists.to_tokens(tokens))
