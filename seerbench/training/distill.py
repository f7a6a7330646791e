"""Gate distillation, and joint fine-tuning of model and gates: the trainings that SeerAttention adds.

Distillation: the backbone is frozen and nothing flows back through it, since a gate needs only its own
layer's q and k. One dense forward streams them, layer by layer, past any number of gate sets, which
share the pools and the target; each set is trained as it would be alone (own loss, own clipping). What exists
at a time is one layer's q, k and target, the weights, and the gates with their optimizer: docs/checkpoints.md
says what that takes at 8B. Under torchrun the windows of a batch are shared out (sharded.py).

Joint fine-tuning: the layer's output comes from sparse attention under the gate's mask; the target from
a dense pass without gradient on the same q and k. Loss = language-model loss + gate loss. The mask is
not differentiable and the gate reads detached q and k, so neither loss reaches the other's weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from seerbench.core.problem import LayerContext
from seerbench.data.tokens import load_tokenizer, read_tokens
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.methods.gate import AttnGate, pool_blocks
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.gate_files import save_gates
from seerbench.methods.gate_losses import gate_loss, gate_target
from seerbench.models.hugging_face import attention_layers, for_each_layer
from seerbench.models.sources import load
from seerbench.training.batches import batches
from seerbench.training.checkpoint import digest_of, load_checkpoint, save_checkpoint
from seerbench.training.fsdp import all_reduce_mean, broadcast_from_rank0, full_tensor, rank_and_world_size, shard
from seerbench.training.jobs import DistillJob
from seerbench.training.optimizers import set_lr

UNTRAINED = "untrained"  # a set that keeps its initial weights: what training adds is the difference to it
TOKENS_AT_ONCE = 131072  # of a batch; its windows go through the model so many tokens at a time
CLIP = 1.0  # Hugging Face Trainer's default, which the authors' scripts leave as it is


def fresh_gates(model: nn.Module, configs: Mapping[str, GateConfig], seed: int) -> dict[str, nn.ModuleList]:
    """A gate for every attention layer of `model`, for each config; each set starts from the same seed."""
    sets = {}
    for name, config in configs.items():
        torch.manual_seed(seed)
        sets[name] = nn.ModuleList(
            AttnGate(config, model.config.num_attention_heads, model.config.num_key_value_heads, layer.head_dim)
            for layer in attention_layers(model)
        )
    return sets


def distill(job: DistillJob) -> list[dict]:
    """Train gate sets on a frozen model, write them to `job.out`, and return the training rows.

    A killed run continues from `<out>.checkpoint`, which stays until `drop_checkpoint`.
    Rows: one per step and set. Under `fsdp.processes` every process calls this and the first writes;
    ValueError where the batch does not split over them.
    """
    device, seed, block, out = job.device, job.seed, job.block, job.out
    rank, size = rank_and_world_size()
    if job.batch % size:
        raise ValueError(f"a batch of {job.batch} windows does not split over {size} processes")
    # Sharding moves it to the device layer by layer.
    model = load(
        job.model.weights, device if size == 1 else "cpu", job.dtype, job.model.revision, job.model.yarn
    ).requires_grad_(False)
    tokenizer = load_tokenizer(job.model.weights, job.model.revision)
    documents = read_tokens(job.tokens, "train")
    batch_of = batches(job, documents, tokenizer)
    sets = fresh_gates(model, job.sets, seed)
    trained = {name: gates.to(device) for name, gates in sets.items() if name != UNTRAINED}
    if size > 1:
        shard(model, [gate for gates in trained.values() for gate in gates], device)
    params = {f"{name}.{key}": p for name, gates in trained.items() for key, p in gates.named_parameters()}
    # The authors' settings: AdamW, no weight decay (their final value), cosine decay after a warm-up.
    optimizer = torch.optim.AdamW(params.values(), lr=job.learning_rate, weight_decay=0.0)
    amount = sum(map(len, documents.values()))
    digest = digest_of(job.identity(), amount)
    file = out.with_name(out.name + ".checkpoint") / "state.safetensors"
    steps, saved = job.steps, time.monotonic()
    done, rows = load_checkpoint(file, params, [optimizer], digest=digest)
    bar = tqdm(total=steps, initial=done, desc=f"distill {out.stem}", unit="step", mininterval=1, disable=rank > 0)
    for step in range(done, steps):
        windows = batch_of(step)[0]
        factor = cosine_at(step, steps, job.warmup)
        rate = set_lr([optimizer], factor)
        own = torch.from_numpy(windows[rank::size]).long().to(device)
        losses = _distill_step(model, own, trained, block)
        for gates in trained.values():
            nn.utils.clip_grad_norm_(gates.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, loss in losses.items():
            rows.append(
                {
                    "recipe": name,
                    "step": step,
                    "tokens": (step + 1) * windows.size,
                    "context": job.context,
                    "gate_loss": loss,
                    "learning_rate": rate,
                }
            )
        bar.update()
        if broadcast_from_rank0(time.monotonic() - saved > job.checkpoint_seconds):
            save_checkpoint(file, params, [optimizer], digest=digest, step=step + 1, rows=rows)
            saved = time.monotonic()
    bar.close()
    _write_gates(out, sets)
    save_checkpoint(file, params, [optimizer], digest=digest, step=steps, rows=rows)
    return rows


def _distill_step(
    model: nn.Module, windows: Tensor, sets: Mapping[str, nn.ModuleList], block: int
) -> dict[str, float]:
    """Accumulate every set's gradients on this process' windows [B, N] of a batch.

    Returns each set's loss, summed over layers and averaged over processes, as the gradients are.
    """
    total = {name: torch.zeros((), dtype=torch.float64, device=windows.device) for name in sets}

    def see(layer: LayerContext, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, _, pooled_map = pooled_attention(q, k, v, block)
        # Sets share their targets and pools, by what these depend on.
        targets: dict[int, Tensor] = {}
        pools: dict[tuple[bool, int], tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        for name, gates in sets.items():
            gate = gates[layer.index]
            rope, block_q = gate.config.rope, gate.config.query_block
            if (rope, block_q) not in pools:
                queries, keys = (layer.q_unrotated, layer.k_unrotated) if rope else (q, k)
                pools[rope, block_q] = pool_blocks(queries, block_q), pool_blocks(keys, block)
            if block_q not in targets:
                targets[block_q] = gate_target(pooled_map, block_q // block)
            with torch.enable_grad():
                scores = gate(*pools[rope, block_q], layer.rope)
                loss = gate_loss(scores, targets[block_q], gate.config.recipe)
                loss = share * loss  # losses are means over windows
                loss.backward()
            total[name] += loss.detach()  # no .item() here: 49 sets would make a GPU wait 49 times a layer
        return out

    at_once = max(1, TOKENS_AT_ONCE // windows.shape[1])
    for part in windows.split(at_once):
        share = len(part) / len(windows)
        for_each_layer(model, part, see)
    return dict(zip(total, all_reduce_mean(torch.stack(list(total.values()))).tolist(), strict=True))


def cosine_at(step: int, steps: int, warmup: int) -> float:
    """The learning rate's factor at a step: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _write_gates(out: Path, sets: Mapping[str, nn.ModuleList]) -> None:
    plain = {name: [_unsharded(gate) for gate in gates] for name, gates in sets.items()}
    if rank_and_world_size()[0]:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".tmp")
    save_gates(part, plain)
    part.replace(out)


def _unsharded(gate: AttnGate) -> AttnGate:
    """A copy on the CPU, in one piece."""
    copy = AttnGate(gate.config, gate.q_heads, gate.wk.shape[0], gate.head_dim)
    copy.load_state_dict({key: full_tensor(value).cpu() for key, value in gate.state_dict().items()})
    return copy
