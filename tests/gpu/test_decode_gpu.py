"""Decoding over a cache's blocks on a GPU at real sizes, against the float64 definition. Skipped without CUDA."""

import pytest
import torch
from decode_cases import KINDS, build_lists, check_decoding, draw_cache, poison
from transformers import LlamaConfig, LlamaForCausalLM

from seerbench.core.block_mask import block_count
from seerbench.errors import KernelError
from seerbench.kernels.decode import api, reference, triton
from seerbench.kernels.decode.lists import CacheLists
from seerbench.methods.decode_gate import DecodeGate
from seerbench.methods.decode_gate_config import DecodeGateConfig
from seerbench.methods.registry import create
from seerbench.methods.seer_decode import SeerDecode
from seerbench.models.hugging_face import generate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DTYPES = [torch.bfloat16, torch.float16]
DEVICE = "cuda"


def drawn(lengths, kind, dtype=torch.bfloat16, heads=32, kv_heads=8, head_dim=128, block=64):
    """Return q, k, v and lists; what no list reads is NaN."""
    (q, k, v), first = draw_cache(lengths, heads, kv_heads, head_dim, dtype, "cuda")
    lists = build_lists(kind, lengths, first, kv_heads, block, "cuda")
    poison(k, v, lists)
    return q, k, v, lists


def run(q, k, v, lists, splits):
    shares = torch.full((*q.shape[:2], splits, q.shape[3]), torch.nan, device="cuda")
    lse, o = torch.full(shares.shape[:3], torch.nan, device="cuda"), torch.full_like(q, torch.nan)
    triton.launch_shares(q, k, v, lists, shares, lse)
    triton.launch_merge(shares, lse, o)
    return o


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[1], [63, 64], [65, 1000, 4095], [8192] * 4], ids=str)
def test_every_kind_of_list(kind, lengths, dtype):
    q, k, v, lists = drawn(lengths, kind, dtype)
    check_decoding(q, k, v, lists, api.decode_attention(q, k, v, lists))


@pytest.mark.parametrize("splits", [1, 2, 16, 64])
@pytest.mark.parametrize("block", triton.BLOCKS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_blocks_splits_and_head_dims(block, splits, head_dim):
    q, k, v, lists = drawn([5000, 777], "random", head_dim=head_dim, block=block)
    check_decoding(q, k, v, lists, run(q, k, v, lists, splits))


@pytest.mark.parametrize("group", [1, 2, 3, 8, 16, 64])
def test_groups(group):
    q, k, v, lists = drawn([2000, 300], "random", heads=2 * group, kv_heads=2)
    check_decoding(q, k, v, lists, api.decode_attention(q, k, v, lists))


@pytest.mark.parametrize(("batch", "tokens"), [(1, 2**20), (8, 2**17), (32, 2**15)])
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_real_sizes(batch, tokens, sparsity):
    """Compare with the reference in fp32, whose own rounding is far below that of the output in bf16."""
    (q, k, v), first = draw_cache([tokens - 5] * batch, 32, 8, 128, torch.bfloat16, "cuda", room=5)
    n = block_count(tokens - 5, 64)
    flags = torch.rand(batch, 8, n, device="cuda") >= sparsity
    flags[..., -1] = True
    starts = torch.tensor(first, dtype=torch.int32, device="cuda")
    lists = CacheLists.from_flags(flags, starts, starts + (tokens - 5), 64)
    o = api.decode_attention(q, k, v, lists)
    for row in range(batch):  # the reference copies the keys that it reads
        part = slice(row, row + 1)
        own = CacheLists(*(getattr(lists, name)[part] for name in ("counts", "blocks", "first", "end")), 64)
        exact = reference.decode_attention(*(x[part].float() for x in (q, k, v)), own)
        torch.testing.assert_close(o[part].float(), exact, rtol=2**-7, atol=2**-7 * float(exact.abs().max()))


def test_keys_as_models_store_them():
    """Run on keys [B, N, H, D] seen as [B, H, N, D], and on a part of a static cache."""
    q, k, v, lists = drawn([3000, 2500], "random")
    want = run(q, k, v, lists, 4)
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)]
    assert torch.equal(run(q, *apart, lists, 4), want)
    room = [torch.nn.functional.pad(x, (0, 0, 0, 500), value=torch.nan)[:, :, :-500] for x in (k, v)]
    assert torch.equal(run(q, *room, lists, 4), want)


def test_no_recompile_for_another_length_or_batch():
    compiled = triton._attend
    for lengths in ([1000], [17, 4096], [64] * 3):
        q, k, v, lists = drawn(lengths, "random")
        api.decode_attention(q, k, v, lists)
        kernels = len(compiled.device_caches[torch.cuda.current_device()][0])
        if lengths == [1000]:
            before = kernels
    assert kernels == before


def test_what_the_kernel_does_not_take_is_refused():
    q, k, v, lists = drawn([100], "all")
    with pytest.raises(KernelError, match="float32"):
        api.decode_attention(q.float(), k.float(), v.float(), lists)
    with pytest.raises(KernelError, match="blocks of"):
        api.decode_attention(q, k, v, build_lists("all", [100], [0], 8, 48, "cuda"))


@torch.no_grad()
def test_generating_with_everything_in_the_budget_is_dense():
    """Compare the logits of ten steps in a padded batch with those of dense decoding."""
    shape = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = (
        LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=256, vocab_size=99)).to(DEVICE, DTYPES[0]).eval()
    )
    gates = [DecodeGate(DecodeGateConfig(), 4, 2, 64).to(DEVICE, DTYPES[0]) for _ in range(2)]
    tokens = torch.randint(3, 99, (2, 300), device=DEVICE)
    mask = torch.ones_like(tokens)
    mask[1, :77] = 0
    options = {"attention_mask": mask, "max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    dense, _ = generate(model, tokens, create("dense"), **options)
    sparse, record = generate(model, tokens, create("dense"), SeerDecode(gates, budget=1024), **options)
    assert record.mean_decode_sparsity() == 0.0
    for step, (one, other) in enumerate(zip(dense.logits, sparse.logits, strict=True)):
        torch.testing.assert_close(one.float(), other.float(), rtol=2**-5, atol=2**-5)
        if not torch.equal(dense.sequences[:, : 301 + step], sparse.sequences[:, : 301 + step]):
            break  # rounding has chosen another token, and the texts go apart
    _, record = generate(model, tokens, create("dense"), SeerDecode(gates, budget=64), **options)
    assert record.mean_decode_sparsity() > 0.2
