"""Weights that are not finite are refused by their name."""

import math

import pytest
import torch

from seerbench.core.finite import require_finite
from seerbench.errors import ModelError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_is_enough(dtype, value):
    fine, spoilt = torch.ones(3, 5, dtype=dtype), torch.ones(3, 5, dtype=dtype)
    spoilt[1, 4] = value
    require_finite([("a", fine), ("none", torch.empty(0)), ("largest", fine * torch.finfo(dtype).max)], "x", "y")
    with pytest.raises(ModelError, match=r"^the model: the weight b holds values .*; train it again$"):
        require_finite([("a", fine), ("b", spoilt)], "the model", "train it again")
