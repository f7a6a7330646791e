"""Training: language-model pre-training, gate distillation and joint fine-tuning.

Between corpus and measurement: tokens (parquet) and a config mapping in, a model folder and training rows
out. The pieces below (optimizers, schedule, checkpoint) are shared by all three; a run killed at any moment
and started again continues from its last checkpoint and ends where an undisturbed run ends.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from seerbench.corpus import (
    bos_of,
    load_tokenizer,
    packed,
    packed_rows,
    read_tokens,
    rows_of_step,
    training_windows,
)
from seerbench.sharded import like, rank_of, whole
from seerbench.tasks import TRAINING, pieces_of, training_lookups, training_repeats

# ------------------------------------------------------------------ optimizers and schedule


class Muon(torch.optim.Optimizer):
    """Muon (momentum, then orthogonalised updates) for matrices, Newton-Schulz in float32.

    The same update as torch.optim.Muon with adjust_lr_fn="match_rms_adamw". That one iterates in bfloat16,
    matrix by matrix; CPUs emulate bfloat16, and a step of our small model took 0.6 s there. Here matrices of
    one shape go through the iteration together, in float32.

    Args:
        lr: in AdamW's units: an update has root mean square 0.2 * lr.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    shapes.setdefault(param.shape, []).append(param)
            for shape, params in shapes.items():
                for param in params:
                    if not self.state[param]:
                        self.state[param]["momentum_buffer"] = torch.zeros_like(param)
                buffers = [self.state[param]["momentum_buffer"] for param in params]
                grads = [param.grad for param in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                # Nesterov: look one momentum step ahead of the gradient
                updates = torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"]))
                updates = orthogonalised(updates)
                scale = group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(updates.to(params[0].dtype)), alpha=-scale)


def orthogonalised(updates: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest orthogonal matrices: [matrices, rows, columns].

    The quintic's coefficients are Keller Jordan's (Muon, 2024), as in torch.optim.Muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = updates.shape[1] > updates.shape[2]
    x = updates.mT if tall else updates
    x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(a * x, torch.baddbmm(b * gram, gram, gram, beta=1, alpha=c), x)
    return (x.mT if tall else x).float()


def optimizers(model: nn.Module, config: Mapping) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and everything else trainable.

    Args:
        config: muon_lr (null: AdamW, at adam_lr, for the matrices too), embed_lr (input, and tied, embeddings),
            adam_lr (all else), weight_decay (all), betas (AdamW).
    """
    matrices, embeddings, others = [], [], []
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        if "embed" in name:
            embeddings.append(param)
        elif param.ndim == 2 and "lm_head" not in name and config["muon_lr"] is not None:
            matrices.append(param)
        else:
            others.append(param)
    decay = config["weight_decay"]
    groups = [
        {"params": embeddings, "lr": config["embed_lr"]},
        {"params": others, "lr": config["adam_lr"]},
    ]
    adam = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=tuple(config["betas"]),
        weight_decay=decay,
        foreach=True,
    )
    return [adam, Muon(matrices, lr=config["muon_lr"], weight_decay=decay)] if matrices else [adam]


def lr_at(step: int, steps: int, *, warmup: int, decay_share: float) -> float:
    """The learning rate's factor at a step: linear warm-up, constant, linear decay over the last share."""
    decay = max(1, round(steps * decay_share))
    return min(1.0, (step + 1) / max(1, warmup), (steps - step) / decay)


def set_lr(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> float:
    """Scale every optimizer's first learning rate by `factor`; returns that of the last optimizer."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor
    return optimizers[-1].param_groups[0]["lr"]


# ------------------------------------------------------------------ checkpoint


def digest_of(*parts: object) -> str:
    """Identity of a training run: a checkpoint of another config, corpus or seed is not continued."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def save_checkpoint(
    file: Path,
    params: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    digest: str,
    step: int,
    rows: list[dict],
) -> None:
    """Write everything that a run needs to continue into one safetensors file, whole or not at all.

    Of several processes (sharded.py) all call this and the first writes.

    Args:
        params: name -> trained tensor (`dict(model.named_parameters())`, or only the gates').
        digest: from `digest_of`.
        step: steps done. Batches are functions of (seed, step), so this is also the data's RNG state.
        rows: the training rows so far.
    """
    tensors = {f"param.{name}": param.detach() for name, param in params.items()}
    for number, optimizer in enumerate(optimizers):
        for param, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{number}.{param}.{key}"] = value
    tensors["rng.torch"] = torch.get_rng_state()
    tensors = {name: whole(tensor).contiguous().cpu() for name, tensor in tensors.items()}
    if rank_of()[0]:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    save_file(tensors, temporary, metadata={"digest": digest, "step": str(step), "rows": json.dumps(rows)})
    os.replace(temporary, file)


def load_checkpoint(
    file: Path,
    params: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    digest: str,
) -> tuple[int, list[dict]]:
    """Put a checkpoint back into params and optimizers; returns steps done and the rows so far.

    Without a file, or with one of another run (digest), nothing changes and the answer is (0, []).
    """
    if not file.is_file():
        return 0, []
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata() or {}
        if metadata.get("digest") != digest:
            return 0, []
        with torch.no_grad():
            for name, param in params.items():
                param.copy_(like(param, stored.get_tensor(f"param.{name}")))
        states: list[dict] = [{} for _ in optimizers]
        for name in stored.keys():  # noqa: SIM118 (safe_open is no mapping)
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, param, key = rest.split(".")
                states[int(number)].setdefault(int(param), {})[key] = stored.get_tensor(name)
        for optimizer, state in zip(optimizers, states, strict=True):
            trained = [param for group in optimizer.param_groups for param in group["params"]]
            for place, values in state.items():
                for key, value in values.items():
                    if value.shape == trained[place].shape:  # its `step` is a number
                        values[key] = like(trained[place], value)
        for optimizer, state in zip(optimizers, states, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(stored.get_tensor("rng.torch"))
    return int(metadata["step"]), json.loads(metadata["rows"])


def drop_checkpoint(out: Path) -> None:
    """Remove the checkpoint of a training whose results and rows are all written."""
    shutil.rmtree(out.with_name(out.name + ".checkpoint"), ignore_errors=True)


def save_model(
    model: nn.Module, out: Path, tokenizer: object | None = None, dtype: torch.dtype | None = None
) -> None:
    """save_pretrained into a folder that appears whole or not at all (an earlier one is replaced).

    dtype: of the weights in the folder; None keeps the model's. Of several processes all call this and one writes.
    """
    weights = {name: whole(param.detach()).to("cpu", dtype) for name, param in model.named_parameters()}
    if rank_of()[0]:
        return
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, state_dict=weights)
    if tokenizer is not None:
        tokenizer.save_pretrained(temporary)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(temporary, out)


# ------------------------------------------------------------------ loss


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """Cross-entropy of every token without the full logits.

    Args:
        hidden: [tokens, hidden], last hidden states.
        weight: [vocab, hidden], the output embedding.
        labels: [tokens], int64.
        chunk: rows whose logits exist at a time; recomputed in backward where there are several chunks.

    Returns:
        [tokens], float32.
    """

    def losses(rows: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(rows, weight).float(), wanted, reduction="none")

    if len(hidden) <= chunk:
        return losses(hidden, labels)
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([checkpoint(losses, rows, wanted, use_reentrant=False) for rows, wanted in parts])


# ------------------------------------------------------------------ pre-training


def compile_layers(model: nn.Module) -> None:
    """Compile every decoder layer in place, for a GPU: norms, RoPE and casts between the products fuse.

    Layer by layer, since all share one graph: one short compilation a length of window, not one of the whole
    model. Parameters keep their names.
    """
    for layer in model.model.layers:
        layer.compile(dynamic=False)


def build_model(config: Mapping, tokenizer: object) -> LlamaForCausalLM | MistralForCausalLM:
    """A fresh model of the Llama or Mistral architecture with the tokenizer's vocabulary.

    Args:
        config: architecture (llama, the default, or mistral, with full attention), layers, hidden, heads,
            kv_heads, head_dim, intermediate, rope_theta, tied_embeddings, positions (the longest context it
            is meant for), first_weights (see `initialise`; null: transformers' own, nothing seeded).
    """
    mistral = config.get("architecture", "llama") == "mistral"
    about, kind = (MistralConfig, MistralForCausalLM) if mistral else (LlamaConfig, LlamaForCausalLM)
    extra = {"sliding_window": None} if mistral else {}
    model = kind(
        about(
            **extra,
            vocab_size=len(tokenizer),
            hidden_size=config["hidden"],
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            num_key_value_heads=config["kv_heads"],
            head_dim=config["head_dim"],
            intermediate_size=config["intermediate"],
            max_position_embeddings=config["positions"],
            rope_parameters={"rope_type": "default", "rope_theta": float(config["rope_theta"])},
            tie_word_embeddings=config["tied_embeddings"],
            bos_token_id=bos_of(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="sdpa",
        )
    )
    if config["first_weights"] is not None:
        initialise(model, config["first_weights"])
    return model


@torch.no_grad()
def initialise(model: LlamaForCausalLM, config: Mapping) -> None:
    """First weights with which a small model learns to use its context within minutes.

    The architecture is untouched and every weight is trained; only the start is not blank. In the spirit of
    mimetic initialisation (Trockman and Kolter, 2023, arXiv:2305.09828), heads start close to what trained
    models are known to grow (Olsson et al., 2022, arXiv:2209.11895):

    - MLPs start at zero, and every head copies what it attends to (output = value transposed), which
      the output embedding, aligned with the input's, turns into a prediction.
    - `induction_heads` KV heads (one query head each) of the first layer read the token before, by
      position alone: the embeddings share a direction for that. The same heads of the second layer look
      for places whose preceding token is the current one, in the RoPE frequencies that hardly turn.

    Learned from a blank start, the second took more tokens than the whole CPU preset has (docs/LOG.md).

    Args:
        config: embed_std, embed_shared (the shared direction's length over a token's own part), head_std
            (of the output embedding where it is not tied), copy_gain, induction_heads (0 to kv_heads),
            previous_gap (how much lower the score is one token off), match_gain, match_context (matching
            uses frequencies that turn less than 1.5 radians over so many tokens).
    """
    about = model.config
    hidden, head_dim = about.hidden_size, about.head_dim
    group = about.num_attention_heads // about.num_key_value_heads
    layers = [layer.self_attn for layer in model.model.layers]

    def rows(head: int) -> slice:
        return slice(head * head_dim, (head + 1) * head_dim)

    for name, param in model.model.named_parameters():
        if name.endswith("down_proj.weight"):
            param.zero_()
        elif param.ndim == 2 and "embed" not in name:
            param.normal_(std=param.shape[1] ** -0.5)
    for layer in layers:
        for head in range(about.num_attention_heads):
            value = layer.v_proj.weight[rows(head // group)]
            layer.o_proj.weight[:, rows(head)] = config["copy_gain"] * value.T

    shared = F.normalize(torch.randn(hidden), dim=0)
    own = torch.randn(about.vocab_size, hidden)
    ratio = config["embed_shared"]
    model.model.embed_tokens.weight.copy_(config["embed_std"] * (own + ratio * hidden**0.5 * shared))
    if not about.tie_word_embeddings:
        model.lm_head.weight.copy_(config["head_std"] * own)

    theta = about.rope_parameters["rope_theta"]
    frequencies = theta ** (-torch.arange(head_dim // 2) * 2 / head_dim)
    # The six fastest frequencies tell neighbours apart; the slower ones add the same to all of them.
    fast = torch.arange(head_dim // 2) < 6
    slow = torch.nonzero(frequencies * config["match_context"] < 1.5).flatten()
    slow = torch.cat([slow, slow + head_dim // 2])
    key = torch.cat([fast, torch.zeros_like(fast)]).float()
    query = torch.cat([frequencies.cos() * fast, -frequencies.sin() * fast])  # turned back by one token
    read = hidden**0.5 * ratio / (1 + ratio**2) ** 0.5  # the shared direction after the first norm
    drop = (1 - frequencies[fast].cos()).sum()
    size = (config["previous_gap"] * head_dim**0.5 / drop).sqrt() / read if ratio else 0.0
    for kv_head in range(config["induction_heads"]):
        head = rows(kv_head * group)
        first, second = layers[0], layers[1]
        first.q_proj.weight[head] = size * torch.outer(query, shared)
        first.k_proj.weight[rows(kv_head)] = size * torch.outer(key, shared)
        # The token before goes into directions of its own, so that it is not mistaken for the current one.
        written = torch.randn(hidden, head_dim) * head_dim**-0.5
        first.o_proj.weight[:, head] = written
        value = first.v_proj.weight[rows(kv_head)]
        value = value - torch.outer(value @ shared, shared)
        match = torch.zeros(2, head_dim, hidden)
        match[0, slow] = config["match_gain"] * value[slow]
        match[1, slow] = config["match_gain"] * 0.5 * written.T[slow]  # `written` has rows of norm 2
        second.q_proj.weight[head], second.k_proj.weight[rows(kv_head)] = match[0], match[1]


def schedule(stages: Sequence[Mapping]) -> list[Mapping]:
    """The stage of every step, with one context each.

    A stage has context (tokens of a window, or a list that its steps take in turn: a model that sees long windows
    alone forgets how to look things up at the first positions), batch_tokens, and tokens or steps.
    """
    plan: list[Mapping] = []
    for stage in stages:
        steps = stage.get("steps") or math.ceil(stage["tokens"] / stage["batch_tokens"])
        contexts = stage["context"] if isinstance(stage["context"], list) else [stage["context"]]
        plan += [{**stage, "context": contexts[step % len(contexts)]} for step in range(steps)]
    return plan


def mixed_batch(
    stream: np.ndarray,
    pieces: object,
    stage: Mapping,
    mix: Mapping,
    rng: np.random.Generator,
    vocab: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """One batch: corpus windows, then repeats and look-ups in the shares that the mix asks for.

    Returns:
        tokens int32 and loss weights float32, both [windows, context], and the number of corpus windows.
    """
    context = stage["context"]
    windows = max(1, stage["batch_tokens"] // context)
    kinds = ("repeat", "passkey", "kv")
    # Shares of few windows are met on average, not every step.
    exact = np.array([windows * mix[kind] for kind in kinds])
    counts = np.floor(exact + rng.random(len(kinds))).astype(int)
    while counts.sum() > windows:
        counts[counts.argmax()] -= 1
    corpus = windows - int(counts.sum())
    tokens = []
    weights = []
    if corpus:
        tokens.append(training_windows(stream, context, corpus, rng, bos=pieces.bos))
        weights.append(np.ones((corpus, context), dtype=np.float32))
    for kind, count in zip(kinds, counts, strict=True):
        if not count:
            continue
        if kind == "repeat":
            part = training_repeats(
                stream,
                pieces,
                context,
                count,
                rng,
                vocab=vocab,
                length=tuple(mix["repeat_length"]),
                apart=mix["repeat_apart"],
            )
        else:
            part = training_lookups(
                stream, pieces, context, count, rng, task=kind, answer_weight=mix["answer_weight"]
            )
        tokens.append(part[0])
        weights.append(part[1])
    return np.concatenate(tokens), np.concatenate(weights), corpus


def batches(
    config: Mapping, documents: Mapping[str, np.ndarray], tokenizer: object, seed: int
) -> Callable[[int], tuple[np.ndarray, np.ndarray, int]]:
    """The batch of any step of a distillation or fine-tuning: a function of the step, so that a run can resume.

    Args:
        config: context, batch (windows a step), and packing (documents at a time, `corpus.packed_rows`) or mix.
        documents: id -> tokens, from `corpus.read_tokens`.

    Returns:
        A function of the step, which gives what `mixed_batch` gives.
    """
    context, count = config["context"], config["batch"]
    if "packing" in config:
        eos = tokenizer.eos_token_id
        pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        rows = packed_rows(documents, context, config["packing"], bos=bos_of(tokenizer), eos=eos, pad=pad)
        weights = np.ones((count, context), dtype=np.float32)
        return lambda step: (rows_of_step(rows, step, count, seed), weights, count)
    stream, pieces = packed(documents, tokenizer.eos_token_id), pieces_of(tokenizer)
    stage = {"context": context, "batch_tokens": count * context}

    def mixed(step: int) -> tuple[np.ndarray, np.ndarray, int]:
        rng = np.random.default_rng([seed, TRAINING, step])
        return mixed_batch(stream, pieces, stage, config["mix"], rng, len(tokenizer))

    return mixed


def pretrain(
    config: Mapping,
    tokens_parquet: Path,
    tokenizer: Path,
    out: Path,
    *,
    init: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> pd.DataFrame:
    """Train a small Llama through windows of growing length and save it as a Hugging Face model.

    Args:
        config: model (see `build_model`), optimizer (see `optimizers`, and clip, warmup, decay_share),
            mix (shares of repeat, passkey and kv windows; repeat_length, answer_weight), stages (see
            `schedule`), loss_chunk, checkpoint_seconds.
        tokens_parquet: from `corpus.tokenise`; only its train split is read.
        tokenizer: folder.
        out: model folder to write; `out.checkpoint` beside it keeps the run until `drop_checkpoint`.
        init: continue this model instead of a fresh one.
        device: `cpu` (float32) or `cuda` (bfloat16 autocast).
        seed: of the first weights and all batches.

    Returns:
        One row a step: step, tokens (seen so far), context, loss (nats a token over the batch's corpus
        windows), lookup_loss (weighted, over its repeats and look-ups), lr (Muon's). A loss is NaN where
        the batch had no such window.
    """
    vocabulary = load_tokenizer(tokenizer)
    stream = packed(read_tokens(tokens_parquet, "train"), vocabulary.eos_token_id)
    pieces = pieces_of(vocabulary)
    torch.manual_seed(seed)
    if init is None:
        model = build_model(config["model"], vocabulary)
    else:
        model = AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32, attn_implementation="sdpa")
        model.config.max_position_embeddings = config["model"]["positions"]
    model = model.to(device).train()
    if device != "cpu":
        compile_layers(model)
    recipe, plan = config["optimizer"], schedule(config["stages"])
    optims = optimizers(model, recipe)
    params = dict(model.named_parameters())

    origin = hashlib.sha256(stream.tobytes()).hexdigest()
    start = hashlib.sha256()
    for param in params.values():
        start.update(param.detach().cpu().numpy().tobytes())
    digest = digest_of(config, origin, seed, start.hexdigest())
    file = out.with_name(out.name + ".checkpoint") / "state.safetensors"
    done, rows = load_checkpoint(file, params, optims, digest=digest)
    seen = rows[-1]["tokens"] if rows else 0
    saved = time.monotonic()
    bar = tqdm(total=len(plan), initial=done, desc=f"train {out.name}", unit="step", mininterval=1)
    for step in range(done, len(plan)):
        stage = plan[step]
        rng = np.random.default_rng([seed, TRAINING, step])
        ids, weights, corpus = mixed_batch(
            stream, pieces, stage, {**config["mix"], **stage.get("mix", {})}, rng, len(vocabulary)
        )
        x = torch.from_numpy(ids).long().to(device)
        w = torch.from_numpy(weights[:, 1:].copy()).to(device)
        lr = set_lr(optims, lr_at(step, len(plan), warmup=recipe["warmup"], decay_share=recipe["decay_share"]))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
            hidden = model.model(input_ids=x[:, :-1], use_cache=False).last_hidden_state
            losses = token_losses(
                hidden.flatten(0, 1), model.lm_head.weight, x[:, 1:].flatten(), config["loss_chunk"]
            ).view_as(w)
        ((losses * w).sum() / w.sum()).backward()
        nn.utils.clip_grad_norm_(params.values(), recipe["clip"])
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
                "context": stage["context"],
                "loss": loss,
                "lookup_loss": lookup_loss,
                "lr": lr,
            }
        )
        bar.update()
        bar.set_postfix(context=stage["context"], loss=f"{loss:.3f}", refresh=False)
        if time.monotonic() - saved > config["checkpoint_seconds"]:
            save_checkpoint(file, params, optims, digest=digest, step=step + 1, rows=rows)
            saved = time.monotonic()
    bar.close()
    save_model(model, out, vocabulary)
    save_checkpoint(file, params, optims, digest=digest, step=len(plan), rows=rows)
    return pd.DataFrame(rows, columns=["step", "tokens", "context", "loss", "lookup_loss", "lr"])
