"""Test that a seed draws the same weights of a random model every time."""

import pytest
import torch

from seerbench.errors import ModelError
from seerbench.models.random_weights import random_model


def test_the_same_seed_draws_the_same_model():
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 11}
    first, second = (random_model(config, "cpu", "bfloat16", seed=1) for _ in range(2))
    assert {weight.dtype for weight in first.parameters()} == {torch.bfloat16}
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layer": 2}, "no entry 'num_hidden_layer'; did you mean 'num_hidden_layers'"),
        ({"heads": 2}, "no entry 'heads'"),
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({"model_type": "t5"}, "no entry 'hidden_size'; see transformers' T5Config"),
        ({"hidden_size": "wide"}, "no model can be made"),
        ({"hidden_size": 33, "num_attention_heads": 0}, "no model can be made"),
    ],
)
def test_a_geometry_of_no_model_is_refused(changes, words):
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 11, "rope_theta": 5e5}
    assert random_model(config, "cpu", "float32").config.rope_parameters["rope_theta"] == 5e5
    with pytest.raises(ModelError, match=words):
        random_model(config | changes, "cpu", "float32")
