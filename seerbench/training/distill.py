"""Distill gates: train them on a frozen model to predict which blocks of its attention matter.

A gate needs only the q and k of its own layer, so nothing flows back through the model. One dense forward pass
shows them, layer by layer, to any number of gate sets. The sets share the pools and the target, and each is
trained as it would be by itself, with a loss and a clipping of its own. Memory holds q, k and target of one layer
at a time, the weights, and the gates with their optimizer; docs/checkpoints.md has its size for an 8B model. Under
torchrun the processes share the windows of a batch (fsdp.py). Gates for decoding (recipe r) are trained in the same
pass, on single queries.

The step `distill` calls `distill` with a resolved job. Source: arXiv:2410.13276; AdamW without weight decay and the
cosine schedule are the final settings of the authors' code (microsoft/SeerAttention).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seerbench.core.problem import LayerContext
from seerbench.data.tokens import load_tokenizer, read_tokens
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.methods.decode_gate import DecodeGate, decode_rows, decode_target
from seerbench.methods.decode_gate_config import RECIPE, DecodeGateConfig
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import UNPOOLED, GateConfig
from seerbench.methods.gate_losses import first_row, gate_loss, gate_target, row_loss, token_target
from seerbench.models.architectures import attention_layers
from seerbench.models.hugging_face import for_each_layer
from seerbench.models.self_check import check_model
from seerbench.models.sources import load
from seerbench.rows.gate_ref import UNTRAINED
from seerbench.training.batches import batches
from seerbench.training.checkpoint import digest_of, save_gate_sets, weights_digest
from seerbench.training.fsdp import all_reduce_mean, rank_and_world_size, require_even_split, shard
from seerbench.training.jobs import DistillJob
from seerbench.training.loop import Row, require_finite_loss, run_steps
from seerbench.training.optimizers import GATE_CLIP, cosine_at, set_lr, update_weights

# The windows of a batch pass through the model this many tokens at a time, which bounds the memory of a layer.
TOKENS_AT_ONCE = 131072
# A gate that scores single queries learns from a run of this many queries of each window, another one in each step.
# The target of a query needs its whole row of the attention map, so that of all queries would take most of the
# time; a run of them has the same loss in the mean over steps.
QUERIES_PER_STEP = 256
# Most bytes of the attention map that the target of single queries has in memory at one time.
MAP_AT_ONCE = {"cpu": 2**23, "cuda": 2**30}


def distill(job: DistillJob) -> list[Row]:
    """Train gate sets on a frozen model, write them to `job.out`, and return the training rows.

    A killed training continues from `<out>.checkpoint`, which stays until `drop_checkpoint`. Under `fsdp.processes`
    every process calls this, and the first one writes.

    Returns:
        One row per step and set: recipe (the set's name), step, tokens, context, gate_loss (summed over layers) and
        learning_rate.

    Raises:
        ConfigError: the batch does not split evenly over the processes.
        TrainingDiverged: the loss of a gate set is not finite.
    """
    device = job.device
    rank, size = rank_and_world_size()
    require_even_split(job.batch)
    # With several processes, sharding moves the model to the device layer by layer.
    load_device = device if size == 1 else "cpu"
    model = load(job.model.weights, load_device, job.dtype, job.model.revision, job.model.yarn)
    check_model(model)  # before it is sharded: the check runs the entire model
    model.requires_grad_(False)
    digest = weights_digest(model.parameters())
    documents = read_tokens(job.tokens, "train")
    batch_of = batches(job, documents, load_tokenizer(job.model.weights, job.model.revision))
    sets = fresh_gates(model, job.sets, job.seed)
    trained = {name: gates.to(device) for name, gates in sets.items() if name != UNTRAINED}
    if size > 1:
        shard(model, [gate for gates in trained.values() for gate in gates], device)
    params = {f"{name}.{key}": p for name, gates in trained.items() for key, p in gates.named_parameters()}
    optimizer = torch.optim.AdamW(params.values(), lr=job.learning_rate, weight_decay=0.0)

    def train_step(step: int, _rows: Sequence[Row]) -> list[Row]:
        windows = batch_of(step).tokens
        rate = set_lr([optimizer], cosine_at(step, job.steps, job.warmup))
        own_windows = torch.from_numpy(windows[rank::size]).long().to(device)
        place = float(np.random.default_rng([job.seed, step]).random())
        losses = accumulate_gradients(model, own_windows, trained, job.block, place)
        for name, loss in losses.items():
            require_finite_loss(loss, step, job, f"the loss of the gate set {name}")
        update_weights([optimizer], [(gates.parameters(), GATE_CLIP) for gates in trained.values()])
        return [
            {
                "recipe": name,
                "step": step,
                "tokens": (step + 1) * windows.size,
                "context": job.context,
                "gate_loss": loss,
                "learning_rate": rate,
            }
            for name, loss in losses.items()
        ]

    return run_steps(
        job,
        params,
        [optimizer],
        steps=job.steps,
        digest=digest_of(job.identity(), sum(map(len, documents.values())), digest),
        title=f"distill {job.out.stem}",
        train_step=train_step,
        save_result=lambda: save_gate_sets(job.out, sets),
    )


def fresh_gates(
    model: nn.Module, configs: Mapping[str, GateConfig | DecodeGateConfig], seed: int
) -> dict[str, nn.ModuleList]:
    """Return one gate per attention layer of `model` for each config. Each set starts from the same seed."""
    sets = {}
    for name, config in configs.items():
        torch.manual_seed(seed)
        make: Any = DecodeGate if isinstance(config, DecodeGateConfig) else AttnGate
        sets[name] = nn.ModuleList(
            make(config, model.config.num_attention_heads, model.config.num_key_value_heads, layer.head_dim)
            for layer in attention_layers(model)
        )
    return sets


def accumulate_gradients(
    model: nn.Module, windows: Tensor, sets: Mapping[str, nn.ModuleList], block: int, place: float = 0.0
) -> dict[str, float]:
    """Add the gradients of every gate set on the windows of a batch that belong to this process.

    Args:
        model: the frozen model.
        windows: int64 [B, N].
        sets: name -> one gate per layer.
        block: keys per block.
        place: which queries a gate that scores single queries learns from, 0 to 1 (`queries_of_step`).

    Returns:
        The loss of each set, summed over layers and averaged over windows and processes, as the gradients are.
    """
    totals = {name: torch.zeros((), dtype=torch.float64, device=windows.device) for name in sets}

    def see(layer: LayerContext, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, _, pooled_map = pooled_attention(q, k, v, block)
        # Gate sets share the pools and targets that depend on the same settings.
        targets: dict[int, Tensor] = {}
        pools: dict[tuple[bool, int], tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        for name, gates in sets.items():
            gate = gates[layer.index]
            if gate.config.recipe == RECIPE or gate.config.q_pool == UNPOOLED:
                totals[name] += learn_from_queries(gate, q, k, layer, share, place)
                continue
            rope, block_q = gate.config.rope, gate.config.query_block
            if (rope, block_q) not in pools:
                queries, keys = (layer.q_unrotated, layer.k_unrotated) if rope else (q, k)
                pools[rope, block_q] = pool_blocks(queries, block_q), pool_blocks(keys, block)
            if block_q not in targets:
                targets[block_q] = gate_target(pooled_map, block_q // block)
            with torch.enable_grad():
                scores = gate(*pools[rope, block_q], layer.rope)
                loss = gate_loss(scores, targets[block_q], gate.config.recipe)
                loss = share * loss  # gate_loss is a mean over windows, and these are a part of the batch
                loss.backward()
            totals[name] += loss.detach()  # .item() would make the GPU wait, 49 times per layer for 49 sets
        return out

    at_once = max(1, TOKENS_AT_ONCE // windows.shape[1])
    for part in windows.split(at_once):
        share = len(part) / len(windows)
        for_each_layer(model, part, see)
    means = all_reduce_mean(torch.stack(list(totals.values())))
    return dict(zip(totals, means.tolist(), strict=True))


def learn_from_queries(
    gate: nn.Module, q: Tensor, k: Tensor, layer: LayerContext, share: float, place: float
) -> Tensor:
    """Add the gradients of a gate that scores single queries, whose target has one row per query token.

    The loss is that of the queries of the step; part after part of them is in memory.

    Args:
        gate: a DecodeGate, or an AttnGate whose `q_pool` is UNPOOLED.
        q: queries [B, Hq, N, D] after RoPE.
        k: keys [B, Hk, N, D] after RoPE.
        layer: has the rotation, and q and k before RoPE.
        share: factor on the loss.
        place: which queries (`queries_of_step`).

    Returns:
        The loss, detached.
    """
    batch, heads, tokens, _ = q.shape
    decodes, block = gate.config.recipe == RECIPE, gate.config.block
    read: Any = layer.q_unrotated if decodes else q
    k_pools = pool_blocks(layer.k_unrotated if decodes or gate.config.rope else k, block)
    learned = queries_of_step(tokens, gate.config.recipe, place)
    at_once = max(1, MAP_AT_ONCE[q.device.type] // (4 * batch * heads * tokens))
    total = torch.zeros((), device=q.device)
    for first in range(learned.start, learned.stop, at_once):
        rows = slice(first, min(first + at_once, learned.stop))
        target = (decode_target if decodes else token_target)(q[:, :, rows], k, first, block)
        queries = read[:, :, rows] if decodes else {UNPOOLED: read[:, :, rows]}
        with torch.enable_grad():
            scores = gate(queries, k_pools, layer.rope, first)
            loss = share * target.shape[2] / len(learned) * row_loss(scores, target, gate.config.recipe)
            loss.backward()
        total += loss.detach()
    return total


def queries_of_step(tokens: int, recipe: str, place: float) -> range:
    """Return the queries that a gate that scores single queries learns from in one step.

    The rows that the recipe's loss reads are divided into runs of QUERIES_PER_STEP, of which the last may be
    shorter. If the runs are chosen by chance, each row has the same chance.

    Args:
        tokens: queries per window.
        recipe: of the gate's loss, "v1", "v2" or "r".
        place: from 0 to 1 without 1; chooses the run.
    """
    start = decode_rows(tokens).start if recipe == RECIPE else first_row(tokens, recipe)
    runs = range(start, tokens, QUERIES_PER_STEP)
    first = runs[int(place * len(runs))]
    return range(first, min(first + QUERIES_PER_STEP, tokens))
