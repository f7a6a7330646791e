"""Describe methods as entries of cells, for the sweeps that time whole methods (methods.py, ttft.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from seerbench.core.block_mask import causal_blocks
from seerbench.core.problem import AttentionProblem
from seerbench.errors import MeasureError
from seerbench.measure.cells import Entry, Prepared
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.methods.protocol import Method, Plan, realised_sparsity, selection_columns

# Dense methods that are timed in every cell, because speed-ups are given over one of them or over the fastest.
# Other dense methods are timed in the first cell only.
IN_EVERY_CELL = ("dense", "fa2", "cudnn", "fa4")
# The column `mask` by method; methods that are not listed choose by a "pattern".
MASKS = dict.fromkeys(DENSE, "dense") | {"seer": "gate", "random": "random"}
# Methods whose choice of blocks depends on the values of q and k, so it means nothing on random inputs.
DYNAMIC = (
    *("minference", "minference-aligned", "minference-upstream"),
    *("flexprefill", "xattention", "flashprefill", "flashprefill-v2", "oracle", "oracle-mass"),
)


def method_entry(name: str, method: Method, problem: AttentionProblem, prepare: Callable[[], Prepared]) -> Entry:
    """Return the entry of a method.

    Args:
        name: the method's name in the cell.
        method: the method; its own block size, if it has one, replaces the problem's.
        problem: the problem that the cell times.
        prepare: runs the method once and returns what to time.
    """
    block = method.block or problem.block_k
    problem = replace(problem, block_q=method.block_q or block, block_k=block)
    return Entry(
        name,
        method.implementation(problem),
        mask_kind(method),
        method.sparsity,
        method.refuses(problem),
        prepare,
        problem,
        method.configuration,
        base_name(method) in DYNAMIC,
        selection_columns(method),
    )


def by_sparsity(methods: Iterable[tuple[str, Method]]) -> dict[float | None, dict[str, Method]]:
    """Split (name, method) pairs into cells: one per requested sparsity, in ascending order.

    Methods of IN_EVERY_CELL are in every cell, other dense methods in the first. Sparse methods without a requested
    sparsity share a cell, whose key is None; so do dense methods if there are no sparse ones. Raises MeasureError
    when two methods of one cell have the same name.
    """
    methods = list(methods)
    dense = [(name, method) for name, method in methods if mask_kind(method) == "dense"]
    sparse = [(name, method) for name, method in methods if mask_kind(method) != "dense"]
    requested = {method.sparsity for _, method in sparse}
    cells: dict[float | None, dict[str, Method]] = {}
    for sparsity in sorted(requested, key=lambda s: -1.0 if s is None else s) or [None]:
        beside = [(name, method) for name, method in dense if not cells or method.name in IN_EVERY_CELL]
        group = beside + [(name, method) for name, method in sparse if method.sparsity == sparsity]
        cells[sparsity] = dict(group)
        if len(cells[sparsity]) < len(group):
            names = ", ".join(name for name, _ in group)
            raise MeasureError(f"two methods of one cell have the same name: {names}")
    return cells


def flops(plan: Plan | None, problem: AttentionProblem) -> float:
    """Return the floating-point operations of the two matrix products over the causal blocks that a plan keeps."""
    counted = None if plan is None else plan.flops(problem.head_dim)
    if counted is not None:
        return float(counted)
    causal = int(causal_blocks(problem.context, problem.block_q, problem.block_k).sum())
    per_block = 4 * problem.block_q * problem.block_k * problem.head_dim
    return per_block * causal * problem.batch * problem.q_heads * (1.0 - realised_sparsity(plan))


def mask_kind(method: Method) -> str:
    """Return the value of the column `mask` for a method: dense, gate, random or pattern."""
    return MASKS.get(base_name(method), "pattern")


def base_name(method: Method) -> str:
    """Return the name of a method without the suffixes of wrappers: "seer" for "seer+fa4"."""
    return method.name.partition("+")[0]
