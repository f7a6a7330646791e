"""Test SeerDecode outside of a model: selection, the cache of compressed keys, arguments."""

import pytest
import torch

from seerbench.core.problem import LayerContext
from seerbench.core.rope import plain_rope
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.methods.decode_gate import DecodeGate
from seerbench.methods.decode_gate_config import DecodeGateConfig
from seerbench.methods.decode_protocol import NewToken, select_blocks
from seerbench.methods.seer_decode import CompressedKeys, SeerDecode

BLOCK, ROPE = 16, plain_rope(16)


def gate():
    return DecodeGate(DecodeGateConfig(block=BLOCK), 4, 2, 16).requires_grad_(False)


def read(kept):
    return kept.nonzero()[:, -1].tolist()


@pytest.mark.parametrize(
    ("options", "current", "want"),
    [
        ({"budget": 1}, 5, [0, 2, 5]),
        ({"budget": 2}, 5, [0, 2, 4, 5]),
        ({"budget": 3}, 5, [0, 2, 4, 5]),  # the first block is one of the three best
        ({"budget": 9}, 5, [0, 1, 2, 3, 4, 5]),
        ({"budget": 2}, 2, [0, 1, 2]),
        ({"budget": 2}, 0, [0]),
        ({"threshold": 0.3}, 5, [0, 2, 5]),
        ({"threshold": 0.0}, 5, [0, 1, 2, 3, 4, 5]),
        ({"threshold": 0.9}, 0, [0]),
    ],
)
def test_the_best_blocks_and_the_first_and_current_one_are_read(options, current, want):
    scores = torch.tensor([1.0, -1.0, 3.0, 0.0, 2.0, 50.0, torch.inf])  # what is not finished is never read
    assert read(select_blocks(scores[None, None], torch.tensor([current]), **options)) == want


def test_heads_and_sequences_select_by_themselves():
    scores, current = torch.randn(3, 2, 8), torch.tensor([7, 4, 0])
    kept = select_blocks(scores, current, budget=2)
    for row in range(3):
        for head in range(2):
            one = select_blocks(scores[row : row + 1, head : head + 1], current[row : row + 1], budget=2)
            assert torch.equal(kept[row, head], one[0, 0])


@pytest.mark.parametrize("first", [(0, 0), (0, 9), (30, 16)], ids=str)
@pytest.mark.parametrize("prompt", [31, 32, 40])
def test_compressed_keys_are_those_of_all_tokens_at_once(first, prompt):
    """Append far more blocks than a prompt leaves room for."""
    one, k = gate(), torch.randn(2, 2, 1200, 16)
    compressed = CompressedKeys(one, k[:, :, :prompt], ROPE, first)
    for token in range(prompt, 1200):
        compressed.append(k[:, :, token : token + 1])
    for row, start in enumerate(first):
        blocks = (1200 - start) // BLOCK
        places = torch.arange(blocks) * BLOCK
        want = one.keys(pool_blocks(k[row : row + 1, :, start : start + blocks * BLOCK], BLOCK), ROPE(places))
        assert compressed.lengths[row] == 1200 - start
        torch.testing.assert_close(compressed.keys[row, :, :blocks], want[0], rtol=1e-4, atol=1e-6)


def test_lists_are_of_each_sequence_and_as_narrow_as_the_budget():
    k, q = torch.randn(2, 2, 200, 16), torch.randn(2, 4, 200, 16)
    decode = SeerDecode([gate()], budget=2 * BLOCK + 3)
    compressed = decode.start(LayerContext(0, q, k, ROPE), k, [0, 77])
    token = NewToken(q[:, :, :1], torch.randn(2, 2, 201, 16), torch.randn(2, 4, 1, 16), torch.randn(2, 2, 1, 16))
    decode.append(token, compressed)
    lists = decode.plan(token, compressed)
    assert lists.blocks.shape == (2, 2, 4)
    assert (lists.first.tolist(), lists.end.tolist()) == ([0, 77], [201, 201])
    assert ((lists.counts == 3) | (lists.counts == 4)).all()
    assert lists.blocks.amax((1, 2)).tolist() == [200 // BLOCK, 123 // BLOCK]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "budget"),
        ({"budget": 64, "threshold": 0.1}, "not both"),
        ({"budget": 15}, "at least one block of 16"),
        ({"budget": 64, "rotated_by": "middle"}, "'middle'"),
    ],
)
def test_wrong_arguments_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        SeerDecode([gate()], **options)
