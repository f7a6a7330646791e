"""Time one step of decoding in one layer: planning, attention, and both together, over batch sizes and sparsities.

The inputs are random, and so are the weights of the gate. A step's time depends on how many blocks it reads, and
not on which. A random key has one distribution whatever its rotation, so the keys that are drawn stand for those
before RoPE and for those after it.

The timed token is the first of a new block. It finishes no block, as all but one of the tokens of each block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seerbench.baselines.decode.by_name import BASELINES
from seerbench.baselines.decode.dense import DenseDecode
from seerbench.core.block_mask import block_count
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.rope import plain_rope
from seerbench.kernels.decode import api
from seerbench.kernels.decode.lists import CacheLists
from seerbench.measure.cells import CellTimer, Entry, Prepared, Rows, joined
from seerbench.measure.correctness import Check, check_decoding, check_tokens
from seerbench.measure.gpu_lock import exclusive
from seerbench.measure.inputs import RANDOM_INPUTS, random_cache
from seerbench.measure.sampler import Call, Timing
from seerbench.methods.decode_gate import DecodeGate
from seerbench.methods.decode_gate_config import DecodeGateConfig
from seerbench.methods.decode_protocol import DecodeMethod, NewToken
from seerbench.methods.seer_decode import SeerDecode

# New tokens that are compared with the reference. One has so few numbers that their rounding is a matter of chance.
CHECKED = 64


@torch.no_grad()
def decode_sweep(
    problem: AttentionProblem,
    batches: Sequence[int],
    sparsities: Sequence[float],
    names: Sequence[str],
    timing: Timing,
    run_id: str,
) -> Rows:
    """Time methods for decoding beside dense decoding, one cell per batch size and sparsity.

    Stages are plan, attend and total (one call that does both); dense decoding has attend alone. A plan takes in
    the new token, scores the blocks and makes the lists.

    Args:
        problem: gives everything but the batch; its context is the number of tokens before the new one.
        batches: numbers of sequences.
        sparsities: requested shares of the blocks to skip.
        names: methods beside the dense one, of names.DECODE_METHODS.
        timing: the number of rounds, and the seed of inputs and weights.
        run_id: the execution that the rows belong to.
    """
    with exclusive(problem.device):
        return joined(
            cell
            for batch in batches
            for cell in _cells(replace(problem, batch=batch, block_q=1), sparsities, names, timing, run_id)
        )


def _cells(
    problem: AttentionProblem, sparsities: Sequence[float], names: Sequence[str], timing: Timing, run_id: str
) -> Iterator[Rows]:
    """Yield the rows of the cells of one batch size."""
    q, k, v = random_cache(problem, timing.seed)
    timer = CellTimer("decode", problem, RANDOM_INPUTS, timing, run_id, part=f"-b{problem.batch}")
    for sparsity in sparsities:
        entries = [_entry(name, sparsity, problem, timing.seed, q, k, v) for name in ("dense", *names)]
        yield timer.measure(sparsity, entries)


def budget_of(sparsity: float, context: int, block: int) -> int:
    """Return the budget in tokens with which a method skips a share of the blocks, at least one block.

    The first and the current block are read in addition; a method whose best blocks contain the first reads one
    block fewer.

    Args:
        sparsity: requested share of the blocks to skip.
        context: tokens before the new one.
        block: tokens per block.
    """
    # Rounded, since 0.1 * 10 must not become 2 blocks.
    read = math.ceil(round((1 - sparsity) * block_count(context + 1, block), 9))
    return max(1, read - 2) * block


def _entry(
    name: str, sparsity: float, problem: AttentionProblem, seed: int, q: Tensor, k: Tensor, v: Tensor
) -> Entry:
    """Return the entry of a method; q [B, Hq, 1, D] is the new token's, which k and v [B, Hk, N + 1, D] contain."""
    dense = name == "dense"
    on_gpu = problem.device == "cuda"
    group = problem.q_heads // problem.kv_heads
    refusal = None
    if on_gpu and not dense:
        refusal = api.refuses(q.dtype, problem.head_dim, group, problem.block_k)

    def prepare() -> Prepared:
        tokens = check_tokens(k.shape[2])
        check = _check(_method(name, sparsity, problem, tokens - 1, seed), q, k[:, :, :tokens], v[:, :, :tokens])
        method = _method(name, sparsity, problem, problem.context, seed)
        state, plan = _step(method, q, k)
        planned = plan()
        skipped = 1.0 - float(planned.density())
        stages: dict[str, Call] = {"attend": lambda: method.attend(q, k, v, planned)}
        if not dense:
            stages |= {"plan": plan, "total": lambda: method.attend(q, k, v, plan())}
        return Prepared(
            stages,
            next(reversed(stages)),
            skipped,
            4.0 * q.numel() * k.shape[2] * (1.0 - skipped),
            check,
            dense=dense,
            kept_mib=state.kept_bytes() / 2**20,
        )

    return Entry(
        name,
        "sdpa" if dense else "triton-split-kv" if on_gpu else "torch",
        "dense" if dense else "gate" if name == "seer-r" else "pattern",
        None if dense else sparsity,
        refusal,
        prepare,
        problem,
        "random weights" if name == "seer-r" else None,
        dynamic=name not in ("dense", "streaming"),
    )


def _method(name: str, sparsity: float, problem: AttentionProblem, context: int, seed: int) -> DecodeMethod[Any]:
    """Return a method at the budget that the sparsity gives at a context."""
    if name == "dense":
        return DenseDecode()
    block, budget = problem.block_k, budget_of(sparsity, context, problem.block_k)
    if name == "seer-r":
        torch.manual_seed(seed)
        gate = DecodeGate(DecodeGateConfig(block=block), problem.q_heads, problem.kv_heads, problem.head_dim)
        return SeerDecode([gate.to(problem.device, getattr(torch, problem.dtype))], budget)
    return BASELINES[name](budget, block)


def _step(method: DecodeMethod[Any], q: Tensor, k: Tensor) -> tuple[Any, Callable[[], Any]]:
    """Start a method on all keys but the last; return its state, and what plans the last token, time and again."""
    prompt = k[:, :, :-1]
    layer = LayerContext(0, q, prompt, plain_rope(q.shape[3]))
    state = method.start(layer, prompt, [0] * len(k))
    token, before = NewToken(q, k, q, k[:, :, -1:]), state.lengths

    def plan() -> Any:
        state.lengths = before  # the same step once more
        method.append(token, state)
        return method.plan(token, state)

    return state, plan


def _check(method: DecodeMethod[Any], q: Tensor, k: Tensor, v: Tensor) -> Check:
    """Compare the attention of CHECKED new tokens with the reference over the tokens of their own plans."""
    of_batch = torch.arange(CHECKED, device=q.device) % len(q)
    generator = torch.Generator(q.device).manual_seed(0)
    q = torch.randn(CHECKED, *q.shape[1:], generator=generator, dtype=q.dtype, device=q.device)
    k, v = k[of_batch], v[of_batch]
    plan = _step(method, q, k)[1]()
    read = plan.to_tokens(k.shape[2]) if isinstance(plan, CacheLists) else None
    return check_decoding(method.attend(q, k, v, plan), q, k, v, read)
