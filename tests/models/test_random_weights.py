"""A geometry with random weights: the same seed draws the same model, and a threshold is looked for once."""

import torch

from seerbench.core.problem import LayerContext
from seerbench.measure.sweeps.ttft import CachedThreshold
from seerbench.methods.protocol import Method
from seerbench.models.random_weights import random_model


def test_the_same_seed_draws_the_same_model():
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 11}
    one, other = (random_model(config, "cpu", "bfloat16", seed=1) for _ in range(2))
    assert {weight.dtype for weight in one.parameters()} == {torch.bfloat16}
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)


class Searches(Method):
    """A method that notes where it looked for its threshold."""

    name, sparsity = "searches", 0.5

    def __init__(self):
        self.looked = []

    def with_threshold_for(self, q, k, layer):
        self.looked.append(layer.index)
        return Found(layer.index)

    def attend(self, q, k, v, plan):
        return plan


class Found(Method):
    def __init__(self, at):
        self.at = at

    def plan(self, q, k, layer):
        return self.at


def test_a_threshold_is_looked_for_once_a_layer_or_once_for_all():
    for alike, looked, plans in ((False, [0, 1], [0, 1, 0, 1]), (True, [0], [0, 0, 0, 0])):
        method = Searches()
        settled = CachedThreshold(method, alike)
        assert [settled.plan(None, None, LayerContext(index=index)) for index in (0, 1, 0, 1)] == plans
        assert method.looked == looked
        assert settled.name == "searches"
        assert settled.attend(None, None, None, 3) == 3
