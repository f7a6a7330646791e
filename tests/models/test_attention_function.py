"""Test calls of layers with a method: caches, arguments, nesting, copies, threads, gradients, compilation."""

import copy
import inspect
import threading

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

from models.toy import OPTIONS, TOKENS, WITHOUT_EXPERTS, gates_for, make
from seerbench.errors import KernelError, ModelError, Refused
from seerbench.methods.registry import create
from seerbench.models.architectures import attention_layers
from seerbench.models.attention_function import layer_state
from seerbench.models.hugging_face import attention_method

CHUNK = "chunked prefill is not supported yet"


@pytest.fixture
def model():
    return make()


def sparse(sparsity=0.5):
    return create("random", sparsity=sparsity, block=16)


def static(model, length):
    return StaticCache(config=model.config, max_cache_len=length)


def initialized(model, length):
    cache = static(model, length)
    cache.early_initialization(2, 2, 16, torch.float32, torch.device("cpu"))
    return cache


def used_before(model, length):
    cache = static(model, length)
    model(TOKENS[:, :20], use_cache=True, **{_cache_argument(model): cache})
    cache.reset()
    return cache


CACHES = {
    "none": lambda model, length: None,
    "dynamic": lambda model, length: DynamicCache(config=model.config),
    "static": static,
    "static, initialized": initialized,
    "static, used before": used_before,
}


def _cache_argument(model):
    """Return the name of the argument for a cache, which transformers has renamed."""
    parameters = inspect.signature(type(model.model.layers[0]).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def run(model, tokens, cache, **options):
    return model(tokens, use_cache=cache is not None, **{_cache_argument(model): cache}, **options).logits


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("window", [None, 40, 200])
@torch.no_grad()
def test_a_prefill_and_decoding_with_any_cache(kind, window):
    """Compare 60 tokens and two more with the model alone, and count every layer call."""
    model = make("Mistral", sliding_window=window)
    steps = TOKENS[:, :60], TOKENS[:, 60:61], TOKENS[:, 61:62]
    steps = steps[:1] if kind == "none" else steps
    cache = CACHES[kind](model, 80)
    want = torch.cat([run(model, step, cache) for step in steps], 1)
    cache = CACHES[kind](model, 80)
    with attention_method(model, create("dense")) as record:
        got = torch.cat([run(model, step, cache) for step in steps], 1)
    assert torch.allclose(got, want, atol=1e-5)
    assert len(record.sparsity) == 2
    assert record.decoded == 2 * (len(steps) - 1)


@pytest.mark.parametrize("kind", CACHES)
@torch.no_grad()
def test_a_sparse_prefill_is_the_same_with_any_cache(kind, model):
    for method in (sparse(), create("oracle", sparsity=0.5, block=16)):
        cache = CACHES[kind](model, 150)
        with attention_method(model, method) as record:
            got = run(model, TOKENS, cache)
            want = run(model, TOKENS, None)
        assert record.sparsity[:2] == record.sparsity[2:]
        assert torch.equal(got, want)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from(["dynamic", "static"]))
@torch.no_grad()
def test_every_layer_call_is_counted_or_refused(sizes, kind):
    """Feed a model random numbers of tokens in turn: prefill, then single tokens; any more are refused."""
    model = _MODEL
    cache, place = CACHES[kind](model, 200), 0
    tokens = TOKENS.flatten()[None]
    with attention_method(model, create("dense")) as record:
        for turn, size in enumerate(sizes):
            given_ = tokens[:, place : place + size]
            place += size
            if turn and size > 1:
                with pytest.raises(Refused, match=f"{CHUNK}: {size} new tokens after {place - size} "):
                    run(model, given_, cache)
                break
            out = run(model, given_, cache)
            assert torch.allclose(out[:, -1], model_alone(tokens[:, :place]), atol=1e-5)
            assert len(record.sparsity) == 2
            assert record.decoded == 2 * turn


_MODEL, _TWIN = make(), make()


def model_alone(tokens):
    return _TWIN(tokens, use_cache=False).logits[:, -1]


@pytest.mark.parametrize("architecture", OPTIONS)
@pytest.mark.parametrize(
    "options", [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 2}]
)
@torch.no_grad()
def test_generate_is_that_of_the_model_alone(architecture, options):
    model = make(architecture)
    mask = torch.ones_like(TOKENS)
    mask[0, :13] = 0
    options |= {"max_new_tokens": 4, "do_sample": False, "attention_mask": mask}
    want = model.generate(TOKENS, **options)
    for method in (create("dense"), sparse(0.0)):
        with attention_method(model, method) as record:
            assert torch.equal(model.generate(TOKENS, **options), want)
        prefills = 4 if "use_cache" in options else 1
        assert (len(record.sparsity), record.decoded) == (2 * prefills, 2 * (4 - prefills))


@pytest.mark.parametrize("architecture", WITHOUT_EXPERTS)
@torch.no_grad()
def test_generate_after_a_sparse_prefill(architecture):
    """Decode by hand from the cache of a sparse prefill, and compare with generate."""
    model = make(architecture)
    with attention_method(model, sparse()):
        got = model.generate(TOKENS, max_new_tokens=4, do_sample=False)[:, 100:]
        cache = DynamicCache(config=model.config)
        last = run(model, TOKENS, cache)[:, -1:].argmax(-1)
    want = [last]
    for _ in range(3):
        want.append(run(model, want[-1], cache)[:, -1:].argmax(-1))
    assert torch.equal(got, torch.cat(want, 1))


@pytest.mark.parametrize(
    "options",
    [
        {"prefill_chunk_size": 32},
        {"prefill_chunk_size": 32, "cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": _TWIN},
    ],
)
@pytest.mark.parametrize("method", [create("dense"), sparse()])
@torch.no_grad()
def test_several_tokens_after_a_prompt_are_refused(options, method, model):
    with attention_method(model, method), pytest.raises(Refused, match=CHUNK):
        model.generate(TOKENS[:1], max_new_tokens=4, do_sample=False, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"output_attentions": True}, "output_attentions=True"),
        ({"is_causal": False}, "is_causal=False"),
        ({"softcap": 5.0}, "softcap"),
        ({"cu_seq_lens_q": torch.tensor([0, 100])}, "cu_seq_lens_q"),
        ({"anything_new": 0}, "anything_new"),
    ],
)
@torch.no_grad()
def test_arguments_that_change_attention_are_refused(options, reason, model):
    with attention_method(model, create("dense")):
        model(TOKENS, softcap=None, is_causal=True, output_hidden_states=True, output_attentions=False)
        with pytest.raises(Refused, match=reason):
            model(TOKENS, **options)


@torch.no_grad()
def test_attention_dropout_is_refused_in_training_only():
    model = make(attention_dropout=0.3)
    with attention_method(model, create("dense")):
        model(TOKENS)
        model.train()
        with pytest.raises(Refused, match=r"dropout=0\.3"):
            model(TOKENS)


def no_trace(model):
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return model.config._attn_implementation == "sdpa" and not hooks


@torch.no_grad()
def test_a_method_inside_a_method_is_refused(model):
    alone = model(TOKENS).logits
    with attention_method(model, sparse()) as outer:
        with pytest.raises(ModelError, match="a method is in this model already"):
            with attention_method(model, create("dense")):
                pass
        model(TOKENS)
    assert len(outer.sparsity) == 2
    assert no_trace(model)
    assert torch.equal(model(TOKENS).logits, alone)


@torch.no_grad()
def test_models_with_one_config():
    model = make()
    twin = transformers.LlamaForCausalLM(model.config).eval()
    want = twin(TOKENS).logits
    with attention_method(model, create("dense")) as record:
        with pytest.raises(ModelError, match="shares its config"):
            twin(TOKENS)
        with pytest.raises(ModelError, match="shares its config"):
            with attention_method(twin, create("dense")):
                pass
        model(TOKENS)
    assert len(record.sparsity) == 2
    assert torch.equal(twin(TOKENS).logits, want)


@torch.no_grad()
def test_a_copy_made_inside_is_refused_and_does_not_count(model):
    with attention_method(model, sparse()) as record:
        other = copy.deepcopy(model)
        with pytest.raises(ModelError, match="copy"):
            other(TOKENS)
        model(TOKENS)
    for use in (lambda: other(TOKENS), lambda: attention_method(other, sparse()).__enter__()):
        with pytest.raises(ModelError, match="copy"):
            use()
    assert len(record.sparsity) == 2
    assert no_trace(model)


@torch.no_grad()
def test_a_model_may_be_moved_inside():
    model = make()
    with attention_method(model, create("dense")):
        model.to(torch.bfloat16)
        inside = model(TOKENS).logits
    assert inside.dtype == torch.bfloat16
    assert torch.allclose(inside, model(TOKENS).logits, atol=0.02)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, Refused])
@torch.no_grad()
def test_an_error_inside_leaves_the_model_as_it_was(error, model):
    def fail():
        with attention_method(model, sparse()):
            model(TOKENS)
            raise error("inside")

    with pytest.raises(error):
        fail()
    assert no_trace(model)
    with pytest.raises(ModelError, match="no method"):
        layer_state(attention_layers(model)[0])


@torch.no_grad()
def test_another_attention_implementation_inside_is_found(model):
    with attention_method(model, sparse()):
        model.set_attn_implementation("eager")
        with pytest.raises(ModelError, match="layer 0 did not call the method"):
            model(TOKENS)
    assert no_trace(model)


def in_a_thread(call):
    results = []

    def run_():
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run_)
    thread.start()
    return thread, results


@torch.no_grad()
def test_another_thread_cannot_run_the_model(model):
    with attention_method(model, sparse()) as record:
        for call in (lambda: model(TOKENS), lambda: attention_method(model, sparse()).__enter__()):
            thread, results = in_a_thread(call)
            thread.join()
            assert isinstance(results[0], ModelError)
    assert record.sparsity == []


def test_threads_with_models_of_their_own():
    models = make(), make("Qwen2")

    def logits(model):
        with torch.no_grad(), attention_method(model, sparse()) as record:
            out = model(TOKENS).logits
        assert len(record.sparsity) == 2
        return out

    want = [logits(model) for model in models]
    threads = [in_a_thread(lambda model=model: logits(model)) for model in models for _ in range(1)]
    for (thread, results), alone in zip(threads, want, strict=True):
        thread.join()
        assert torch.equal(results[0], alone)


PADDED = torch.ones_like(TOKENS)
PADDED[:, :3] = 0  # a padded batch runs in a form that has gradients on every machine


def gradients(reentrant, inside):
    """Return the gradients of a sparse model (reentrant None: no checkpoints), by a backward inside or after."""
    model = make().train()
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    with attention_method(model, create("streaming", sparsity=0.5, block=16)):
        loss = model(TOKENS, attention_mask=PADDED, labels=TOKENS, use_cache=False).loss
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_gradients_inside_and_after_the_block():
    want = gradients(None, inside=True)
    assert torch.equal(gradients(None, inside=False), want)
    for reentrant in (True, False):
        assert torch.allclose(gradients(reentrant, inside=True), want, atol=1e-6)
    with pytest.raises(Refused, match="2 layer calls ran in re-entrant checkpoints"):
        gradients(True, inside=False)
    with pytest.raises(RuntimeError, match="checkpoint"):  # torch sees that another attention saves other tensors
        gradients(False, inside=False)


def test_checkpoints_without_gradients_are_no_matter():
    model = make().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with torch.no_grad(), attention_method(model, sparse()) as record:
        model(TOKENS)
    assert len(record.sparsity) == 2


def test_a_kernel_without_backward_says_so_when_gradients_are_asked_for():
    model = make()
    with attention_method(model, sparse()):
        logits = model(TOKENS).logits
    with pytest.raises(KernelError, match="no backward pass"):
        logits.sum().backward()


class _Detached(type(create("dense"))):
    """Dense attention by a kernel that forgets about gradients."""

    name = "detached"

    def attend(self, q, k, v, plan):
        return super().attend(q.detach(), k.detach(), v.detach(), plan)


def test_a_kernel_that_drops_gradients_is_refused():
    model = make()
    with attention_method(model, _Detached()):
        with pytest.raises(Refused, match="the kernel of detached has no backward pass"):
            model(TOKENS)
        with torch.no_grad():
            model(TOKENS)


@torch.no_grad()
def test_a_compiled_model_runs_its_attention_uncompiled():
    model = make()
    compiled = torch.compile(model, backend="eager")
    method = create("seer", gates=gates_for(model), sparsity=0.5)
    with attention_method(model, method):
        want = model(TOKENS).logits
    alone = compiled(TOKENS).logits
    for given_ in (model, compiled):
        with attention_method(given_, method) as record:
            assert torch.allclose(compiled(TOKENS).logits, want, atol=1e-6)
        assert len(record.sparsity) == 2
        assert torch.equal(compiled(TOKENS).logits, alone)
