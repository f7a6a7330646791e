"""Test decoding with compressed keys inside models: caches, padding, budgets, the authors' rotation, refusals."""

import pytest
import torch
from transformers import DynamicCache

from models.test_attention_function import run
from models.toy import TOKENS, make
from seerbench.baselines.decode.dense import DenseDecode
from seerbench.baselines.decode.oracle import OracleDecode
from seerbench.baselines.decode.quest import QuestDecode
from seerbench.baselines.decode.streaming import StreamingDecode
from seerbench.errors import Refused
from seerbench.kernels import flex_attention
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.methods.decode_gate import DecodeGate
from seerbench.methods.decode_gate_config import DecodeGateConfig
from seerbench.methods.registry import create
from seerbench.methods.seer_decode import SeerDecode
from seerbench.models.architectures import attention_layers, rope_of
from seerbench.models.hugging_face import attention_method, for_each_layer, generate

BLOCK, NEW = 16, 30
LENGTHS = [37, 20]  # of the prompts of a padded batch, whose blocks end in different steps
DENSE = create("dense")
KINDS = ["dynamic", "static"]


@pytest.fixture
def model():
    return make()


def gates_for(model, **options):
    torch.manual_seed(0)
    config = DecodeGateConfig(block=BLOCK, **options)
    gates = [DecodeGate(config, 4, 2, layer.head_dim) for layer in attention_layers(model)]
    for parameter in (p for gate in gates for p in gate.parameters()):
        torch.nn.init.normal_(
            parameter.requires_grad_(False)
        )  # initial weights are so small that blocks score alike
    return gates


def prompts(lengths=LENGTHS):
    """Return prompts of these lengths, padded on the left, and their mask."""
    width = max(lengths)
    rows = [
        torch.cat([TOKENS.new_zeros(width - n), TOKENS[0, 3 * n : 4 * n] if n < 20 else TOKENS[0, :n]])
        for n in lengths
    ]
    return torch.stack(rows), (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()


def continued(model, decode, kind="dynamic", lengths=LENGTHS, prefill=DENSE):
    tokens, mask = prompts(lengths)
    options = {"cache_implementation": "static"} if kind == "static" else {}
    options |= {"attention_mask": mask} if len(set(lengths)) > 1 else {}
    return generate(
        model, tokens, prefill, decode, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options
    )


class Watched(SeerDecode):
    """Keeps (layer, tokens of each sequence, scores, lists) of every step."""

    def start(self, layer, keys, first):
        compressed = super().start(layer, keys, first)
        compressed.layer, self.steps = layer.index, getattr(self, "steps", [])
        return compressed

    def plan(self, token, compressed):
        lists = super().plan(token, compressed)
        self.steps.append((compressed.layer, compressed.lengths, self.score(token, compressed), lists))
        return lists


def training_scores(model, gates, text):
    """Return the scores of all rows of one text by layer, [Hk, N, n], from one dense forward pass."""
    found = {}

    def see(layer, q, k, v):
        pools = pool_blocks(layer.k_unrotated, BLOCK)
        found[layer.index] = gates[layer.index](layer.q_unrotated, pools, layer.rope)[0]

    for_each_layer(model, text[None], see)
    return found


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_steps_are_those_of_one_training_pass(architecture, kind):
    """Compare every finished block of every row, in a padded batch whose budget covers everything."""
    model = make(architecture)
    decode = Watched(gates_for(model), budget=1024)
    texts, _ = continued(model, decode, kind)
    assert len(decode.steps) == 2 * (NEW - 1)
    for row, prompt in enumerate(LENGTHS):
        want = training_scores(model, decode.gates, texts[row, max(LENGTHS) - prompt : -1])
        for layer, lengths, scores, _ in decode.steps:
            query, blocks = lengths[row] - 1, (lengths[row] - 1) // BLOCK
            of_row = want[layer][:, query]
            torch.testing.assert_close(scores[row, :, :blocks], of_row[:, :blocks], rtol=1e-4, atol=1e-4)
            assert (of_row[:, blocks:] == -torch.inf).all()
    assert {(lengths[0] - 1) // BLOCK for _, lengths, *_ in decode.steps} == {2, 3, 4}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_budget_that_covers_everything_is_dense(kind, model):
    texts, record = continued(model, None, kind)
    for options in ({"budget": 1024}, {"threshold": 0.0}):
        same, of_all = continued(model, SeerDecode(gates_for(model), **options), kind)
        assert torch.equal(same, texts)
        assert of_all.decode_density == [1.0] * record.decoded
        assert of_all.mean_decode_sparsity() == record.mean_decode_sparsity() == 0.0
    tokens, mask = prompts()
    logits = []
    for decode in (None, SeerDecode(gates_for(model), budget=1024)):
        with attention_method(model, DENSE, decode=decode):
            cache = DynamicCache(config=model.config)
            run(model, tokens, cache, attention_mask=mask)
            step = torch.nn.functional.pad(mask, (0, 1), value=1)
            logits.append(run(model, TOKENS[:, :1], cache, attention_mask=step))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("baseline", [StreamingDecode, QuestDecode, OracleDecode])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_baselines_decode_inside_a_model(baseline, kind, model):
    """Compare with dense decoding under a budget that covers everything, and see that a small one skips blocks."""
    texts, _ = continued(model, DenseDecode(), kind)
    assert torch.equal(texts, continued(model, None, kind)[0])
    same, of_all = continued(model, baseline(1024, BLOCK), kind)
    assert torch.equal(same, texts)
    assert of_all.mean_decode_sparsity() == 0.0
    _, record = continued(model, baseline(BLOCK, BLOCK), kind)
    assert 0.05 < record.mean_decode_sparsity() < 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"budget": BLOCK}, {"threshold": 0.6}], ids=str)
def test_a_padded_sequence_reads_what_it_reads_alone(kind, options, model):
    together = Watched(gates_for(model), **options)
    texts, record = continued(model, together, kind)
    assert 0.05 < record.mean_decode_sparsity() < 0.9
    assert not torch.equal(texts, continued(model, None, kind)[0])
    for row, prompt in enumerate(LENGTHS):
        alone = Watched(together.gates, **options)
        with torch.no_grad(), attention_method(model, DENSE, decode=alone):
            cache = DynamicCache(config=model.config)
            text = texts[row : row + 1, max(LENGTHS) - prompt :]
            run(model, text[:, :prompt], cache)
            for place in range(prompt, text.shape[1] - 1):
                run(model, text[:, place : place + 1], cache)
        for (_, _, _, many), (_, _, _, one) in zip(together.steps, alone.steps, strict=True):
            count = one.counts[0]
            assert torch.equal(many.counts[row], count)
            for head in range(2):
                read = slice(0, int(count[head]))
                assert torch.equal(many.blocks[row, head, read], one.blocks[0, head, read])


def test_first_and_current_block_are_always_read_and_the_budget_is_kept(model):
    decode = Watched(gates_for(model), budget=BLOCK)
    continued(model, decode)
    for _, lengths, scores, lists in decode.steps:
        for row, length in enumerate(lengths):
            current = (length - 1) // BLOCK
            for head in range(2):
                read = set(lists.blocks[row, head, : lists.counts[row, head]].tolist())
                best = {int(scores[row, head, :current].argmax())} if current else set()
                assert read == {0, current} | best


def test_the_authors_rotation_differs_in_blocks_that_end_while_decoding(model):
    first, last = (Watched(gates_for(model), budget=1024, rotated_by=by) for by in ("first", "last"))
    texts = [continued(model, decode, lengths=[37, 37])[0] for decode in (first, last)]
    assert torch.equal(*texts)  # everything is read, so that both decode one text
    assert (first.name, last.name) == ("seer-r", "seer-r-last-position")
    of_prompt = 37 // BLOCK
    for (_, lengths, ours, _), (_, _, theirs, _) in zip(first.steps, last.steps, strict=True):
        assert torch.equal(ours[..., :of_prompt], theirs[..., :of_prompt])
        if (lengths[0] - 1) // BLOCK > of_prompt:
            assert not torch.allclose(ours[..., of_prompt], theirs[..., of_prompt])
    # A key that is rotated by BLOCK - 1 more positions scores as with a query that is as much earlier.
    gate, rope = first.gates[0], rope_of(model)
    q, k = torch.randn(1, 4, 1, 16), torch.randn(1, 2, BLOCK, 16)
    at = [gate.keys(pool_blocks(k, BLOCK), rope(torch.tensor([place]))) for place in (48, 63)]
    queries = [gate.queries(q, rope(torch.tensor([place]))) for place in (70, 85)]
    torch.testing.assert_close(gate.scores(queries[0], at[0]), gate.scores(queries[1], at[1]), rtol=1e-4, atol=1e-4)


def test_prefill_and_decoding_are_sparse_in_one_call(model, monkeypatch):
    # Masked SDPA replaces FlexAttention, which would compile for 10 s.
    monkeypatch.setattr(flex_attention, "flex_block_sparse", flex_attention.masked_attention)
    prefill = create("random", sparsity=0.4, block=BLOCK)
    texts, record = continued(model, SeerDecode(gates_for(model), budget=BLOCK), prefill=prefill, lengths=[90])
    assert texts.shape == (1, 90 + NEW)
    assert record.mean_sparsity() > 0.3
    assert max(record.decode_density) < 0.7
    assert len(record.decode_density) == record.decoded == 2 * (NEW - 1)


@torch.no_grad()
def test_a_second_prompt_begins_anew(model):
    """Check that nothing of a first text is left when the same context takes a second one, with another cache."""
    decode = SeerDecode(gates_for(model), budget=BLOCK)
    logits = []
    with attention_method(model, DENSE, decode=decode):
        for first in (TOKENS[:, 50:90], TOKENS[:, :40]):
            cache = DynamicCache(config=model.config)
            run(model, first, cache)
            logits.append(run(model, TOKENS[:, :1], cache))
    with attention_method(model, DENSE, decode=decode):
        cache = DynamicCache(config=model.config)
        run(model, TOKENS[:, :40], cache)
        assert torch.equal(run(model, TOKENS[:, :1], cache), logits[1])


def exchanged(model, cache):
    cache.reorder_cache(torch.tensor([1, 0]))


def another(model, cache):
    cache.layers[0].keys = cache.layers[0].keys.clone()


def cropped(model, cache):
    cache.crop(-1)


@pytest.mark.parametrize("change", [exchanged, another, cropped])
@torch.no_grad()
def test_a_cache_that_was_changed_is_refused(change, model):
    with attention_method(model, DENSE, decode=SeerDecode(gates_for(model), budget=BLOCK)):
        cache = DynamicCache(config=model.config)
        run(model, TOKENS[:, :40], cache)
        run(model, TOKENS[:, :1], cache)
        change(model, cache)
        with pytest.raises(Refused, match="not the one that the last call left"):
            run(model, TOKENS[:, :1], cache)


@torch.no_grad()
def test_a_cache_that_was_filled_outside_is_refused(model):
    cache = DynamicCache(config=model.config)
    run(model, TOKENS[:, :40], cache)
    with attention_method(model, DENSE, decode=SeerDecode(gates_for(model), budget=BLOCK)):
        with pytest.raises(Refused, match="filled outside"):
            run(model, TOKENS[:, :1], cache)


def test_generation_without_a_cache_is_refused(model):
    with pytest.raises(Refused, match="without a cache"):
        generate(model, TOKENS, DENSE, SeerDecode(gates_for(model), budget=BLOCK), use_cache=False)


def test_beam_search_is_refused(model):
    with pytest.raises(Refused, match="beam search"):
        generate(model, TOKENS, DENSE, SeerDecode(gates_for(model), budget=BLOCK), num_beams=2, max_new_tokens=5)


@pytest.mark.parametrize("with_config", [True, False])
@torch.no_grad()
def test_a_sliding_window_is_refused_once_it_hides_tokens(with_config):
    model = make("Mistral", sliding_window=44)
    cache = DynamicCache(config=model.config) if with_config else DynamicCache()
    with attention_method(model, DENSE, decode=SeerDecode(gates_for(model), budget=BLOCK)):
        run(model, TOKENS[:, :42], cache)
        run(model, TOKENS[:, :1], cache)
        run(model, TOKENS[:, :1], cache)
        with pytest.raises(Refused, match="sliding window"):
            run(model, TOKENS[:, :1], cache)


@torch.no_grad()
def test_masks_of_another_form_are_refused(model):
    tokens, mask = prompts()
    one = torch.nn.functional.pad(mask, (0, 1), value=1)
    hidden = one.clone()
    hidden[0, 5] = 0
    shown = torch.ones_like(one)
    decode = SeerDecode(gates_for(model), budget=BLOCK)
    for wrong in (hidden, shown, None):
        with attention_method(model, DENSE, decode=decode):
            cache = DynamicCache(config=model.config)
            run(model, tokens, cache, attention_mask=mask)
            with pytest.raises(Refused, match="hides a token"):
                run(model, TOKENS[:, :1], cache, attention_mask=wrong)
    with attention_method(model, DENSE, decode=decode):
        with pytest.raises(Refused, match="padding on the left only"):
            run(model, tokens, DynamicCache(config=model.config), attention_mask=mask.flip(1))


def test_gates_of_another_model_are_refused(model):
    gates = gates_for(model)
    with pytest.raises(Refused, match="1 layers"):
        with attention_method(model, DENSE, decode=SeerDecode(gates[:1], budget=BLOCK)):
            pass
    other = [DecodeGate(gates[0].config, 8, 2, 16) for _ in range(2)]
    with pytest.raises(Refused, match="another model"):
        generate(model, TOKENS, DENSE, SeerDecode(other, budget=BLOCK), max_new_tokens=2)
