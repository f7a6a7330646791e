"""The timing sweeps: which methods run in which cell, on which inputs, and the rows that come of it.

    kernel_sweep           random inputs, one random mask a cell for every kernel: speed against sparsity
    methods_sweep          q, k, v captured in a model: plan, attend and total of whole methods
    training_kernel_sweep  attention with the pooled map: latency and memory (Figure 8)
    ttft_sweep             time to first token of a whole model

Each call measures one context, holds the device's lock meanwhile, and returns the rows of the tables
`cells` and `samples` (results.py); it writes no file. timing.py does the timing itself.

A method that refuses, runs out of memory, or is wrong becomes a row that says so, and is not timed.
Wrong: further from the float64 oracle than attention.py's tolerance allows, in an untimed call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seerbench.attention import (
    BlockMask,
    BlockSparse,
    Case,
    Layer,
    Method,
    causal_blocks,
    error_and_budget,
    oracle,
    realised_sparsity,
)
from seerbench.baselines.dense import Dense
from seerbench.baselines.random_blocks import RandomBlocks
from seerbench.kernels import pooled_attention
from seerbench.models import Refused, attention_layers, using, visit
from seerbench.results import cpu_name, source_digest
from seerbench.timing import Call, Contender, Timing, available_mib, claim, peak_mib, sample, timer_for

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
# The oracle holds several float64 maps; past this context a check runs on fewer tokens, odd in blocks.
CHECK_WHOLE, CHECK_TOKENS = 1024, 1000
# Maps of [B, Hq, N, N] that naive_pooled_attention holds at its peak; measured 4.1, its test pins it.
NAIVE_MAPS = 4.25
# Share of the free main memory that one call may take: other processes live here too.
MEMORY_SHARE = 0.5
DENSE = ("dense", "fa2", "cudnn", "flash-attn", "flex")
MASKS = dict.fromkeys(DENSE, "dense") | {"seer": "gate", "random": "random"}  # by method; all others: "pattern"


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


@dataclass(frozen=True)
class Entrant:
    """One method in one cell, before anything of it has run."""

    name: str
    implementation: str
    mask: str
    requested: float | None
    refusal: str | None
    prepare: Callable[[], Ready]


@dataclass(frozen=True)
class Job:
    """What the cells of one sweep at one context share."""

    sweep: str
    case: Case
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

    def measure_all(self, cells: Mapping[float | None, Iterable[Entrant]]) -> Rows:
        """A cell a sparsity; entrants may be a generator, so that one cell's masks live at a time."""
        parts = [self.measure(sparsity, entrants) for sparsity, entrants in cells.items()]
        return Rows([row for part in parts for row in part.cells], [row for part in parts for row in part.samples])

    def _row(self, cell: str, entrant: Entrant) -> dict[str, Any]:
        device = cpu_name() if self.case.device == "cpu" else torch.cuda.get_device_name()
        return {
            "run_id": self.run_id,
            "sweep": self.sweep,
            "cell": cell,
            "method": entrant.name,
            "implementation": entrant.implementation,
            **asdict(replace(self.case, device=device)),
            "inputs": self.inputs,
            "mask": entrant.mask,
            "sparsity_requested": entrant.requested,
            "seed": self.timing.seed,
            "source_digest": source_digest(),
        }


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
        }
        if ready.error is not None and not ready.error <= ready.budget:  # so that NaN is wrong too
            reason = (
                f"misses the float64 oracle by {ready.error:.3g}, more than rounding explains ({ready.budget:.3g})"
            )
            return known | {"status": "failed", "reason": reason}, None
        with ready.inside():
            for call in ready.stages.values():  # compiles, so that the memory of compiling is not counted
                call()
        with ready.inside():  # entered anew: what a first forward left in the model would be freed in the second
            known["peak_mib"] = peak_mib(ready.stages[ready.whole], device)
    except Refused as refusal:
        return {"status": "refused", "reason": str(refusal)}, None
    except OUT_OF_MEMORY as error:
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        return {"status": "out_of_memory", "reason": reason}, None
    return known | {"status": "measured", "reason": None}, Contender(ready.stages, ready.inside)


@torch.no_grad()
def kernel_sweep(
    case: Case,
    sparsities: Iterable[float],
    timing: Timing,
    run_id: str,
    kernels: Mapping[str, Any] | None = None,
) -> Rows:
    """Kernels on random inputs: in each cell one random per-head mask, diagonal kept, the same for all.

    kernels: sparse kernels by name, objects with `implementation`, `refuses` and `attend` as in
    attention.Method; ours, as "block_sparse", unless given. "dense" is in every cell. Stage: attend.
    """
    kernels = {"dense": Dense(), **(kernels or {"block_sparse": BlockSparse()})}
    with claim(case.device):
        q, k, v = random_inputs(case, timing.seed)

        def entrants(sparsity: float) -> Iterable[Entrant]:
            mask = random_mask(q, k, sparsity, case, timing.seed)
            small = [x[:, :, : check_tokens(case.context)].contiguous() for x in (q, k, v)]
            # On the few blocks of a check, 90% would leave the diagonal alone: keep half of them.
            checked = mask if case.context <= CHECK_WHOLE else random_mask(*small[:2], 0.5, case, timing.seed)
            for name, kernel in kernels.items():
                plan, check_plan = (None, None) if name == "dense" else (mask, checked)

                def prepare(kernel: Any = kernel, plan: Any = plan, check_plan: Any = check_plan) -> Ready:
                    return Ready(
                        {"attend": lambda: kernel.attend(q, k, v, plan)},
                        "attend",
                        realised_sparsity(plan),
                        flops(plan, case),
                        *check_attend(kernel, *small, check_plan),
                    )

                kind, requested = ("dense", None) if name == "dense" else ("random", sparsity)
                implementation = kernel.implementation(case.device)
                yield Entrant(name, implementation, kind, requested, kernel.refuses(case), prepare)

        job = Job("kernel", case, "random", timing, run_id)
        return job.measure_all({sparsity: entrants(sparsity) for sparsity in sparsities})


@torch.no_grad()
def methods_sweep(
    model: Any,
    model_name: str,
    tokens: Tensor,
    methods: Iterable[tuple[str, Method]],
    timing: Timing,
    run_id: str,
    layer: int | None = None,
    block: int = 64,
) -> Rows:
    """Whole methods on the q, k, v of one layer of `model` (the middle one) reading tokens [B, N].

    methods: (name, method) pairs. Each sparsity among them is a cell; a method without one, such as
    dense, runs in every cell.
    Stages: plan, attend, total (timed together, not summed), and score and select where defined.
    """
    with claim(next(model.parameters()).device.type):
        q, k, v, seen = capture(model, tokens, layer)
        case = case_of(q, k, block)

        def entrants(group: Mapping[str, Method]) -> Iterable[Entrant]:
            for name, method in group.items():

                def prepare(method: Method = method) -> Ready:
                    error = check_method(method, q, k, v, seen)
                    plan = method.plan(q, k, seen)
                    return Ready(
                        method_stages(method, q, k, v, seen, plan),
                        "total",
                        realised_sparsity(plan),
                        flops(plan, case),
                        *error,
                    )

                yield _method_entrant(name, method, case, prepare)

        job = Job("methods", case, f"captured:{model_name}", timing, run_id)
        return job.measure_all({sparsity: entrants(group) for sparsity, group in by_sparsity(methods).items()})


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

            return Entrant(name, implementation, "dense", None, refusal, prepare)

        def pooled(name: str, implementation: str, refusal: str | None, kernel: Callable) -> Entrant:
            def check() -> tuple[float, float]:
                return check_pooled(kernel, *small, block)

            return entrant(name, implementation, refusal, lambda: kernel(q, k, v, block), check)

        implementation, refusal = pooled_attention.implementation(case.device), pooled_attention.refuses(case)
        entrants = [
            entrant(
                "dense",
                dense.implementation(case.device),
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
    model_name: str,
    tokens: Tensor,
    methods: Iterable[tuple[str, Method]],
    timing: Timing,
    run_id: str,
    block: int = 64,
) -> Rows:
    """Time to first token: the prefill of tokens [B, N] with its cache, logits of the last position only.

    methods: as in methods_sweep. Planning happens inside the layers, so it is in the time; entering and
    leaving the model is not. Stage: ttft. `flops` stays empty: most of them are not attention's.
    """
    first = attention_layers(model)[0]
    weight, batch, context = next(model.parameters()), *tokens.shape
    q_heads = model.config.num_attention_heads
    case = Case(
        weight.device.type,
        str(weight.dtype).removeprefix("torch."),
        batch,
        q_heads,
        q_heads // first.num_key_value_groups,
        first.head_dim,
        context,
        block,
        block,
    )

    def forward() -> Tensor:
        return model(tokens, use_cache=True, logits_to_keep=1).logits

    def entrants(group: Mapping[str, Method]) -> Iterable[Entrant]:
        for name, method in group.items():

            def prepare(method: Method = method) -> Ready:
                with using(model, method) as record:
                    forward()
                return Ready(
                    {"ttft": forward},
                    "ttft",
                    record.mean_sparsity(),
                    inside=lambda: using(model, method, keep_plans=False),
                )

            yield _method_entrant(name, method, case, prepare)

    job = Job("ttft", case, f"captured:{model_name}", timing, run_id)
    with claim(case.device):
        return job.measure_all({sparsity: entrants(group) for sparsity, group in by_sparsity(methods).items()})


def by_sparsity(methods: Iterable[tuple[str, Method]]) -> dict[float | None, dict[str, Method]]:
    """The cells of (name, method) pairs: who runs at which sparsity; methods without one run in all.

    One cell, None, if no method has a sparsity. ValueError when two of a cell have the same name.
    """
    methods = list(methods)
    sparsities = sorted({method.sparsity for _, method in methods if method.sparsity is not None}) or [None]
    cells: dict[float | None, dict[str, Method]] = {}
    for sparsity in sparsities:
        group = [(name, method) for name, method in methods if method.sparsity in (None, sparsity)]
        cells[sparsity] = dict(group)
        if len(cells[sparsity]) < len(group):
            raise ValueError(f"two methods of one cell have the same name: {', '.join(name for name, _ in group)}")
    return cells


def _method_entrant(name: str, method: Method, case: Case, prepare: Callable[[], Ready]) -> Entrant:
    kind = MASKS.get(method.name, "pattern")
    return Entrant(name, method.implementation(case.device), kind, method.sparsity, method.refuses(case), prepare)


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


def random_model(config: Mapping[str, Any], device: str, dtype: str, seed: int = 0) -> Any:
    """A model of a transformers config (with its `model_type`) and random weights, for time to first token.

    The caller says so in the model's name: "Llama-3.1-8B geometry, random weights".
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):  # 8B weights are drawn where they are used
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    return model.eval()


# What is timed, what it costs, whether it is right


def method_stages(method: Method, q: Tensor, k: Tensor, v: Tensor, layer: Layer, plan: Any) -> dict[str, Call]:
    """The stages of a method on given inputs; `plan` is what `attend` alone is timed with."""
    stages: dict[str, Call] = {}
    if hasattr(method, "score"):
        scores = method.score(q, k, layer)
        stages["score"] = lambda: method.score(q, k, layer)
        stages["select"] = lambda: method.select(scores, q.shape[2])
    return stages | {
        "plan": lambda: method.plan(q, k, layer),
        "attend": lambda: method.attend(q, k, v, plan),
        "total": lambda: method.attend(q, k, v, method.plan(q, k, layer)),
    }


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
    return error_and_budget(method.attend(q, k, v, plan), exact, rounded)


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
