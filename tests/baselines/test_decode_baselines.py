"""Test methods for decoding, token by token: dense, StreamingLLM, Quest, the oracle, and the gate beside them."""

import math

import pytest
import torch

from seerbench.baselines.decode.dense import DenseDecode
from seerbench.baselines.decode.oracle import OracleDecode
from seerbench.baselines.decode.quest import KeyRanges, QuestDecode
from seerbench.baselines.decode.streaming import StreamingDecode
from seerbench.core.problem import LayerContext
from seerbench.core.rope import plain_rope
from seerbench.methods.decode_gate import DecodeGate, decode_target
from seerbench.methods.decode_gate_config import DecodeGateConfig
from seerbench.methods.decode_protocol import NewToken
from seerbench.methods.seer_decode import SeerDecode

BLOCK, DIM, HEADS, KV_HEADS = 16, 16, 6, 2
PADDING = [(0, 0), (0, 37)]  # places before each sequence's first token


def seer(budget, block):
    torch.manual_seed(1)
    gate = DecodeGate(DecodeGateConfig(block=block), HEADS, KV_HEADS, DIM).requires_grad_(False)
    return SeerDecode([gate], budget=budget)


SPARSE = [StreamingDecode, QuestDecode, OracleDecode, seer]


def drawn(tokens, batch=2):
    """Return q of every token, k and v of a cache."""
    return [torch.randn(batch, heads, tokens, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]


def decoded(method, q, k, v, first, prompt):
    """Decode what is behind the prompt and yield (place, plan, output, state). The cache's room holds NaN."""
    rope = plain_rope(DIM)
    state = method.start(LayerContext(0, q[:, :, :prompt], k[:, :, :prompt], rope), k[:, :, :prompt], first)
    for place in range(prompt, k.shape[2]):
        keys, values = k.clone(), v.clone()
        keys[:, :, place + 1 :] = values[:, :, place + 1 :] = math.nan
        now = slice(place, place + 1)
        token = NewToken(q[:, :, now], keys, q[:, :, now], k[:, :, now])
        method.append(token, state)
        assert state.end == place + 1
        plan = method.plan(token, state)
        yield place, plan, method.attend(token.q, keys, values, plan), state


def read_by(lists, row, head):
    return lists.blocks[row, head, : lists.counts[row, head]].tolist()


@pytest.mark.parametrize("first", PADDING, ids=str)
@pytest.mark.parametrize("prompt", [47, 48, 61])
def test_dense_is_softmax_attention_over_the_sequence(first, prompt):
    q, k, v = drawn(66)
    for place, plan, out, _ in decoded(DenseDecode(), q, k, v, first, prompt):
        assert float(plan.density()) == 1.0
        for row, start in enumerate(first):
            for head in range(HEADS):
                keys, values = (x[row, head // 3, start : place + 1].double() for x in (k, v))
                want = (keys @ q[row, head, place].double() / math.sqrt(DIM)).softmax(0) @ values
                torch.testing.assert_close(out[row, head, 0].double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", SPARSE)
@pytest.mark.parametrize("first", PADDING, ids=str)
@pytest.mark.parametrize("prompt", [61, 64])
def test_a_budget_that_covers_the_cache_is_dense(make, first, prompt):
    q, k, v = drawn(83)
    steps = zip(
        decoded(make(96, BLOCK), q, k, v, first, prompt),
        decoded(DenseDecode(), q, k, v, first, prompt),
        strict=True,
    )
    for (_, lists, out, _), (_, _, want, _) in steps:
        assert float(lists.density()) == 1.0
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", SPARSE)
def test_a_padded_sequence_reads_what_it_reads_alone(make):
    q, k, v = drawn(150)
    steps = zip(
        decoded(make(2 * BLOCK, BLOCK), q, k, v, (0, 37), 125),
        decoded(make(2 * BLOCK, BLOCK), *(x[1:, :, 37:] for x in (q, k, v)), (0,), 125 - 37),
        strict=True,
    )
    for (_, many, together, _), (_, one, alone, _) in steps:
        for head in range(KV_HEADS):
            assert read_by(many, 1, head) == read_by(one, 0, head)
        torch.testing.assert_close(together[1], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", SPARSE)
@pytest.mark.parametrize("budget", [BLOCK, 2 * BLOCK + 5])
def test_the_first_and_the_current_block_are_read_beside_the_budget(make, budget):
    q, k, v = drawn(120)
    for place, lists, _, _ in decoded(make(budget, BLOCK), q, k, v, (0, 9), 90):
        assert lists.blocks.shape[-1] == budget // BLOCK + 2
        for row, start in enumerate((0, 9)):
            for head in range(KV_HEADS):
                read = read_by(lists, row, head)
                assert {0, (place - start) // BLOCK} <= set(read)
                assert len(read) in (budget // BLOCK + 1, budget // BLOCK + 2)


def test_streaming_reads_the_first_block_and_the_last_ones():
    q, k, v = drawn(130)
    for place, lists, _, _ in decoded(StreamingDecode(2 * BLOCK, BLOCK), q, k, v, (0, 30), 100):
        for row, start in enumerate((0, 30)):
            current = (place - start) // BLOCK
            assert read_by(lists, row, 1) == [0, current - 2, current - 1, current]


def test_the_oracle_scores_are_the_target_of_the_gate_before_its_rows_are_divided():
    q, k, v = drawn(100, batch=1)
    oracle = OracleDecode(2 * BLOCK, BLOCK)
    for place, _, _, state in decoded(oracle, q, k, v, (0,), 90):
        now = slice(place, place + 1)
        scores = oracle.score(NewToken(q[:, :, now], k, q[:, :, now], k[:, :, now]), state)[:, :, : place // BLOCK]
        target = decode_target(q[:, :, now], k[:, :, : place + 1], place, BLOCK)[:, :, 0, : place // BLOCK]
        torch.testing.assert_close(scores / scores.sum(-1, keepdim=True), target, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("other", [StreamingDecode, QuestDecode, seer])
@pytest.mark.parametrize("first", PADDING, ids=str)
def test_no_choice_of_as_many_blocks_has_more_of_the_true_maxima(other, first):
    q, k, v = drawn(140)
    oracle, compared = OracleDecode(2 * BLOCK, BLOCK), 0
    steps = zip(
        decoded(oracle, q, k, v, first, 120), decoded(other(2 * BLOCK, BLOCK), q, k, v, first, 120), strict=True
    )
    for (place, best, _, state), (_, lists, _, _) in steps:
        now = slice(place, place + 1)
        scores = oracle.score(NewToken(q[:, :, now], k, q[:, :, now], k[:, :, now]), state)
        for row in range(2):
            for head in range(KV_HEADS):
                mass = [float(scores[row, head, read_by(each, row, head)].sum()) for each in (best, lists)]
                if lists.counts[row, head] <= best.counts[row, head]:
                    assert mass[0] >= mass[1] - 1e-6
                    compared += read_by(best, row, head) != read_by(lists, row, head)
    assert compared > 10


def test_bound_of_a_case_by_hand():
    """Bound two blocks of two keys with two channels, and then a third block that has one key."""
    k = torch.tensor([[1.0, 5.0], [3.0, -2.0], [-4.0, 0.0], [-1.0, 1.0], [7.0, 7.0]])[None, None]
    ranges = KeyRanges(k[:, :, :4], [0], 2)
    assert ranges.ranges[0, 0, :2].tolist() == [[3.0, 5.0, -1.0, 2.0], [-1.0, 1.0, 4.0, 0.0]]
    quest = QuestDecode(2, 2)
    q = torch.tensor([[2.0, -1.0], [-1.0, -1.0]])[None, :, None]  # two query heads of one group
    quest.append(NewToken(q, k, q, k[:, :, 4:]), ranges)
    scores = quest.score(NewToken(q, k, q, k[:, :, 4:]), ranges)
    # Block 0: head 0 has 2 * 3 - 1 * -2 = 8, head 1 has -1 * 1 - 1 * -2 = 1.
    # Block 1: head 0 has 2 * -1 - 1 * 0 = -2, head 1 has -1 * -4 - 1 * 0 = 4.
    assert scores[0, 0, :2].tolist() == [8.0, 4.0]
    assert quest.plan(NewToken(q, k, q, k[:, :, 4:]), ranges).blocks[0, 0, :2].tolist() == [0, 2]


@pytest.mark.parametrize("first", PADDING, ids=str)
def test_bounds_hold_for_every_key_and_are_kept_up(first):
    """Append more blocks than a prompt leaves room for, and then look at all finished blocks."""
    q, k, v = drawn(48 + 70 * 4)
    quest = QuestDecode(8, 4)
    *_, (place, _, _, state) = decoded(quest, q, k, v, first, 48)
    now = slice(place, place + 1)
    scores = quest.score(NewToken(q[:, :, now], k, q[:, :, now], k[:, :, now]), state)
    for row, start in enumerate(first):
        for block in range((place - start) // 4):
            keys = k[row, :, start + 4 * block : start + 4 * block + 4]
            assert torch.equal(state.ranges[row, :, block], torch.cat([keys.amax(1), -keys.amin(1)], -1))
            for head in range(HEADS):
                largest = (keys[head // 3] @ q[row, head, place]).max()
                assert largest <= scores[row, head // 3, block] + 1e-4


def test_padding_is_in_no_range():
    k = torch.randn(1, 1, 40, DIM)
    k[:, :, :11] = 1e6
    ranges = KeyRanges(k, [11], BLOCK).ranges
    assert ranges[0, 0, :2].abs().max() < 100
    assert (ranges[0, 0, 2:] == -math.inf).all()


@pytest.mark.parametrize("make", [StreamingDecode, QuestDecode, OracleDecode])
def test_a_budget_below_one_block_is_refused(make):
    with pytest.raises(ValueError, match="at least one block of 16 tokens, not 15"):
        make(15, BLOCK)
