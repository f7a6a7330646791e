"""Dense last rows, thresholds, spread and forced blocks: what a budget buys, and what rows and names say of it."""

import pytest
import torch

from seerbench.core.block_mask import BlockMask, causal_blocks
from seerbench.core.problem import LayerContext
from seerbench.core.reference import reference_attention
from seerbench.core.top_k import TOLERANCE, top_k_density
from seerbench.errors import Refused
from seerbench.methods.block_selection import mask_from_flags, with_sink_and_diagonal
from seerbench.methods.gate import AttnGate
from seerbench.methods.gate_config import GateConfig
from seerbench.methods.protocol import BlockSparse, selection_columns
from seerbench.methods.registry import create
from seerbench.methods.wrappers import LastRowsDense, variant

TOKENS, BLOCK = 512, 16
METHODS = ("seer", "oracle", "oracle-mass", "streaming", "random", "xattention")


@pytest.fixture(scope="module")
def qk():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(1, 4, TOKENS, 16, generator=generator),
        torch.randn(1, 2, TOKENS, 16, generator=generator),
    )


def make(name, sparsity, **options):
    torch.manual_seed(0)
    own = (
        {"gates": [AttnGate(GateConfig(block=BLOCK, rope=False), 4, 2, 16)]} if name == "seer" else {"block": BLOCK}
    )
    return create(name, sparsity=sparsity, **own, **options)


def planned(method, qk, tokens=TOKENS):
    q, k = (x[:, :, :tokens] for x in qk)
    return method.plan(q, k, LayerContext(0, q, k))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tokens", [TOKENS, 505])
def test_dense_rows_are_dense_and_paid_from_the_budget(name, tokens, qk):
    plain, last = (planned(method, qk, tokens) for method in (make(name, 0.7), LastRowsDense(make(name, 0.7), 2)))
    flags = last.to_dense()
    assert torch.equal(flags[..., -2:, :], causal_blocks(32, 1, 1)[-2:].expand_as(flags[..., -2:, :]))
    assert last.density() == pytest.approx(0.3, abs=TOLERANCE)
    assert plain.density() == pytest.approx(0.3, abs=TOLERANCE)
    assert int(flags[..., :-2, :].sum()) < int(plain.to_dense()[..., :-2, :].sum())


@pytest.mark.parametrize("name", METHODS)
def test_rows_that_exceed_the_budget_are_refused(name, qk):
    with pytest.raises(Refused, match="the last 2 rows keep all of theirs"):
        planned(LastRowsDense(make(name, 0.9), 2), qk)  # 63 of 528 blocks


class Diagonal(BlockSparse):
    """A method that knows nothing of dense rows."""

    name = "diagonal"

    def __init__(self, sparsity=None):
        self.sparsity, self.block = sparsity, BLOCK

    def plan(self, q, k, layer):
        flags = torch.eye(q.shape[2] // BLOCK, dtype=torch.bool).expand(1, 4, -1, -1)
        return mask_from_flags(flags, q.shape[2], BLOCK, BLOCK)


def test_rows_are_added_to_a_plan_that_knows_nothing_of_them(qk):
    plan = planned(LastRowsDense(Diagonal(), 3), qk)
    assert isinstance(plan, BlockMask)
    assert plan.kv_num_blocks[0, 0].tolist() == [1] * 29 + [30, 31, 32]
    with pytest.raises(Refused, match="its last 3 rows keep every block"):
        planned(LastRowsDense(Diagonal(0.94), 3), qk)


def test_attention_is_that_of_the_plan(qk):
    method = LastRowsDense(make("streaming", 0.7), 2)
    q, k = qk
    plan = method.plan(q, k, LayerContext())
    assert torch.allclose(method.attend(q, k, k, plan), reference_attention(q, k, k, plan)[0].float(), atol=1e-5)


def test_names_and_columns_say_how_a_method_selects():
    method = variant(make("oracle", 0.7, spread="layer", forced=True), mean_correction=True, last_rows_dense=2)
    assert method.name == "oracle+layer+forced+last2+mean"
    assert selection_columns(method) == {
        "last_rows_dense": 2,
        "threshold": None,
        "spread": "layer",
        "forced": True,
    }
    assert make("seer", None, threshold=0.01).name == "seer+threshold"
    assert make("seer", 0.7).name == "seer"
    assert selection_columns(create("dense"))["last_rows_dense"] == 0


@pytest.mark.parametrize("name", ["seer", "oracle", "oracle-mass"])
@pytest.mark.parametrize("forced", [False, True])
def test_one_threshold_for_a_layer(name, forced, qk):
    """Check that no skipped block has a larger weight than a kept one that need not be kept, in any row."""
    method = make(name, 0.7, spread="layer", forced=forced)
    plan = planned(method, qk)
    weights = method.score(*qk, LayerContext(0, *qk)).softmax(-1) if name == "seer" else method.weights(*qk)
    kept, visible = plan.to_dense(), causal_blocks(32, 1, 1)
    assert plan.density() == pytest.approx(top_k_density(32, 0.7), abs=0.001)
    free = kept.scatter(-1, weights.argmax(-1, keepdim=True), False)
    if forced:
        assert kept.diagonal(dim1=-2, dim2=-1).all()
        assert kept[..., 0].all()
        free &= ~torch.eye(32, dtype=torch.bool)
        free[..., 0] = False
    assert weights[free].min() >= weights[~kept & visible].max()
    counts = kept.sum(-1)[0]
    assert (counts.amax(0) > counts.amin(0)).any()  # heads get different numbers of blocks in some row


@pytest.mark.parametrize("name", ["seer", "oracle"])
def test_forced_blocks_are_inside_the_same_number(name, qk):
    plain, forced = (planned(make(name, 0.8, forced=option), qk) for option in (False, True))
    assert torch.equal(plain.kv_num_blocks, forced.kv_num_blocks)
    flags = forced.to_dense()
    assert flags[..., 0].all()
    assert flags.diagonal(dim1=-2, dim2=-1).all()


def test_forced_scores_rank_first_and_keep_the_order_of_the_rest():
    scores = torch.randn(1, 2, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    ranked = with_sink_and_diagonal(scores)
    rest = torch.ones(6, 6).tril(-1).bool()
    rest[:, 0] = False
    assert torch.equal(ranked[..., rest], scores[..., rest])
    assert (ranked[..., 0] > scores.amax(-1)).all()
    assert torch.equal(ranked.diagonal(dim1=-2, dim2=-1), ranked[..., 0])


def test_the_oracle_of_mass_ranks_by_attention_mass(qk):
    q, k = (x[:, :, :200] for x in qk)
    mass = make("oracle-mass", 0.5).weights(q, k)
    keys = k.repeat_interleave(2, 1)
    future = torch.ones(200, 200).triu(1).bool()
    weights = ((q @ keys.mT) * 16**-0.5).masked_fill(future, -torch.inf).softmax(-1)
    for row in range(13):
        rows = weights[:, :, row * 16 : (row + 1) * 16]
        want = torch.stack([part.sum(-1).mean(-1) for part in rows.split(16, -1)], -1)
        assert torch.allclose(mass[:, :, row], want, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.1, "sparsity": 0.5},
        {"sparsity": None, "threshold": 0.1, "spread": "layer"},
        {"spread": "head"},
    ],
)
def test_options_that_do_not_go_together(options):
    options = {"sparsity": 0.5} | options
    with pytest.raises(ValueError, match=r"threshold|spread"):
        make("seer", options.pop("sparsity"), **options)
