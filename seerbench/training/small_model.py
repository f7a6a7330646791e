"""Make the small model that is pre-trained here, with initial weights that already look back.

`pretrain` builds the model of a preset with this file.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from seerbench.data.tokens import bos_of
from seerbench.training.jobs import Architecture, FirstWeights


def compile_layers(model: nn.Module) -> None:
    """Compile every decoder layer in place, for a GPU, which fuses norms, RoPE and casts.

    All layers share one graph, so there is one short compilation per length of window instead of a long one of the
    entire model. Parameters keep their names.
    """
    for layer in model.model.layers:
        layer.compile(dynamic=False)


def build_model(architecture: Architecture, tokenizer: Any) -> LlamaForCausalLM | MistralForCausalLM:
    """Return an untrained model of the Llama or Mistral architecture with the tokenizer's vocabulary.

    Mistral has full attention here, without a sliding window.
    """
    mistral = architecture.architecture == "mistral"
    config_class, model_class = (MistralConfig, MistralForCausalLM) if mistral else (LlamaConfig, LlamaForCausalLM)
    extra = {"sliding_window": None} if mistral else {}
    model = model_class(
        config_class(
            **extra,
            vocab_size=len(tokenizer),
            hidden_size=architecture.hidden,
            num_hidden_layers=architecture.layers,
            num_attention_heads=architecture.heads,
            num_key_value_heads=architecture.kv_heads,
            head_dim=architecture.head_dim,
            intermediate_size=architecture.intermediate,
            max_position_embeddings=architecture.positions,
            rope_parameters={"rope_type": "default", "rope_theta": float(architecture.rope_theta)},
            tie_word_embeddings=architecture.tied_embeddings,
            bos_token_id=bos_of(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="sdpa",
        )
    )
    if architecture.first_weights is not None:
        initialize(model, architecture.first_weights)
    return model


@torch.no_grad()
def initialize(model: LlamaForCausalLM, weights: FirstWeights) -> None:
    """Set initial weights with which a small model learns to use its context within minutes.

    The architecture is unchanged and every weight is trained. In the spirit of mimetic initialization (Trockman and
    Kolter, 2023, arXiv:2305.09828), heads start close to what training is known to produce (Olsson et al., 2022,
    arXiv:2209.11895):

    - MLPs start at zero. Every head copies what it attends to (the output matrix is the transposed value matrix),
      and the output embedding, which is aligned with the input embedding, turns the copy into a prediction.
    - In the first layer, `induction_heads` key/value heads, with one query head each, read the token before the
      current one. They find it by position alone, through a direction that all embeddings share.
    - In the second layer, these heads look for places whose preceding token is the current one. They compare tokens
      in the RoPE frequencies that hardly turn within the context.

    With random initial weights, the second layer needed more tokens to learn this than the cpu preset trains on
    (docs/LOG.md).

    Args:
        model: of two layers or more.
        weights: the scales and gains.
    """
    config = model.config
    hidden, head_dim = config.hidden_size, config.head_dim
    group = config.num_attention_heads // config.num_key_value_heads
    layers = [layer.self_attn for layer in model.model.layers]

    def rows(head: int) -> slice:
        return slice(head * head_dim, (head + 1) * head_dim)

    for name, param in model.model.named_parameters():
        if name.endswith("down_proj.weight"):
            param.zero_()
        elif param.ndim == 2 and "embed" not in name:
            param.normal_(std=param.shape[1] ** -0.5)
    for layer in layers:
        for head in range(config.num_attention_heads):
            value = layer.v_proj.weight[rows(head // group)]
            layer.o_proj.weight[:, rows(head)] = weights.copy_gain * value.T

    shared = F.normalize(torch.randn(hidden), dim=0)
    own = torch.randn(config.vocab_size, hidden)
    ratio = weights.embed_shared
    model.model.embed_tokens.weight.copy_(weights.embed_std * (own + ratio * hidden**0.5 * shared))
    if not config.tie_word_embeddings:
        model.lm_head.weight.copy_(weights.head_std * own)

    theta = config.rope_parameters["rope_theta"]
    frequencies = theta ** (-torch.arange(head_dim // 2) * 2 / head_dim)
    # The six fastest frequencies tell neighbors apart. The slower ones add equally to the scores of all neighbors.
    fast = torch.arange(head_dim // 2) < 6
    slow = torch.nonzero(frequencies * weights.match_context < 1.5).flatten()
    slow = torch.cat([slow, slow + head_dim // 2])
    key = torch.cat([fast, torch.zeros_like(fast)]).float()
    query = torch.cat([frequencies.cos() * fast, -frequencies.sin() * fast])  # rotated back by one token
    read = hidden**0.5 * ratio / (1 + ratio**2) ** 0.5  # length of the shared direction after the first norm
    drop = (1 - frequencies[fast].cos()).sum()
    size = (weights.previous_gap * head_dim**0.5 / drop).sqrt() / read if ratio else 0.0
    for kv_head in range(weights.induction_heads):
        query_rows, kv_rows = rows(kv_head * group), rows(kv_head)
        first, second = layers[0], layers[1]
        first.q_proj.weight[query_rows] = size * torch.outer(query, shared)
        first.k_proj.weight[kv_rows] = size * torch.outer(key, shared)
        # The preceding token is written to directions of its own. Otherwise it would look like the current one.
        written = torch.randn(hidden, head_dim) * head_dim**-0.5
        first.o_proj.weight[:, query_rows] = written
        value = first.v_proj.weight[kv_rows]
        value = value - torch.outer(value @ shared, shared)
        match = torch.zeros(2, head_dim, hidden)
        match[0, slow] = weights.match_gain * value[slow]
        match[1, slow] = weights.match_gain * 0.5 * written.T[slow]  # `written` has rows of norm 2
        second.q_proj.weight[query_rows], second.k_proj.weight[kv_rows] = match[0], match[1]
