"""Inputs of one layer."""

import pytest
import torch

TOKENS, BLOCK = 500, 16


@pytest.fixture(scope="module")
def qkv():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(1, 4, TOKENS, 16, generator=generator),
        *torch.randn(2, 1, 2, TOKENS, 16, generator=generator),
    )
