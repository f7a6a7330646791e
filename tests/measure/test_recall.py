"""Test block recall: the oracle's recall is 1, and rows have the share of the pooled map per head."""

import pytest
import torch

from measure.toy import TOKENS
from seerbench.core.reference import reference_attention
from seerbench.errors import MeasureError
from seerbench.measure.arm import Arm
from seerbench.measure.recall import asked_mass, recall
from seerbench.methods.registry import create

WINDOWS = {"a": TOKENS[0, :200].numpy()}


def test_the_oracle_finds_every_block_and_random_blocks_fewer(model):
    arms = [Arm(create(name, sparsity=0.6, block=16)) for name in ("oracle", "random")]
    rows = recall(model, WINDOWS, arms, 16)
    assert len(rows) == 2 * 3 * 4  # methods, layers, query heads
    oracle, random = ([row for row in rows if row["method"] == name] for name in ("oracle", "random"))
    assert {row["recall"] for row in oracle} == {1.0}
    assert sum(row["recall"] for row in random) < 0.9 * len(random)
    assert {(row["layer"], row["head"]) for row in oracle} == {(i, j) for i in range(3) for j in range(4)}
    for best, other in zip(oracle, random):
        assert 0 < other["mass"] <= best["mass"] + 1e-6 <= 1 + 2e-6


def test_the_asking_row_is_compared_where_a_window_asks(model):
    arms = [Arm(create(name, sparsity=0.6, block=16)) for name in ("oracle", "streaming")]
    rows = recall(model, WINDOWS, arms, 16, {"a": (150, 70)})
    text = recall(model, WINDOWS, arms, 16)
    assert not any("asked_mass" in row for row in text)
    oracle, streaming = ([row for row in rows if row["method"] == name] for name in ("oracle", "streaming"))
    assert {row["asked_kept"] for row in streaming} == {False}  # Block 4 is neither a sink nor near row 9.
    assert {row["asked_kept"] for row in oracle} == {True, False}
    assert all(0 < row["asked_mass"] < 1 for row in oracle)
    assert [row["asked_mass"] for row in oracle] == [row["asked_mass"] for row in streaming]


def test_the_asking_token_s_attention_is_that_of_the_reference():
    q, k = torch.randn(2, 1, 4, 40, 8, generator=torch.Generator().manual_seed(0)).unbind()
    k = k[:, :2]
    in_block = torch.zeros(1, 2, 40, 8)
    in_block[:, :, 16:32] = 1
    share = reference_attention(q, k, in_block)[0][0, :, 30, 0]
    assert asked_mass(q, k, 16, 30, 20) == pytest.approx(share.tolist(), abs=1e-6)


def test_a_method_without_a_sparsity_has_no_recall(model):
    with pytest.raises(MeasureError, match="dense"):
        recall(model, WINDOWS, [Arm(create("dense"))], 16)
