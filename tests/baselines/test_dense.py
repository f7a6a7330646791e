"""Dense kernels: what runs on a CPU equals the reference, the others refuse it by name."""

from dataclasses import replace

import pytest
import torch

from seerbench.core.problem import AttentionProblem
from seerbench.methods.registry import create


def test_flex_is_dense_attention(qkv):
    assert torch.allclose(create("flex").attend(*qkv, None), create("dense").attend(*qkv, None), atol=1e-5)


@pytest.mark.parametrize("name", ["fa2", "cudnn", "flash-attn", "minference-upstream"])
def test_gpu_kernels_refuse_a_cpu_by_name(name):
    case = AttentionProblem("cpu", "float32", 1, 4, 2, 64, 500)
    assert create(name).refuses(case)
    on_gpu = create(name).refuses(replace(case, device="cuda", dtype="bfloat16"))
    if name in ("flash-attn", "minference-upstream"):  # the package is not installed here
        assert "is not installed" in on_gpu
    names = ("sdpa-flash", "sdpa-cudnn", "flash-attn", "minference")
    assert create(name).implementation(replace(case, device="cuda")) in names
