"""Test plans under masks: tokens that a query may not see never change what a method gives it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.toy import make, method_for
from seerbench.core import top_k
from seerbench.core.problem import LayerContext
from seerbench.core.reference import reference_attention
from seerbench.errors import Refused
from seerbench.kernels.flex_attention import masked_attention
from seerbench.methods.block_sparse_kernels import DENSE
from seerbench.methods.registry import catalogue, create
from seerbench.models.attention_masks import causal_sequences, planned_pairs, visible_pairs
from seerbench.models.hugging_face import attention_method, for_each_layer


@pytest.fixture(autouse=True)
def short_inputs_meet_no_request(monkeypatch):
    """Plan inputs of a few blocks as the rules say, since no number of whole blocks may be near the request."""
    monkeypatch.setattr(top_k, "MIN_BLOCKS", 64)


N = 112
TOKENS = torch.randint(1, 97, (2, N), generator=torch.Generator().manual_seed(3))
METHODS = sorted(
    card.name
    for card in catalogue().values()
    if card.module.startswith("seerbench.") and "cuda" not in card.needs and card.name != "flashprefill-v2"
)  # without the one that refuses every attention mask


def padding(*spans):
    """Return a mask [2, N] that hides (row, start, end)."""
    mask = torch.ones(2, N, dtype=torch.long)
    for row, start, end in spans:
        mask[row, start:end] = 0
    return mask


def packed(*lengths):
    return torch.cat([torch.arange(n) for n in (*lengths, N - sum(lengths))])[None]


INPUTS = {
    "left padding": {"attention_mask": padding((0, 0, 48), (1, 0, 7))},
    "right padding": {"attention_mask": padding((0, 60, N), (1, N - 1, N))},
    "both sides": {"attention_mask": padding((0, 0, 17), (0, 90, N))},
    "a row of one token": {"attention_mask": padding((0, 0, N - 1), (1, 3, N))},
    "padding in the middle": {"attention_mask": padding((0, 20, 30))},
    "packed documents": {"position_ids": packed(48), "use_cache": False},
    "short documents": {"position_ids": packed(40, 1, 3), "use_cache": False},
}


@pytest.fixture(scope="module")
def model():
    return make()


def unseen_by_the_last(given_):
    """Return for each row the last real place, and which tokens it may not see, bool [2, N]."""
    real = given_.get("attention_mask", torch.ones(2, N)).bool()
    last = N - 1 - real.flip(1).int().argmax(1)
    if "position_ids" in given_:
        start = int((given_["position_ids"][0] == 0).nonzero()[-1])
        real = real & (torch.arange(N) >= start)
    return last, ~real | (torch.arange(N) > last[:, None])


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_unseen_tokens_change_nothing(name, model, tmp_path):
    """The poison test: run every method with other tokens at all places that the last real token may not see."""
    method = method_for(name, model, tmp_path)
    for what, inputs in INPUTS.items():
        last, unseen = unseen_by_the_last(inputs)
        with attention_method(model, method):
            if what == "padding in the middle" and name not in DENSE:
                with pytest.raises(Refused, match="padding in the middle"):
                    model(TOKENS, **inputs)
            else:
                tokens = TOKENS, TOKENS.masked_fill(unseen, 5)
                outs = [model(given_, **inputs).logits[torch.arange(2), last] for given_ in tokens]
                assert torch.equal(*outs), what


@pytest.mark.parametrize("name", ["random", "streaming", "oracle", "seer", "minference"])
@torch.no_grad()
def test_a_padded_row_gets_what_it_gets_alone(name, model, tmp_path):
    method = method_for(name, model, tmp_path)
    with attention_method(model, method) as record:
        for start, end in ((48, N), (0, 70)):
            hidden = [(0, 0, start), (0, end, N)]
            padded = model(TOKENS, attention_mask=padding(*hidden)).logits[0, start:end]
            alone = model(TOKENS[:1, start:end]).logits[0]
            assert torch.allclose(padded, alone, atol=2e-5)
    # Two layers; in each pair the record of the padded batch is between those of its rows.
    assert len(record.sparsity) == 8


@torch.no_grad()
def test_streaming_keeps_the_first_real_block(model):
    """Check that the sink is not in the padding."""
    q = torch.randn(1, 4, N, 16)
    visible = visible_pairs(padding((0, 0, 48))[:1, None, None].bool() & torch.ones(N, N).bool().tril(), N)
    method = create("streaming", sparsity=0.5, block=16)
    pairs, _ = planned_pairs(method, q, q[:, :2], LayerContext(), visible)
    alone = method.plan(q[:, :, 48:], q[:, :2, 48:], LayerContext()).to_token_mask()
    assert torch.equal(pairs[0, 0, 48:, 48:], alone[0, 0])
    assert pairs[0, 0, -1, 48:64].all()
    assert not pairs[0, 0, -1, 64:80].any()
    assert not pairs[..., :48, :].any()


@pytest.mark.parametrize("architecture", ["Mistral", "Qwen2", "Qwen3"])
@torch.no_grad()
def test_sliding_windows_run_dense_and_nothing_else(architecture):
    options = {"sliding_window": 32}
    if architecture != "Mistral":
        options |= {"use_sliding_window": True, "max_window_layers": 1}
    model = make(architecture, **options)
    alone = model(TOKENS).logits
    with attention_method(model, create("dense")):
        assert torch.allclose(model(TOKENS).logits, alone, atol=1e-5)
    with attention_method(model, create("random", sparsity=0.5, block=16)) as record:
        model(TOKENS[:, :31])  # the window hides nothing yet
        assert len(record.sparsity) == 2
        with pytest.raises(Refused, match=r"random cannot plan .* sliding window"):
            model(TOKENS)
    with pytest.raises(Refused, match=r"takes no attention mask .* sliding window"):
        for_each_layer(model, TOKENS, lambda *_: None)


CAUSAL = torch.ones(N, N, dtype=torch.bool).tril().expand(2, 1, N, N)


@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min, torch.finfo(torch.float16).min])
@torch.no_grad()
def test_masks_of_four_dimensions(lowest, model):
    left = CAUSAL & padding((0, 0, 20)).bool()[:, None, None]
    for visible in (CAUSAL, left, torch.ones_like(CAUSAL)):
        want = model(TOKENS, attention_mask=visible).logits[:, 20:]
        additive = torch.zeros(2, 1, N, N).masked_fill(~visible, lowest)
        with attention_method(model, create("dense")):
            for mask in (visible, additive):
                assert torch.allclose(model(TOKENS, attention_mask=mask).logits[:, 20:], want, atol=1e-5)
    with attention_method(model, create("random", sparsity=0.5, block=16)) as record:
        first = model(TOKENS, attention_mask=CAUSAL).logits
        assert torch.equal(first, model(TOKENS).logits)  # a plain causal mask is as none
        assert record.mean_sparsity() > 0.3


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.zeros(2, 1, N, N).masked_fill(~CAUSAL, -torch.inf) - 0.1, "numbers other than 0"),
        (CAUSAL.long(), "bool or floating-point"),
        (torch.ones_like(CAUSAL), "shows later"),
        (CAUSAL.expand(2, 4, N, N) & (torch.arange(4)[:, None, None] != torch.arange(N)), "cannot plan"),
    ],
)
@torch.no_grad()
def test_masks_that_a_sparse_method_cannot_take(mask, reason, model):
    with attention_method(model, create("random", sparsity=0.5, block=16)):
        with pytest.raises(Refused, match=reason):
            model(TOKENS, attention_mask=mask)


@torch.no_grad()
def test_a_batch_of_padding_alone_is_finite(model):
    with attention_method(model, create("random", sparsity=0.5, block=16)) as record:
        assert model(TOKENS, attention_mask=torch.zeros_like(TOKENS)).logits.isfinite().all()
    assert record.sparsity == [0.0, 0.0]


@st.composite
def rows(draw):
    """Draw for each row of a batch the lengths of padding and documents in turn."""
    return [draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=3)) for _ in range(2)]


@settings(max_examples=60, deadline=None)
@given(rows())
def test_sequences_are_found_again(batch):
    tokens = max(1, *(sum(map(sum, row)) for row in batch))
    visible = torch.zeros(len(batch), 1, tokens, tokens, dtype=torch.bool)
    wanted = []
    for index, row in enumerate(batch):
        place = 0
        for gap, length in row:
            place += gap
            wanted.append((index, place, place + length))
            visible[index, 0, place : place + length, place : place + length] = True
            place += length
    assert causal_sequences(visible.tril()) == wanted


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_other_masks_are_not_taken_for_sequences(tokens, seed):
    """Check on random masks that what is found explains every pair of every token that sees itself."""
    torch.manual_seed(seed)
    visible = torch.rand(1, 1, tokens, tokens) < 0.7
    found = causal_sequences(visible)
    if found is not None:
        rebuilt = torch.zeros(tokens, tokens, dtype=torch.bool)
        for _, start, end in found:
            rebuilt[start:end, start:end] = True
        real = visible[0, 0].diagonal()
        assert torch.equal(rebuilt.tril()[real], visible[0, 0][real])


@torch.no_grad()
def test_a_plan_under_a_mask_is_attention_over_its_pairs(model):
    """Compare one layer's output on a padded batch with float64 attention over the planned pairs."""
    q, k, v = torch.randn(2, 4, N, 16), torch.randn(2, 2, N, 16), torch.randn(2, 2, N, 16)
    visible = visible_pairs(CAUSAL & padding((0, 0, 20)).bool()[:, None, None], N)
    pairs, sparsity = planned_pairs(create("oracle", sparsity=0.5, block=16), q, k, LayerContext(), visible)
    assert 0.3 < sparsity < 0.7
    assert not (pairs & ~visible).any()
    want = reference_attention(q, k, v, pairs, torch.float64)[0]
    assert torch.allclose(masked_attention(q, k, v, None, pairs).double(), want, atol=1e-5)
