"""finetune."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.data.tokens import load_tokenizer, read_tokens
from seerbench.kernels.block_sparse import api as block_sparse_api
from seerbench.kernels.flex_attention import masked_attention
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.methods.block_selection import select_top_k
from seerbench.methods.gate import gate_scores
from seerbench.methods.gate_files import load_gates
from seerbench.methods.gate_losses import gate_loss, gate_target
from seerbench.models.hugging_face import attention_method
from seerbench.models.sources import DTYPES
from seerbench.models.yarn import load_with_yarn
from seerbench.training.batches import batches
from seerbench.training.checkpoint import digest_of, load_checkpoint, save_checkpoint, save_model
from seerbench.training.distill import CLIP, _write_gates
from seerbench.training.fsdp import (
    all_gather_weight,
    all_reduce_mean,
    broadcast_from_rank0,
    rank_and_world_size,
    shard_whole,
)
from seerbench.training.losses import token_losses
from seerbench.training.optimizers import lr_at, optimizers, set_lr


class _Joint:
    """SeerAttention with gradients: sparse forward, gate loss on the side."""

    name = "joint"

    def __init__(self, gates: nn.ModuleList, sparsity: float, block: int) -> None:
        self.gates, self.sparsity, self.block = gates, sparsity, block
        self.start()

    def start(self) -> None:
        """Before the next forward: no loss yet, no layer planned."""
        self.loss: Tensor | float = 0.0
        self.plans: dict[int, BlockMask] = {}

    def refuses(self, case: AttentionProblem) -> str | None:
        return None if case.device == "cpu" else block_sparse_api.refuses(case)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        if layer.index in self.plans:  # the layer is computed again in backward: same mask, its loss is counted
            return self.plans[layer.index]
        gate = self.gates[layer.index]
        detached = LayerContext(layer.index, layer.q_unrotated.detach(), layer.k_unrotated.detach(), layer.rope)
        with torch.no_grad():
            target = gate_target(pooled_attention(q.detach(), k.detach(), k.detach(), self.block)[2])
        # What the gate's backward needs is kept even where the layer around it is recomputed.
        with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, lambda kept: kept):
            scores = gate_scores(gate, q.detach(), k.detach(), detached)
            self.loss = self.loss + gate_loss(scores, target, gate.config.recipe)
        self.plans[layer.index] = select_top_k(scores.detach(), self.sparsity, q.shape[2], self.block)
        return self.plans[layer.index]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        if q.is_cuda:
            return block_sparse_api.block_sparse_attention(q, k, v, plan)
        return masked_attention(q, k, v, plan)  # FlexAttention has no backward on a CPU


def finetune(
    config: Mapping,
    model_folder: Path | str,
    gates_file: Path | None,
    tokens_parquet: Path,
    out: Path,
    *,
    sparsity: float | None,
    block: int,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    revision: str | None = None,
) -> list[dict]:
    """Extend a model's context with YaRN and fine-tune it, dense or jointly with its gates.

    Args:
        config: factor (YaRN), context, batch, mix or packing (`train.batches`), steps, optimizer, loss_chunk,
            checkpoint_seconds, gate_learning_rate, recompute (activations of a layer anew in backward, a window at
            a time: less memory, a third more time).
        model_folder: or its hub id, at `revision`.
        gates_file: the warmed-up gates (set `v1`) of the model before extension; None for dense.
        sparsity: of the sparse forward, fixed during training; None for dense.
        dtype: of the saved model; weights are trained in fp32.

    Under `sharded.processes` every process calls this with its share of each batch, and the first writes.
    Returns the training rows, one a step. Writes the model folder `out`; a joint run's gates lie in it
    as `gates.safetensors` (set `v1`).
    """
    rank, size = rank_and_world_size()
    if config["batch"] % size:
        raise ValueError(f"a batch of {config['batch']} windows does not split over {size} processes")
    if size > 1 and ("packing" not in config or config["optimizer"]["muon_lr"] is not None):
        raise ValueError("fine-tuning in several processes takes packing and AdamW (muon_lr: null)")
    tokenizer = load_tokenizer(model_folder, revision)
    documents = read_tokens(tokens_parquet, "train")
    batch_of = batches(config, documents, tokenizer, seed)
    model = load_with_yarn(model_folder, config["factor"], revision).train()
    gates = None if sparsity is None else nn.ModuleList(load_gates(gates_file, "v1")).to(device)
    if size > 1:
        shard_whole(model, gates or (), device)
    else:
        model.to(device)
    recompute = config.get("recompute", False)
    if recompute:
        for layer in model.model.layers:  # inside of its hooks, which sharding needs to run once
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    joint = None if gates is None else _Joint(gates.requires_grad_(True), sparsity, block)
    optims = scheduled = optimizers(model, config["optimizer"])
    params = {f"model.{name}": p for name, p in model.named_parameters()}
    if gates is not None:
        optims = [*optims, torch.optim.AdamW(gates.parameters(), lr=config["gate_learning_rate"], weight_decay=0.0)]
        if config["optimizer"]["muon_lr"] is None:  # the authors': one AdamW and one schedule for all weights
            scheduled = optims
        params |= {f"gates.{name}": p for name, p in gates.named_parameters()}
    amount = sum(map(len, documents.values()))
    digest = digest_of(config, amount, seed, block, str(model_folder), sparsity, revision)
    file = out.with_name(out.name + ".checkpoint") / "state.safetensors"
    steps, saved = config["steps"], time.monotonic()
    done, rows = load_checkpoint(file, params, optims, digest=digest)
    bar = tqdm(total=steps, initial=done, desc=f"finetune {out.name}", unit="step", mininterval=1, disable=rank > 0)
    for step in range(done, steps):
        ids, weights, corpus = batch_of(step)
        x = torch.from_numpy(ids[rank::size]).long().to(device)
        w = torch.from_numpy(weights[rank::size, 1:].copy()).to(device)
        recipe = config["optimizer"]
        factor = lr_at(step, steps, warmup=recipe["warmup"], decay_share=recipe["decay_share"])
        rate = set_lr(scheduled, factor)
        of_text, of_gates = [], torch.zeros((), device=device)
        for part, weight in zip(*(all_of.split(1 if recompute else len(x)) for all_of in (x, w)), strict=True):
            # Backward too: a layer that is computed again there needs the same attention.
            with nullcontext() if joint is None else attention_method(model, joint):
                losses = _token_losses(model, part, config["loss_chunk"], device)
                loss = (losses * weight).sum() / w.sum()
                if joint is not None:
                    share = len(part) / len(x)
                    loss = loss + share * joint.loss
                    of_gates += share * joint.loss.detach()
                loss.backward()
            if joint is not None:
                joint.start()
            of_text.append(losses.detach())
        nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
        if gates is not None:
            nn.utils.clip_grad_norm_(gates.parameters(), CLIP)
        for optimizer in optims:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rows.append(
            {
                "step": step,
                "tokens": (step + 1) * ids.size,
                "context": config["context"],
                # Several processes have packed rows alone, all of them text.
                "lm_loss": all_reduce_mean(torch.cat(of_text)[: corpus if size == 1 else None].mean()).item(),
                "gate_loss": math.nan if joint is None else all_reduce_mean(of_gates).item(),
                "learning_rate": rate,
            }
        )
        bar.update()
        bar.set_postfix(loss=f"{rows[-1]['lm_loss']:.3f}", refresh=False)
        if broadcast_from_rank0(time.monotonic() - saved > config["checkpoint_seconds"]):
            save_checkpoint(file, params, optims, digest=digest, step=step + 1, rows=rows)
            saved = time.monotonic()
    bar.close()
    save_model(model, out, tokenizer, DTYPES[dtype])
    if gates is not None:
        _write_gates(out / "gates.safetensors", {"v1": gates})
    save_checkpoint(file, params, optims, digest=digest, step=steps, rows=rows)
    return rows


def _token_losses(model: nn.Module, x: Tensor, chunk: int, device: str) -> Tensor:
    """Cross-entropy of x[:, 1:] given what stands before: fp32 [B, N - 1]."""
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
        hidden = model.model(input_ids=x[:, :-1], use_cache=False).last_hidden_state
        head = all_gather_weight(model.lm_head.weight)
        flat = token_losses(hidden.flatten(0, 1), head, x[:, 1:].flatten(), chunk)
    return flat.view(len(x), -1)
