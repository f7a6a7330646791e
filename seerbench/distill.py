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
from transformers import AutoConfig, AutoModelForCausalLM

from seerbench.attention import BlockMask, Case, Layer
from seerbench.corpus import load_tokenizer, read_tokens
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
from seerbench.models import DTYPES, attention_layers, load, stretched, using, visit
from seerbench.sharded import agreed, gathered, mean, rank_of, shard, shard_whole, whole
from seerbench.train import (
    batches,
    digest_of,
    load_checkpoint,
    lr_at,
    optimizers,
    save_checkpoint,
    save_model,
    set_lr,
    token_losses,
)

UNTRAINED = "untrained"  # a set that keeps its initial weights: what training adds is the difference to it
TOKENS_AT_ONCE = 131072  # of a batch; its windows go through the model so many tokens at a time
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
    model_folder: Path | str,
    tokens_parquet: Path,
    out: Path,
    *,
    block: int,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    revision: str | None = None,
    yarn: float | None = None,
) -> list[dict]:
    """Train gate sets on a frozen model and write them to `out` (safetensors); returns the training rows.

    Args:
        config: sets (see `gate_sets`), context, batch (windows a step), mix or packing (see `train.batches`;
            a model that was trained here wants its own mix), steps, learning_rate, warmup, checkpoint_seconds.
        model_folder: or its hub id, at `revision`; `yarn` as in `models.load`.
        tokens_parquet: from `corpus.tokenise`; only its train split is read.
        block: tokens a block.

    A killed run continues from `<out>.checkpoint`, which stays until `train.drop_checkpoint`.
    Rows: one a step and set. Under `sharded.processes` every process calls this and the first writes;
    ValueError where the batch does not split over them.
    """
    rank, size = rank_of()
    if config["batch"] % size:
        raise ValueError(f"a batch of {config['batch']} windows does not split over {size} processes")
    # Sharding moves it to the device layer by layer.
    model = load(model_folder, device if size == 1 else "cpu", dtype, revision, yarn).requires_grad_(False)
    tokenizer = load_tokenizer(model_folder, revision)
    documents = read_tokens(tokens_parquet, "train")
    batch_of = batches(config, documents, tokenizer, seed)
    sets = fresh_gates(model, gate_sets(config, block), seed)
    trained = {name: gates.to(device) for name, gates in sets.items() if name != UNTRAINED}
    if size > 1:
        shard(model, [gate for gates in trained.values() for gate in gates], device)
    params = {f"{name}.{key}": p for name, gates in trained.items() for key, p in gates.named_parameters()}
    # The authors' settings: AdamW, no weight decay (their final value), cosine decay after a warm-up.
    optimizer = torch.optim.AdamW(params.values(), lr=config["learning_rate"], weight_decay=0.0)
    amount = sum(map(len, documents.values()))
    digest = digest_of(config, amount, seed, block, str(model_folder), revision, yarn)
    file = out.with_name(out.name + ".checkpoint") / "state.safetensors"
    steps, saved = config["steps"], time.monotonic()
    done, rows = load_checkpoint(file, params, [optimizer], digest=digest)
    bar = tqdm(total=steps, initial=done, desc=f"distill {out.stem}", unit="step", mininterval=1, disable=rank > 0)
    for step in range(done, steps):
        windows = batch_of(step)[0]
        factor = cosine_at(step, steps, config["warmup"])
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
                    "context": config["context"],
                    "gate_loss": loss,
                    "learning_rate": rate,
                }
            )
        bar.update()
        if agreed(time.monotonic() - saved > config["checkpoint_seconds"]):
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

    def see(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
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
        visit(model, part, see)
    return dict(zip(total, mean(torch.stack(list(total.values()))).tolist(), strict=True))


def cosine_at(step: int, steps: int, warmup: int) -> float:
    """The learning rate's factor at a step: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _write_gates(out: Path, sets: Mapping[str, nn.ModuleList]) -> None:
    plain = {name: [_unsharded(gate) for gate in gates] for name, gates in sets.items()}
    if rank_of()[0]:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".tmp")
    save_gates(part, plain)
    part.replace(out)


def _unsharded(gate: AttnGate) -> AttnGate:
    """A copy on the CPU, in one piece."""
    copy = AttnGate(gate.config, gate.q_heads, gate.wk.shape[0], gate.head_dim)
    copy.load_state_dict({key: whole(value).cpu() for key, value in gate.state_dict().items()})
    return copy


# Joint fine-tuning


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

    def refuses(self, case: Case) -> str | None:
        return None if case.device == "cpu" else block_sparse_attention.refuses(case)

    def plan(self, q: Tensor, k: Tensor, layer: Layer) -> BlockMask:
        if layer.index in self.plans:  # the layer is computed again in backward: same mask, its loss is counted
            return self.plans[layer.index]
        gate = self.gates[layer.index]
        detached = Layer(layer.index, layer.q_unrotated.detach(), layer.k_unrotated.detach(), layer.rope)
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
            return block_sparse_attention.block_sparse_attention(q, k, v, plan)
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
    rank, size = rank_of()
    if config["batch"] % size:
        raise ValueError(f"a batch of {config['batch']} windows does not split over {size} processes")
    if size > 1 and ("packing" not in config or config["optimizer"]["muon_lr"] is not None):
        raise ValueError("fine-tuning in several processes takes packing and AdamW (muon_lr: null)")
    tokenizer = load_tokenizer(model_folder, revision)
    documents = read_tokens(tokens_parquet, "train")
    batch_of = batches(config, documents, tokenizer, seed)
    model = extended(model_folder, config["factor"], revision).train()
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
            with nullcontext() if joint is None else using(model, joint):
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
                "lm_loss": mean(torch.cat(of_text)[: corpus if size == 1 else None].mean()).item(),
                "gate_loss": math.nan if joint is None else mean(of_gates).item(),
                "learning_rate": rate,
            }
        )
        bar.update()
        bar.set_postfix(loss=f"{rows[-1]['lm_loss']:.3f}", refresh=False)
        if agreed(time.monotonic() - saved > config["checkpoint_seconds"]):
            save_checkpoint(file, params, optims, digest=digest, step=step + 1, rows=rows)
            saved = time.monotonic()
    bar.close()
    save_model(model, out, tokenizer, DTYPES[dtype])
    if gates is not None:
        _write_gates(out / "gates.safetensors", {"v1": gates})
    save_checkpoint(file, params, optims, digest=digest, step=steps, rows=rows)
    return rows


def extended(folder: Path | str, factor: float, revision: str | None = None) -> nn.Module:
    """The model in `folder` with YaRN scaling of its RoPE by `factor`, in fp32 for training."""
    config = stretched(AutoConfig.from_pretrained(folder, revision=revision), factor)
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, revision=revision, dtype=torch.float32, attn_implementation="sdpa"
    )


def _token_losses(model: nn.Module, x: Tensor, chunk: int, device: str) -> Tensor:
    """Cross-entropy of x[:, 1:] given what stands before: fp32 [B, N - 1]."""
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
        hidden = model.model(input_ids=x[:, :-1], use_cache=False).last_hidden_state
        head = gathered(model.lm_head.weight)
        flat = token_losses(hidden.flatten(0, 1), head, x[:, 1:].flatten(), chunk)
    return flat.view(len(x), -1)
