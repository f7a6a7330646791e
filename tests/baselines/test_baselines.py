"""Every method under one set of tests, and what is particular to each."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from seerbench.baselines.minference.estimate import pattern_tiles, select_vertical_slash, vertical_slash_scores
from seerbench.baselines.minference.patterns import Pattern, load_patterns, save_patterns
from seerbench.baselines.moa import block_density, load_plan, save_plan, window_blocks, windows_and_sink
from seerbench.core.block_mask import BlockMask, causal_blocks
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.core.top_k import top_k_density
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.protocol import realised_sparsity
from seerbench.methods.registry import create
from seerbench.methods.wrappers import variant
from seerbench.search import moa_solver
from seerbench.search.minference import candidates, search_patterns

TOKENS, BLOCK = 500, 16
METHODS = ["seer", "streaming", "random", "minference", "minference-aligned", "oracle", "moa"]
METHODS += ["xattention", "flexprefill", "flashprefill"]
COARSE = ("minference", "minference-aligned", "flexprefill", "moa")  # whole diagonals or windows stand or fall
LEAST = {"flexprefill": {"gamma": 0.0}, "flashprefill": {"alpha": 1.0}}
OWN_PLAN = ("minference",)  # plans that are no BlockMask


def rope(positions):
    angles = positions[:, None] * 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


@pytest.fixture(scope="module")
def qkv():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(1, 4, TOKENS, 16, generator=generator),
        *torch.randn(2, 1, 2, TOKENS, 16, generator=generator),
    )


@pytest.fixture(scope="module")
def make(tmp_path_factory, qkv):
    folder = tmp_path_factory.mktemp("plans")
    lengths = [128, 256, 512]
    rules = moa_solver.rule_grid(lengths, 1024, BLOCK)
    influence = [torch.rand(4, n // BLOCK, n // BLOCK, generator=torch.Generator().manual_seed(n)) for n in lengths]
    costs = [np.stack([moa_solver.rule_costs(map_, rules, BLOCK)] * 2) for map_ in influence]
    torch.manual_seed(0)
    gates = [AttnGate(GateConfig(block=BLOCK), 4, 2, 16) for _ in range(2)]

    def plan_at(sparsity):
        # Bound at the length of the test alone.
        limits = moa_solver.bounds(rules, [TOKENS], BLOCK, sparsity)
        chosen = moa_solver.choose_rules(costs[-1:], limits)[0]
        save_plan(folder / f"{sparsity}.json", rules[chosen][..., 0], rules[chosen][..., 1])
        return folder / f"{sparsity}.json"

    def build(name, sparsity):
        if name == "moa":
            return create(name, plan=plan_at(sparsity), sparsity=sparsity, block=BLOCK)
        options = {"seer": {"gates": gates}}
        return create(name, sparsity=sparsity, **options.get(name, {"block": BLOCK}))

    return build


def layer_of(qkv):
    return LayerContext(1, qkv[0], qkv[1], rope)


@pytest.mark.parametrize("name", METHODS)
def test_sparsity_zero_is_dense_attention(name, make, qkv):
    method = make(name, 0.0)
    plan = method.plan(qkv[0], qkv[1], layer_of(qkv))
    assert realised_sparsity(plan) == 0.0
    dense = create("dense")
    out = method.attend(*qkv, plan)
    want = dense.attend(*qkv, dense.plan(*qkv[:2], LayerContext()))
    assert torch.allclose(out, want, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("sparsity", [0.4, 0.7, 0.8])
def test_realised_sparsity_is_that_of_the_top_k_rule(name, sparsity, make, qkv):
    """At one requested sparsity all methods keep about the same number of blocks."""
    method = make(name, sparsity)
    plans = [method.plan(qkv[0], qkv[1], replace(layer_of(qkv), index=index)) for index in (0, 1)]
    density = sum(plan.density() for plan in plans) / 2  # MoA spends more on one layer than on another
    budget = top_k_density(-(-TOKENS // BLOCK), sparsity)
    # MInference takes whole diagonals and MoA whole windows: they may stay below the budget, never above.
    floor = 0.0  # what a method takes always may alone be over the budget
    if name == "minference":
        floor = pattern_tiles(*qkv[:2], [Pattern("vertical_and_slash", 1, 1)] * 4, BLOCK).density()
    if name in LEAST:
        floor = create(name, block=BLOCK, **LEAST[name]).plan(*qkv[:2], LayerContext()).density()
    assert density <= max(floor, budget + 0.001)
    assert density >= budget - (0.06 if name in COARSE else 0.02)
    plan = plans[1]
    assert float(plan.head_density().mean()) == pytest.approx(plan.density())
    if name in OWN_PLAN:
        return
    assert plan.density() == pytest.approx(float(plan.to_dense().float().mean()) * 2 * 32 / 33)  # of 32 rows
    assert isinstance(plan, BlockMask)
    assert (plan.to_dense() & ~causal_blocks(TOKENS, BLOCK, BLOCK)).sum() == 0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tokens", [TOKENS, 481])
def test_attend_is_attention_over_the_plan(name, tokens, make, qkv):
    """GQA, a ragged tail and causality, against the float64 oracle under the plan's own token mask."""
    q, k, v = (x[:, :, :tokens] for x in qkv)
    method = make(name, 0.7)
    plan = method.plan(q, k, LayerContext(1, q, k, rope))
    exact, rounded = reference_attention(q, k, v, plan)[0], reference_attention(q, k, v, plan, q.dtype)[0]
    assert_no_worse_than_rounding(method.attend(q, k, v, plan), exact, rounded)


@pytest.mark.parametrize("name", METHODS)
def test_plans_are_deterministic(name, make, qkv):
    first, second = (make(name, 0.7).plan(qkv[0], qkv[1], layer_of(qkv)) for _ in range(2))
    assert torch.equal(first.to_token_mask(), second.to_token_mask())


@pytest.mark.parametrize("name", ["streaming", "random", "moa", "seer", "oracle"])
def test_the_past_does_not_depend_on_the_future(name, make, qkv):
    """Causality of plan and output: other tokens in the last third change nothing in the first two blocks rows.

    MInference is left out on purpose: its plan for every row is estimated from the last queries.
    """
    cut = 20 * BLOCK
    other = [x.clone() for x in qkv]
    for x in other:
        x[:, :, cut:] = torch.randn_like(x[:, :, cut:])
    method = make(name, 0.7)
    rows = []
    for q, k, v in (qkv, other):
        plan = method.plan(q, k, LayerContext(1, q, k, rope))
        rows.append(method.attend(q, k, v, plan)[:, :, :cut])
    assert torch.equal(*rows)


def test_minference_finds_a_planted_column_and_diagonal():
    """One key that all queries love, one offset that all queries look back: both are in the plan."""
    tokens, column, offset = 512, 200, 150
    q = torch.zeros(1, 1, tokens, 64)
    k = torch.zeros(1, 1, tokens, 64)
    spins = torch.nn.functional.normalize(torch.randn(tokens, 32), dim=1)
    q[0, 0, offset:, :32] = 30 * spins[: tokens - offset]
    k[0, 0, :, :32] = 30 * spins
    q[..., 40] = 20
    k[0, 0, column, 40] = 40
    columns, diagonals = vertical_slash_scores(q, k)
    assert columns[0, 0, 30:].argmax().item() + 30 == column
    assert diagonals[0, 0, 100:].argmax().item() + 100 == offset
    assert torch.isinf(columns[0, 0, :30]).all()
    assert torch.isinf(diagonals[0, 0, :100]).all()
    plan = create("minference-aligned", sparsity=0.5, block=16).plan(q, k, LayerContext()).to_dense()[0, 0]
    rows = torch.arange(16, 32)
    assert plan[rows, column // 16].all()
    assert plan[rows, rows - offset // 16].all()


def test_vertical_slash_scores_by_definition():
    q, k = torch.randn(1, 2, 90, 8), torch.randn(1, 1, 90, 8)
    columns, diagonals = vertical_slash_scores(q, k)
    weights = (q[:, :, 26:] @ k.transpose(-1, -2)) * 8**-0.5
    for head in range(2):
        want_columns, want_diagonals = torch.zeros(90), torch.zeros(90)
        for i in range(64):
            row = weights[0, head, i, : 27 + i].softmax(-1)
            for j, share in enumerate(row):
                want_columns[j] += share
                want_diagonals[26 + i - j] += share
        assert torch.allclose(columns[0, head, 30:], want_columns[30:], atol=1e-5)
        finite = torch.isfinite(diagonals[0, head])
        assert torch.allclose(diagonals[0, head][finite], want_diagonals[finite], atol=1e-5)


def test_streaming_keeps_sink_and_window(make, qkv):
    plan = make("streaming", 0.7).plan(qkv[0], qkv[1], LayerContext()).to_dense()[0, 0]
    n = plan.shape[0]
    k = int(plan[-1].sum())
    assert plan[-1].nonzero().flatten().tolist() == [0, *range(n - k + 1, n)]


def test_moa_s_mask_by_definition():
    """The run-time mask of the description, in loops: reserve, whole blocks, sink, window."""
    for tokens, alpha, beta in ((500, -100.0, 0.5), (500, 32.0, 0.0), (333, 0.0, 1.0), (40, 0.0, 0.25)):
        total = tokens + 16 * BLOCK
        cache = BLOCK * int(np.ceil(max(min(int(alpha + total * beta), total), 2 * BLOCK) / BLOCK))
        local = (cache - min(cache, BLOCK)) // BLOCK
        mask = windows_and_sink(window_blocks([alpha], [beta], tokens, BLOCK), 1, tokens, BLOCK)
        n = -(-tokens // BLOCK)
        want = [[j <= i and (j == 0 or j > i - local) for j in range(n)] for i in range(n)]
        assert mask.to_dense()[0, 0].tolist() == want
        assert torch.equal(BlockMask.from_dense(mask.to_dense(), tokens, BLOCK, BLOCK).kv_indices, mask.kv_indices)
        assert block_density(window_blocks([alpha], [beta], tokens, BLOCK), n)[0] == pytest.approx(mask.density())


def test_moa_s_plan_goes_through_upstream_s_format(tmp_path):
    save_plan(tmp_path / "mine.json", [[0.0, -1024.0]], [[0.5, 0.875]], {"model": "toy"})
    assert load_plan(tmp_path / "mine.json") == ([[0.0, -1024.0]], [[0.5, 0.875]])
    method = create("moa", plan=tmp_path / "mine.json")
    assert method.configuration == "mine"
    with pytest.raises(ValueError, match="is for 1 layers of 2 heads"):
        method.plan(torch.zeros(1, 4, 100, 8), torch.zeros(1, 4, 100, 8), LayerContext())
    (tmp_path / "bad.json").write_text('{"alphas": [[0]]}')
    with pytest.raises(ValueError, match="no plan of MoA"):
        load_plan(tmp_path / "bad.json")


def test_random_keeps_the_diagonal_and_differs_by_head_and_layer(make, qkv):
    method = make("random", 0.7)
    first, second = (method.plan(qkv[0], qkv[1], LayerContext(index)).to_dense() for index in (0, 1))
    assert first.diagonal(dim1=-2, dim2=-1).all()
    assert not torch.equal(first, second)
    assert not torch.equal(first[:, 0], first[:, 1])


def test_minference_selection_by_definition(qkv):
    """The columns and diagonals of upstream's rule in float64, loops over the definition."""
    q, k = qkv[0][:, :, :300].double(), qkv[1][:, :, :300].double()
    patterns = [Pattern("vertical_and_slash", 40, 120)] * 4
    columns, diagonals = select_vertical_slash(q, k, patterns)
    for head in range(4):
        weights = (q[0, head, 236:] @ k[0, head // 2].T) * 16**-0.5
        in_column, on_diagonal = np.zeros(300), np.zeros(300)
        for i, row in enumerate(weights):
            for j, share in enumerate(row[: 237 + i].softmax(0).tolist()):
                in_column[j] += share
                on_diagonal[236 + i - j] += share
        in_column[:30] = on_diagonal[:100] = np.inf
        for found, scores, budget in ((columns, in_column, 40), (diagonals, on_diagonal, 120)):
            wanted = np.argsort(-scores, kind="stable")[:budget]
            assert set(found[0, head].nonzero()[:, 0].tolist()) == set(wanted.tolist())


def test_minference_runs_the_three_kinds_of_heads_in_one_layer(qkv):
    q, k, _ = qkv
    patterns = [
        Pattern("vertical_and_slash", 40, 60),
        Pattern("stream_llm", 20, 100),
        Pattern("block_sparse", 3, 1),
        Pattern("stream_llm", 500, 500),
    ]
    plan = pattern_tiles(q, k, patterns, BLOCK)
    seen = plan.to_token_mask()[0]
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    assert seen[1][(distance >= 0) & ((distance < 100) | (torch.arange(TOKENS) < 20))].all()
    assert not seen[1][(distance >= 100 + 2 * BLOCK) & (torch.arange(TOKENS) >= 32)].any()
    assert plan.tile_counts[0, 2].max() <= 4  # three blocks and the diagonal
    assert torch.equal(seen[3], distance >= 0)


def test_minference_patterns_are_searched_and_go_through_upstream_s_format(qkv, tmp_path):
    """A head that looks far back along one diagonal is not given a window; the file names its choice."""
    found = search_patterns(*qkv, BLOCK)
    assert [0 < pattern.score <= 1 for pattern in found] == [True] * 4
    shape = candidates(TOKENS)[0]
    limit = pattern_tiles(*qkv[:2], [shape] * 4, BLOCK).head_density()
    least = pattern_tiles(*qkv[:2], [Pattern("vertical_and_slash", 1, 1)] * 4, BLOCK).head_density()
    spent = pattern_tiles(*qkv[:2], found, BLOCK).head_density()
    assert (spent <= torch.maximum(limit, least) + 1e-9).all()  # no more tiles than the A-shape
    save_patterns(tmp_path / "mine.json", [found, found[:2]])
    layers = load_patterns(tmp_path / "mine.json")
    assert [layers[0][head] for head in range(4)] == found
    method = create("minference", patterns=tmp_path / "mine.json", block=BLOCK)
    assert method.configuration == "mine"
    assert method.patterns(1, 4)[2:] == [Pattern("vertical_and_slash", 1000, 6096)] * 2  # upstream's default
    assert create("minference").configuration == "v2 (512, 2048)"
    first = create("minference", patterns="v1")
    assert (first.configuration, len(first.layers)) == ("v1 (mix)", 32)
    count = Counter((pattern.first, pattern.second) for layer in first.layers for pattern in layer.values())
    assert count == {  # A.6 of the description: what upstream's file holds
        (100, 800): 297,
        (1000, 6096): 279,
        (30, 800): 175,
        (3500, 100): 149,
        (500, 700): 120,
        (100, 750): 4,
    }
    (tmp_path / "bad.json").write_text('[{"0": ["dilated", 1, 2, 0]}]')
    with pytest.raises(ValueError, match="layer 0, head 0"):
        load_patterns(tmp_path / "bad.json")


def test_xattention_by_definition():
    """Antidiagonal sums, softmax and row rule in float64, loops over the definition; no multiple is special."""
    from seerbench.baselines.xattention import mass_before
    from seerbench.kernels.antidiagonal_mass.api import antidiagonal_mass

    tokens, block, stride = 64, 16, 4
    q, k = torch.randn(2, 1, 1, tokens, 8, dtype=torch.float64)
    mass = antidiagonal_mass(q, k, block, stride)[0, 0]
    want = np.zeros((4, 4))
    for i in range(16):
        sums = [
            sum(float(q[0, 0, i * stride + stride - 1 - a] @ k[0, 0, j * stride + a]) for a in range(stride))
            for j in range(i + 1)
        ]
        shares = torch.tensor(sums).div(8**0.5 * stride).softmax(0)
        for j, share in enumerate(shares.tolist()):
            want[i // 4, j // 4] += share
    assert np.allclose(mass.numpy(), want, atol=1e-5)
    kept = (mass_before(mass) < 0.7).numpy()
    for i in range(4):
        chosen = {0, i}
        rest = sorted(set(range(i)) - chosen, key=lambda j: -want[i, j])
        while rest and sum(want[i, j] for j in chosen) < 0.7 * want[i].sum():
            chosen.add(rest.pop(0))
        assert set(np.flatnonzero(kept[i, : i + 1])) == chosen


def test_xattention_finds_a_far_block_at_every_length():
    """Upstream's chunked path loses all but the last chunk at exact multiples; here a planted block stays."""
    for tokens in (256, 320, 512):
        q, k = 0.1 * torch.randn(2, 1, 1, tokens, 16)
        q[..., 0], k[:, :, 64:80, 0] = 6, 6
        plan = create("xattention", block=16, tau=0.5).plan(q, k, LayerContext()).to_dense()[0, 0]
        assert plan[5:, 4].all()


def test_flexprefill_by_definition():
    """Budgets, forced blocks and the query-aware branch against loops in float64."""
    from seerbench.baselines.flexprefill import choose, estimate_blocks

    tokens, block = 160, 16
    q, k = torch.randn(2, 1, 2, tokens, 8, dtype=torch.float64)
    columns, diagonals, distance, pooled = estimate_blocks(q, k, block)
    for head in range(2):
        on_column, on_diagonal = np.zeros(tokens), np.zeros(tokens)
        for i in range(tokens - block, tokens):
            for j, share in enumerate((k[0, head, : i + 1] @ q[0, head, i] * 8**-0.5).softmax(0).tolist()):
                on_column[j] += share / block
                on_diagonal[i - j] += share / block
        assert np.allclose(columns[0, head], on_column, atol=1e-5)
        assert np.allclose(diagonals[0, head], on_diagonal, atol=1e-5)
        for tau in (0.0, 2.0):  # never query-aware, always
            kept = choose(columns, diagonals, distance, pooled, 0.6, tau, block)[0, head]
            want = torch.zeros(10, 10, dtype=torch.bool)
            picks = []
            for mass in (on_column, on_diagonal):
                below = (np.cumsum(np.sort(mass)[::-1]) <= 0.6).sum() + 1
                count = 4 if tau else min(10, max(4, below // block + 1))
                sums = mass.reshape(10, block).sum(1)
                picks.append([0, *(b for b in np.argsort(-sums, kind="stable") if b != 0)][:count])
            for i in range(10):
                for j in range(i + 1):
                    want[i, j] = j in picks[0] or i - j in picks[1]
            if tau:
                order = pooled[0, head].flatten().argsort(descending=True, stable=True)
                total = 0.0
                for place in order.tolist():
                    total += float(pooled[0, head].flatten()[place])
                    if total > 0.6 * 10:
                        break
                    want[place // 10, place % 10] = True
            assert torch.equal(kept, want.tril())


def test_flashprefill_keeps_what_is_near_the_row_s_best():
    from seerbench.kernels.pooled_scores.api import pooled_scores

    q, k = torch.randn(2, 1, 1, 160, 8, dtype=torch.float64)
    scores = pooled_scores(q, k, 16)[0, 0]
    plan = create("flashprefill", block=16, alpha=0.5).plan(q, k, LayerContext()).to_dense()[0, 0]
    for i in range(10):
        row = [
            sum(
                float((q[0, 0, m] @ k[0, 0, 16 * j : 16 * j + 16].mean(0) * 8**-0.5).exp())
                for m in range(16 * i, 16 * i + 16)
                if m >= 16 * j + 15
            )
            for j in range(i + 1)
        ]
        assert np.allclose(scores[i, : i + 1].exp(), row, atol=1e-5)
        want = [j < 2 or i - j < 4 or i >= 8 or score >= 0.5 * max(row) for j, score in enumerate(row)]
        assert plan[i, : i + 1].tolist() == want


def test_mean_correction_is_one_pooled_key_a_skipped_block(qkv):
    from seerbench.methods.mean_correction import mean_corrected

    q, k, v = qkv
    plan = create("random", sparsity=0.8, block=BLOCK).plan(q, k, LayerContext())
    out, kept = mean_corrected(q, k, v, plan), plan.to_dense()[0]
    for head, query in ((0, 499), (3, 200), (2, 17)):
        logits, values = [], []
        for j in range(query // BLOCK + 1):
            keys = slice(j * BLOCK, min((j + 1) * BLOCK, query + 1))
            block_k, block_v = k[0, head // 2, keys].double(), v[0, head // 2, keys].double()
            if kept[head, query // BLOCK, j]:
                logits += (block_k @ q[0, head, query].double() / 4).tolist()
                values += list(block_v)
            else:
                logits.append(float(block_k.mean(0) @ q[0, head, query].double()) / 4 + np.log(len(block_k)))
                values.append(block_v.mean(0))
        want = torch.tensor(logits, dtype=torch.float64).softmax(0) @ torch.stack(values)
        assert torch.allclose(out[0, head, query].double(), want, atol=1e-5)


def test_flex_is_dense_attention(qkv):
    assert torch.allclose(create("flex").attend(*qkv, None), create("dense").attend(*qkv, None), atol=1e-5)


@pytest.mark.parametrize("name", ["fa2", "cudnn", "flash-attn", "minference-upstream"])
def test_gpu_kernels_refuse_a_cpu_by_name(name):
    case = AttentionProblem("cpu", "float32", 1, 4, 2, 64, 500)
    assert create(name).refuses(case)
    on_gpu = create(name).refuses(replace(case, device="cuda", dtype="bfloat16"))
    if name in ("flash-attn", "minference-upstream"):  # not installed here: said, and not found out by a crash
        assert "is not installed" in on_gpu
    names = ("sdpa-flash", "sdpa-cudnn", "flash-attn", "minference")
    assert create(name).implementation(replace(case, device="cuda")) in names


def test_a_package_that_cannot_be_imported_is_a_refusal(tmp_path, monkeypatch):
    """minference 0.1.6 beside transformers 5: found, and its import fails."""
    (tmp_path / "minference").mkdir()
    (tmp_path / "minference" / "__init__.py").write_text("import kivi_gemv_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    case = AttentionProblem("cuda", "bfloat16", 1, 4, 2, 64, 500)
    assert "cannot be imported: No module named 'kivi_gemv" in create("minference-upstream").refuses(case)


def test_a_method_on_another_kernel_gives_the_same(qkv):
    """`flex-sparse` is FlexAttention with its mask made in `plan`; the oracle's budget holds for it too."""
    method = variant(create("streaming", sparsity=0.7, block=BLOCK), kernel="flex-sparse")
    plan = method.plan(*qkv[:2], LayerContext())
    assert (method.name, method.sparsity, method.block) == ("streaming+flex", 0.7, BLOCK)
    assert plan.density() == create("streaming", sparsity=0.7, block=BLOCK).plan(*qkv[:2], LayerContext()).density()
    exact, rounded = reference_attention(*qkv, plan)[0], reference_attention(*qkv, plan, qkv[0].dtype)[0]
    assert_no_worse_than_rounding(method.attend(*qkv, plan), exact, rounded)
    with pytest.raises(ValueError, match="plans no BlockMask"):
        variant(create("minference", block=BLOCK), kernel="flex-sparse").plan(*qkv[:2], LayerContext())


def test_the_mean_correction_goes_with_any_block_mask(qkv):
    from seerbench.measure.correctness import check_method
    from seerbench.methods.mean_correction import mean_corrected

    plain = create("streaming", sparsity=0.7, block=BLOCK)
    method = variant(plain, mean_correction=True)
    plan = method.plan(*qkv[:2], LayerContext())
    assert method.name == "streaming+mean"
    assert torch.equal(method.attend(*qkv, plan), mean_corrected(*qkv, plan))
    assert not torch.allclose(method.attend(*qkv, plan), plain.attend(*qkv, plan), atol=1e-2)
    assert check_method(method, *qkv, LayerContext()).passed


def test_chunks_change_nothing(qkv, monkeypatch):
    """Long contexts are planned by chunks of rows; a chunk of one block of rows gives the same scores."""
    from seerbench.kernels.antidiagonal_mass import reference as mass
    from seerbench.kernels.pooled_scores import reference as scores

    whole = mass.antidiagonal_mass(*qkv[:2], 32, 8), scores.pooled_scores(*qkv[:2], 32)
    monkeypatch.setattr(mass, "CHUNK_BYTES", 1)
    monkeypatch.setattr(scores, "CHUNK", 1)
    parts = mass.antidiagonal_mass(*qkv[:2], 32, 8), scores.pooled_scores(*qkv[:2], 32)
    for left, right in zip(whole, parts):
        assert torch.allclose(left, right, atol=1e-5)


def test_aligned_minference_covers_what_the_tiles_cover(qkv):
    """Rounded outwards: every selected column and diagonal lies in its blocks, at its own budgets too."""
    plan = create("minference-aligned", block=BLOCK).plan(*qkv[:2], LayerContext())
    budgets = [Pattern("vertical_and_slash", 512 * BLOCK // 64, 2048 * BLOCK // 64)] * 4
    columns, diagonals = select_vertical_slash(*qkv[:2], budgets, BLOCK)
    seen = plan.to_token_mask()
    rows = torch.arange(TOKENS)
    apart = rows[:, None] - rows
    wanted = (columns[:, :, None] | diagonals[:, :, apart.clamp_min(0)]) & (apart >= 0)
    assert not (wanted & ~seen).any()


def test_tiles_as_blocks_hold_every_key_that_is_read(qkv):
    plan = create("minference", sparsity=0.7, block=BLOCK).plan(*qkv[:2], LayerContext())
    blocks = BlockMask.from_dense(plan.to_dense(), TOKENS, BLOCK, BLOCK)
    assert not (plan.to_token_mask() & ~blocks.to_token_mask()).any()
    assert plan.to_dense().sum() < causal_blocks(TOKENS, BLOCK, BLOCK).sum() * 4


@pytest.mark.parametrize("name", ["minference", "minference-aligned", "xattention", "flexprefill", "flashprefill"])
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_a_method_with_its_threshold_plans_the_same_without_searching(name, sparsity, make, qkv):
    """What a timing runs keeps the blocks that the requested sparsity came to, and takes no sparsity any more."""
    method = make(name, sparsity)
    fixed = method.with_threshold_for(*qkv[:2], LayerContext())
    assert fixed.sparsity is None
    assert torch.equal(
        fixed.plan(*qkv[:2], LayerContext()).to_token_mask(),
        method.plan(*qkv[:2], LayerContext()).to_token_mask(),
    )
