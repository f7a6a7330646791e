"""Training: language-model pre-training, gate distillation and joint fine-tuning.

Between corpus and measurement: tokens (parquet) and a config mapping in, a model folder and training rows
out. The pieces below (optimizers, schedule, checkpoint) are shared by all three; a run killed at any moment
and started again continues from its last checkpoint and ends where an undisturbed run ends.
"""

from __future__ import annotations

import hashlib
import math
import time

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from seerbench.data.lookups import TRAINING, pieces_of
from seerbench.data.tokens import load_tokenizer, read_tokens
from seerbench.data.windows import packed
from seerbench.training.batches import mixed_batch, schedule
from seerbench.training.checkpoint import digest_of, load_checkpoint, save_checkpoint, save_model
from seerbench.training.jobs import PretrainJob
from seerbench.training.losses import token_losses
from seerbench.training.optimizers import lr_at, optimizers, set_lr
from seerbench.training.small_model import build_model, compile_layers


def pretrain(job: PretrainJob) -> pd.DataFrame:
    """Train a small model through windows of growing length and save it as a Hugging Face model.

    A killed run continues from `<out>.checkpoint`, which stays until `drop_checkpoint`.

    Returns:
        One row per step: step, tokens (seen so far), context, loss (nats per token over the batch's corpus
        windows), lookup_loss (weighted, over its repeats and look-ups), lr (Muon's). A loss is NaN where
        the batch had no such window.
    """
    device, seed, out = job.device, job.seed, job.out
    vocabulary = load_tokenizer(job.tokenizer)
    stream = packed(read_tokens(job.tokens, "train"), vocabulary.eos_token_id)
    pieces = pieces_of(vocabulary)
    torch.manual_seed(seed)
    if job.init is None:
        model = build_model(job.architecture, vocabulary)
    else:
        model = AutoModelForCausalLM.from_pretrained(job.init, dtype=torch.float32, attn_implementation="sdpa")
        model.config.max_position_embeddings = job.architecture.positions
    model = model.to(device).train()
    if device != "cpu":
        compile_layers(model)
    settings, plan = job.optimizer, schedule(job.stages)
    optims = optimizers(model, settings)
    params = dict(model.named_parameters())

    origin = hashlib.sha256(stream.tobytes()).hexdigest()
    start = hashlib.sha256()
    for param in params.values():
        start.update(param.detach().cpu().numpy().tobytes())
    digest = digest_of(job.identity(), origin, start.hexdigest())
    file = out.with_name(out.name + ".checkpoint") / "state.safetensors"
    done, rows = load_checkpoint(file, params, optims, digest=digest)
    seen = rows[-1]["tokens"] if rows else 0
    saved = time.monotonic()
    bar = tqdm(total=len(plan), initial=done, desc=f"train {out.name}", unit="step", mininterval=1)
    for step in range(done, len(plan)):
        planned = plan[step]
        rng = np.random.default_rng([seed, TRAINING, step])
        ids, weights, corpus = mixed_batch(
            stream,
            pieces,
            planned.context,
            planned.windows,
            job.mix.changed_by(planned.mix),
            rng,
            len(vocabulary),
        )
        x = torch.from_numpy(ids).long().to(device)
        w = torch.from_numpy(weights[:, 1:].copy()).to(device)
        lr = set_lr(optims, lr_at(step, len(plan), warmup=settings.warmup, decay_share=settings.decay_share))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
            hidden = model.model(input_ids=x[:, :-1], use_cache=False).last_hidden_state
            losses = token_losses(
                hidden.flatten(0, 1), model.lm_head.weight, x[:, 1:].flatten(), job.loss_chunk
            ).view_as(w)
        ((losses * w).sum() / w.sum()).backward()
        nn.utils.clip_grad_norm_(params.values(), settings.clip)
        for optimizer in optims:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += ids.size
        loss = losses[:corpus].mean().item() if corpus else math.nan
        looked, weight = losses.detach()[corpus:], w[corpus:]
        lookup_loss = ((looked * weight).sum() / weight.sum()).item() if len(weight) else math.nan
        rows.append(
            {
                "step": step,
                "tokens": seen,
                "context": planned.context,
                "loss": loss,
                "lookup_loss": lookup_loss,
                "lr": lr,
            }
        )
        bar.update()
        bar.set_postfix(context=planned.context, loss=f"{loss:.3f}", refresh=False)
        if time.monotonic() - saved > job.checkpoint_seconds:
            save_checkpoint(file, params, optims, digest=digest, step=step + 1, rows=rows)
            saved = time.monotonic()
    bar.close()
    save_model(model, out, vocabulary)
    save_checkpoint(file, params, optims, digest=digest, step=len(plan), rows=rows)
    return pd.DataFrame(rows, columns=["step", "tokens", "context", "loss", "lookup_loss", "lr"])
