"""A geometry with random weights: each method skips what it was asked to, from files that it reads as always."""

import json

import pytest
import torch

from seerbench.attention import Case, Layer
from seerbench.baselines.minference import MInference, Pattern
from seerbench.baselines.moa import MoA
from seerbench.latency import random_inputs
from seerbench.random_weights import draw_profile, fixed_budgets, random_model, write_budgets

CASE = Case("cpu", "float32", batch=1, q_heads=4, kv_heads=2, head_dim=16, context=2048)


def test_one_budget_for_all_heads_meets_the_sparsity_and_its_own_would_not(tmp_path):
    q, k, _ = random_inputs(CASE, 0)

    def skipped(first: int, second: int) -> float:
        file = tmp_path / "budgets.json"
        write_budgets(file, Pattern("vertical_and_slash", first, second), layers=2, heads=4)
        assert len(json.loads(file.read_text())) == 2
        return 1 - MInference(patterns=file).plan(q, k, Layer(index=1)).density()

    for sparsity in (0.3, 0.6):
        found = fixed_budgets(q, k, sparsity)
        less, more = (skipped(found.first + step, found.second + 4 * step) for step in (-1, 1))
        assert more <= sparsity <= less  # one column and four diagonals either way: (512, 2048) in that proportion
    assert 1 - MInference().plan(q, k, Layer()).density() < 0.01


def test_drawn_windows_differ_between_heads_and_meet_the_sparsity(tmp_path):
    file = tmp_path / "moa.json"
    draw_profile(file, "toy", layers=2, heads=4, seed=0)
    method = MoA(file, sparsity=0.35)
    q, k, _ = random_inputs(CASE, 0)
    densities = [method.plan(q, k, Layer(index=layer)).density() for layer in (0, 1)]
    assert sum(densities) / 2 == pytest.approx(0.65, abs=0.05)
    rows = method.plan(q, k, Layer()).kv_num_blocks[0, :, -1].tolist()
    assert len(set(rows)) > 1
    assert "no calibration" in json.loads(file.read_text())["drawn"]


def test_the_same_seed_draws_the_same_model():
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 11}
    one, other = (random_model(config, "cpu", "bfloat16", seed=1) for _ in range(2))
    assert {weight.dtype for weight in one.parameters()} == {torch.bfloat16}
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)
