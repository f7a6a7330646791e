"""Cases that the kernel tests share, in the interpreter and on a GPU: inputs, masks, the comparison."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.reference import reference_attention, repeat_kv
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.devices import interpreter_refusal

LENGTHS = [1, 63, 64, 65, 1000]
MASKS = ["diagonal", "full", "empty-rows", "one-far-block", "random", "no-diagonal", "gate"]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def run_in_interpreter(test_file: str) -> None:
    """Run a test module's inner tests with TRITON_INTERPRET=1, which Triton reads when it is imported."""
    if refusal := interpreter_refusal():
        pytest.skip(refusal)
    command = [sys.executable, "-m", "pytest", test_file, "-p", "no:cacheprovider", "--tb=short"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def draw(
    n: int, q_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: str = "cpu", batch: int = 2
) -> list[Tensor]:
    """Random q [B, Hq, N, D], k and v [B, Hk, N, D]; other ones with another SEERBENCH_TEST_SEED."""
    torch.manual_seed(int(os.environ.get("SEERBENCH_TEST_SEED", "0")))
    shapes = [(batch, heads, n, head_dim) for heads in (q_heads, kv_heads, kv_heads)]
    return [torch.randn(shape, device=device).to(dtype) for shape in shapes]


def build_mask(
    kind: str, n: int, batch: int, heads: int, block_q: int, block_k: int, device: str = "cpu"
) -> BlockMask:
    """A block mask of one of MASKS; heads and batch entries differ where the kind allows it."""
    rows, columns = block_count(n, block_q), block_count(n, block_k)
    i = torch.arange(rows, device=device)[:, None] * block_q // block_k
    j = torch.arange(columns, device=device)[None, :]
    chance = torch.rand(batch, heads, rows, columns, device=device)
    kept = {
        "diagonal": (i == j).expand_as(chance),
        "full": torch.ones_like(chance, dtype=torch.bool),
        "empty-rows": (chance < 0.4) & (torch.rand(batch, heads, rows, 1, device=device) < 0.5),
        "one-far-block": (j == 0).expand_as(chance),
        "random": (chance < 0.3) | (i == j),
        "no-diagonal": (chance < 0.4) & (j < i),
        # As a gate chooses: columns that many rows want, and the blocks around the diagonal.
        "gate": (chance[..., :1, :] < 0.15) | ((i - j).abs() <= 1),
    }[kind]
    return BlockMask.from_dense(kept, n, block_q, block_k)


def check_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, o: Tensor, lse: Tensor) -> None:
    """Compare o and lse with the float64 reference; the budget is the error of the same maths in q's dtype."""
    exact_o, exact_lse = reference_attention(q, k, v, mask)
    rounded_o, rounded_lse = reference_attention(q, k, v, mask, dtype=q.dtype)
    assert_no_worse_than_rounding(o, exact_o, rounded_o)
    assert_no_worse_than_rounding(lse, exact_lse, rounded_lse)
    unseen = exact_lse == -torch.inf
    assert (o[unseen] == 0).all()


def check_gradients(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, do: Tensor, gradients: list[Tensor]) -> None:
    """Compare dq, dk and dv for the output's gradient do with autograd through the float64 reference."""

    def reference(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        return torch.autograd.grad(reference_attention(*leaves, mask, dtype=dtype)[0], leaves, do.to(dtype))

    if q.shape[2] > 1:
        for actual, exact, rounded in zip(gradients, reference(torch.float64), reference(q.dtype), strict=True):
            assert_no_worse_than_rounding(actual, exact, rounded)
        return
    # One key: dS = dP - delta is exactly 0, and dq and dk hold what two fp32 sums of D terms leave of it.
    assert_no_worse_than_rounding(gradients[2], reference(torch.float64)[2], reference(q.dtype)[2])
    head_dim, group = q.shape[3], q.shape[1] // k.shape[1]
    terms = (do.double() * repeat_kv(v, q.shape[1]).double()).abs().sum(-1).max()
    left = head_dim * torch.finfo(torch.float32).eps * terms * head_dim**-0.5
    assert gradients[0].abs().max() <= left * k.abs().max()
    assert gradients[1].abs().max() <= left * q.abs().max() * group


def far_apart(tensors: list[Tensor], dimension: int, step: int) -> list[Tensor]:
    """Return copies of tensors [B, H, N, D] whose entries along one dimension are `step` entries apart.

    They share one memory on the CPU, which is mostly reserved and never touched, so it takes little space.
    """
    layouts, first, end = [], 0, 0
    for x in tensors:
        strides = list(x.contiguous().stride())
        strides[dimension] = step
        layouts.append((x.shape, strides, first))
        end = max(end, first + 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)))
        first += x.numel()
    assert first < step
    memory = torch.from_numpy(np.zeros(end, dtype=np.float16))
    return [memory.as_strided(*layout).copy_(x) for x, layout in zip(tensors, layouts, strict=True)]
