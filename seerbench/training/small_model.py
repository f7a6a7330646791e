"""small_model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from seerbench.data.tokens import bos_of


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
