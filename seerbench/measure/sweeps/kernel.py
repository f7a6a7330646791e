"""Time kernels on random inputs (Figure 1c) or captured ones: every kernel of a cell runs the same masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from seerbench.baselines.dense import Dense
from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem
from seerbench.measure.cells import CellTimer, Entry, Prepared, Rows, joined
from seerbench.measure.correctness import MAX_CHECKED_CONTEXT, check_attend, check_tokens
from seerbench.measure.gpu_lock import exclusive
from seerbench.measure.inputs import MASK_KINDS, RANDOM_INPUTS, random_inputs, random_mask
from seerbench.measure.names import AUTHORS
from seerbench.measure.sampler import Timing
from seerbench.measure.sweeps.entries import flops
from seerbench.measure.workloads import Workload
from seerbench.methods.block_sparse_kernels import laid_out, sparse_kernel
from seerbench.methods.protocol import realised_sparsity


@torch.no_grad()
def kernel_sweep(
    problem: AttentionProblem,
    sparsities: Iterable[float],
    timing: Timing,
    run_id: str,
    kernels: Mapping[str, Any] | None = None,
    dense: Mapping[str, Any] | None = None,
    blocks: Iterable[int] = (),
    masks: Iterable[str] = ("random",),
    sweep: str = "kernel",
) -> Rows:
    """Time block-sparse kernels on random inputs, one cell per sparsity.

    In a cell, every kernel runs the same mask of each kind and block size. A kernel with its own `layout` for masks
    gets the mask in it before the clock runs. The stage is `attend`.

    Args:
        problem: shape, context, dtype and device.
        sparsities: requested sparsities, one cell each.
        timing: the number of rounds; its seed also draws inputs and masks.
        run_id: the execution that the rows belong to.
        kernels: block-sparse kernels by name, objects with `implementation`, `refuses` and `attend` as a Method has
            them; by default ours, as "block_sparse".
        dense: dense kernels by name that run in every cell besides "dense".
        blocks: block sizes, by default the problem's. Kernels at another size than the first carry it in their
            name: "block_sparse-128".
        masks: kinds of masks, keys of MASK_KINDS. Kernels on another kind than the first carry it in their name:
            "block_sparse-gate-shaped".
        sweep: name of the sweep in the rows.
    """
    kernels = kernels or {"block_sparse": sparse_kernel("block_sparse")}
    dense = {"dense": Dense(), **(dense or {})}
    blocks, masks = tuple(blocks) or (problem.block_q,), tuple(masks)
    with exclusive(problem.device):
        q, k, v = random_inputs(problem, timing.seed)
        few_q, few_k, few_v = (x[:, :, : check_tokens(problem.context)].contiguous() for x in (q, k, v))

        entry = partial(kernel_entry, inputs=(q, k, v), checked=(few_q, few_k, few_v))

        def entries(sparsity: float) -> Iterable[Entry]:
            for name, kernel in dense.items():
                yield entry(name, kernel, problem)
            for block, kind in product(blocks, masks):
                blocked = replace(problem, block_q=block, block_k=block)
                mask = MASK_KINDS[kind](q, k, sparsity, blocked, timing.seed)
                checked_mask = mask
                if problem.context > MAX_CHECKED_CONTEXT:
                    # A check has few blocks: at 90% only the diagonal would be left, so half of them are kept.
                    checked_mask = random_mask(few_q, few_k, 0.5, blocked, timing.seed)
                suffix = [str(block)] * (block != blocks[0]) + [kind] * (kind != masks[0])
                for name, kernel in kernels.items():
                    full = "-".join([name, *suffix])
                    yield entry(full, kernel, blocked, kind, sparsity, mask=mask, checked_mask=checked_mask)

        timer = CellTimer(sweep, problem, RANDOM_INPUTS, timing, run_id)
        return joined(timer.measure(sparsity, entries(sparsity)) for sparsity in sparsities)


@torch.no_grad()
def captured_sweep(
    workload: Workload,
    device: str,
    dtype: str,
    timing: Timing,
    run_id: str,
    kernels: Mapping[str, Any],
    dense: Mapping[str, Any] | None = None,
) -> Rows:
    """Time kernels on the q, k, v and block mask of one captured workload: one cell, named after the workload.

    Args:
        workload: what was captured.
        device: "cpu" or "cuda".
        dtype: of q, k and v.
        timing: the number of rounds.
        run_id: the execution that the rows belong to.
        kernels: block-sparse kernels by name, as for `kernel_sweep`.
        dense: dense kernels by name that run besides "dense".
    """
    problem = replace(workload.problem, device=device, dtype=dtype)
    with exclusive(device):
        q, k, v, mask = workload.tensors(device, dtype)
        tokens = check_tokens(problem.context)
        rows, columns = block_count(tokens, problem.block_q), block_count(tokens, problem.block_k)
        first = mask.to_dense()[:, :, :rows, :columns]
        checked = BlockMask.from_dense(first, tokens, problem.block_q, problem.block_k)
        few = (q[:, :, :tokens].contiguous(), k[:, :, :tokens].contiguous(), v[:, :, :tokens].contiguous())
        entry = partial(kernel_entry, inputs=(q, k, v), checked=few)
        entries = [entry(name, kernel, problem) for name, kernel in {"dense": Dense(), **(dense or {})}.items()]
        kind, requested = workload.mask_kind, workload.requested
        masked = partial(entry, mask=mask, checked_mask=checked, gate=workload.gate)
        entries += [masked(name, kernel, problem, kind, requested) for name, kernel in kernels.items()]
        part = f"-layer{workload.layer}-{workload.method}"
        timer = CellTimer("kernel", problem, workload.source, timing, run_id, part=part)
        return timer.measure(requested, entries)


def kernel_entry(
    name: str,
    kernel: Any,
    problem: AttentionProblem,
    kind: str = "dense",
    requested: float | None = None,
    *,
    inputs: tuple[Tensor, Tensor, Tensor],
    checked: tuple[Tensor, Tensor, Tensor],
    mask: BlockMask | None = None,
    checked_mask: BlockMask | None = None,
    gate: str | None = None,
) -> Entry:
    """Return the entry of a kernel under a given mask; without one it is dense.

    Args:
        name: the kernel's name in the cell.
        kernel: an object with `implementation`, `refuses` and `attend`.
        problem: the problem that the cell times.
        kind: the column `mask`.
        requested: the requested sparsity of the mask.
        inputs: q [B, Hq, N, D], k and v [B, Hk, N, D].
        checked: their first tokens, on which the kernel is checked before.
        mask: the mask of `inputs`.
        checked_mask: a mask of `checked`.
        gate: the gate, plan file or configuration that decided the mask.
    """

    def prepare() -> Prepared:
        plan = laid_out(kernel, mask)
        return Prepared(
            {"attend": lambda: kernel.attend(*inputs, plan)},
            "attend",
            realised_sparsity(mask),
            flops(mask, problem),
            check_attend(kernel, *checked, checked_mask),
        )

    implementation, refusal = kernel.implementation(problem), kernel.refuses(problem)
    return Entry(name, implementation, kind, requested, refusal, prepare, problem, gate)


def authors_kernel_sweep(
    problem: AttentionProblem, sparsities: Iterable[float], timing: Timing, run_id: str
) -> Rows:
    """Time our kernel and FlashAttention-2 under the conditions of the authors' kernel benchmark.

    All heads have one random mask (inputs.authors_mask), and there are as many key/value heads as query heads, in
    float16. The clock is ours: the GPU's, and the lists of the mask are made before it starts (theirs: the host's,
    which includes them).

    Args:
        problem: shape, context and device; its key/value heads and dtype are replaced.
        sparsities: requested sparsities, one cell each.
        timing: as for `kernel_sweep`.
        run_id: the execution that the rows belong to.
    """
    problem = replace(problem, kv_heads=problem.q_heads, dtype="float16")
    return kernel_sweep(problem, sparsities, timing, run_id, masks=(AUTHORS,), sweep="authors_kernel")
