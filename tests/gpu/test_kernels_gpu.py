"""The kernels on a GPU, bf16 and fp16, against the float64 reference. Skipped without CUDA."""

import pytest
import torch
from kernel_cases import MASKS, build_mask, check_attention, draw

from seerbench.core import top_k
from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import LayerContext
from seerbench.core.reference import reference_attention
from seerbench.core.rope import plain_rope
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.errors import KernelError, MaskError
from seerbench.kernels.attn_gate import pool as attn_gate_pool
from seerbench.kernels.attn_gate import reference as gate_reference
from seerbench.kernels.attn_gate import score as attn_gate_score
from seerbench.kernels.attn_gate import select as attn_gate_select
from seerbench.kernels.block_sparse import api as sparse
from seerbench.kernels.block_sparse import triton as block_sparse_triton
from seerbench.kernels.pooled import reference as pooled_reference
from seerbench.kernels.pooled import triton as pooled_triton
from seerbench.kernels.vertical_slash import api as vertical_slash
from seerbench.kernels.vertical_slash import reference as vertical_slash_reference
from seerbench.kernels.vertical_slash import triton as vertical_slash_triton
from seerbench.methods import gate, gate_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
LENGTHS = [1, 63, 64, 65, 1000, 4095, 8192]
DTYPES = [torch.bfloat16, torch.float16]
BLOCKS = [(64, 64), (128, 64), (128, 128)]


def kernels():
    """The portable kernel everywhere; on Hopper its Gluon twin too."""
    names = ["triton"]
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9:
        names.append("hopper")
    return names


def run(name, q, k, v, mask):
    if name == "hopper" and (mask.block_q, mask.block_k) not in sparse.HOPPER_BLOCKS:
        pytest.skip(f"the Gluon twin takes blocks of {sparse.HOPPER_BLOCKS}")
    from seerbench.kernels.block_sparse import hopper as block_sparse_hopper

    o, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan, device=q.device)
    {"triton": block_sparse_triton.launch, "hopper": block_sparse_hopper.launch}[name](q, k, v, mask, o, lse)
    return o, lse


def check_sparse(name, n, kind, dtype, blocks=(64, 64), group=4, kv_heads=1, head_dim=128, batch=1):
    q, k, v = draw(n, group * kv_heads, kv_heads, head_dim, dtype, "cuda", batch)
    mask = build_mask(kind, n, batch, group * kv_heads, *blocks, "cuda")
    check_attention(q, k, v, mask, *run(name, q, k, v, mask))


@pytest.mark.parametrize("name", kernels())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("n", LENGTHS)
def test_every_mask_at_every_length(name, n, kind, blocks, dtype):
    check_sparse(name, n, kind, dtype, blocks, group=4 if n <= 1000 else 2)


@pytest.mark.parametrize("name", kernels())
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("blocks", [*BLOCKS, (64, 128), (32, 32)], ids=str)
def test_grouped_heads_batch_and_head_dim(name, group, head_dim, blocks):
    check_sparse(name, 1000, "random", torch.bfloat16, blocks, group, kv_heads=2, head_dim=head_dim, batch=2)


@pytest.mark.skipif("hopper" not in kernels(), reason="needs a Hopper GPU")
@pytest.mark.parametrize("blocks", sparse.HOPPER_BLOCKS, ids=str)
@pytest.mark.parametrize("kind", MASKS)
def test_many_items_a_program_in_whatever_order_they_are_taken(kind, blocks):
    # Four items a program or more, taken from a counter: another order each time, the same bits.
    q, k, v = draw(2000, 32, 8, 128, torch.bfloat16, "cuda", 1)
    mask = build_mask(kind, 2000, 1, 32, *blocks, "cuda")
    first = run("hopper", q, k, v, mask)
    check_attention(q, k, v, mask, *first)
    for _ in range(5):
        again = run("hopper", q, k, v, mask)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])


@pytest.mark.parametrize("name", kernels())
@pytest.mark.parametrize("blocks", [(64, 64), (128, 128)], ids=str)
def test_lists_without_an_entry(name, blocks):
    q, k, v = draw(300, 4, 1, 128, torch.bfloat16, "cuda", 1)
    counts = torch.zeros(1, 4, -(-300 // blocks[0]), dtype=torch.int32, device="cuda")
    mask = BlockMask(counts, counts.new_zeros(*counts.shape, 0), 300, *blocks)
    o, lse = run(name, q, k, v, mask)
    assert (o == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("name", kernels())
@pytest.mark.parametrize("blocks", [(64, 64), (128, 128)], ids=str)
def test_tensors_that_are_views(name, blocks):
    """[B, N, H, D] projections seen as [B, H, N, D], as models hand them over."""
    drawn = draw(1000, 8, 2, 128, torch.bfloat16, "cuda")
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in drawn)
    mask = build_mask("random", 1000, 2, 8, *blocks, "cuda")
    check_attention(q, k, v, mask, *run(name, q, k, v, mask))


@pytest.mark.parametrize("block", [64, 128])
def test_no_recompile_for_a_new_length_or_sparsity(block):
    if "hopper" in kernels():
        from seerbench.kernels.block_sparse.hopper import _forward as compiled
    else:
        from seerbench.kernels.block_sparse.triton import _forward as compiled
    for n, kind in [(1000, "random"), (2048, "full"), (64, "diagonal"), (777, "empty-rows"), (1, "full")]:
        q, k, v = draw(n, 8, 2, 128, torch.bfloat16, "cuda", 1)
        sparse.block_sparse_attention(q, k, v, build_mask(kind, n, 1, 8, block, block, "cuda"))
        cache = compiled.device_caches[torch.cuda.current_device()][0]
        if n == 1000:
            known = len(cache)
    assert len(cache) == known


@pytest.mark.parametrize("view", ["base", "tokens", "one head for all", "channels"])
def test_tensors_that_the_memory_accelerator_cannot_read(view):
    """A base or a stride that is no multiple of 16 bytes, a stride of zero, channels that are not adjacent."""

    def change(x):
        if view == "base":
            return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
        if view == "tokens":
            return torch.nn.functional.pad(x, (0, 1))[..., :-1]
        return x[:, :1].expand_as(x) if view == "one head for all" else x.mT.contiguous().mT

    q, k, v = draw(300, 4, 2, 128, torch.bfloat16, "cuda", 1)
    q, k, v = change(q), change(k), change(v)
    mask = build_mask("random", 300, 1, 4, 64, 64, "cuda")
    check_attention(q, k, v, mask, *sparse.block_sparse_attention_with_lse(q, k, v, mask))
    for name in pooled_kernels():
        check_pooled(name, q, k, v, 64)


def test_what_does_not_fit_is_refused_before_a_launch():
    q, k, v = draw(300, 4, 2, 128, torch.bfloat16, "cuda", 2)
    mask = build_mask("random", 300, 2, 4, 64, 64, "cuda")
    one = build_mask("random", 300, 1, 1, 64, 64, "cuda")
    for bad in (
        (q, k, v, one),
        (q, k, v, build_mask("full", 400, 2, 4, 64, 64, "cuda")),
        (q, k, v, build_mask("full", 300, 2, 4, 64, 64)),
        (q, k, v, build_mask("full", 300, 2, 4, 16, 16, "cuda")),
        (q[:, :3], k, v, build_mask("full", 300, 2, 3, 64, 64, "cuda")),
        (q, k[:, :, :200], v[:, :, :200], mask),
        (q.float(), k.float(), v.float(), mask),
        (q, k, v.half(), mask),
        (q, k.cpu(), v, mask),
    ):
        with pytest.raises(KernelError):
            sparse.block_sparse_attention(*bad)
    counts, lists = mask.kv_num_blocks.clone(), mask.kv_indices.clone()
    counts[1, 2, 3] = 99
    with pytest.raises(MaskError, match="batch entry 1, head 2, query block 3"):
        BlockMask(counts, lists, 300)
    wide = one.expand(2, 4)
    check_attention(q, k, v, wide, *sparse.block_sparse_attention_with_lse(q, k, v, wide))
    torch.cuda.synchronize()


def test_neither_the_checks_nor_a_plan_by_top_k_waits_for_the_gpu():
    q, k, v = draw(300, 4, 2, 128, torch.bfloat16, "cuda", 1)
    scores = torch.randn(1, 4, 5, 5, device="cuda")

    def run_all():
        mask = attn_gate_select.select_top_k(scores, 2, 300, 64)
        return sparse.block_sparse_attention(q, k, v, mask.expand(1, 4))

    with torch.no_grad():
        first = run_all()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = run_all()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, again)


@pytest.mark.parametrize("missing", [torch.nan, -torch.inf])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_lists_are_valid_whatever_the_scores(missing, share):
    scores = torch.randn(1, 4, 300, 300, device="cuda")
    scores = torch.where(torch.rand_like(scores) < share, missing, scores)
    scores = scores.masked_fill(torch.ones(300, 300, device="cuda").triu(1).bool(), -torch.inf)
    k, longer, _ = top_k.top_k_rows(300, 0.6)
    ours = attn_gate_select.select_top_k(scores, k, 300 * 64, 64, 0, longer)
    ours.check()
    assert torch.equal(ours.to_dense().cpu(), top_k.select_top_k(scores.cpu(), 0.6, 300 * 64, 64).to_dense())
    attn_gate_select.select_threshold(scores, 0.01, 300 * 64, 64).check()


def pooled_kernels():
    """The two passes everywhere; on Hopper its one pass too."""
    return ["two-pass", "one-pass"] if "hopper" in kernels() else ["two-pass"]


def check_pooled(name, q, k, v, block):
    exact = pooled_reference.naive_pooled_attention(q, k, v, block, torch.float64)
    rounded = pooled_reference.naive_pooled_attention(q, k, v, block)
    from seerbench.kernels.pooled import hopper as pooled_hopper

    kernel = {"two-pass": pooled_triton.two_passes, "one-pass": pooled_hopper.pooled_attention}[name]
    for actual, right, other in zip(kernel(q, k, v, block), exact, rounded, strict=True):
        assert_no_worse_than_rounding(actual, right, other)


@pytest.mark.parametrize("name", pooled_kernels())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("n", LENGTHS)
def test_pooled_attention(n, group, block, dtype, name):
    q, k, v = draw(n, group if n <= 4095 else 2, 1, 128, dtype, "cuda", 1)
    check_pooled(name, q, k, v, block)


@pytest.mark.parametrize("name", pooled_kernels())
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("n", [65, 1000])
def test_pooled_attention_of_views_in_a_batch(n, block, head_dim, name):
    """[B, N, H, D] projections seen as [B, H, N, D], several key/value heads, a batch of two."""
    drawn = draw(n, 8, 2, head_dim, torch.bfloat16, "cuda", 2)
    check_pooled(name, *(x.transpose(1, 2).contiguous().transpose(1, 2) for x in drawn), block)


@pytest.mark.skipif("hopper" not in kernels(), reason="needs a Hopper GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("n", [1, 65, 127, 300, 1000, 4095, 5000])
def test_one_pass_writes_all_that_it_returns_and_reads_only_what_it_wrote(n, block, dtype):
    from seerbench.kernels.pooled import hopper as pooled_hopper

    # Many items a program at 4095, and a scratch of two pieces at 5000: each item finds in the scratch, which
    # is part of O, what the longer row before it left there.
    q, k, v = draw(n, 16, 4, 128, dtype, "cuda", 1)
    exact = pooled_reference.naive_pooled_attention(q, k, v, block, torch.float64)
    rounded = pooled_reference.naive_pooled_attention(q, k, v, block)
    o, lse = torch.empty_like(q), torch.full(q.shape[:3], torch.nan, device="cuda")
    o.view(torch.float32).fill_(torch.inf)  # a maximum would ignore NaN
    columns = block_count(n, block)
    d = torch.full((1, 16, columns * (block // 64), columns), torch.nan, dtype=dtype, device="cuda")
    torch.full((2**24,), torch.inf, device="cuda")  # and gone: what the allocator hands out next
    pooled_hopper.launch(q, k, v, o, lse, d)
    if block == 128:
        assert not d.isnan().any()
        d = d.unflatten(-2, (-1, 2)).amax(-2)
    for actual, right, other in zip((o, lse, d), exact, rounded, strict=True):
        assert_no_worse_than_rounding(actual, right, other)
    assert (d.triu(1) == 0).all()


@pytest.mark.parametrize("n", [1, 63, 65, 1000, 8192])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate_pooling(n, dtype):
    x = torch.randn(2, 3, n, 128, device="cuda").to(dtype)
    ours, exact, rounded = (
        attn_gate_pool.pool_blocks(x, 64),
        gate_reference.pool_blocks(x.double(), 64),
        gate_reference.pool_blocks(x, 64),
    )
    for name, pooled in ours.items():
        assert_no_worse_than_rounding(pooled, exact[name], rounded[name])


@pytest.mark.parametrize("n", [1, 70, 512])
def test_gate_scores(n):
    q, k = (torch.randn(2, h, n, 128, device="cuda").bfloat16() for h in (8, 2))
    ours = attn_gate_score.block_scores(q, k)
    exact = q.double() @ k.double().repeat_interleave(4, 1).mT * 128**-0.5
    exact = exact.masked_fill(torch.ones(n, n, device="cuda").triu(1).bool(), -torch.inf)
    assert_no_worse_than_rounding(ours, exact, exact.float())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("n", [1, 65, 300, 512, 1100])
@pytest.mark.parametrize("dense_rows", [0, 2])
def test_gate_top_k(n, sparsity, ties, dense_rows):
    scores = torch.randn(2, 3, n, n, device="cuda")
    scores = (scores * 2).round() / 2 if ties else scores
    scores = scores.masked_fill(torch.ones(n, n, device="cuda").triu(1).bool(), -torch.inf)
    k, longer, _ = top_k.top_k_rows(n, sparsity, dense_rows)
    ours = attn_gate_select.select_top_k(scores, k, n * 64, 64, dense_rows, longer)
    theirs = top_k.select_top_k(scores.cpu(), sparsity, n * 64, 64, dense_rows)
    assert torch.equal(ours.kv_num_blocks.cpu(), theirs.kv_num_blocks)
    assert torch.equal(ours.kv_indices.cpu(), theirs.kv_indices)


@pytest.mark.parametrize("single", [False, True])
def test_the_whole_gate(single):
    """gate_scores on a GPU (kernels) against the same gate in float64 torch."""
    options = {"q_pool": "avg", "k_pool": "maxminavg", "projection": "single", "recipe": "v2"} if single else {}
    one = gate.AttnGate(gate_config.GateConfig(**options), 8, 2, 64).cuda()
    q, k, _ = draw(1000, 8, 2, 64, torch.bfloat16, "cuda")
    layer = LayerContext(q_unrotated=q, k_unrotated=k, rope=plain_rope(64))
    learning = gate.gate_scores(one, q, k, layer)
    assert learning.requires_grad  # joint fine-tuning trains the gate through it: no kernel there
    with torch.no_grad():
        ours = gate.gate_scores(one, q, k, layer)
        half = gate.gate_scores(one, q, k, layer, upper_triangle=False)
        rounded = one(gate_reference.pool_blocks(q, 64), gate_reference.pool_blocks(k, 64), layer.rope)
        exact = one.double()(
            gate_reference.pool_blocks(q.double(), 64), gate_reference.pool_blocks(k.double(), 64), layer.rope
        )
    assert_no_worse_than_rounding(ours, exact, rounded)
    assert torch.equal(half.tril(), ours.tril())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chance", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000, 4095])
def test_vertical_slash(n, chance, dtype):
    q, k, v = draw(n, 4, 1, 128, dtype, "cuda", 1)
    columns, diagonals = (torch.rand(1, 4, n, device="cuda") < chance for _ in range(2))
    diagonals[..., 0] = True
    mask = vertical_slash.vertical_slash_tiles(columns, diagonals)
    tables = vertical_slash_reference.scan(columns, diagonals)
    same = vertical_slash_reference.tiles_of(*tables, block_count(n, 64), n, 64)
    for name in ("tile_counts", "tile_starts", "column_counts", "columns"):
        assert torch.equal(getattr(mask, name), getattr(same, name))
    o = torch.full_like(q, torch.nan)
    vertical_slash_triton.launch(q, k, v, mask, o)
    exact, rounded = reference_attention(q, k, v, mask)[0], reference_attention(q, k, v, mask, q.dtype)[0]
    assert_no_worse_than_rounding(o, exact, rounded)
    assert len(vertical_slash_triton._forward.device_caches[torch.cuda.current_device()][0]) <= len(DTYPES)
