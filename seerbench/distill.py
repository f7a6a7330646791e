"""Gate distillation, and joint fine-tuning of model and gates: the trainings that SeerAttention adds.

Distillation: the backbone is frozen and nothing flows back through it, since a gate needs only its own
layer's q and k. One dense forward streams them, layer by layer, past any number of gate sets, which
share the pools and the target; each set is trained as it would be alone (own loss, own clipping).

Joint fine-tuning: the layer's output comes from sparse attention under the gate's mask; the target from
a dense pass without gradient on the same q and k. Loss = language-model loss + gate loss. The mask is
not differentiable and the gate reads detached q and k, so neither loss reaches the other's weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM

from seerbench.attention import BlockMask, Case, Layer
from seerbench.corpus import load_tokenizer, packed, read_tokens
from seerbench.gate import (
    AttnGate,
    GateConfig,
    all_poolings,
    gate_loss,
    gate_scores,
    gate_target,
    load_gates,
    pool_blocks,
    save_gates,
    select_top_k,
)
from seerbench.kernels import block_sparse_attention
from seerbench.kernels.flex_attention import masked_attention
from seerbench.kernels.pooled_attention import pooled_attention
from seerbench.models import attention_layers, load, using, visit
from seerbench.tasks import TRAINING, pieces_of
from seerbench.train import (
    digest_of,
    load_checkpoint,
    lr_at,
    mixed_batch,
    optimizers,
    save_checkpoint,
    save_model,
    set_lr,
    token_losses,
)

UNTRAINED = "untrained"  # a set that keeps its initial weights: what training adds is the difference to it
CLIP = 1.0  # Hugging Face Trainer's default, which the authors' scripts leave as it is


def gate_sets(config: Mapping, block: int) -> dict[str, GateConfig]:
    """The gate sets that a config's `sets` asks for by name; `sets: all poolings` gives the 49."""
    if config["sets"] == "all poolings":
        return all_poolings(block=block)
    return {name: GateConfig(block=block, **options) for name, options in config["sets"].items()}


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


def distill(
    config: Mapping,
    model_folder: Path,
    tokens_parquet: Path,
    out: Path,
    *,
    block: int,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> list[dict]:
    """Train gate sets on a frozen model and write them to `out` (safetensors); returns the training rows.

    Args:
        config: sets (see `gate_sets`), context, batch (windows a step), mix (the text that the model itself
            was trained on, as in `train.pretrain`), steps, learning_rate, warmup, checkpoint_seconds.
        tokens_parquet: from `corpus.tokenise`; only its train split is read.
        block: tokens a block.

    A killed run continues from `<out>.checkpoint`, which stays until `train.drop_checkpoint`.
    Rows: one a step and set.
    """
    model = load(model_folder, device, dtype).requires_grad_(False)
    tokenizer = load_tokenizer(model_folder)
    stream = packed(read_tokens(tokens_parquet, "train"), tokenizer.eos_token_id)
    pieces = pieces_of(tokenizer)
    stage = {"context": config["context"], "batch_tokens": config["batch"] * config["context"]}
    sets = fresh_gates(model, gate_sets(config, block), seed)
    trained = {name: gates.to(device) for name, gates in sets.items() if name != UNTRAINED}
    params = {f"{name}.{key}": p for name, gates in trained.items() for key, p in gates.named_parameters()}
    # The authors' settings: AdamW, no weight decay (their final value), cosine decay after a warm-up.
    optimizer = torch.optim.AdamW(params.values(), lr=config["learning_rate"], weight_decay=0.0)
    digest = digest_of(config, stream.size, seed, block, str(model_folder))
    file = out.with_name(out.name + ".checkpoint") / "state.safetensors"
    steps, saved = config["steps"], time.monotonic()
    done, rows = load_checkpoint(file, params, [optimizer], digest=digest)
    bar = tqdm(total=steps, initial=done, desc=f"distill {out.stem}", unit="step", mininterval=1)
    for step in range(done, steps):
        rng = np.random.default_rng([seed, TRAINING, step])
        windows = mixed_batch(stream, pieces, stage, config["mix"], rng, len(tokenizer))[0]
        factor = cosine_at(step, steps, config["warmup"])
        rate = set_lr([optimizer], factor)
        losses = _distill_step(model, torch.from_numpy(windows).long().to(device), trained, block)
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
                    "context": config["context"],
                    "gate_loss": loss,
                    "learning_rate": rate,
                }
            )
        bar.update()
        if time.monotonic() - saved > config["checkpoint_seconds"]:
            save_checkpoint(file, params, [optimizer], digest=digest, step=step + 1, rows=rows)
            saved = time.monotonic()
    bar.close()
    _write_gates(out, sets)
    save_checkpoint(file, params, [optimizer], digest=digest, step=steps, rows=rows)
    return rows


def _distill_step(
    model: nn.Module, windows: Tensor, sets: Mapping[str, nn.ModuleList], block: int
) -> dict[str, float]:
    """Accumulate every set's gradients on one batch [B, N]; returns each set's loss, summed over layers."""
    total = {name: torch.zeros((), dtype=torch.float64, device=windows.device) for name in sets}

    def see(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> None:
        pooled_map = pooled_attention(q, k, v, block)[2]
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
                loss.backward()
            total[name] += loss.detach()  # no .item() here: 49 sets would make a GPU wait 49 times a layer

    visit(model, windows, see)
    return dict(zip(total, torch.stack(list(total.values())).tolist(), strict=True))


def cosine_at(step: int, steps: int, warmup: int) -> float:
    """The learning rate's factor at a step: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _write_gates(out: Path, sets: Mapping[str, nn.ModuleList]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".tmp")
    save_gates(part, {name: [gate.cpu() for gate in gates] for name, gates in sets.items()})
    part.replace(out)


# Joint fine-tuning


class _Joint:
    """SeerAttention with gradients: sparse forward, gate loss on the side."""

    name = "joint"

    def __init__(self, gates: nn.ModuleList, sparsity: float, block: int) -> None:
        self.gates, self.sparsity, self.block = gates, sparsity, block
        self.loss: Tensor | float = 0.0

    def refuses(self, case: Case) -> str | None:
        return None if case.device == "cpu" else block_sparse_attention.refuses(case)

    def plan(self, q: Tensor, k: Tensor, layer: Layer) -> BlockMask:
        gate = self.gates[layer.index]
        detached = Layer(layer.index, layer.q_unrotated.detach(), layer.k_unrotated.detach(), layer.rope)
        scores = gate_scores(gate, q.detach(), k.detach(), detached)
        with torch.no_grad():
            target = gate_target(pooled_attention(q.detach(), k.detach(), k.detach(), self.block)[2])
        self.loss = self.loss + gate_loss(scores, target, gate.config.recipe)
        return select_top_k(scores.detach(), self.sparsity, q.shape[2], self.block)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        if q.is_cuda:
            return block_sparse_attention.block_sparse_attention(q, k, v, plan)
        return masked_attention(q, k, v, plan)  # FlexAttention has no backward on a CPU


def finetune(
    config: Mapping,
    model_folder: Path,
    gates_file: Path | None,
    tokens_parquet: Path,
    out: Path,
    *,
    sparsity: float | None,
    block: int,
    device: str = "cpu",
    seed: int = 0,
) -> list[dict]:
    """Extend a model's context with YaRN and fine-tune it, dense or jointly with its gates.

    Args:
        config: factor (YaRN), context, batch, steps, optimizer and mix (as in `train.pretrain`),
            loss_chunk, checkpoint_seconds, gate_learning_rate.
        gates_file: the warmed-up gates (set `v1`) of the model before extension; None for dense.
        sparsity: of the sparse forward, fixed during training; None for dense.

    Returns the training rows, one a step. Writes the model folder `out`; a joint run's gates lie in it
    as `gates.safetensors` (set `v1`).
    """
    tokenizer = load_tokenizer(model_folder)
    stream = packed(read_tokens(tokens_parquet, "train"), tokenizer.eos_token_id)
    pieces = pieces_of(tokenizer)
    model = extended(model_folder, config["factor"]).to(device).train()
    gates = None if sparsity is None else nn.ModuleList(load_gates(gates_file, "v1")).to(device)
    joint = None if gates is None else _Joint(gates.requires_grad_(True), sparsity, block)
    optims = optimizers(model, config["optimizer"])
    params = {f"model.{name}": p for name, p in model.named_parameters()}
    if gates is not None:
        optims.append(torch.optim.AdamW(gates.parameters(), lr=config["gate_learning_rate"], weight_decay=0.0))
        params |= {f"gates.{name}": p for name, p in gates.named_parameters()}
    digest = digest_of(config, stream.size, seed, block, str(model_folder), sparsity)
    file = out.with_name(out.name + ".checkpoint") / "state.safetensors"
    steps, saved = config["steps"], time.monotonic()
    done, rows = load_checkpoint(file, params, optims, digest=digest)
    stage = {"context": config["context"], "batch_tokens": config["batch"] * config["context"]}
    bar = tqdm(total=steps, initial=done, desc=f"finetune {out.name}", unit="step", mininterval=1)
    for step in range(done, steps):
        rng = np.random.default_rng([seed, TRAINING, step])
        ids, weights, corpus = mixed_batch(stream, pieces, stage, config["mix"], rng, len(tokenizer))
        x = torch.from_numpy(ids).long().to(device)
        w = torch.from_numpy(weights[:, 1:].copy()).to(device)
        recipe = config["optimizer"]
        factor = lr_at(step, steps, warmup=recipe["warmup"], decay_share=recipe["decay_share"])
        rate = set_lr(optims[:2], factor)
        losses = _token_losses(model, x, joint, config["loss_chunk"], device)
        lm_loss = (losses * w).sum() / w.sum()
        gate_part = None if joint is None else joint.loss
        (lm_loss if gate_part is None else lm_loss + gate_part).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
        if gates is not None:
            nn.utils.clip_grad_norm_(gates.parameters(), CLIP)
            joint.loss = 0.0
        for optimizer in optims:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rows.append(
            {
                "step": step,
                "tokens": (step + 1) * ids.size,
                "context": config["context"],
                "lm_loss": losses[:corpus].mean().item() if corpus else math.nan,
                "gate_loss": math.nan if gate_part is None else gate_part.item(),
                "learning_rate": rate,
            }
        )
        bar.update()
        bar.set_postfix(loss=f"{rows[-1]['lm_loss']:.3f}", refresh=False)
        if time.monotonic() - saved > config["checkpoint_seconds"]:
            save_checkpoint(file, params, optims, digest=digest, step=step + 1, rows=rows)
            saved = time.monotonic()
    bar.close()
    save_model(model, out, tokenizer)
    if gates is not None:
        _write_gates(out / "gates.safetensors", {"v1": gates})
    save_checkpoint(file, params, optims, digest=digest, step=steps, rows=rows)
    return rows


def extended(folder: Path, factor: float) -> nn.Module:
    """The model in `folder` with YaRN scaling of its RoPE by `factor`; its trained context is the original.

    transformers computes YaRN's correction range from `original_max_position_embeddings`.
    """
    config = AutoConfig.from_pretrained(folder)
    original = config.max_position_embeddings
    config.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": config.rope_parameters["rope_theta"],
        "factor": float(factor),
        "original_max_position_embeddings": original,
    }
    config.max_position_embeddings = int(original * factor)
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="sdpa"
    )


def _token_losses(model: nn.Module, x: Tensor, joint: _Joint | None, chunk: int, device: str) -> Tensor:
    """Cross-entropy of x[:, 1:] given what stands before: fp32 [B, N - 1]."""

    def forward() -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
            hidden = model.model(input_ids=x[:, :-1], use_cache=False).last_hidden_state
            flat = token_losses(hidden.flatten(0, 1), model.lm_head.weight, x[:, 1:].flatten(), chunk)
        return flat.view(len(x), -1)

    if joint is None:
        return forward()
    with using(model, joint):
        return forward()
