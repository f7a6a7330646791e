"""Every method under one set of tests, and what is particular to each."""

import numpy as np
import pytest
import torch

from seerbench.attention import (
    BlockMask,
    Layer,
    assert_no_worse_than_rounding,
    causal_blocks,
    oracle,
    realised_sparsity,
)
from seerbench.baselines.minference import (
    Pattern,
    load_patterns,
    pattern_tiles,
    save_patterns,
    search_patterns,
    select_vertical_slash,
    vertical_slash_scores,
)
from seerbench.baselines.moa import BETAS, profile_layer, solve_spans, span_blocks, window_with_sink, write_profile
from seerbench.gate import AttnGate, GateConfig, top_k_density
from seerbench.registry import create

TOKENS, BLOCK = 500, 16
METHODS = ["seer", "streaming", "random", "minference", "minference-aligned", "oracle", "moa"]
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
    profile = tmp_path_factory.mktemp("plans") / "moa.json"
    write_profile(profile, [profile_layer(qkv[0], qkv[1], BLOCK)] * 2, {})
    torch.manual_seed(0)
    gates = [AttnGate(GateConfig(block=BLOCK), 4, 2, 16) for _ in range(2)]

    def build(name, sparsity):
        options = {"seer": {"gates": gates}, "moa": {"profile": profile, "block": BLOCK}}
        return create(name, sparsity=sparsity, **options.get(name, {"block": BLOCK}))

    return build


def layer_of(qkv):
    return Layer(1, qkv[0], qkv[1], rope)


@pytest.mark.parametrize("name", METHODS)
def test_sparsity_zero_is_dense_attention(name, make, qkv):
    method = make(name, 0.0)
    plan = method.plan(qkv[0], qkv[1], layer_of(qkv))
    assert realised_sparsity(plan) == 0.0
    dense = create("dense")
    out = method.attend(*qkv, plan)
    want = dense.attend(*qkv, dense.plan(*qkv[:2], Layer()))
    assert torch.allclose(out, want, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("sparsity", [0.4, 0.7, 0.8])
def test_realised_sparsity_is_that_of_the_top_k_rule(name, sparsity, make, qkv):
    """At one requested sparsity all methods keep about the same number of blocks."""
    plan = make(name, sparsity).plan(qkv[0], qkv[1], layer_of(qkv))
    budget = top_k_density(-(-TOKENS // BLOCK), sparsity)
    # MInference takes whole diagonals and MoA whole windows: they may stay below the budget, never above.
    floor = 0.0
    if name == "minference":  # the columns and diagonals that it always takes may alone be over the budget
        floor = pattern_tiles(*qkv[:2], [Pattern("vertical_and_slash", 1, 1)] * 4, BLOCK).density()
    assert plan.density() <= max(floor, budget + 0.001)
    assert plan.density() >= budget - (0.06 if name.startswith("minference") else 0.02)
    if name in OWN_PLAN:
        return
    assert isinstance(plan, BlockMask)
    assert (plan.to_dense() & ~causal_blocks(TOKENS, BLOCK, BLOCK)).sum() == 0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tokens", [TOKENS, 481])
def test_attend_is_attention_over_the_plan(name, tokens, make, qkv):
    """GQA, a ragged tail and causality, against the float64 oracle under the plan's own token mask."""
    q, k, v = (x[:, :, :tokens] for x in qkv)
    method = make(name, 0.7)
    plan = method.plan(q, k, Layer(1, q, k, rope))
    exact, rounded = oracle(q, k, v, plan)[0], oracle(q, k, v, plan, q.dtype)[0]
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
        plan = method.plan(q, k, Layer(1, q, k, rope))
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
    plan = create("minference-aligned", sparsity=0.5, block=16).plan(q, k, Layer()).to_dense()[0, 0]
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
    plan = make("streaming", 0.7).plan(qkv[0], qkv[1], Layer()).to_dense()[0, 0]
    n = plan.shape[0]
    k = int(plan[-1].sum())
    assert plan[-1].nonzero().flatten().tolist() == [0, *range(n - k + 1, n)]


def test_moa_gives_wide_windows_to_the_heads_that_need_them():
    influence = np.zeros((1, 4, len(BETAS)))
    influence[0, 2] = np.linspace(1, 0, len(BETAS))  # only head 2 loses anything
    spans = solve_spans(influence, 64, 0.4)
    assert spans[0, 2] == 64
    kept = window_with_sink(torch.tensor(spans[0]), 64) & causal_blocks(64, 1, 1)
    assert kept.float().mean().item() <= 0.4 * (65 / 128) + 1e-6


def test_moa_profile_counts_hidden_mass():
    """A head that looks at the diagonal loses nothing; one that looks far back loses all but the sink's share."""
    tokens = 256
    local = profile_layer(100 * torch.eye(tokens)[None, None], 100 * torch.eye(tokens)[None, None], 16)
    assert local.abs().max() < 1e-6
    even = profile_layer(torch.zeros(1, 1, tokens, 8), torch.zeros(1, 1, tokens, 8), 16)[0]
    assert (even.diff() <= 1e-6).all()  # longer windows hide less
    assert even[-1].abs() < 1e-6
    assert span_blocks(16)[-1] == 16


def test_random_keeps_the_diagonal_and_differs_by_head_and_layer(make, qkv):
    method = make("random", 0.7)
    first, second = (method.plan(qkv[0], qkv[1], Layer(index)).to_dense() for index in (0, 1))
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
    save_patterns(tmp_path / "mine.json", [found, found[:2]])
    layers = load_patterns(tmp_path / "mine.json")
    assert [layers[0][head] for head in range(4)] == found
    method = create("minference", patterns=tmp_path / "mine.json", block=BLOCK)
    assert method.source == "mine"
    assert method.patterns(1, 4)[2:] == [Pattern("vertical_and_slash", 1000, 6096)] * 2  # upstream's default
    assert create("minference").source == "v2 (512, 2048)"
    (tmp_path / "bad.json").write_text('[{"0": ["dilated", 1, 2, 0]}]')
    with pytest.raises(ValueError, match="layer 0, head 0"):
        load_patterns(tmp_path / "bad.json")
