"""MInference: estimates, patterns and their files, unaligned tiles, the aligned variant, the upstream package."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seerbench.baselines.minference.estimate import (
    pattern_tiles,
    select_vertical_slash,
    vertical_slash_scores,
    with_dense_rows,
)
from seerbench.baselines.minference.patterns import KINDS, Pattern, load_patterns, save_patterns
from seerbench.core.block_mask import BlockMask, causal_blocks
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.errors import ModelError, Refused
from seerbench.methods.registry import create
from seerbench.search.minference import candidates, search_patterns

TOKENS, BLOCK = 500, 16


def test_minference_finds_a_planted_column_and_diagonal():
    """Check that the plan has a key and an offset to which all queries attend."""
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


def test_minference_selection_by_definition(qkv):
    """Compare the columns and diagonals with upstream's rule in float64, written as loops."""
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


@pytest.mark.parametrize(("budgets", "columns", "diagonals"), [((40, 60), 40, 60), ((7, 3), 30, 50)])
def test_ties_of_forced_entries_go_to_the_first(budgets, columns, diagonals, qkv):
    """Check that a budget below what always ranks first keeps the nearest diagonals and the first columns."""
    q, k = qkv[0][:, :, :300], qkv[1][:, :, :300]
    found = select_vertical_slash(q, k, [Pattern("vertical_and_slash", *budgets)] * 4)
    assert found[0].sum(-1).tolist() == [[columns] * 4]
    assert found[0][..., :30].all()
    assert found[1].long().argmin(-1).tolist() == [[diagonals] * 4]
    assert found[1].sum(-1).tolist() == [[diagonals] * 4]


def test_a_block_sparse_head_keeps_the_diagonal_beside_its_best():
    q, k = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 64, 8)
    q[..., 0] = k[:, :, 16:32, 0] = 1.0  # every row prefers block 1
    flags = pattern_tiles(q, k, [Pattern("block_sparse", 1, 1)], BLOCK).to_dense()[0, 0]
    assert [row.nonzero()[:, 0].tolist() for row in flags] == [[0], [1], [1, 2], [1, 3]]


def test_dense_rows_of_tiles_read_every_key(qkv):
    tiles = pattern_tiles(*qkv[:2], [Pattern("vertical_and_slash", 4, 8)] * 4, BLOCK)
    plan = with_dense_rows(tiles, 2)
    plan.check()
    first = 30 * BLOCK  # of the dense rows, the second of which has 4 tokens
    assert torch.equal(plan.to_token_mask()[:, :, :first], tiles.to_token_mask()[:, :, :first])
    assert torch.equal(plan.to_token_mask()[0, 0, first:], torch.ones(TOKENS, TOKENS).tril().bool()[first:])
    assert not tiles.to_token_mask()[0, 0, first:].tril(first).all(-1).any()


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
    """Check that a head which attends far back along one diagonal gets no window, and that files keep patterns."""
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
    assert count == {  # the budgets in upstream's file, counted by hand
        (100, 800): 297,
        (1000, 6096): 279,
        (30, 800): 175,
        (3500, 100): 149,
        (500, 700): 120,
        (100, 750): 4,
    }


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9000) | st.floats() | st.sampled_from((*KINDS, "0", "x")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["0", "1", "x"]), inner, max_size=2)
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(VALUES | st.lists(st.dictionaries(st.sampled_from(["0", "1", "x"]), VALUES), max_size=2))
def test_any_json_is_a_configuration_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "patterns.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        layers = load_patterns(path)
    except ModelError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 (a valid file is fine too)
        return
    assert len(layers) == len(content) > 0
    assert all(pattern.kind in KINDS for layer in layers for pattern in layer.values())
    save_patterns(path, [[layer[head] for head in sorted(layer)] for layer in layers])
    load_patterns(path)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('["dilated", 1, 2, 0]', "layer 0, head 0"),
        ('["stream_llm", 1]', "layer 0, head 0"),
        ('["stream_llm", 1.5, 2, 0]', "layer 0, head 0"),
        ('["stream_llm", true, 2, 0]', "layer 0, head 0"),
        ('["stream_llm", 1, -2, 0]', "layer 0, head 0"),
        ('"stream_llm"', "layer 0, head 0"),
    ],
)
def test_an_entry_that_is_no_pattern_is_refused(tmp_path, entry, words):
    (tmp_path / "bad.json").write_text(f'[{{"0": {entry}}}]', encoding="utf-8")
    with pytest.raises(ModelError, match=words):
        create("minference", patterns=tmp_path / "bad.json")


@pytest.mark.parametrize(("layer", "heads"), [(0, 3), (1, 4), (0, 1)])
def test_patterns_of_another_model_refuse_its_layers(tmp_path, layer, heads):
    save_patterns(tmp_path / "mine.json", [[Pattern("stream_llm", 20, 100)] * 4])
    method = create("minference", patterns=tmp_path / "mine.json", block=BLOCK)
    q = torch.randn(1, heads, 64, 16)
    assert len(method.patterns(0, 4)) == 4
    with pytest.raises(Refused, match="they are of another model"):
        method.plan(q, q, LayerContext(layer))


def test_a_package_that_cannot_be_imported_is_a_refusal(tmp_path, monkeypatch):
    """Check the refusal where a package is found but cannot be imported (minference 0.1.6 with transformers 5)."""
    (tmp_path / "minference").mkdir()
    (tmp_path / "minference" / "__init__.py").write_text("import kivi_gemv_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    case = AttentionProblem("cuda", "bfloat16", 1, 4, 2, 64, 500)
    assert "cannot be imported: No module named 'kivi_gemv" in create("minference-upstream").refuses(case)


def test_aligned_minference_covers_what_the_tiles_cover(qkv):
    """Check that every selected column and diagonal lies in the blocks to which they are rounded outwards."""
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
