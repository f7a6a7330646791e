"""finetune."""

from __future__ import annotations

import functools
import math
import time
from contextlib import nullcontext

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
from seerbench.methods.protocol import Method
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
from seerbench.training.jobs import FinetuneJob
from seerbench.training.losses import token_losses
from seerbench.training.optimizers import lr_at, optimizers, set_lr


class _Joint(Method):
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


def finetune(job: FinetuneJob) -> list[dict]:
    """Extend a model's context with YaRN and fine-tune it, dense or jointly with its gates.

    Writes the model folder `job.out`; a joint run's gates lie in it as `gates.safetensors` (set `v1`).
    A killed run continues from `<out>.checkpoint`, which stays until `drop_checkpoint`.
    Under `fsdp.processes` every process calls this with its share of each batch, and the first writes.

    Returns:
        The training rows, one per step.

    Raises:
        ValueError: several processes do not fit the batch, or the job has a mix or Muon.
    """
    device, block, out, settings = job.device, job.block, job.out, job.optimizer
    rank, size = rank_and_world_size()
    if job.batch % size:
        raise ValueError(f"a batch of {job.batch} windows does not split over {size} processes")
    if size > 1 and (job.packing is None or settings.muon_lr is not None):
        raise ValueError("fine-tuning in several processes takes packing and AdamW (muon_lr: null)")
    tokenizer = load_tokenizer(job.model.weights, job.model.revision)
    documents = read_tokens(job.tokens, "train")
    batch_of = batches(job, documents, tokenizer)
    model = load_with_yarn(job.model.weights, job.factor, job.model.revision).train()
    gates = None if job.gates is None else nn.ModuleList(load_gates(job.gates, "v1")).to(device)
    if size > 1:
        shard_whole(model, gates or (), device)
    else:
        model.to(device)
    if job.recompute:
        for layer in model.model.layers:  # inside of its hooks, which sharding needs to run once
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    joint = None if gates is None else _Joint(gates.requires_grad_(True), job.sparsity, block)
    optims = scheduled = optimizers(model, settings)
    params = {f"model.{name}": p for name, p in model.named_parameters()}
    if gates is not None:
        optims = [*optims, torch.optim.AdamW(gates.parameters(), lr=job.gate_learning_rate, weight_decay=0.0)]
        if settings.muon_lr is None:  # the authors': one AdamW and one schedule for all weights
            scheduled = optims
        params |= {f"gates.{name}": p for name, p in gates.named_parameters()}
    amount = sum(map(len, documents.values()))
    digest = digest_of(job.identity(), amount)
    file = out.with_name(out.name + ".checkpoint") / "state.safetensors"
    steps, saved = job.steps, time.monotonic()
    done, rows = load_checkpoint(file, params, optims, digest=digest)
    bar = tqdm(total=steps, initial=done, desc=f"finetune {out.name}", unit="step", mininterval=1, disable=rank > 0)
    for step in range(done, steps):
        ids, weights, corpus = batch_of(step)
        x = torch.from_numpy(ids[rank::size]).long().to(device)
        w = torch.from_numpy(weights[rank::size, 1:].copy()).to(device)
        factor = lr_at(step, steps, warmup=settings.warmup, decay_share=settings.decay_share)
        rate = set_lr(scheduled, factor)
        of_text, of_gates = [], torch.zeros((), device=device)
        for part, weight in zip(*(all_of.split(1 if job.recompute else len(x)) for all_of in (x, w)), strict=True):
            # Backward too: a layer that is computed again there needs the same attention.
            with nullcontext() if joint is None else attention_method(model, joint):
                losses = _token_losses(model, part, job.loss_chunk, device)
                loss = (losses * weight).sum() / w.sum()
                if joint is not None:
                    share = len(part) / len(x)
                    loss = loss + share * joint.loss
                    of_gates += share * joint.loss.detach()
                loss.backward()
            if joint is not None:
                joint.start()
            of_text.append(losses.detach())
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        if gates is not None:
            nn.utils.clip_grad_norm_(gates.parameters(), CLIP)
        for optimizer in optims:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rows.append(
            {
                "step": step,
                "tokens": (step + 1) * ids.size,
                "context": job.context,
                # Several processes have packed rows alone, all of them text.
                "lm_loss": all_reduce_mean(torch.cat(of_text)[: corpus if size == 1 else None].mean()).item(),
                "gate_loss": math.nan if joint is None else all_reduce_mean(of_gates).item(),
                "learning_rate": rate,
            }
        )
        bar.update()
        bar.set_postfix(loss=f"{rows[-1]['lm_loss']:.3f}", refresh=False)
        if broadcast_from_rank0(time.monotonic() - saved > job.checkpoint_seconds):
            save_checkpoint(file, params, optims, digest=digest, step=step + 1, rows=rows)
            saved = time.monotonic()
    bar.close()
    save_model(model, out, tokenizer, DTYPES[job.dtype])
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
