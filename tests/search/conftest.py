import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def model():
    """Return a small Llama of two layers with random weights."""
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    config = LlamaConfig(vocab_size=64, intermediate_size=64, head_dim=16, attn_implementation="sdpa", **shape)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def windows():
    """Return two windows of random tokens for each length: length -> windows."""
    rng = np.random.default_rng(0)
    return {n: [rng.integers(0, 64, n).astype(np.int32) for _ in range(2)] for n in (64, 128, 256)}
