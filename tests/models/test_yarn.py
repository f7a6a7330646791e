"""Test YaRN in a config, in a checkpoint and when a model is loaded."""

import math

import pytest
import standins
import torch

from seerbench.core.rope import rope_of
from seerbench.errors import ModelError
from seerbench.models.sources import load

TOKENS = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(0))


def test_the_trained_context_is_extended(tmp_path):
    model = load(standins.make_llama_checkpoint(tmp_path, rope=None), yarn=4)
    parameters = model.config.rope_parameters
    assert parameters["rope_type"] == "yarn"
    assert parameters["original_max_position_embeddings"] == 512
    assert model.config.max_position_embeddings == 2048
    assert model.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@torch.no_grad()
def test_a_factor_at_loading_equals_yarn_in_the_checkpoint(tmp_path):
    """Compare Llama-3 that is scaled when it is loaded with the same weights saved with YaRN in their config."""
    plain = load(standins.make_llama_checkpoint(tmp_path / "plain", rope=None), yarn=4.0)
    saved = load(standins.make_llama_checkpoint(tmp_path / "saved", rope="yarn"))
    assert plain.config.max_position_embeddings == saved.config.max_position_embeddings == 2048
    for first, second in zip(rope_of(plain)(torch.arange(300)), rope_of(saved)(torch.arange(300)), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(plain(TOKENS).logits, saved(TOKENS).logits)


def test_a_scaled_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="scaled already"):
        load(standins.make_llama_checkpoint(tmp_path, rope="yarn"), yarn=2.0)
