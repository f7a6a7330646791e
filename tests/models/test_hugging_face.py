"""Test methods inside Hugging Face models (Llama, Mistral, Qwen): padding, decoding, and the gate's inputs."""

import pytest
import standins
import torch

from models.toy import OPTIONS, TOKENS, WITHOUT_EXPERTS, gates_for, make
from seerbench.core import top_k
from seerbench.core.block_mask import BlockMask
from seerbench.errors import Refused
from seerbench.methods.block_selection import select_top_k
from seerbench.methods.gate_losses import gate_target
from seerbench.methods.registry import create
from seerbench.methods.wrappers import variant
from seerbench.models.architectures import attention_layers, rope_of
from seerbench.models.attention_function import layer_state
from seerbench.models.hugging_face import attention_method, chunked_mlps, for_each_layer
from seerbench.models.sources import load


@pytest.fixture(autouse=True)
def short_inputs_meet_no_request(monkeypatch):
    """Plan inputs of a few blocks as the rules say, since no number of whole blocks may be near the request."""
    monkeypatch.setattr(top_k, "MIN_BLOCKS", 64)


@pytest.fixture
def tokens():
    return TOKENS


@pytest.mark.parametrize("architecture", WITHOUT_EXPERTS)
@torch.no_grad()
def test_sparsity_zero_equals_the_model_alone(architecture, tokens):
    model = make(architecture)
    alone = model(tokens).logits
    exact = make(architecture).double()(tokens).logits
    budget = 2 * ((alone.double() - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max())
    for method in (create("dense"), create("seer", gates=gates_for(model), sparsity=0.0)):
        with attention_method(model, method) as record:
            inside = model(tokens).logits
        assert record.sparsity == [0.0, 0.0]
        assert (inside.double() - exact).abs().max() <= budget


@pytest.mark.parametrize("architecture", WITHOUT_EXPERTS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_masks_are_honoured(architecture, side, tokens):
    model = make(architecture)
    mask = torch.ones_like(tokens)
    mask[1, : 37 if side == "left" else None] = 0 if side == "left" else 1
    if side == "right":
        mask[1, -37:] = 0
    real = mask.bool()
    with attention_method(model, create("dense")):
        padded = model(tokens, attention_mask=mask).logits
        ignored = model(tokens).logits
    want = model(tokens, attention_mask=mask).logits
    assert torch.allclose(padded[real], want[real], atol=1e-5)
    if side == "left":  # Without the mask, the padded row differs, so the test can fail.
        assert not torch.allclose(ignored[real], want[real], atol=1e-3)


@torch.no_grad()
def test_padding_masks_are_honoured_by_a_sparse_method(tokens):
    """Check with random blocks at 50% that other tokens in the padding change no real position."""
    model = make("Llama")
    mask = torch.ones_like(tokens)
    mask[:, :20] = 0
    other = torch.where(mask.bool(), tokens, 5)
    with attention_method(model, create("random", sparsity=0.5, block=16)) as record:
        first = model(tokens, attention_mask=mask).logits[:, 20:]
        second = model(other, attention_mask=mask).logits[:, 20:]
    assert record.mean_sparsity() > 0.3
    assert torch.equal(first, second)


@pytest.mark.parametrize("architecture", OPTIONS)
@torch.no_grad()
def test_the_gate_sees_q_and_k_before_rope(architecture, tokens):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = make(architecture)
    cos, sin = rope_of(model)(torch.arange(tokens.shape[1]))
    seen = []

    def see(layer, q, k, v):
        seen.append(layer.index)
        rotated = apply_rotary_pos_emb(layer.q_unrotated, layer.k_unrotated, cos[None], sin[None])
        assert torch.allclose(rotated[0], q, atol=1e-6)
        assert torch.allclose(rotated[1], k, atol=1e-6)
        assert not torch.allclose(layer.q_unrotated, q, atol=1e-3)

    for_each_layer(model, tokens, see)
    assert seen == [0, 1]
    assert model.config._attn_implementation == "sdpa"  # The model is unchanged.


@torch.no_grad()
def test_decoding_is_dense_and_agrees_with_the_model_alone(tokens):
    model = make("Llama")
    want = model.generate(tokens[:1], max_new_tokens=5, do_sample=False)
    with attention_method(model, create("dense")) as record:
        got = model.generate(tokens[:1], max_new_tokens=5, do_sample=False)
    assert torch.equal(got, want)
    assert len(record.sparsity) == 2  # Prefill has two layers, and decoding makes no plan.


@torch.no_grad()
def test_seer_in_a_model_reaches_its_sparsity(tokens):
    model = make("Llama")
    with attention_method(model, create("seer", gates=gates_for(model), sparsity=0.5)) as record:
        model(tokens)
    assert len(record.sparsity) == 2
    assert 0.4 < record.mean_sparsity() < 0.7


@torch.no_grad()
def test_a_refusal_comes_out_with_its_reason(tokens):
    model = make("Llama").to(torch.bfloat16)
    with attention_method(model, create("streaming", block=16)):
        with pytest.raises(Refused, match="float32"):
            model(tokens)


@torch.no_grad()
def test_oracle_top_k_is_the_top_k_of_the_true_map(tokens):
    """Compare the oracle's mask with the top-k of a map that is made here from full attention weights."""
    model = make("Llama")

    def see(layer, q, k, v):
        plan = create("oracle", sparsity=0.5, block=16).plan(q, k, layer)
        scores = q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2) * q.shape[-1] ** -0.5
        causal = torch.ones(100, 100, dtype=torch.bool).tril()
        weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        padded = torch.nn.functional.pad(weights, (0, 12, 0, 12)).unflatten(-1, (7, 16)).unflatten(2, (7, 16))
        target = gate_target(padded.amax((3, 5)))
        hidden = ~torch.ones(7, 7, dtype=torch.bool).tril()
        want = select_top_k(target.masked_fill(hidden, -torch.inf).float(), 0.5, 100, 16)
        assert isinstance(plan, BlockMask)
        assert (plan.to_dense() == want.to_dense()).float().mean() > 0.999

    for_each_layer(model, tokens, see)


@torch.no_grad()
def test_chunked_mlps_give_the_same_numbers(tokens):
    model = make("Llama")
    alone = model(tokens).logits
    exact = make("Llama").double()(tokens).logits
    budget = 2 * ((alone.double() - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max())
    seen = []
    hook = model.model.layers[0].mlp.gate_proj.register_forward_hook(
        lambda _m, args, _o: seen.append(args[0].shape[1])
    )
    with chunked_mlps(model, chunk=33):
        chunked = model(tokens).logits
    hook.remove()
    assert seen == [33, 33, 33, 1]
    assert (chunked.double() - exact).abs().max() <= budget
    assert "forward" not in vars(model.model.layers[0].mlp)  # The model is unchanged.


@torch.no_grad()
def test_q_and_k_before_rope_do_not_outlive_their_layer(tokens):
    model = make("Llama")
    with attention_method(model, create("seer", gates=gates_for(model), sparsity=0.5)):
        model(tokens)
        assert all(layer_state(layer).q_unrotated is None for layer in attention_layers(model))


@torch.no_grad()
def test_the_gate_s_rotations_are_made_once_for_all_layers(tokens):
    model = make("Llama")
    calls = []
    hook = model.model.rotary_emb.register_forward_hook(lambda *_: calls.append(1))
    with attention_method(model, create("seer", gates=gates_for(model), sparsity=0.5)):
        for length, wanted in ((100, 2), (100, 1), (64, 2)):  # the model's own call, and one per new length
            calls.clear()
            model(tokens[:, :length])
            assert len(calls) == wanted
    hook.remove()


def test_gates_for_a_model_of_another_depth_are_refused(tmp_path):
    model = load(standins.make_llama_checkpoint(tmp_path))
    gates = [gates_for(model)[0] for _ in range(5)]
    with pytest.raises(Refused, match="for a model of 5 layers; LlamaForCausalLM has 2"):
        with attention_method(model, variant(create("seer", gates=gates), kernel="flex-sparse")):
            pass


@pytest.mark.parametrize("architecture", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
@torch.no_grad()
def test_mixtures_of_experts_run_with_chunked_mlps(architecture, tokens):
    """Check that chunks hold tokens, also in a shared expert, whose input has no batch dimension."""
    model = make(architecture)
    alone = model(tokens).logits
    with chunked_mlps(model, chunk=33), attention_method(model, create("dense")) as record:
        assert torch.allclose(model(tokens).logits, alone, atol=1e-5)
    assert record.sparsity == [0.0, 0.0]
    assert not any("forward" in vars(module) for module in model.modules())
