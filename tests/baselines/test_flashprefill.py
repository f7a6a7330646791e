"""FlashPrefill and its V2: plans by upstream's formulas and by hand, dense rows and layers, refusals, the means."""

import math

import pytest
import torch

from seerbench.core.problem import LayerContext
from seerbench.core.top_k import top_k_density
from seerbench.errors import Refused
from seerbench.methods.registry import create
from seerbench.methods.wrappers import variant

BLOCK, SINKS, WINDOW = 16, 2, 4
LAYER = LayerContext()


def draw(tokens, heads=4, kv_heads=2, spread=12.0):
    """Return q and k whose scores differ enough that a threshold decides."""
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(1, heads, tokens, 8, generator=generator, dtype=torch.float64)
    return q, spread * torch.randn(1, kv_heads, tokens, 8, generator=generator, dtype=torch.float64)


def v1_plan(q, k, alpha, last_rows):
    """Return V1's plan as upstream computes it: sums relative to each block's maximum, normalised over the row."""
    (_, heads, tokens, dim), group = q.shape, q.shape[1] // k.shape[1]
    n = math.ceil(tokens / BLOCK)
    kept = torch.zeros(heads, n, n, dtype=torch.bool)
    for head in range(heads):
        means = [k[0, head // group, j * BLOCK : (j + 1) * BLOCK].mean(0) for j in range(n)]
        for i in range(n):
            queries = range(i * BLOCK, min((i + 1) * BLOCK, tokens))
            maxima, sums = [-math.inf] * n, [0.0] * n
            for j in range(n):
                logits = [float(q[0, head, m] @ means[j]) / dim**0.5 for m in queries if m >= (j + 1) * BLOCK - 1]
                if logits:
                    maxima[j] = max(logits)
                    sums[j] = sum(math.exp(x - maxima[j]) for x in logits)
            best = max(maxima)
            scores = [s * math.exp(m - best) if m > -math.inf else 0.0 for s, m in zip(sums, maxima, strict=True)]
            shares = [score / (sum(scores) + 1e-9) for score in scores]
            for j in range(i + 1):
                scored = shares[j] >= alpha * max(shares)
                kept[head, i, j] = scored or j < SINKS or i - j < WINDOW or i >= n - last_rows
    return kept


def v2_plan(q, k, alpha, last_rows):
    """Return V2's plan as upstream computes it, for tiles of the rows of a group's heads, packed by position."""
    (_, heads, tokens, dim), kv_heads = q.shape, k.shape[1]
    group, n = heads // kv_heads, math.ceil(tokens / BLOCK)
    tile = BLOCK * group
    kept = torch.zeros(kv_heads, n, n, dtype=torch.bool)
    for head in range(kv_heads):
        means = [k[0, head, j * BLOCK : (j + 1) * BLOCK].mean(0) for j in range(n)]
        for i in range(n):
            packed = range(i * tile, min((i + 1) * tile, tokens * group))
            first, last = packed[0] // group // BLOCK, packed[-1] // group // BLOCK
            logits = {
                (row, j): float(q[0, head * group + row % group, row // group] @ means[j]) / dim**0.5
                for row in packed
                for j in range((packed[-1] // group + 1) // BLOCK)
                if row // group >= j * BLOCK
            }
            top = max(logits.values(), default=0.0)
            energy = [0.0] * n
            for (_, j), logit in logits.items():
                energy[j] += math.exp(logit - top)
            for j in range(last + 1):
                scored = energy[j] > 0 and energy[j] >= alpha * max(energy)
                local = j >= first - WINDOW + 1
                kept[head, i, j] = scored or j < SINKS or local or i >= n - last_rows
    return kept.repeat_interleave(group, 0)


PLANS = {"flashprefill": v1_plan, "flashprefill-v2": v2_plan}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(("tokens", "alpha"), [(9 * BLOCK, 0.5), (9 * BLOCK, 0.2), (10 * BLOCK - 5, 0.3), (5, 0.1)])
def test_the_plan_is_upstreams(name, tokens, alpha):
    q, k = draw(tokens)
    method = create(name, block=BLOCK, alpha=alpha)
    plan = method.plan(q, k, LAYER)
    assert torch.equal(plan.to_dense()[0], PLANS[name](q, k, alpha, method.last_rows_dense))
    method.last_rows_dense = 0
    plan = method.plan(q, k, LAYER)
    assert torch.equal(plan.to_dense()[0], PLANS[name](q, k, alpha, 0))
    if tokens > 5:
        assert 0.5 < plan.density() < 1  # the threshold decides


@pytest.mark.parametrize(("name", "want"), [("flashprefill", {3}), ("flashprefill-v2", {3, 4})])
def test_a_plan_by_hand(name, want):
    """Take keys that are one number in each block: a query of 1 scores exp(number), one of -1 exp(-number)."""
    numbers = torch.tensor([0.0, 0, 0, 4, -4, 1, -1, 0, 0, 0, 0, 0, 0])
    q = torch.ones(1, 2, 13 * BLOCK, 1)
    q[:, 1] = -1
    k = numbers.repeat_interleave(BLOCK)[None, None, :, None].clone()
    plan = create(name, block=BLOCK, alpha=0.1).plan(q, k, LAYER).to_dense()[0]
    forced = {0, 1, 7, 8, 9, 10}  # the two sinks and the window of row 10; the rows after it are dense
    assert set(plan[0, 10].nonzero()[:, 0].tolist()) == forced | want
    assert plan[:, 11:].sum() == 2 * (12 + 13)
    # The second head prefers the other block; in V2 the two heads have one list.
    second = {4} if name == "flashprefill" else want
    assert set(plan[1, 10].nonzero()[:, 0].tolist()) == forced | second


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(("sparsity", "rows"), [(0.3, 0), (0.5, 0), (0.5, 2)])
def test_a_request_is_met_with_the_rows_that_the_arm_has(name, sparsity, rows):
    q, k = draw(40 * BLOCK)
    method = variant(create(name, block=BLOCK, sparsity=sparsity), last_rows_dense=rows)
    plan = method.plan(q, k, LAYER)
    assert plan.density() == pytest.approx(top_k_density(40, sparsity, rows), abs=0.001)
    flags = plan.to_dense()[0]
    if rows:
        assert flags[:, -rows:].sum() == 4 * (39 + 40)
    else:
        assert not flags[:, -1].all()
    fixed = method.with_threshold_for(q, k, LAYER)
    assert torch.equal(fixed.plan(q, k, LAYER).to_dense()[0], flags)


@pytest.mark.parametrize("name", PLANS)
def test_blocks_that_are_always_kept_are_no_choice(name):
    q, k = draw(40 * BLOCK)
    with pytest.raises(Refused, match="always keeps"):
        create(name, block=BLOCK, sparsity=0.8).plan(q, k, LAYER)  # sinks and window: 28% of the causal blocks


@pytest.mark.parametrize(
    ("name", "options", "configuration", "rows"),
    [
        ("flashprefill", {}, "alpha 0.18", 2),
        ("flashprefill", {"alpha": 0.1}, "alpha 0.1", 2),
        ("flashprefill", {"sparsity": 0.5}, None, 0),
        ("flashprefill-v2", {}, "alpha 0.1", 2),
        ("flashprefill-v2", {"dense_layers": 4}, "alpha 0.1, first 4 layers dense", 2),
        ("flashprefill-v2", {"sparsity": 0.5}, None, 0),
    ],
)
def test_rows_say_the_setting(name, options, configuration, rows):
    method = create(name, **options)
    assert (method.configuration, method.last_rows_dense) == (configuration, rows)


def test_the_first_layers_are_dense_where_the_arm_asks():
    q, k = draw(20 * BLOCK)
    method = create("flashprefill-v2", block=BLOCK, dense_layers=1)
    assert method.plan(q, k, LayerContext(index=0)).density() == 1
    assert method.plan(q, k, LayerContext(index=1)).density() < 1
    method = create("flashprefill-v2", block=BLOCK, sparsity=0.3, dense_layers=1)
    with pytest.raises(Refused, match="first 1 layers"):
        method.plan(q, k, LayerContext(index=0))


def test_v2_counts_skipped_blocks_by_their_means():
    """Compare with attention over kept keys and, for each skipped block, one key and value of its size."""
    q, k = draw(9 * BLOCK, heads=2, kv_heads=1)
    v = torch.randn(1, 1, 9 * BLOCK, 8, dtype=torch.float64)
    method = create("flashprefill-v2", block=BLOCK, alpha=0.9)
    plan = method.plan(q, k, LAYER)
    kept, out = plan.to_dense()[0], method.attend(q, k, v, plan)
    for head, query in ((0, 100), (1, 111), (1, 30)):
        row = query // BLOCK
        logits, values = [], []
        for j in range(row + 1):
            keys = slice(j * BLOCK, min((j + 1) * BLOCK, query + 1))
            if kept[head, row, j]:
                logits += (k[0, 0, keys] @ q[0, head, query] / 8**0.5).tolist()
                values += list(v[0, 0, keys])
            else:
                logits.append(float(k[0, 0, keys].mean(0) @ q[0, head, query]) / 8**0.5 + math.log(BLOCK))
                values.append(v[0, 0, keys].mean(0))
        weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
        torch.testing.assert_close(out[0, head, query], weights @ torch.stack(values), atol=1e-5, rtol=1e-5)
    assert not kept[0, 6, : 6 + 1].all()
