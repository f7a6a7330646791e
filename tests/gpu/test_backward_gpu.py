"""The backward kernels on a GPU, bf16 and fp16, against float64 autograd. Skipped without CUDA."""

import pytest
import torch
from kernel_cases import MASKS, build_mask, check_gradients, draw
from transformers import LlamaConfig, LlamaForCausalLM

from seerbench.kernels.block_sparse import triton_backward
from seerbench.kernels.block_sparse.api import block_sparse_attention
from seerbench.methods.gate_config import GateConfig
from seerbench.models.hugging_face import attention_method
from seerbench.training import distill
from seerbench.training.finetune import JointAttention
from seerbench.training.losses import next_token_losses

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
LENGTHS = [1, 63, 64, 65, 1000, 4095]
DTYPES = [torch.bfloat16, torch.float16]
BLOCKS = [(64, 64), (128, 64), (64, 128), (128, 128)]


def check(n, group, kind, dtype, blocks, head_dim=128, kv_heads=1, batch=1):
    q, k, v = draw(n, group * kv_heads, kv_heads, head_dim, dtype, "cuda", batch)
    mask = build_mask(kind, n, batch, group * kv_heads, *blocks, "cuda")
    leaves = [x.requires_grad_() for x in (q, k, v)]
    o = block_sparse_attention(*leaves, mask)
    do = torch.randn_like(o)
    check_gradients(q, k, v, mask, do, torch.autograd.grad(o, leaves, do))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("n", LENGTHS)
def test_every_mask_at_every_length(n, kind, blocks, dtype):
    check(n, 4 if n <= 1000 else 2, kind, dtype, blocks)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_grouped_heads_batch_and_head_dim(group, head_dim, blocks):
    check(1000, group, "random", torch.bfloat16, blocks, head_dim, kv_heads=2, batch=2)


def test_views_and_the_same_bits_again():
    """[B, N, H, D] projections and gradient seen as [B, H, N, D], as models hand them over."""
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in draw(1000, 8, 2, 128, torch.bfloat16, "cuda")]
    leaves = [x.requires_grad_() for x in views]
    mask = build_mask("random", 1000, 2, 8, 64, 64, "cuda")
    o = block_sparse_attention(*leaves, mask)
    do = torch.randn(2, 1000, 8, 128, device="cuda").bfloat16().transpose(1, 2)
    first, second = (torch.autograd.grad(o, leaves, do, retain_graph=True) for _ in range(2))
    check_gradients(*views, mask, do, first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_recompile_for_a_new_length_or_sparsity():
    kernels = (triton_backward._query_gradient, triton_backward._key_gradients)
    for n, kind in [(1000, "random"), (2048, "full"), (64, "diagonal"), (777, "empty-rows"), (1, "full")]:
        check(n, 4, kind, torch.bfloat16, (128, 128), kv_heads=2)
        sizes = [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]
        if n == 1000:
            known = sizes
    assert sizes == known


def test_a_joint_step_reaches_model_and_gates():
    """bf16 autocast, as in `finetune`: the kernel's gradient arrives at every weight, and is finite."""
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    model = LlamaForCausalLM(config).cuda()
    gates = distill.fresh_gates(model, {"v1": GateConfig(block=64)}, 0)["v1"].cuda()
    joint = JointAttention(gates, 0.5, 64)
    tokens = torch.randint(0, 512, (2, 1000), device="cuda")
    with attention_method(model, joint):
        loss = next_token_losses(model, tokens, 1024, "cuda").mean() + joint.loss
        loss.backward()
    for name, parameter in [*model.named_parameters(), *gates.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
