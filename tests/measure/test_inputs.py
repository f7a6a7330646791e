"""Test the inputs of timings, captured and random, and the masks of kernels."""

from dataclasses import replace

import pytest
import torch

from measure.toy import SMALL, TOKENS
from seerbench.core import rope
from seerbench.core.problem import AttentionProblem
from seerbench.errors import MeasureError
from seerbench.measure import inputs as measure_inputs
from seerbench.measure.inputs import random_inputs
from seerbench.models.architectures import rope_of


def test_gate_shaped_rows_share_more_blocks_than_random_ones():
    case = AttentionProblem("cpu", "float32", batch=1, q_heads=2, kv_heads=1, head_dim=16, context=64 * 64)
    q, k, _ = random_inputs(case, 0)

    def shared(make):
        kept = make(q, k, 0.7, case, 0).to_dense()[..., 32:, :].float()
        return float((kept[..., 1:, :] * kept[..., :-1, :]).sum() / kept[..., 1:, :].sum())

    assert shared(measure_inputs.gate_shaped_mask) > 1.5 * shared(measure_inputs.random_mask)


@pytest.mark.parametrize(
    ("sparsity", "kept"), [(0.9, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]), (0.5, [1, 1, 1, 2, 2, 3, 3, 4])]
)
def test_the_authors_mask_keeps_a_share_of_each_row_in_all_heads(sparsity, kept):
    case = AttentionProblem("cpu", "float32", batch=2, q_heads=3, kv_heads=3, head_dim=16, context=64 * 64)
    q, k, _ = random_inputs(case, 0)
    plan = measure_inputs.authors_mask(q, k, sparsity, case, 0)
    plan.check()
    flags = plan.to_dense()
    assert flags.sum(-1)[0, 0, : len(kept)].tolist() == kept
    assert flags.sum(-1)[0, 0, 59] == round(60 * (1 - sparsity))  # not one block fewer: 0.1 * 60 is a whole number
    assert (flags == flags[:1, :1]).all()
    diagonal = flags[0, 0].diagonal().float()[20:]
    assert diagonal.mean() == pytest.approx(1 - sparsity, abs=0.2)  # neither forced nor left out
    assert diagonal.any()
    assert plan.density() == pytest.approx(1 - sparsity, abs=0.02)


def test_rope_of_random_attention_is_the_model_s(model):
    theirs = rope_of(model)(torch.arange(9))
    ours = rope.plain_rope(32, model.config.rope_parameters["rope_theta"])(torch.arange(9))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


def test_captured_layer_is_the_middle_one_unless_said(model):
    assert measure_inputs.capture(model, TOKENS)[3].index == 1
    assert measure_inputs.capture(model, TOKENS, 2)[3].index == 2
    with pytest.raises(MeasureError, match="7"):
        measure_inputs.capture(model, TOKENS, 7)


def test_inputs_beyond_the_memory_are_refused():
    with pytest.raises(MeasureError, match="shorter context"):
        random_inputs(replace(SMALL, context=2**27), 0)
