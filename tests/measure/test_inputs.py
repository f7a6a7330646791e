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
