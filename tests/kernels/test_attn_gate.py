"""The gate's kernels in Triton's interpreter, and the model of the top-k search, against plain torch."""

import pytest
import torch
from gpu.kernel_cases import INTERPRETED, draw, far_apart, run_in_interpreter

from seerbench.core import top_k
from seerbench.core.rope import plain_rope
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.errors import KernelError
from seerbench.kernels.attn_gate import api, reference
from seerbench.kernels.attn_gate import pool as attn_gate_pool
from seerbench.kernels.attn_gate import project as attn_gate_project
from seerbench.kernels.attn_gate import score as attn_gate_score
from seerbench.kernels.attn_gate import select as kernel
from seerbench.methods import gate, gate_config

if not INTERPRETED:

    @pytest.mark.slow(seconds=20)
    def test_kernels_in_the_interpreter():
        run_in_interpreter(__file__)

    def test_a_row_that_does_not_fit_is_refused():
        scores = torch.empty(1, 1, 1, 1).expand(1, 1, 40000, 40000)
        with pytest.raises(ValueError, match="32768"):
            kernel.select_top_k(scores, 0, 40000 * 64, 64)

    def rows(n):
        """Return rows of n scores: normal, exponentials of normal ones, many ties, infinities, all equal."""
        normal = torch.randn(n)
        infinite = torch.where(torch.rand(n) < 0.3, torch.inf, normal)
        zeros = torch.zeros(n)
        zeros[::2] = -0.0
        return [normal, (normal * 25).exp() * normal.sign(), (normal * 2).round() / 2, infinite, zeros]

    @pytest.mark.parametrize("n", [2, 9, 70, 512])
    def test_the_search_finds_what_topk_finds(n):
        torch.manual_seed(n)
        for scores in rows(n):
            for k in {1, n // 8 or 1, n // 2, n - 1}:
                kept, steps = reference.search_top_k(scores, k)
                assert kept.nonzero()[:, 0].tolist() == sorted(
                    scores.sort(descending=True, stable=True)[1][:k].tolist()
                )
                assert steps <= 20 + 32  # after 20 steps, 32 halvings end any search

    def test_the_search_is_short_on_normal_scores():
        torch.manual_seed(0)
        steps = [reference.search_top_k(torch.randn(2048), 200)[1] for _ in range(50)]
        assert sum(steps) / len(steps) < 10

    def test_keys_order_as_floats_do():
        scores = torch.tensor([-torch.inf, -1e30, -1.0, -1e-40, 0.0, 1e-40, 1.0, 1e30, torch.inf])
        keys = [reference.key_of(score) for score in scores]
        assert keys == sorted(keys)
        assert [float(reference.score_of(key)) for key in keys] == scores.tolist()
        assert reference.key_of(torch.tensor(-0.0)) == reference.key_of(torch.tensor(0.0))

else:

    def causal(n, ties=False):
        scores = torch.randn(1, 2, n, n)
        if ties:
            scores = (scores * 2).round() / 2  # many equal entries, zeros of both signs among them
        return scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)

    def same(ours, theirs):
        assert torch.equal(ours.kv_num_blocks, theirs.kv_num_blocks)
        assert torch.equal(ours.to_dense(), theirs.to_dense())
        width = theirs.kv_indices.shape[-1]
        assert torch.equal(ours.kv_indices[..., :width], theirs.kv_indices)
        assert not ours.kv_indices[..., width:].any()

    @pytest.mark.parametrize("n", [1, 63, 64, 65, 130])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_pooling(n, dtype):
        x = torch.randn(2, 2, n, 16).to(dtype)
        exact = reference.pool_blocks(x.double(), 64)
        ours = attn_gate_pool.pool_blocks(x, 64)
        assert torch.equal(ours["max"].double(), exact["max"])
        assert torch.equal(ours["min"].double(), exact["min"])
        assert_no_worse_than_rounding(ours["avg"], exact["avg"], reference.pool_blocks(x, 64)["avg"])
        alone = attn_gate_pool.pool_blocks(x, 64, ["min"])
        assert list(alone) == ["min"]
        assert torch.equal(alone["min"], ours["min"])

    def test_pooling_of_two_in_one_launch():
        """Pool two tensors whose strides differ, such as slices of one projection."""
        wide = torch.randn(2, 6, 130, 16)
        q, k = wide[:, :4], wide[:, 4:].transpose(1, 2).contiguous().transpose(1, 2)
        ours = attn_gate_pool.pool_side_by_side([(q, ["avg"]), (k, ["max", "min"])], 64)
        alone = (
            *attn_gate_pool.pool_side_by_side([(q, ["avg"])], 64),
            *attn_gate_pool.pool_side_by_side([(k, ["max", "min"])], 64),
        )
        for one, other, x, pooling in zip(ours, alone, (q, k), ("avg", "maxmin"), strict=True):
            assert torch.equal(one, other)
            torch.testing.assert_close(one, gate.concat_pools(reference.pool_blocks(x, 64), pooling))

    @pytest.mark.parametrize(("n", "dtype"), [(5, torch.float16), (70, torch.float32)])
    @pytest.mark.parametrize(
        "options",
        [{}, {"rope": False}, {"q_pool": "max", "k_pool": "maxminavg", "projection": "single"}],
        ids=str,
    )
    def test_linear_layer_and_rope(n, dtype, options):
        one = gate.AttnGate(gate_config.GateConfig(**options), 4, 2, 32)
        rope = plain_rope(32)
        q_pools, k_pools = (
            {name: torch.randn(2, h, n, 32).to(dtype) for name in gate_config.OPERATORS} for h in (4, 2)
        )
        tables = rope(torch.arange(n) * one.config.block) if one.config.rope else None
        with torch.no_grad():
            ours = (
                *attn_gate_project.project([(gate.concat_pools(q_pools, one.config.q_pool), one.wq)], tables),
                *attn_gate_project.project([(gate.concat_pools(k_pools, one.config.k_pool), one.wk)], tables),
            )
            rounded = one.project(q_pools, k_pools, rope)
            doubles = ({name: x.double() for name, x in pools.items()} for pools in (q_pools, k_pools))
            exact = one.double().project(*doubles, rope)
            together = attn_gate_project.project(
                [
                    (gate.concat_pools(q_pools, one.config.q_pool), one.wq),
                    (gate.concat_pools(k_pools, one.config.k_pool), one.wk),
                ],
                tables,
            )
        for actual, right, other, same in zip(ours, exact, rounded, together, strict=True):
            assert_no_worse_than_rounding(actual, right, other)
            assert torch.equal(actual, same)

    @pytest.mark.parametrize("n", [1, 5, 70, 130])
    @pytest.mark.parametrize("group", [1, 2])
    def test_scores(n, group, monkeypatch):
        q, k = torch.randn(2, 2, n, 16), torch.randn(2, 2 // group, n, 16)
        exact = (q.double() @ k.double().repeat_interleave(group, 1).mT) * 16**-0.5
        exact = exact.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        square = attn_gate_score.block_scores(q, k)
        torch.testing.assert_close(square.double(), exact, rtol=1e-5, atol=1e-5)
        monkeypatch.setattr(torch, "empty", lambda *size, **kind: torch.full(size, 77.0, **kind))
        half = attn_gate_score.block_scores(q, k, upper_triangle=False)
        monkeypatch.undo()
        seen = exact > -torch.inf
        assert torch.equal(half[seen], square[seen])

    def test_selection_does_not_read_above_the_diagonals_tile():
        """Put other values there. With 130 rows the kernel uses all of its three row sizes."""
        n = 130
        scores = causal(n)[:, :1]
        tile = torch.arange(n) // 64
        junk = torch.where(tile[None, :] > tile[:, None], 77.0, scores)
        k, longer, _ = top_k.top_k_rows(n, 0.25)
        same(kernel.select_top_k(junk, k, n * 64, 64, 0, longer), top_k.select_top_k(scores, 0.25, n * 64, 64))
        same(kernel.select_threshold(junk, 0.02, n * 64, 64), top_k.select_threshold(scores, 0.02, n * 64, 64))

    @pytest.mark.parametrize("ties", [False, True])
    @pytest.mark.parametrize("dense_rows", [0, 2])
    @pytest.mark.parametrize(("n", "sparsity"), [(1, 0.5), (16, 0.6), (21, 0.5), (33, 0.0), (40, 0.7)])
    def test_top_k(n, sparsity, ties, dense_rows):
        scores = causal(n, ties)[:, : 1 if n > 16 else 2]  # the interpreter is slow at many rows
        k, longer, _ = top_k.top_k_rows(n, sparsity, dense_rows)
        assert longer or not dense_rows or n == 1 or sparsity == 0
        same(
            kernel.select_top_k(scores, k, n * 64, 64, dense_rows, longer),
            top_k.select_top_k(scores, sparsity, n * 64, 64, dense_rows),
        )

    @pytest.mark.parametrize("kind", ["wild", "infinite", "zeros"])
    def test_top_k_of_scores_without_a_scale(kind):
        scores = torch.randn(1, 2, 9, 9)
        if kind == "wild":
            scores = (scores * 25).exp() * scores.sign()
        elif kind == "infinite":
            scores[torch.rand_like(scores) < 0.3] = torch.inf
        else:
            scores = torch.zeros_like(scores)
            scores[..., ::2] = -0.0
        scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
        k, longer, _ = top_k.top_k_rows(9, 0.5)
        same(kernel.select_top_k(scores, k, 9 * 64, 64, 0, longer), top_k.select_top_k(scores, 0.5, 9 * 64, 64))

    @pytest.mark.parametrize("threshold", [0.02, 0.1, 0.9])
    @pytest.mark.parametrize("dense_rows", [0, 2])
    def test_threshold(threshold, dense_rows):
        scores = causal(21)
        ours = kernel.select_threshold(scores, threshold, 21 * 64, 64, dense_rows)
        same(ours, top_k.select_threshold(scores, threshold, 21 * 64, 64, dense_rows))

    @pytest.mark.parametrize(("dimension", "step"), [(0, 2**31 + 64), (1, 2**31 + 64), (2, 2**24)])
    def test_offsets_beyond_32_bits(dimension, step):
        q, k, _ = draw(130, 2, 2, 16, torch.float16, batch=2 if dimension == 0 else 1)
        far = far_apart([q, k], dimension, step)
        near, apart = (
            attn_gate_pool.pool_side_by_side([(x, ["max", "avg"]), (y, ["min"])], 64) for x, y in ((q, k), far)
        )
        assert all(torch.equal(one, other) for one, other in zip(near, apart, strict=True))

    @pytest.mark.parametrize("missing", [torch.nan, -torch.inf])
    @pytest.mark.parametrize("share", [0.5, 1.0])
    def test_scores_that_are_missing_rank_last_and_every_list_is_valid(missing, share):
        scores = causal(7)
        scores = torch.where(torch.rand_like(scores) < share, missing, scores)
        scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        for sparsity in (0.2, 0.6):
            k, longer, _ = top_k.top_k_rows(7, sparsity)
            ours = kernel.select_top_k(scores, k, 7 * 64, 64, 0, longer)
            ours.check()
            same(ours, top_k.select_top_k(scores, sparsity, 7 * 64, 64))
        ours = kernel.select_threshold(scores, 0.3, 7 * 64, 64)
        ours.check()
        same(ours, top_k.select_threshold(scores, 0.3, 7 * 64, 64))

    def test_layers_pools_and_tables_that_do_not_fit_are_refused():
        q, k, _ = draw(130, 4, 2, 16, torch.float16, batch=1)
        right = {
            "weights": (torch.randn(4, 16, 16), torch.randn(2, 32, 16)), "operators": (["avg"], ["max", "min"]),
            "tables": plain_rope(16)(torch.arange(3) * 64), "block": 64,
        }  # fmt: skip
        scores = api.gate_scores(q.requires_grad_(), k, **right)
        with pytest.raises(KernelError, match="no backward"):
            scores.sum().backward()
        for change, word in [
            ({"weights": (torch.randn(8, 16, 16), torch.randn(2, 32, 16))}, "layer of q"),
            ({"weights": (torch.randn(4, 16, 16), torch.randn(2, 48, 16))}, "layer of k"),
            ({"weights": (torch.randn(4, 16, 16), None)}, "not projected"),
            ({"operators": (["avg"], ["max", "max"])}, "each once"),
            ({"operators": (["avg"], ["max", "median"])}, "some of max, min, avg"),
            ({"tables": plain_rope(16)(torch.arange(4) * 64)}, "cos and sin"),
            ({"block": 20, "tables": None}, "multiple of 8"),
            ({"block": 0, "tables": None}, "multiple of 8"),
        ]:
            with pytest.raises(KernelError, match=word):
                api.gate_scores(q, k, **{**right, **change})
        with pytest.raises(KernelError, match="at least one block"):
            kernel.select_top_k(causal(3), 0, 192, 64)
