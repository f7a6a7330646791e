"""Wrappers: a method on another kernel, and with the mean correction."""

import pytest
import torch

from seerbench.core.problem import LayerContext
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.measure.correctness import check_method
from seerbench.methods.mean_correction import mean_corrected
from seerbench.methods.registry import create
from seerbench.methods.wrappers import variant

BLOCK = 16


def test_a_method_on_another_kernel_gives_the_same(qkv):
    """Check `flex-sparse`, FlexAttention whose mask is made in `plan`, against the derived tolerance."""
    method = variant(create("streaming", sparsity=0.7, block=BLOCK), kernel="flex-sparse")
    plan = method.plan(*qkv[:2], LayerContext())
    assert (method.name, method.sparsity, method.block) == ("streaming+flex", 0.7, BLOCK)
    assert plan.density() == create("streaming", sparsity=0.7, block=BLOCK).plan(*qkv[:2], LayerContext()).density()
    exact, rounded = reference_attention(*qkv, plan)[0], reference_attention(*qkv, plan, qkv[0].dtype)[0]
    assert_no_worse_than_rounding(method.attend(*qkv, plan), exact, rounded)
    with pytest.raises(ValueError, match="BlockMask"):
        variant(create("minference", block=BLOCK), kernel="flex-sparse").plan(*qkv[:2], LayerContext())


def test_the_mean_correction_goes_with_any_block_mask(qkv):
    plain = create("streaming", sparsity=0.7, block=BLOCK)
    method = variant(plain, mean_correction=True)
    plan = method.plan(*qkv[:2], LayerContext())
    assert method.name == "streaming+mean"
    assert torch.equal(method.attend(*qkv, plan), mean_corrected(*qkv, plan))
    assert not torch.allclose(method.attend(*qkv, plan), plain.attend(*qkv, plan), atol=1e-2)
    assert check_method(method, *qkv, LayerContext()).passed
