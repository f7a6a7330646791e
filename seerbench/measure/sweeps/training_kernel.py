"""Time attention that also returns the pooled map, as the gate's training needs it (Figure 8)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seerbench.baselines.dense import Dense
from seerbench.core.problem import AttentionProblem
from seerbench.kernels.pooled import api as pooled_api
from seerbench.kernels.pooled import reference as pooled_reference
from seerbench.measure.cells import CellTimer, Entry, Prepared, Rows
from seerbench.measure.correctness import Check, check_attend, check_pooled, check_tokens
from seerbench.measure.gpu_lock import exclusive
from seerbench.measure.inputs import RANDOM_INPUTS, random_inputs
from seerbench.measure.memory import available_mib
from seerbench.measure.sampler import Call, Timing
from seerbench.measure.sweeps.entries import flops

PooledKernel = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]
# Peak memory of naive_pooled_attention in maps of [B, Hq, N, N], of which 4.1 were measured. A test checks it.
NAIVE_MAPS = 4.25
# The share of the free main memory that one call may take, since other processes run on the machine too.
MEMORY_SHARE = 0.5


@torch.no_grad()
def training_kernel_sweep(
    problem: AttentionProblem, timing: Timing, run_id: str, memory_limit_mib: float | None = None
) -> Rows:
    """Time dense attention, our kernel that also returns the pooled map, and the naive form of it, in one cell.

    The stage is `forward`. The naive form holds whole attention maps. It is refused where they would take more than
    `memory_limit_mib` or, on a CPU, half of the free memory. On a GPU without a limit it may run out of memory,
    which becomes its row.

    Args:
        problem: shape, context, block size, dtype and device.
        timing: the number of rounds; its seed also draws the inputs.
        run_id: the execution that the rows belong to.
        memory_limit_mib: limit for the naive form in MiB; None for none.
    """
    with exclusive(problem.device):
        q, k, v = random_inputs(problem, timing.seed)
        few_q, few_k, few_v = (x[:, :, : check_tokens(problem.context)].contiguous() for x in (q, k, v))
        dense, block = Dense(), problem.block_q

        def entry(
            name: str, implementation: str, refusal: str | None, call: Call, check: Callable[[], Check]
        ) -> Entry:
            def prepare() -> Prepared:
                return Prepared({"forward": call}, "forward", 0.0, flops(None, problem), check())

            return Entry(name, implementation, "dense", None, refusal, prepare, problem)

        def pooled(name: str, implementation: str, refusal: str | None, kernel: PooledKernel) -> Entry:
            def check() -> Check:
                return check_pooled(kernel, few_q, few_k, few_v, block)

            return entry(name, implementation, refusal, lambda: kernel(q, k, v, block), check)

        implementation, refusal = pooled_api.implementation(problem), pooled_api.refuses(problem)
        naive_refusal = naive_over_memory(problem, memory_limit_mib)
        entries = [
            entry(
                "dense",
                dense.implementation(problem),
                dense.refuses(problem),
                lambda: dense.attend(q, k, v, None),
                lambda: check_attend(dense, few_q, few_k, few_v, None),
            ),
            pooled("pooled", implementation, refusal, pooled_api.pooled_attention),
            pooled("naive", "torch-naive", naive_refusal, pooled_reference.naive_pooled_attention),
        ]
        return CellTimer("training_kernel", problem, RANDOM_INPUTS, timing, run_id).measure(None, entries)


def naive_over_memory(problem: AttentionProblem, limit_mib: float | None) -> str | None:
    """Return why the naive form may not run here, or None if its attention maps fit into the limit in MiB."""
    limit_mib = torch.inf if limit_mib is None else limit_mib
    if problem.device == "cpu":
        limit_mib = min(limit_mib, MEMORY_SHARE * available_mib())
    element_bytes = getattr(torch, problem.dtype).itemsize
    need = NAIVE_MAPS * problem.batch * problem.q_heads * problem.context**2 * element_bytes / 2**20
    if need <= limit_mib:
        return None
    return f"would need about {need:,.0f} MiB for whole attention maps, over the limit of {limit_mib:,.0f} MiB"
