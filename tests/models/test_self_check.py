"""Test that a model is checked once, that the check leaves no trace, and that it finds what it is for."""

import functools

import pytest
import torch
import transformers

from models.toy import OPTIONS, SHAPE, TOKENS, make
from seerbench.errors import ModelError
from seerbench.models import self_check
from seerbench.models.architectures import SUPPORTED
from seerbench.models.self_check import check_model


@pytest.mark.parametrize("architecture", OPTIONS)
def test_supported_models_pass_and_stay_as_they_are(architecture):
    model = make(architecture).train()
    model.model.layers[0].eval()  # modes that differ come back as they were
    modes = [module.training for module in model.modules()]
    weights = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    check_model(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(weights, model.parameters(), strict=True))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_other_dtypes_and_attention_implementations_pass(dtype, implementation):
    model = make("Mistral", sliding_window=20).to(dtype)
    model.set_attn_implementation(implementation)
    check_model(model)
    assert model.config._attn_implementation == implementation


def test_weights_that_are_not_finite_are_no_matter_of_the_check():
    model = make()
    model.model.layers[1].mlp.down_proj.weight.data.fill_(torch.inf)
    check_model(model)


def test_a_model_is_checked_once_per_configuration():
    model, passes = make(), []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    for _ in range(3):
        check_model(model)
    assert len(passes) == 1
    model.config.rms_norm_eps *= 2
    check_model(model)
    check_model(make())  # another object
    assert len(passes) == 2


class _ScaledLogits(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out


class _OtherHead(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits.clone()
        out.logits[..., -1] += 1
        return out


@pytest.mark.parametrize("model_class", [_ScaledLogits, _OtherHead])
def test_logits_that_are_not_the_head_s_are_found(model_class):
    with pytest.raises(ModelError, match="losses would be wrong"):
        check_model(make(model_class=model_class))


def _patched(change):
    """Return a model whose second attention layer passes changed arguments on, or returns another output."""
    model = make()
    attention = model.model.layers[1].self_attn
    attention.forward = functools.partial(change, model, attention.forward)
    return model


def test_other_attention_is_found():
    def change(model, forward, *args, **kwargs):
        out, weights = forward(*args, **kwargs)
        return out * (1.01 if model.config._attn_implementation == "sdpa" else 1.0), weights

    with pytest.raises(ModelError, match="layer 1 it computes other attention"):
        check_model(_patched(change))


def test_a_layer_without_rope_is_found():
    def change(model, forward, *args, position_embeddings, **kwargs):
        cos, sin = position_embeddings
        return forward(*args, position_embeddings=(torch.ones_like(cos), torch.zeros_like(sin)), **kwargs)

    with pytest.raises(ModelError, match="layer 1 does not attend with its q and k rotated"):
        check_model(_patched(change))


@pytest.mark.parametrize("argument", ["softcap", "s_aux", "position_bias", "a_new_one"])
def test_unknown_arguments_of_attention_are_found(argument):
    def change(model, forward, *args, **kwargs):
        return forward(*args, **kwargs, **({} if model.config._attn_implementation == "sdpa" else {argument: 5.0}))

    with pytest.raises(ModelError, match=f"layer 1: the model asks for attention with {argument}"):
        check_model(_patched(change))


@pytest.mark.parametrize(
    ("architecture", "options", "reason"),
    [
        ("Cohere", {}, "losses would be wrong"),
        ("Granite", {"attention_multiplier": 0.25, "logits_scaling": 8.0}, "losses would be wrong"),
        ("Granite", {"attention_multiplier": 0.5, "logits_scaling": 1.0}, "scales scores by 0.5"),
        ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": None}, "softcap"),
        ("GptOss", {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux"),
        ("SmolLM3", {"no_rope_layers": [1, 0]}, "rotated by"),
        ("Olmo2", {}, None),
        ("StableLm", {}, "rotated by"),
    ],
)
def test_the_check_judges_architectures_that_are_not_listed(architecture, options, reason, monkeypatch):
    """Check that listing an architecture is safe: the self-check alone refuses those that do not fit."""
    config = getattr(transformers, f"{architecture}Config")(**SHAPE, **options)
    monkeypatch.setitem(SUPPORTED, config.model_type, architecture)
    torch.manual_seed(0)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    if reason is None:
        check_model(model)
    else:
        with pytest.raises(ModelError, match=reason):
            check_model(model)


def test_a_failed_check_leaves_the_model_as_it_was():
    model = make(model_class=_ScaledLogits)
    want = model(TOKENS).logits
    for _ in range(2):
        with pytest.raises(ModelError):
            check_model(model)
    assert model not in self_check._PASSED
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(TOKENS).logits, want)
