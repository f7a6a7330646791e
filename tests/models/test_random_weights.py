"""Test that a seed draws the same weights of a random model every time."""

import torch

from seerbench.models.random_weights import random_model


def test_the_same_seed_draws_the_same_model():
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 11}
    first, second = (random_model(config, "cpu", "bfloat16", seed=1) for _ in range(2))
    assert {weight.dtype for weight in first.parameters()} == {torch.bfloat16}
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
