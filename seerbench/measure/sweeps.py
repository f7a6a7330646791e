"""The timing sweeps: which methods run in which cell, on which inputs, and the rows that come of it.

    kernel_sweep           random inputs, one random mask a cell for every kernel: speed against sparsity
    methods_sweep          one layer's q, k, v, captured in a model or random: plan, attend and total of methods
    training_kernel_sweep  attention with the pooled map: latency and memory (Figure 8)
    ttft_sweep             time to first token of a whole model

Each call measures one context, holds the device's lock meanwhile, and returns the rows of the tables
`cells` and `samples` (results.py); it writes no file. timing.py does the timing itself.

A method that refuses, runs out of memory, or is wrong becomes a row that says so, and is not timed.
Wrong: further from the float64 oracle than attention.py's tolerance allows, in an untimed call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from seerbench.baselines.dense import Dense
from seerbench.core.block_mask import BlockMask, causal_blocks
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.kernels.pooled import api as pooled_api
from seerbench.kernels.pooled import reference as pooled_reference
from seerbench.measure.cells import Entry, Job, Prepared, Rows, joined
from seerbench.measure.correctness import CHECK_WHOLE, check_attend, check_method, check_pooled, check_tokens
from seerbench.measure.gpu_lock import exclusive
from seerbench.measure.inputs import MASK_KINDS, problem_of, problem_of_model, random_inputs, random_mask
from seerbench.measure.memory import available_mib, peak_mib
from seerbench.measure.sampler import Call, Parts, Timing
from seerbench.methods.block_sparse_kernels import DENSE, laid_out, sparse_kernel
from seerbench.methods.protocol import Method, realised_sparsity
from seerbench.models.hugging_face import attention_method, chunked_mlps

# Maps of [B, Hq, N, N] that naive_pooled_attention holds at its peak; measured 4.1, its test pins it.
NAIVE_MAPS = 4.25
# Share of the free main memory that one call may take: other processes live here too.
MEMORY_SHARE = 0.5
# The dense methods of every cell: a speed-up is taken over the reference or the fastest. Others are timed once.
IN_EVERY_CELL = ("dense", "fa2", "cudnn", "fa4")
MASKS = dict.fromkeys(DENSE, "dense") | {"seer": "gate", "random": "random"}  # by method; all others: "pattern"
# Methods that choose by what q and k hold: on random ones their choice and their sparsity mean nothing.
DYNAMIC = (
    *("minference", "minference-aligned", "minference-upstream"),
    *("flexprefill", "xattention", "flashprefill", "oracle"),
)


@torch.no_grad()
def kernel_sweep(
    case: AttentionProblem,
    sparsities: Iterable[float],
    timing: Timing,
    run_id: str,
    kernels: Mapping[str, Any] | None = None,
    dense: Mapping[str, Any] | None = None,
    blocks: Iterable[int] = (),
    masks: Iterable[str] = ("random",),
) -> Rows:
    """Kernels on random inputs: a cell a sparsity, in it every kernel on the same mask of each kind and block.

    kernels: block-sparse kernels by name, objects with `implementation`, `refuses` and `attend` as in
    attention.Method; ours, as "block_sparse", unless given. dense: dense ones beside "dense", which is in
    every cell. blocks: block sizes, the case's unless given; masks: of MASK_KINDS. What is not of the first
    block and kind says so in its name: "block_sparse-128", "block_sparse-gate-shaped". Stage: attend; a
    kernel with a `layout` of its own for masks gets it made before.
    """
    kernels = kernels or {"block_sparse": sparse_kernel("block_sparse")}
    dense = {"dense": Dense(), **(dense or {})}
    blocks, masks = tuple(blocks) or (case.block_q,), tuple(masks)
    with exclusive(case.device):
        q, k, v = random_inputs(case, timing.seed)
        small = [x[:, :, : check_tokens(case.context)].contiguous() for x in (q, k, v)]

        def entrant(
            name: str,
            kernel: Any,
            case: AttentionProblem,
            kind: str = "dense",
            requested: float | None = None,
            mask: BlockMask | None = None,
            checked: BlockMask | None = None,
        ) -> Entry:
            def prepare() -> Prepared:
                plan = laid_out(kernel, mask)
                return Prepared(
                    {"attend": lambda: kernel.attend(q, k, v, plan)},
                    "attend",
                    realised_sparsity(mask),
                    flops(mask, case),
                    *check_attend(kernel, *small, checked),
                )

            implementation = kernel.implementation(case)
            return Entry(name, implementation, kind, requested, kernel.refuses(case), prepare, case)

        def entrants(sparsity: float) -> Iterable[Entry]:
            for name, kernel in dense.items():
                yield entrant(name, kernel, case)
            for block, kind in product(blocks, masks):
                blocked = replace(case, block_q=block, block_k=block)
                mask = MASK_KINDS[kind](q, k, sparsity, blocked, timing.seed)
                # On the few blocks of a check, 90% would leave the diagonal alone: keep half of them.
                whole = case.context <= CHECK_WHOLE
                checked = mask if whole else random_mask(*small[:2], 0.5, blocked, timing.seed)
                other = [str(block)] * (block != blocks[0]) + [kind] * (kind != masks[0])
                for name, kernel in kernels.items():
                    yield entrant("-".join([name, *other]), kernel, blocked, kind, sparsity, mask, checked)

        job = Job("kernel", case, "random", timing, run_id)
        return joined(job.measure(sparsity, entrants(sparsity)) for sparsity in sparsities)


@torch.no_grad()
def methods_sweep(
    inputs: str,
    attention: tuple[Tensor, Tensor, Tensor, LayerContext],
    methods: Iterable[tuple[str, Method]],
    timing: Timing,
    run_id: str,
    block: int = 64,
) -> Rows:
    """Whole methods on one layer's attention: (q, k, v, Layer) as `capture` or `random_attention` give it.

    inputs: what these tensors are, for the rows. methods: (name, method) pairs. Each sparsity among them is
    a cell with the dense methods in it; methods that take no sparsity share a cell. block: of methods without one.
    Stages: plan, attend, total (timed together, not summed), and score and select where defined. A dense method
    has attend alone: it plans nothing, so that its attend is its total.
    """
    q, k, v, seen = attention
    case = problem_of(q, k, block)

    def entrants(group: Mapping[str, Method]) -> Iterable[Entry]:
        for name, method in group.items():

            def prepare(method: Method = method) -> Prepared:
                if method.sparsity is not None and hasattr(method, "settled"):
                    method = method.settled(q, k, seen)  # looking for the threshold is no part of the method
                error = check_method(method, q, k, v, seen)
                plan = method.plan(q, k, seen)
                stages = method_stages(method, q, k, v, seen, plan)
                return Prepared(
                    stages,
                    next(reversed(stages)),  # total, or the attend that is all of a dense method
                    realised_sparsity(plan),
                    flops(plan, case),
                    *error,
                    dense=plan is None,
                )

            yield _method_entrant(name, method, case, prepare)

    job = Job("methods", case, inputs, timing, run_id)
    with exclusive(q.device.type):
        return joined(job.measure(sparsity, entrants(group)) for sparsity, group in by_sparsity(methods).items())


@torch.no_grad()
def training_kernel_sweep(
    case: AttentionProblem, timing: Timing, run_id: str, memory_limit_mib: float | None = None
) -> Rows:
    """Dense attention beside attention that also gives the pooled map, by kernel and naively (Figure 8).

    The naive form is refused when it would need more than memory_limit_mib or, on a CPU, half of what is
    free; a GPU without a limit may run out of memory, and the row says so. Stage: forward.
    """
    with exclusive(case.device):
        q, k, v = random_inputs(case, timing.seed)
        small = [x[:, :, : check_tokens(case.context)].contiguous() for x in (q, k, v)]
        dense, block = Dense(), case.block_q

        def entrant(name: str, implementation: str, refusal: str | None, call: Call, check: Callable) -> Entry:
            def prepare() -> Prepared:
                return Prepared({"forward": call}, "forward", 0.0, flops(None, case), *check())

            return Entry(name, implementation, "dense", None, refusal, prepare, case)

        def pooled(name: str, implementation: str, refusal: str | None, kernel: Callable) -> Entry:
            def check() -> tuple[float, float]:
                return check_pooled(kernel, *small, block)

            return entrant(name, implementation, refusal, lambda: kernel(q, k, v, block), check)

        implementation = pooled_api.implementation(case)
        refusal = pooled_api.refuses(case)
        entrants = [
            entrant(
                "dense",
                dense.implementation(case),
                dense.refuses(case),
                lambda: dense.attend(q, k, v, None),
                lambda: check_attend(dense, *small, None),
            ),
            pooled("pooled", implementation, refusal, pooled_api.pooled_attention),
            pooled(
                "naive",
                "torch-naive",
                _over_memory(case, memory_limit_mib),
                pooled_reference.naive_pooled_attention,
            ),
        ]
        return Job("training_kernel", case, "random", timing, run_id).measure(None, entrants)


@torch.no_grad()
def ttft_sweep(
    model: Any,
    inputs: str,
    tokens: Tensor,
    methods: Iterable[tuple[str, Method]],
    timing: Timing,
    run_id: str,
    block: int = 64,
    alike: bool = False,
) -> Rows:
    """Time to first token: the prefill of tokens [B, N] with its cache, logits of the last position only.

    inputs: what the model and its tokens are, for the rows. methods: as in methods_sweep; one cell holds them
    all where no two have the same name. alike: the layers are (random weights), so that a method which looks for
    the threshold of its sparsity does so in the first one for all; else in each. Planning happens inside the
    layers, so it is in the time; entering and leaving the model is not. Stages: ttft, and of it, summed over the
    layers of the same forward, plan and attend: what is left are the linear layers with their norms, rotations
    and the cache. One untimed forward a method compiles, counts what is skipped and gives the peak memory. MLPs
    work in chunks, for every method. `flops` stays empty: most of them are not attention's.
    """
    methods = list(methods)
    case = problem_of_model(model, tokens.shape[1], block, tokens.shape[0])

    def forward() -> Tensor:
        return model(tokens, use_cache=True, logits_to_keep=1).logits

    def entrants(group: Mapping[str, Method]) -> Iterable[Entry]:
        for name, method in group.items():

            def prepare(method: Method = method) -> Prepared:
                if method.sparsity is not None and hasattr(method, "settled"):
                    method = CachedThreshold(method, alike)
                if case.device == "cpu":  # there the record of allocations would hold those of compiling
                    with attention_method(model, method, count=False):
                        forward()
                with attention_method(model, method) as record:
                    peak = peak_mib(forward, case.device)
                parts = Parts(case.device)
                return Prepared(
                    {"ttft": forward},
                    "ttft",
                    record.mean_sparsity(),
                    inside=lambda: attention_method(model, method, count=False, part=parts.part),
                    parts=parts.take,
                    peak_mib=peak,
                    dense=not record.planned,
                )

            yield _method_entrant(name, method, case, prepare)

    job = Job("ttft", case, inputs, replace(timing, warmup=0), run_id)  # the untimed forward has warmed it up
    names = [name for name, _ in methods]
    cells = {None: dict(methods)} if len({*names}) == len(names) else by_sparsity(methods)
    with exclusive(case.device), chunked_mlps(model):
        return joined(job.measure(sparsity, entrants(group)) for sparsity, group in cells.items())


class CachedThreshold:
    """A method at the threshold that its sparsity comes to, looked for when a layer is seen first (untimed)."""

    def __init__(self, method: Method, alike: bool) -> None:
        self.method, self.alike, self.found = method, alike, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> Any:
        """The plan at this layer's threshold (the first layer's, if they are alike)."""
        place = 0 if self.alike else layer.index
        if place not in self.found:
            self.found[place] = self.method.settled(q, k, layer)
        return self.found[place].plan(q, k, layer)


def by_sparsity(methods: Iterable[tuple[str, Method]]) -> dict[float | None, dict[str, Method]]:
    """The cells of (name, method) pairs: who runs at which sparsity, dense methods in all of them.

    The cell None holds the sparse methods that take no sparsity; dense alone, if there is nothing else. Dense
    methods that no speed-up is taken over (IN_EVERY_CELL) are in the first cell only. ValueError when two of a
    cell have the same name.
    """
    methods = list(methods)
    dense = [pair for pair in methods if _mask_kind(pair[1]) == "dense"]
    sparse = [pair for pair in methods if pair not in dense]
    asked = {method.sparsity for _, method in sparse}
    cells: dict[float | None, dict[str, Method]] = {}
    for sparsity in sorted(asked, key=lambda s: -1.0 if s is None else s) or [None]:
        beside = [pair for pair in dense if not cells or pair[1].name in IN_EVERY_CELL]
        group = beside + [(name, method) for name, method in sparse if method.sparsity == sparsity]
        cells[sparsity] = dict(group)
        if len(cells[sparsity]) < len(group):
            raise ValueError(f"two methods of one cell have the same name: {', '.join(name for name, _ in group)}")
    return cells


def _mask_kind(method: Method) -> str:
    return MASKS.get(method.name.partition("+")[0], "pattern")


def _method_entrant(name: str, method: Method, case: AttentionProblem, prepare: Callable[[], Prepared]) -> Entry:
    kind, block = _mask_kind(method), getattr(method, "block", case.block_q)
    case = replace(case, block_q=block, block_k=block)
    return Entry(
        name,
        method.implementation(case),
        kind,
        method.sparsity,
        method.refuses(case),
        prepare,
        case,
        getattr(method, "source", None),
        method.name.partition("+")[0] in DYNAMIC,
    )


def method_stages(
    method: Method, q: Tensor, k: Tensor, v: Tensor, layer: LayerContext, plan: Any
) -> dict[str, Call]:
    """The stages of a method on given inputs; `plan` is what `attend` alone is timed with."""
    stages: dict[str, Call] = {}
    if plan is None:
        return {"attend": lambda: method.attend(q, k, v, None)}
    if hasattr(method, "score"):
        scores = method.score(q, k, layer)
        stages["score"] = lambda: method.score(q, k, layer)
        stages["select"] = lambda: method.select(scores, q.shape[2])
    return stages | {
        "plan": lambda: method.plan(q, k, layer),
        "attend": lambda: method.attend(q, k, v, plan),
        "total": lambda: method.attend(q, k, v, method.plan(q, k, layer)),
    }


def flops(plan: Any, case: AttentionProblem) -> float:
    """Floating-point operations of the two matrix products over the causal blocks that `plan` keeps."""
    if hasattr(plan, "flops"):
        return float(plan.flops(case.head_dim))
    causal = int(causal_blocks(case.context, case.block_q, case.block_k).sum())
    dense = 4 * case.block_q * case.block_k * case.head_dim * causal * case.batch * case.q_heads
    return dense * (1.0 - realised_sparsity(plan))


def _over_memory(case: AttentionProblem, limit_mib: float | None) -> str | None:
    """Why the naive form, which holds whole maps, may not run here, or None."""
    limit_mib = torch.inf if limit_mib is None else limit_mib
    if case.device == "cpu":
        limit_mib = min(limit_mib, MEMORY_SHARE * available_mib())
    bytes_each = getattr(torch, case.dtype).itemsize
    need = NAIVE_MAPS * case.batch * case.q_heads * case.context**2 * bytes_each / 2**20
    if need <= limit_mib:
        return None
    return f"would need about {need:,.0f} MiB for whole attention maps, over the limit of {limit_mib:,.0f} MiB"
