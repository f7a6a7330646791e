"""Pre-train a small language model on a corpus, or continue one with longer windows.

The step `train` calls `pretrain` with a resolved job. It writes a Hugging Face model folder, in which gates are
distilled and methods are measured afterwards.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from seerbench.data.tokens import load_tokenizer, read_tokens
from seerbench.data.windows import packed
from seerbench.models.sources import load
from seerbench.training.batches import schedule, scheduled_batches
from seerbench.training.checkpoint import digest_of, save_model, weights_digest
from seerbench.training.jobs import PretrainJob
from seerbench.training.loop import Row, require_finite_loss, run_steps
from seerbench.training.losses import next_token_losses
from seerbench.training.optimizers import lr_at, optimizers, set_lr, update_weights
from seerbench.training.small_model import build_model, compile_layers

COLUMNS = ["step", "tokens", "context", "loss", "lookup_loss", "lr"]


def pretrain(job: PretrainJob) -> pd.DataFrame:
    """Train a small model on windows of growing length and save it as a Hugging Face model.

    A killed training continues from `<out>.checkpoint`, which stays until `drop_checkpoint`.

    Returns:
        One row per step: step, tokens (seen so far), context, loss (nats per token over the batch's corpus
        windows), lookup_loss (the weighted mean over its repeats and look-ups), lr (Muon's). A loss is NaN if the
        batch had no such window.

    Raises:
        TrainingDiverged: the loss of a step is not finite.
    """
    device, settings = job.device, job.optimizer
    tokenizer = load_tokenizer(job.tokenizer)
    stream = packed(read_tokens(job.tokens, "train"), tokenizer.eos_token_id)
    plan = schedule(job.stages)
    batch_of = scheduled_batches(job, plan, stream, tokenizer)
    model = _initial_model(job, tokenizer)
    params = dict(model.named_parameters())
    optims = optimizers(model, settings)

    def train_step(step: int, rows: Sequence[Row]) -> list[Row]:
        batch = batch_of(step)
        tokens = torch.from_numpy(batch.tokens).long().to(device)
        weights = torch.from_numpy(batch.weights[:, 1:].copy()).to(device)
        lr = set_lr(optims, lr_at(step, len(plan), warmup=settings.warmup, decay_share=settings.decay_share))
        losses = next_token_losses(model, tokens, job.loss_chunk, device)
        loss = (losses * weights).sum() / weights.sum()
        require_finite_loss(loss.item(), step, job)
        loss.backward()
        update_weights(optims, [(params.values(), settings.clip)])
        row = {
            "step": step,
            "tokens": (rows[-1]["tokens"] if rows else 0) + batch.tokens.size,
            "context": plan[step].context,
            **_mean_losses(losses.detach(), weights, batch.corpus_windows),
            "lr": lr,
        }
        return [row]

    rows = run_steps(
        job,
        params,
        optims,
        steps=len(plan),
        digest=digest_of(job.identity(), _sha256([stream.tobytes()]), weights_digest(params.values())),
        title=f"train {job.out.name}",
        train_step=train_step,
        save_result=lambda: save_model(model, job.out, tokenizer),
        shown=("loss", "lookup_loss"),
    )
    return pd.DataFrame(rows, columns=COLUMNS)


def _initial_model(job: PretrainJob, tokenizer: Any) -> nn.Module:
    """Return the model that the job starts from, on its device, ready to train."""
    torch.manual_seed(job.seed)
    if job.init is None:
        model = build_model(job.architecture, tokenizer)
    else:
        model = load(job.init)
        model.config.max_position_embeddings = job.architecture.positions
    model = model.to(job.device).train()
    if job.device != "cpu":
        compile_layers(model)
    return model


def _mean_losses(losses: Tensor, weights: Tensor, corpus_windows: int) -> dict[str, float]:
    """Return the mean loss of the corpus windows and the weighted one of the others, both [windows, N - 1]."""
    loss = losses[:corpus_windows].mean().item() if corpus_windows else math.nan
    losses, weights = losses[corpus_windows:], weights[corpus_windows:]
    lookup_loss = ((losses * weights).sum() / weights.sum()).item() if len(weights) else math.nan
    return {"loss": loss, "lookup_loss": lookup_loss}


def _sha256(parts: Iterable[bytes]) -> str:
    """Return the sha256 of the parts, one after the other, as hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
