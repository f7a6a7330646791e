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

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seerbench.attention import (
    BlockMask,
    Case,
    Layer,
    Method,
    Rope,
    block_count,
    causal_blocks,
    error_and_budget,
    oracle,
    realised_sparsity,
)
from seerbench.baselines.dense import Dense
from seerbench.baselines.random_blocks import RandomBlocks
from seerbench.gate import rotate, select_top_k
from seerbench.kernels import pooled_attention
from seerbench.models import Refused, attention_layers, chunked_mlps, using, visit
from seerbench.results import cpu_name
from seerbench.source_digest import source_digest
from seerbench.timing import Call, Contender, Parts, Timing, available_mib, claim, peak_mib, sample, timer_for

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
# The oracle holds several float64 maps; past this context a check runs on fewer tokens, odd in blocks.
CHECK_WHOLE, CHECK_TOKENS = 1024, 1000
# Maps of [B, Hq, N, N] that naive_pooled_attention holds at its peak; measured 4.1, its test pins it.
NAIVE_MAPS = 4.25
# Share of the free main memory that one call may take: other processes live here too.
MEMORY_SHARE = 0.5
DENSE = ("dense", "fa2", "cudnn", "fa4", "flash-attn", "flex")
# The dense methods of every cell: a speed-up is taken over the reference or the fastest. Others are timed once.
IN_EVERY_CELL = ("dense", "fa2", "cudnn", "fa4")
MASKS = dict.fromkeys(DENSE, "dense") | {"seer": "gate", "random": "random"}  # by method; all others: "pattern"
# Methods that choose by what q and k hold: on random ones their choice and their sparsity mean nothing.
DYNAMIC = (
    *("minference", "minference-aligned", "minference-upstream"),
    *("flexprefill", "xattention", "flashprefill", "oracle"),
)
MEANINGLESS = "random: a dynamic method's choice and sparsity mean nothing on them"


class Rows(NamedTuple):
    """Rows of the tables `cells` and `samples`."""

    cells: list[dict[str, Any]]
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class Ready:
    """A method that has run once: what is timed, and what is already known of it."""

    stages: dict[str, Call]
    whole: str  # the stage whose memory is the method's
    sparsity: float  # realised
    flops: float | None = None
    error: float | None = None
    budget: float | None = None
    inside: Callable[[], AbstractContextManager] = nullcontext
    parts: Callable[[], Mapping[str, float]] = dict  # see timing.Contender
    peak_mib: float | None = None  # where preparing was the untimed call that the others get after it
    dense: bool = False  # planned to skip nothing, whatever its name


@dataclass(frozen=True)
class Entrant:
    """One method in one cell, before anything of it has run."""

    name: str
    implementation: str
    mask: str
    requested: float | None
    refusal: str | None
    prepare: Callable[[], Ready]
    case: Case  # with the entrant's own blocks
    gate: str | None = None  # the configuration or plan file that decides its choice
    dynamic: bool = False


@dataclass(frozen=True)
class Job:
    """What the cells of one sweep at one context share."""

    sweep: str
    case: Case  # of any entrant: their blocks may differ
    inputs: str
    timing: Timing
    run_id: str

    def measure(self, sparsity: float | None, entrants: Iterable[Entrant]) -> Rows:
        """One cell: prepare and check each entrant, then time all that stand, interleaved."""
        cell = f"{self.sweep}-{self.case.context}" + ("" if sparsity is None else f"-{sparsity:.2f}")
        rows, contenders = [], {}
        for entrant in entrants:
            outcome, contender = _admit(entrant, self.case.device)
            rows.append(self._row(cell, entrant) | outcome)
            if contender:
                contenders[entrant.name] = contender
        samples = sample(contenders, self.timing, timer_for(self.case.device))
        return Rows(rows, [{"run_id": self.run_id, "cell": cell, **asdict(one)} for one in samples])

    def _row(self, cell: str, entrant: Entrant) -> dict[str, Any]:
        device = cpu_name() if self.case.device == "cpu" else torch.cuda.get_device_name()
        return {
            "run_id": self.run_id,
            "sweep": self.sweep,
            "cell": cell,
            "method": entrant.name,
            "implementation": entrant.implementation,
            **asdict(replace(entrant.case, device=device)),
            "inputs": MEANINGLESS if self.inputs == "random" and entrant.dynamic else self.inputs,
            "mask": entrant.mask,
            "gate": entrant.gate,
            "sparsity_requested": entrant.requested,
            "seed": self.timing.seed,
            "source_digest": source_digest(),
        }


def joined(parts: Iterable[Rows]) -> Rows:
    """The rows of several cells."""
    parts = list(parts)
    return Rows([row for part in parts for row in part.cells], [row for part in parts for row in part.samples])


def _admit(entrant: Entrant, device: str) -> tuple[dict[str, Any], Contender | None]:
    """Run the untimed calls of one entrant -> what its row says of them, and what to time, if anything."""
    if entrant.refusal:
        return {"status": "refused", "reason": entrant.refusal}, None
    try:
        ready = entrant.prepare()
        known = {
            "sparsity_realised": ready.sparsity,
            "error_vs_oracle": ready.error,
            "error_budget": ready.budget,
            "flops": ready.flops,
            **({"mask": "dense"} if ready.dense else {}),
        }
        if ready.error is not None and not ready.error <= ready.budget:  # so that NaN is wrong too
            reason = (
                f"misses the float64 oracle by {ready.error:.3g}, more than rounding explains ({ready.budget:.3g})"
            )
            return known | {"status": "failed", "reason": reason}, None
        known["peak_mib"] = ready.peak_mib
        if ready.peak_mib is None:
            with ready.inside():
                for call in ready.stages.values():  # compiles, so that the memory of compiling is not counted
                    call()
                known["peak_mib"] = peak_mib(ready.stages[ready.whole], device)
    except Refused as refusal:
        return {"status": "refused", "reason": str(refusal)}, None
    except OUT_OF_MEMORY as error:
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        return {"status": "out_of_memory", "reason": reason}, None
    return known | {"status": "measured", "reason": None}, Contender(ready.stages, ready.inside, ready.parts)


@torch.no_grad()
def kernel_sweep(
    case: Case,
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
    with claim(case.device):
        q, k, v = random_inputs(case, timing.seed)
        small = [x[:, :, : check_tokens(case.context)].contiguous() for x in (q, k, v)]

        def entrant(
            name: str,
            kernel: Any,
            case: Case,
            kind: str = "dense",
            requested: float | None = None,
            mask: BlockMask | None = None,
            checked: BlockMask | None = None,
        ) -> Entrant:
            def prepare() -> Ready:
                plan = laid_out(kernel, mask)
                return Ready(
                    {"attend": lambda: kernel.attend(q, k, v, plan)},
                    "attend",
                    realised_sparsity(mask),
                    flops(mask, case),
                    *check_attend(kernel, *small, checked),
                )

            implementation = kernel.implementation(case)
            return Entrant(name, implementation, kind, requested, kernel.refuses(case), prepare, case)

        def entrants(sparsity: float) -> Iterable[Entrant]:
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
    attention: tuple[Tensor, Tensor, Tensor, Layer],
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
    case = case_of(q, k, block)

    def entrants(group: Mapping[str, Method]) -> Iterable[Entrant]:
        for name, method in group.items():

            def prepare(method: Method = method) -> Ready:
                if method.sparsity is not None and hasattr(method, "settled"):
                    method = method.settled(q, k, seen)  # looking for the threshold is no part of the method
                error = check_method(method, q, k, v, seen)
                plan = method.plan(q, k, seen)
                stages = method_stages(method, q, k, v, seen, plan)
                return Ready(
                    stages,
                    next(reversed(stages)),  # total, or the attend that is all of a dense method
                    realised_sparsity(plan),
                    flops(plan, case),
                    *error,
                    dense=plan is None,
                )

            yield _method_entrant(name, method, case, prepare)

    job = Job("methods", case, inputs, timing, run_id)
    with claim(q.device.type):
        return joined(job.measure(sparsity, entrants(group)) for sparsity, group in by_sparsity(methods).items())


@torch.no_grad()
def training_kernel_sweep(case: Case, timing: Timing, run_id: str, memory_limit_mib: float | None = None) -> Rows:
    """Dense attention beside attention that also gives the pooled map, by kernel and naively (Figure 8).

    The naive form is refused when it would need more than memory_limit_mib or, on a CPU, half of what is
    free; a GPU without a limit may run out of memory, and the row says so. Stage: forward.
    """
    with claim(case.device):
        q, k, v = random_inputs(case, timing.seed)
        small = [x[:, :, : check_tokens(case.context)].contiguous() for x in (q, k, v)]
        dense, block = Dense(), case.block_q

        def entrant(name: str, implementation: str, refusal: str | None, call: Call, check: Callable) -> Entrant:
            def prepare() -> Ready:
                return Ready({"forward": call}, "forward", 0.0, flops(None, case), *check())

            return Entrant(name, implementation, "dense", None, refusal, prepare, case)

        def pooled(name: str, implementation: str, refusal: str | None, kernel: Callable) -> Entrant:
            def check() -> tuple[float, float]:
                return check_pooled(kernel, *small, block)

            return entrant(name, implementation, refusal, lambda: kernel(q, k, v, block), check)

        implementation = pooled_attention.implementation(case)
        refusal = pooled_attention.refuses(case)
        entrants = [
            entrant(
                "dense",
                dense.implementation(case),
                dense.refuses(case),
                lambda: dense.attend(q, k, v, None),
                lambda: check_attend(dense, *small, None),
            ),
            pooled("pooled", implementation, refusal, pooled_attention.pooled_attention),
            pooled(
                "naive",
                "torch-naive",
                _over_memory(case, memory_limit_mib),
                pooled_attention.naive_pooled_attention,
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
    case = case_of_model(model, tokens.shape[1], block, tokens.shape[0])

    def forward() -> Tensor:
        return model(tokens, use_cache=True, logits_to_keep=1).logits

    def entrants(group: Mapping[str, Method]) -> Iterable[Entrant]:
        for name, method in group.items():

            def prepare(method: Method = method) -> Ready:
                if method.sparsity is not None and hasattr(method, "settled"):
                    method = Settled(method, alike)
                if case.device == "cpu":  # there the record of allocations would hold those of compiling
                    with using(model, method, count=False):
                        forward()
                with using(model, method) as record:
                    peak = peak_mib(forward, case.device)
                parts = Parts(case.device)
                return Ready(
                    {"ttft": forward},
                    "ttft",
                    record.mean_sparsity(),
                    inside=lambda: using(model, method, count=False, part=parts.part),
                    parts=parts.take,
                    peak_mib=peak,
                    dense=not record.planned,
                )

            yield _method_entrant(name, method, case, prepare)

    job = Job("ttft", case, inputs, replace(timing, warmup=0), run_id)  # the untimed forward has warmed it up
    names = [name for name, _ in methods]
    cells = {None: dict(methods)} if len({*names}) == len(names) else by_sparsity(methods)
    with claim(case.device), chunked_mlps(model):
        return joined(job.measure(sparsity, entrants(group)) for sparsity, group in cells.items())


class Settled:
    """A method at the threshold that its sparsity comes to, looked for when a layer is seen first (untimed)."""

    def __init__(self, method: Method, alike: bool) -> None:
        self.method, self.alike, self.found = method, alike, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def plan(self, q: Tensor, k: Tensor, layer: Layer) -> Any:
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


def _method_entrant(name: str, method: Method, case: Case, prepare: Callable[[], Ready]) -> Entrant:
    kind, block = _mask_kind(method), getattr(method, "block", case.block_q)
    case = replace(case, block_q=block, block_k=block)
    return Entrant(
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


# Inputs


def random_inputs(case: Case, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normal q [B, Hq, N, D], k and v [B, Hk, N, D] on the case's device."""
    generator = torch.Generator(case.device).manual_seed(seed)

    def draw(heads: int) -> Tensor:
        shape = (case.batch, heads, case.context, case.head_dim)
        return torch.randn(shape, generator=generator, device=case.device, dtype=getattr(torch, case.dtype))

    return draw(case.q_heads), draw(case.kv_heads), draw(case.kv_heads)


def random_mask(q: Tensor, k: Tensor, sparsity: float, case: Case, seed: int) -> BlockMask:
    """Random square blocks for each head, the diagonal kept: the mask of the kernel timings."""
    if case.block_q != case.block_k:
        raise ValueError(f"random masks have square blocks, not {case.block_q} x {case.block_k}")
    return RandomBlocks(sparsity, case.block_q, seed).plan(q, k, Layer())


def gate_shaped_mask(q: Tensor, k: Tensor, sparsity: float, case: Case, seed: int) -> BlockMask:
    """Top-k blocks of smooth random scores: columns that many rows want, a local band, some noise.

    Neighbouring rows share most of their blocks then, as under a gate and unlike under a random mask.
    """
    n = block_count(case.context, case.block_k)
    generator = torch.Generator(q.device).manual_seed(seed)
    place = torch.arange(n, device=q.device)
    wanted = 2 * torch.randn(case.batch, case.q_heads, 1, n, generator=generator, device=q.device)
    near = -(place[:, None] - place).abs().add(1).log()
    noise = torch.randn(case.batch, case.q_heads, n, n, generator=generator, device=q.device)
    scores = (wanted + near + 0.5 * noise).masked_fill_(place > place[:, None], -torch.inf)
    return select_top_k(scores, sparsity, case.context, case.block_k)


# Block-sparse kernels for a given mask, by the name that a preset and the rows have for them.
SPARSE_KERNELS = {
    "block_sparse": "seerbench.attention:BlockSparse",
    "fa4-sparse": "seerbench.baselines.flash4:FlashAttention4Sparse",
    "flex-sparse": "seerbench.kernels.flex_attention:Flex",
}


def sparse_kernel(name: str) -> Any:
    """One of SPARSE_KERNELS; its module is imported only now."""
    module, _, kind = SPARSE_KERNELS[name].partition(":")
    return getattr(import_module(module), kind)()


# By the name that goes into the rows' `mask`.
MASK_KINDS = {"random": random_mask, "gate-shaped": gate_shaped_mask}


def plain_rope(head_dim: int, theta: float = 500_000.0) -> Rope:
    """Llama 3's rotary embedding without its length scaling: int positions [n] -> cos, sin [n, D].

    Like a model's (models.rope_of) it makes the tables of one tensor of positions once.
    """

    @functools.lru_cache(maxsize=1)
    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        powers = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
        angles = positions[:, None] * theta**-powers
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()

    return rope


def random_attention(case: Case, seed: int) -> tuple[Tensor, Tensor, Tensor, Layer]:
    """(q, k, v, Layer) of one layer without a model: normal q, k, v, the first two also rotated."""
    q, k, v = random_inputs(case, seed)
    rope = plain_rope(case.head_dim)
    cos, sin = rope(torch.arange(case.context, device=case.device))
    layer = Layer(q_unrotated=q, k_unrotated=k, rope=rope)
    return rotate(q, cos, sin), rotate(k, cos, sin), v, layer


def capture(model: Any, tokens: Tensor, layer: int | None = None) -> tuple[Tensor, Tensor, Tensor, Layer]:
    """(q, k, v, Layer) of one layer of a dense forward over tokens [B, N]; the middle layer by default."""
    wanted = len(attention_layers(model)) // 2 if layer is None else layer
    found = []

    def see(at: Layer, q: Tensor, k: Tensor, v: Tensor) -> None:
        if at.index == wanted:
            found.append((q, k, v, at))

    visit(model, tokens, see)
    if not found:
        raise ValueError(f"the model has no layer {wanted}; it has {len(attention_layers(model))}")
    return found[0]


def case_of(q: Tensor, k: Tensor, block: int) -> Case:
    """The Case of tensors q [B, Hq, N, D] and k [B, Hk, N, D]."""
    batch, q_heads, context, head_dim = q.shape
    dtype = str(q.dtype).removeprefix("torch.")
    return Case(q.device.type, dtype, batch, q_heads, k.shape[1], head_dim, context, block, block)


def case_of_model(model: Any, context: int, block: int, batch: int = 1) -> Case:
    """The Case of one layer's attention in a model."""
    first, weight, q_heads = attention_layers(model)[0], next(model.parameters()), model.config.num_attention_heads
    heads = q_heads, q_heads // first.num_key_value_groups, first.head_dim
    dtype = str(weight.dtype).removeprefix("torch.")
    return Case(weight.device.type, dtype, batch, *heads, context, block, block)


# What is timed, what it costs, whether it is right


def method_stages(method: Method, q: Tensor, k: Tensor, v: Tensor, layer: Layer, plan: Any) -> dict[str, Call]:
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


def laid_out(kernel: Any, mask: BlockMask | None) -> Any:
    """The mask as the kernel takes it: through its `layout` if it has one. Part of a plan, so not of `attend`."""
    return kernel.layout(mask) if mask is not None and hasattr(kernel, "layout") else mask


def flops(plan: Any, case: Case) -> float:
    """Floating-point operations of the two matrix products over the causal blocks that `plan` keeps."""
    if hasattr(plan, "flops"):
        return float(plan.flops(case.head_dim))
    causal = int(causal_blocks(case.context, case.block_q, case.block_k).sum())
    dense = 4 * case.block_q * case.block_k * case.head_dim * causal * case.batch * case.q_heads
    return dense * (1.0 - realised_sparsity(plan))


def check_tokens(context: int) -> int:
    """Tokens on which a method is checked against the oracle before it is timed at `context`."""
    return context if context <= CHECK_WHOLE else CHECK_TOKENS


def check_attend(method: Any, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask | None) -> tuple[float, float]:
    """(error, budget) of `attend` under a given mask against the float64 oracle."""
    exact, rounded = oracle(q, k, v, plan)[0], oracle(q, k, v, plan, q.dtype)[0]
    return error_and_budget(method.attend(q, k, v, laid_out(method, plan)), exact, rounded)


def check_method(
    method: Method, q: Tensor, k: Tensor, v: Tensor, layer: Layer
) -> tuple[float | None, float | None]:
    """The same for a method's own mask on the first tokens; (None, None) for a plan without a token mask."""
    tokens = check_tokens(q.shape[2])
    q, k, v = (x[:, :, :tokens] for x in (q, k, v))
    if layer.q_unrotated is not None:
        first = {name: getattr(layer, name)[:, :, :tokens] for name in ("q_unrotated", "k_unrotated")}
        layer = replace(layer, **first)
    plan = method.plan(q, k, layer)
    if plan is not None and not hasattr(plan, "to_token_mask"):
        return None, None
    if hasattr(method, "exact"):  # computes something else than attention over the plan
        exact, rounded = (method.exact(q, k, v, plan, dtype) for dtype in (torch.float64, q.dtype))
        return error_and_budget(method.attend(q, k, v, plan), exact, rounded)
    return check_attend(method, q, k, v, plan)


def check_pooled(kernel: Callable, q: Tensor, k: Tensor, v: Tensor, block: int) -> tuple[float, float]:
    """(error, budget) of the output or the map of a pooled kernel, whichever uses more of its budget."""
    naive = pooled_attention.naive_pooled_attention
    exact, rounded, actual = naive(q, k, v, block, torch.float64), naive(q, k, v, block), kernel(q, k, v, block)
    pairs = [error_and_budget(actual[i], exact[i], rounded[i]) for i in (0, 2)]
    return max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else torch.inf)


def _over_memory(case: Case, limit_mib: float | None) -> str | None:
    """Why the naive form, which holds whole maps, may not run here, or None."""
    limit_mib = torch.inf if limit_mib is None else limit_mib
    if case.device == "cpu":
        limit_mib = min(limit_mib, MEMORY_SHARE * available_mib())
    bytes_each = getattr(torch, case.dtype).itemsize
    need = NAIVE_MAPS * case.batch * case.q_heads * case.context**2 * bytes_each / 2**20
    if need <= limit_mib:
        return None
    return f"would need about {need:,.0f} MiB for whole attention maps, over the limit of {limit_mib:,.0f} MiB"
