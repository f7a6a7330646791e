"""Test which models are supported, and that others are refused with the reason and the list."""

import pytest
import torch
import transformers
from torch import nn

from models.toy import OPTIONS, SHAPE, make
from seerbench.errors import ModelError, Refused
from seerbench.methods.registry import create
from seerbench.models.architectures import SUPPORTED, attention_layers, rope_of
from seerbench.models.hugging_face import attention_method, for_each_layer
from seerbench.models.likelihood import window_nll

FOREIGN = {
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 97},
    "Bloom": {"hidden_size": 64, "n_layer": 1, "n_head": 4, "vocab_size": 97},
    "OPT": {**SHAPE, "ffn_dim": 32, "word_embed_proj_dim": 64},
    "Phi3": SHAPE,
    "Gemma3": {**SHAPE, "head_dim": 16},
    "Olmo2": SHAPE,
    "SmolLM3": SHAPE,
    "Cohere": SHAPE,
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 97, "state_size": 4},
}


@pytest.mark.parametrize("architecture", FOREIGN)
def test_foreign_architectures_are_refused_everywhere(architecture):
    name = "Gemma3Text" if architecture == "Gemma3" else architecture
    config = getattr(transformers, f"{name}Config")(**FOREIGN[architecture])
    head = "LMHeadModel" if architecture == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{architecture}{head}")(config).eval()
    tokens = torch.arange(1, 33)
    uses = [
        lambda: attention_layers(model),
        lambda: rope_of(model),
        lambda: window_nll(model, tokens),
        lambda: for_each_layer(model, tokens[None], lambda *_: None),
        lambda: attention_method(model, create("dense")).__enter__(),
    ]
    for use in uses:
        with pytest.raises(
            ModelError, match=f"{config.model_type}'. Supported .* Llama, Mistral, .* and Qwen3-MoE"
        ):
            use()


@pytest.mark.parametrize("other", ["module", "decoder", "classifier"])
def test_other_modules_are_refused(other):
    model = {
        "module": lambda: nn.Linear(2, 2),
        "decoder": lambda: make().model,
        "classifier": lambda: make(model_class=transformers.LlamaForSequenceClassification),
    }[other]()
    with pytest.raises(ModelError, match="Supported are"):
        attention_layers(model)


def test_every_listed_architecture_has_its_layers():
    assert {make(name).config.model_type for name in OPTIONS} == {*SUPPORTED}
    for name in OPTIONS:
        assert [layer.layer_idx for layer in attention_layers(make(name))] == [0, 1]


def test_a_layer_without_attention_is_refused():
    model = make()
    model.model.layers[1].self_attn = nn.Identity()
    with pytest.raises(ModelError, match="1 of its 2 layers have attention"):
        attention_layers(model)


@pytest.mark.parametrize(
    "settings",
    [{"rope_type": "dynamic"}, {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}],
)
def test_rope_that_depends_on_the_length_refuses_gates_only(settings):
    model = make(
        rope_parameters={"rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 256, **settings}
    )
    with pytest.raises(Refused, match=settings["rope_type"]):
        rope_of(model)(torch.arange(4))
    with torch.no_grad(), attention_method(model, create("dense")):
        model(torch.arange(1, 33)[None])
