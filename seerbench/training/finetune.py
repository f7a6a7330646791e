"""Extend a model's context with YaRN and fine-tune all its weights, dense or jointly with its gates.

In joint training, a layer's output comes from sparse attention under the mask that its gate predicts. The gate's
target comes from a dense pass without gradients over the same q and k. The loss is the language-model loss plus the
gate loss. The mask is not differentiable and the gate reads detached q and k, so neither loss reaches the other's
weights.

The step `finetune` calls `finetune` with a resolved job. Source: arXiv:2410.13276.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.data.tokens import load_tokenizer, read_tokens
from seerbench.errors import ConfigError
from seerbench.kernels.block_sparse import api as block_sparse_api
from seerbench.kernels.flex_attention import masked_attention
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.methods.block_selection import select_top_k
from seerbench.methods.gate import gate_scores
from seerbench.methods.gate_files import load_gates
from seerbench.methods.gate_losses import gate_loss, gate_target
from seerbench.methods.protocol import Method
from seerbench.models.hugging_face import attention_method
from seerbench.models.model_source import WEIGHTS_FROM
from seerbench.models.self_check import check_model
from seerbench.models.sources import DTYPES, check_gates, load
from seerbench.training.batches import batches
from seerbench.training.checkpoint import digest_of, save_gate_sets, save_model, weights_digest
from seerbench.training.fsdp import all_reduce_mean, rank_and_world_size, require_even_split, shard_all_weights
from seerbench.training.jobs import FinetuneJob
from seerbench.training.loop import Row, require_finite_loss, run_steps
from seerbench.training.losses import next_token_losses
from seerbench.training.optimizers import GATE_CLIP, lr_at, optimizers, set_lr, update_weights

# The windows of a batch pass through the model this many tokens at a time, which bounds the memory of activations
# where they are not computed again: 27 GB for 32k tokens of SmolLM2-135M (computed from its shapes).
TOKENS_AT_ONCE = 32768


def finetune(job: FinetuneJob) -> list[Row]:
    """Extend a model's context with YaRN, fine-tune it, write the model folder `job.out`, and return the rows.

    Joint training writes its gates into that folder as `gates.safetensors` (set `v1`). A killed training continues
    from `<out>.checkpoint`, which stays until `drop_checkpoint`. Under `fsdp.processes` every process calls this
    with its share of each batch, and the first one writes.

    Returns:
        One row per step: step, tokens, context, lm_loss (nats per token of text), gate_loss (summed over layers;
        NaN in dense training) and learning_rate.

    Raises:
        ConfigError: the batch does not split evenly over the processes, or the job of several processes has a mix
            or Muon.
        ModelError: the model or the gates cannot be loaded, or the gates are of another model.
        TrainingDiverged: the loss of a step is not finite.
    """
    device, settings = job.device, job.optimizer
    rank, size = rank_and_world_size()
    require_even_split(job.batch)
    if size > 1 and (job.packing is None or settings.muon_lr is not None):
        raise ConfigError(
            "fine-tuning in several processes needs packing and, for all weights, AdamW (muon_lr: null)"
        )
    tokenizer = load_tokenizer(job.model.weights, job.model.revision)
    documents = read_tokens(job.tokens, "train")
    batch_of = batches(job, documents, tokenizer)
    model = load(job.model.weights, revision=job.model.revision, yarn=job.factor).train()
    setattr(model.config, WEIGHTS_FROM, f"{job.model.origin()}; fine-tuned with YaRN, factor {job.factor:g}")
    check_model(model)  # before it is sharded: the check runs the entire model
    gates = None
    if job.gates is not None:
        loaded = load_gates(job.gates, "v1")
        check_gates(loaded, job.model.weights, job.model.revision)
        gates = nn.ModuleList(loaded).to(device)
    digest = weights_digest([*model.parameters(), *(() if gates is None else gates.parameters())])
    if size > 1:
        shard_all_weights(model, gates or (), device)
    else:
        model.to(device)
    if job.recompute:
        recompute_activations(model)
    joint = None
    if gates is not None and job.sparsity is not None:
        joint = JointAttention(gates.requires_grad_(True), job.sparsity, job.block)
    optims = scheduled = optimizers(model, settings)
    params = {f"model.{name}": p for name, p in model.named_parameters()}
    if gates is not None:
        optims = [*optims, torch.optim.AdamW(gates.parameters(), lr=job.gate_learning_rate, weight_decay=0.0)]
        if settings.muon_lr is None:  # The authors train all weights with one AdamW and one schedule.
            scheduled = optims
        params |= {f"gates.{name}": p for name, p in gates.named_parameters()}

    def train_step(step: int, _rows: Sequence[Row]) -> list[Row]:
        batch = batch_of(step)
        tokens = torch.from_numpy(batch.tokens[rank::size]).long().to(device)
        weights = torch.from_numpy(batch.weights[rank::size, 1:].copy()).to(device)
        factor = lr_at(step, job.steps, warmup=settings.warmup, decay_share=settings.decay_share)
        rate = set_lr(scheduled, factor)
        losses, joint_loss = _accumulate_gradients(model, joint, tokens, weights, job)
        lm_loss = all_reduce_mean((losses * weights).sum() / weights.sum()).item()
        gate_loss = math.nan if joint is None else all_reduce_mean(joint_loss).item()
        require_finite_loss(lm_loss, step, job)
        if joint is not None:
            require_finite_loss(gate_loss, step, job, "the gate loss")
        clipped = [(model.parameters(), settings.clip)]
        update_weights(optims, clipped if gates is None else [*clipped, (gates.parameters(), GATE_CLIP)])
        # Several processes have packed rows only, all of which are text.
        text_windows = batch.corpus_windows if size == 1 else None
        row = {
            "step": step,
            "tokens": (step + 1) * batch.tokens.size,
            "context": job.context,
            "lm_loss": all_reduce_mean(losses[:text_windows].mean()).item(),
            "gate_loss": gate_loss,
            "learning_rate": rate,
        }
        return [row]

    def save_result() -> None:
        save_model(model, job.out, tokenizer, DTYPES[job.dtype])
        if gates is not None:
            save_gate_sets(job.out / "gates.safetensors", {"v1": gates})

    return run_steps(
        job,
        params,
        optims,
        steps=job.steps,
        digest=digest_of(job.identity(), sum(map(len, documents.values())), digest),
        title=f"finetune {job.out.name}",
        train_step=train_step,
        save_result=save_result,
        shown=("lm_loss", "gate_loss"),
    )


class JointAttention(Method[BlockMask]):
    """SeerAttention with gradients: sparse attention in the forward pass, the gates' loss collected beside it.

    Attributes:
        loss: sum of the gate losses of the layers planned since `reset`.
    """

    name = "joint"
    sparsity: float
    block: int

    def __init__(self, gates: nn.ModuleList, sparsity: float, block: int) -> None:
        """Prepare the forward pass.

        Args:
            gates: one per layer, trainable.
            sparsity: share of the causal blocks that are skipped.
            block: tokens per block.
        """
        self.gates, self.sparsity, self.block = gates, sparsity, block
        self.reset()

    def reset(self) -> None:
        """Forget the loss and the masks, before the next forward pass."""
        self.loss = torch.zeros(())
        self.plans: dict[int, BlockMask] = {}

    def refuses(self, problem: AttentionProblem) -> str | None:
        return None if problem.device == "cpu" else block_sparse_api.refuses(problem)

    def plan(self, q: Tensor, k: Tensor, layer: LayerContext) -> BlockMask:
        """Return the mask that the layer's gate predicts, and add the gate's loss to `loss`."""
        if layer.index in self.plans:
            # The backward pass computes the layer again. It needs the same mask, and the loss is already counted.
            return self.plans[layer.index]
        gate = self.gates[layer.index]
        detached = dataclasses.replace(
            layer, q_unrotated=_detach(layer.q_unrotated), k_unrotated=_detach(layer.k_unrotated)
        )
        with torch.no_grad():
            target = gate_target(pooled_attention(q.detach(), k.detach(), k.detach(), self.block)[2])
        # The gate's activations are kept for its backward pass even if the layer's other activations are not.
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            scores = gate_scores(gate, q.detach(), k.detach(), detached)
            self.loss = self.loss + gate_loss(scores, target, gate.config.recipe)
        # Under autocast the scores are in bf16, and selection takes float32, which changes none of them.
        self.plans[layer.index] = select_top_k(scores.detach().float(), self.sparsity, q.shape[2], self.block)
        return self.plans[layer.index]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockMask) -> Tensor:
        if q.is_cuda:
            return block_sparse_api.block_sparse_attention(q, k, v, plan)
        return masked_attention(q, k, v, plan)  # FlexAttention has no backward pass on a CPU.


def _detach(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def recompute_activations(model: nn.Module) -> None:
    """Let the backward pass compute the activations of each layer again, which saves memory and costs time.

    The wrapper is inside the hooks of the layer, since those of FSDP must run once.
    """
    for layer in model.model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def _accumulate_gradients(
    model: nn.Module, joint: JointAttention | None, tokens: Tensor, weights: Tensor, job: FinetuneJob
) -> tuple[Tensor, Tensor]:
    """Add the gradients of the windows of a batch that belong to this process.

    TOKENS_AT_ONCE decides how many windows pass at a time; with recomputed activations it is one.

    Args:
        tokens: int64 [B, N].
        weights: of the losses, float32 [B, N - 1].

    Returns:
        The loss of every token, float32 [B, N - 1], and the gate loss (zero without gates), both detached.
    """
    at_once = 1 if job.recompute else max(1, TOKENS_AT_ONCE // job.context)
    all_losses, joint_loss = [], torch.zeros((), device=job.device)
    for part, part_weights in zip(tokens.split(at_once), weights.split(at_once), strict=True):
        # The method stays in the model for the backward pass, which may compute layers again.
        with nullcontext() if joint is None else attention_method(model, joint):
            losses = next_token_losses(model, part, job.loss_chunk, job.device)
            loss = (losses * part_weights).sum() / weights.sum()
            if joint is not None:
                share = len(part) / len(tokens)
                loss = loss + share * joint.loss
                joint_loss += share * joint.loss.detach()
            loss.backward()
        if joint is not None:
            joint.reset()
        all_losses.append(losses.detach())
    return torch.cat(all_losses), joint_loss
