"""Test the small model: its initial weights attend to earlier tokens, and both architectures have their shape."""

import pytest
import torch
from tiny_jobs import MODEL

from seerbench.data.tokens import load_tokenizer
from seerbench.training.jobs import Architecture
from seerbench.training.small_model import build_model


@pytest.fixture(scope="module")
def tokenizer(world):
    return load_tokenizer(world / "tokenizer")


def test_first_weights_read_the_token_before_and_match_it(tokenizer):
    """Check that layer 1 attends to the preceding token, and layer 2 to the token after an earlier occurrence."""
    torch.manual_seed(0)
    model = build_model(Architecture.model_validate(MODEL | {"hidden": 128}), tokenizer).eval()
    model.set_attn_implementation("eager")
    sequence = torch.randperm(300)[:48] + 3
    tokens = torch.cat([sequence, sequence])[None]
    with torch.no_grad():
        first, second = model.model(tokens, output_attentions=True).attentions[:2]
    for head in (0, 2):  # the first query head of each KV head
        assert first[0, head].diagonal(-1).mean() > 0.6
        matched = second[0, head].diagonal(-47)[1:].mean()
        assert matched > 4 * second[0, head, 48:].mean()


def test_a_blank_mistral_has_its_shape_and_full_attention(tokenizer):
    architecture = Architecture.model_validate(MODEL | {"architecture": "mistral", "first_weights": None})
    model = build_model(architecture, tokenizer)
    assert type(model).__name__ == "MistralForCausalLM"
    assert model.config.sliding_window is None
    assert model.model.layers[0].mlp.down_proj.weight.any()  # `initialize` would have left zeros
