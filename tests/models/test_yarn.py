"""Test YaRN in a config, in a checkpoint and when a model is loaded."""

import math

import pytest
import standins
import torch
import transformers

from seerbench.errors import ModelError
from seerbench.models.architectures import rope_of
from seerbench.models.sources import load
from seerbench.models.yarn import with_yarn

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


SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    "name",
    ["LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config", "PhiConfig", "StableLmConfig", "GlmConfig"],
)
def test_the_other_rope_parameters_keep_their_values(name):
    before = getattr(transformers, name)(**SHAPE)
    after = with_yarn(getattr(transformers, name)(**SHAPE), 2)
    changed = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    assert after.rope_parameters == before.rope_parameters | changed
    assert after.max_position_embeddings == 128


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (transformers.Gemma3TextConfig(**SHAPE), "several RoPEs"),
        (transformers.Olmo3Config(**SHAPE), "several RoPEs"),
        (transformers.GPT2Config(), "no RoPE"),
        (transformers.OPTConfig(), "no RoPE"),
        (transformers.BloomConfig(), "no RoPE"),
        (transformers.Gemma3Config(), "no RoPE"),  # its text model has, which is not what this config is of
        (
            transformers.LlamaConfig(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
            r"scaled already \(linear\)",
        ),
        (
            transformers.LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            r"scaled already \(dynamic\)",
        ),
        (with_yarn(transformers.Qwen2Config(**SHAPE), 2.0), r"scaled already \(yarn\)"),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_a_model_to_which_yarn_does_not_apply_is_refused(config, words):
    before = config.to_dict()
    with pytest.raises(ModelError, match=words):
        with_yarn(config, 4.0)
    assert config.to_dict() == before
