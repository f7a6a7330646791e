"""Test block recall: the oracle's recall is 1, and rows have the share of the pooled map per head."""

import pytest

from measure.toy import TOKENS
from seerbench.errors import MeasureError
from seerbench.measure.arm import Arm
from seerbench.measure.recall import recall
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


def test_a_method_without_a_sparsity_has_no_recall(model):
    with pytest.raises(MeasureError, match="dense"):
        recall(model, WINDOWS, [Arm(create("dense"))], 16)
