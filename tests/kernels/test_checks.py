"""Tensors and masks that do not fit together are refused by every operation, on the CPU as on a GPU."""

import pytest
import torch
from gpu.kernel_cases import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from seerbench.core.block_mask import BlockMask, block_count
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.reference import reference_attention
from seerbench.core.rope import plain_rope
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.errors import KernelError, MaskError
from seerbench.kernels import checks, flash_attention_4, flex_attention, index_lists
from seerbench.kernels.antidiagonal_mass.api import antidiagonal_mass
from seerbench.kernels.attn_gate import api as attn_gate
from seerbench.kernels.block_sparse.api import block_sparse_attention, block_sparse_attention_with_lse
from seerbench.kernels.pooled.api import pooled_attention
from seerbench.kernels.pooled_scores.api import pooled_scores
from seerbench.kernels.primitives import MAX_TOKEN_STRIDE, addressable, tma_readable
from seerbench.kernels.vertical_slash.api import tile_attention, vertical_slash_tiles
from seerbench.kernels.vertical_slash.tile_mask import TileMask
from seerbench.methods.gate import AttnGate, gate_scores
from seerbench.methods.gate_config import GateConfig

N, HEADS, KV_HEADS, DIM = 130, 4, 2, 16


def blocks(tokens=N, batch=1, heads=HEADS, device="cpu"):
    n = block_count(tokens, 64)
    mask = BlockMask.from_dense(torch.ones(batch, heads, n, n, dtype=torch.bool), tokens)
    return BlockMask.unchecked(mask.kv_num_blocks.to(device), mask.kv_indices.to(device), tokens)


def tiles(tokens=N, batch=1, heads=HEADS, device="cpu"):
    columns, diagonals = torch.zeros(2, batch, heads, tokens, dtype=torch.bool)
    diagonals[..., 0] = True
    mask = vertical_slash_tiles(columns, diagonals)
    lists = (mask.tile_counts, mask.tile_starts, mask.column_counts, mask.columns)
    return TileMask.unchecked(*(x.to(device) for x in lists), tokens)


# Operation -> (function of q, k, v and a mask; what makes its mask, or None).
OPERATIONS = {
    "block_sparse_attention": (block_sparse_attention, blocks),
    "flex_block_sparse": (flex_attention.flex_block_sparse, blocks),
    "flex_attention": (lambda q, k, v, m: flex_attention.flex_attention(q, k, v, m.to_flex()), blocks),
    "masked_attention": (flex_attention.masked_attention, blocks),
    "masked_attention, dense": (lambda q, k, v, m: flex_attention.masked_attention(q, k, v), None),
    "tile_attention": (tile_attention, tiles),
    "pooled_attention": (lambda q, k, v, m: pooled_attention(q, k, v), None),
    "pooled_scores": (lambda q, k, v, m: pooled_scores(q, k, 64), None),
    "antidiagonal_mass": (lambda q, k, v, m: antidiagonal_mass(q, k, 64, 8), None),
    "block_sparse_attention_with_lse": (block_sparse_attention_with_lse, blocks),
    "flash_attention_4": (lambda q, k, v, m: flash_attention_4.run(q, k, v), None),
    "the gate's kernels": (
        lambda q, k, v, m: attn_gate.gate_scores(q, k, (None, None), (["avg"], ["avg"]), None, 64),
        None,
    ),
}
WITHOUT_V = ("pooled_scores", "antidiagonal_mass", "the gate's kernels")


def changed(q, k, v, change):
    """Return q, k and v after one change that no operation takes."""
    return {
        "other dtype of k": lambda: (q, k.double(), v),
        "integers": lambda: (q.int(), k.int(), v.int()),
        "8-bit floats": lambda: tuple(x.to(torch.float8_e4m3fn) for x in (q, k, v)),
        "three dimensions": lambda: (q[0], k[0], v[0]),
        "no tokens": lambda: (q[:, :, :0], k[:, :, :0], v[:, :, :0]),
        "no batch": lambda: (q[:0], k[:0], v[:0]),
        "fewer keys": lambda: (q, k[:, :, :100], v[:, :, :100]),
        "fewer queries": lambda: (q[:, :, :100], k, v),
        "another batch of k": lambda: (q, k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1)),
        "another head_dim of k": lambda: (q, k[..., :8], v[..., :8]),
        "heads that do not split": lambda: (q[:, :3], k, v),
        "more key/value heads": lambda: (q[:, :1], k, v),
        "another device of k": lambda: (q, k.to("meta"), v),
        "a shorter v": lambda: (q, k, v[:, :, :100]),
        "another head_dim of v": lambda: (q, k, v[..., :8]),
        "fewer heads of v": lambda: (q, k, v[:, :1]),
        "other dtype of v": lambda: (q, k, v.half()),
    }[change]()


OF_ALL = ["other dtype of k", "integers", "8-bit floats", "three dimensions", "no tokens", "no batch", "fewer keys"]
OF_ALL += ["fewer queries", "another batch of k", "another head_dim of k", "heads that do not split"]
OF_ALL += ["more key/value heads", "another device of k"]
OF_V = ["a shorter v", "another head_dim of v", "fewer heads of v", "other dtype of v"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_tensors_that_do_not_fit_are_refused(name):
    run, make = OPERATIONS[name]
    drawn = draw(N, HEADS, KV_HEADS, DIM, torch.float32, batch=1)
    for change in OF_ALL + ([] if name in WITHOUT_V else OF_V):
        q, k, v = changed(*drawn, change)
        with pytest.raises(KernelError) as refusal:
            run(q, k, v, make and make())
        assert "\n" not in str(refusal.value), change


@pytest.mark.parametrize("name", [name for name, (_, make) in OPERATIONS.items() if make])
def test_masks_of_another_problem_are_refused(name):
    run, make = OPERATIONS[name]
    q, k, v = draw(N, HEADS, KV_HEADS, DIM, torch.float32, batch=2)
    masks = [
        make(heads=1),
        make(batch=1),
        make(batch=2, heads=1),
        make(batch=2, heads=8),
        make(batch=2, tokens=320),
    ]
    if name != "flex_attention":  # its mask cannot be converted on the device "meta"
        masks.append(make(batch=2, device="meta"))
    for mask in masks:
        with pytest.raises(KernelError, match="mask"):
            run(q, k, v, mask)
    for other in (tiles(batch=2) if make is blocks else blocks(batch=2), None):
        if name not in ("flex_attention", "masked_attention"):
            with pytest.raises(KernelError, match="takes a"):
                run(q, k, v, other)


def test_kernels_that_need_a_gpu_say_so():
    q, k, v = draw(N, HEADS, KV_HEADS, DIM, torch.float16, batch=1)
    for name in ("block_sparse_attention_with_lse", "flash_attention_4", "the gate's kernels"):
        run, make = OPERATIONS[name]
        with pytest.raises(KernelError, match="GPU"):
            run(q, k, v, make and make())
    with pytest.raises(KernelError, match="GPU"):
        index_lists.ascending_lists(torch.ones(1, 1, 2, 2, dtype=torch.bool))
    with pytest.raises(KernelError, match="GPU"):
        attn_gate.select_top_k(torch.zeros(1, 1, 2, 2), 1, 100, 64)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: index_lists.ascending_lists(torch.ones(1, 1, 2, 2)), "bool"),
        (lambda: index_lists.ascending_lists(torch.ones(1, 0, 2, dtype=torch.bool)), "at least one"),
        (lambda: attn_gate.select_top_k(torch.zeros(1, 1, 2, 2).half(), 1, 100, 64), "float32"),
        (lambda: attn_gate.select_top_k(torch.zeros(1, 1, 3, 3), 1, 100, 64), r"\[B, Hq, 2, 2\]"),
        (lambda: attn_gate.select_top_k(torch.zeros(1, 1, 2, 3), 1, 100, 64), r"\[B, Hq, 2, 2\]"),
        (lambda: attn_gate.select_threshold(torch.zeros(1, 2, 2), 0.5, 100, 64), r"\[B, Hq, 2, 2\]"),
        (lambda: attn_gate.select_threshold(torch.zeros(1, 1, 2, 2), 0.5, 100, 64, -1), "dense rows"),
        (lambda: vertical_slash_tiles(*torch.ones(2, 1, 2, 100)), "bool"),
        (lambda: vertical_slash_tiles(*torch.ones(2, 2, 100, dtype=torch.bool)), r"\[B, Hq, N\]"),
        (lambda: vertical_slash_tiles(torch.ones(1, 2, 9).bool(), torch.ones(1, 2, 8).bool()), "agree"),
        (lambda: vertical_slash_tiles(*torch.ones(2, 1, 2, 9, dtype=torch.bool), 0), "tile"),
        (lambda: antidiagonal_mass(*draw(9, 2, 1, 16, torch.float32)[:2], 64, 0), "stride"),
        (lambda: antidiagonal_mass(*draw(9, 2, 1, 16, torch.float32)[:2], 64, 48), "stride"),
        (lambda: antidiagonal_mass(*draw(9, 2, 1, 16, torch.float32)[:2], 0, 8), "stride"),
        (lambda: pooled_scores(*draw(9, 2, 1, 16, torch.float32)[:2], 0), "block"),
        (lambda: pooled_attention(*draw(9, 2, 1, 16, torch.float32), -1), "block"),
    ],
)
def test_other_arguments_are_checked(call, word):
    with pytest.raises(KernelError, match=word):
        call()


def test_a_gate_is_run_on_the_heads_that_it_was_made_for():
    q, k, _ = draw(100, 8, 2, 16, torch.float32, batch=1)
    layer = LayerContext(0, q, k, plain_rope(16))
    for heads in [(4, 2, 16), (8, 4, 16), (8, 2, 32)]:
        with pytest.raises(KernelError, match="gate is for"):
            gate_scores(AttnGate(GateConfig(), *heads), q, k, layer)
    assert gate_scores(AttnGate(GateConfig(), 8, 2, 16), q, k, layer).shape == (1, 8, 2, 2)


def test_no_check_reads_an_entry():
    """Run the checks on tensors without entries; a check that waits for a GPU would read one."""
    q, k, v = (x.to("meta") for x in draw(N, HEADS, KV_HEADS, DIM, torch.float16))
    checks.check_tensors(q, k, v)
    checks.check_mask(q, blocks(batch=2, device="meta"))
    problem = AttentionProblem.of(q, k, 64, 64)
    assert problem == AttentionProblem("meta", "float16", 2, HEADS, KV_HEADS, DIM, N, 64, 64)
    assert checks.triton_refuses(problem) is None


def test_a_gradient_where_there_is_no_backward_pass_is_an_error():
    q, k, v = (x.requires_grad_() for x in draw(70, 4, 2, 16, torch.float32, batch=1))
    for result in pooled_attention(q, k, v):
        with pytest.raises(KernelError, match="pooled_attention has no backward"):
            result.sum().backward(retain_graph=True)
    with torch.no_grad():
        assert not pooled_attention(q, k, v)[0].requires_grad
    assert q.grad is None
    # On a CPU the other operations are differentiable, and their gradients are right.
    loss = tile_attention(q, k, v, tiles(70)).square().sum()
    want = reference_attention(q, k, v, tiles(70))[0].square().sum()
    for got, exact in zip(*(torch.autograd.grad(x, (q, k, v)) for x in (loss, want)), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-5)


def test_what_a_kernel_could_not_address_is_copied():
    x = torch.randn(2, 3, 8, 16)
    assert addressable(x) is x
    assert addressable(x.transpose(1, 2)).stride() == x.transpose(1, 2).stride()
    for view in (x.mT, x[..., ::2], x[..., :1].expand(-1, -1, -1, 16)):
        copy = addressable(view)
        assert copy.is_contiguous()
        assert torch.equal(copy, view)
    far = torch.empty(1, device="meta").as_strided((2, 3, 8, 16), (16, 16, MAX_TOKEN_STRIDE + 1, 1))
    assert addressable(far).is_contiguous()
    assert tma_readable(x) is x
    y = torch.randn(2 * 3 * 8 * 16 + 1).half()
    for view in (
        y[1:].view(2, 3, 8, 16),
        y[:-1].as_strided((2, 3, 5, 16), (384, 128, 17, 1)),
        x[:1].expand(4, 3, 8, 16),
    ):
        copy = tma_readable(view)
        assert copy.data_ptr() % 16 == 0
        assert copy.is_contiguous()
        assert torch.equal(copy, view)


TILE_LISTS = ("tile_counts", "tile_starts", "column_counts", "columns")


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 90), chance=st.sampled_from([0.0, 0.05, 0.3, 1.0]), seed=st.integers(0, 99))
def test_tiles_that_are_made_pass_the_check(tokens, chance, seed):
    generator = torch.Generator().manual_seed(seed)
    columns, diagonals = (torch.rand(1, 2, tokens, generator=generator) < chance for _ in range(2))
    diagonals[..., 0] = True
    mask = vertical_slash_tiles(columns, diagonals, 16)
    mask.check()
    TileMask(*(getattr(mask, name) for name in TILE_LISTS), tokens, 16)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("tile_counts", lambda x: x.fill_(9), "count"),
        ("column_counts", lambda x: x.fill_(-1), "count"),
        ("tile_starts", lambda x: x[..., 3, :2].copy_(torch.tensor([20, 30])), "overlap"),
        ("tile_starts", lambda x: x[..., 3, :2].copy_(torch.tensor([48, 0])), "overlap"),
        ("tile_starts", lambda x: x[..., 3, 1].fill_(64), "after the row"),
        ("tile_starts", lambda x: x[..., 3, 0].fill_(-3), "before token 0"),
        ("columns", lambda x: x[..., 3, :2].copy_(torch.tensor([30, 30])), "twice"),
        ("columns", lambda x: x[..., 3, 1].fill_(48), "first query"),
        ("columns", lambda x: x[..., 3, 0].fill_(2), "inside a tile"),
        ("columns", lambda x: x[..., 3, 2].fill_(5), "beyond its count"),
        ("tile_counts", lambda x: x[..., 0].fill_(0), "beyond its count|no key"),
    ],
)
def test_one_fault_in_tiles_is_refused_and_named(name, change, word):
    counts, columns = torch.tensor([[[1, 1, 1, 2]]]), torch.tensor([[[0, 0, 0, 2]]])
    lists = {
        "tile_counts": counts.int(),
        "tile_starts": torch.tensor([[[[0, 0], [16, 0], [32, 0], [0, 48]]]]).int(),
        "column_counts": columns.int(),
        "columns": torch.tensor([[[[0, 0, 0]] * 3 + [[20, 30, 0]]]]).int(),
    }
    TileMask(*lists.values(), 60, 16)
    change(lists[name])
    with pytest.raises(MaskError, match=word):
        TileMask(*lists.values(), 60, 16)


@settings(max_examples=12, deadline=None)
@given(
    tokens=st.integers(1, 150),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 1), (6, 2)]),
    block=st.sampled_from([16, 64]),
    density=st.floats(0, 1),
    batch=st.integers(1, 2),
)
def test_any_mask_on_the_masked_form_is_the_reference(tokens, heads, block, density, batch):
    n = block_count(tokens, block)
    q, k, v = draw(tokens, *heads, 16, torch.float32, batch=batch)
    mask = BlockMask.from_dense(torch.rand(batch, heads[0], n, n) < density, tokens, block, block)
    for x in (mask, mask.expand(batch, heads[0])):
        exact, rounded = reference_attention(q, k, v, x)[0], reference_attention(q, k, v, x, torch.float32)[0]
        assert_no_worse_than_rounding(flex_attention.masked_attention(q, k, v, x), exact, rounded)
