"""Tiny models of every supported architecture, gates for them, and tokens."""

import numpy as np
import torch
import transformers

from seerbench.baselines.moa import save_plan
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.registry import create
from seerbench.models.architectures import attention_layers

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 1, "moe_intermediate_size": 32}
OPTIONS = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "Qwen2Moe": {"num_experts": 2, **EXPERTS},
    "Qwen3Moe": {"num_experts": 2, "head_dim": 16, **EXPERTS},
}
WITHOUT_EXPERTS = ["Llama", "Mistral", "Qwen2", "Qwen3"]
TOKENS = torch.randint(1, 97, (2, 100), generator=torch.Generator().manual_seed(1))


def make(architecture="Llama", model_class=None, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**SHAPE, **{**OPTIONS.get(architecture, {}), **options})
    return (model_class or getattr(transformers, f"{architecture}ForCausalLM"))(config).eval()


def gates_for(model, **options):
    torch.manual_seed(0)
    config = GateConfig(block=16, **options)
    return [AttnGate(config, 4, 2, layer.head_dim) for layer in attention_layers(model)]


def method_for(name, model, folder):
    """Return a method of the registry at 50% with blocks of 16, or with what it keeps if it takes no sparsity."""
    if name in ("dense", "flex"):
        return create(name)
    if name == "seer":
        return create(name, gates=gates_for(model), sparsity=0.5)
    if name == "moa":  # one block of sink and two of window
        save_plan(folder / "moa.json", np.full((2, 4), 32), np.zeros((2, 4)))
        return create(name, plan=folder / "moa.json", block=16)
    return create(name, sparsity=0.5, block=16)
