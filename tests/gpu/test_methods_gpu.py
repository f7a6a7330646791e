"""Methods on a GPU: lists, FlashPrefill's scores, and each method's attention over its own plan."""

import pytest
import torch
from kernel_cases import draw

from seerbench.baselines.moa import save_plan
from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import AttentionProblem, LayerContext
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.kernels.antidiagonal_mass import reference as mass_reference
from seerbench.kernels.antidiagonal_mass import triton as mass_kernel
from seerbench.kernels.attn_gate.reference import pool_blocks
from seerbench.kernels.index_lists import ascending_lists
from seerbench.kernels.pooled_scores import reference as scores_reference
from seerbench.kernels.pooled_scores import triton as scores_kernel
from seerbench.measure.correctness import check_attend, check_method
from seerbench.measure.inputs import authors_mask, random_inputs
from seerbench.methods.block_sparse_kernels import DENSE, SPARSE_KERNELS, sparse_kernel
from seerbench.methods.registry import catalogue, create
from seerbench.methods.wrappers import variant

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
# The others need trained gates or a package, or read every key.
METHODS = [name for name in catalogue() if name not in ("seer", "minference-upstream", *DENSE)]


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 65, 2050])
def test_lists(n, chance):
    flags = (torch.rand(1, 2, n, n, device="cuda") < chance) & torch.ones(n, n, device="cuda").tril().bool()
    counts, places = ascending_lists(flags)
    want = BlockMask.from_dense(flags.cpu(), n, 1, 1)
    assert torch.equal(counts.cpu(), want.kv_num_blocks)
    assert torch.equal(places.cpu(), want.kv_indices)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("n", [1, 129, 1000, 8192])
@pytest.mark.parametrize("from_first", [False, True])
def test_pooled_scores(n, block, dtype, from_first):
    q, k, _ = draw(n, 4, 2, 128, dtype, "cuda", 1)
    pooled = pool_blocks(k, block)["avg"]
    exact = scores_reference.scores_of_means(q.double(), pooled.double(), block, from_first)
    rounded = scores_reference.scores_of_means(q, pooled, block, from_first)
    assert_no_worse_than_rounding(scores_kernel.pooled_scores(q, pooled, block, from_first), exact, rounded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("n", [1, 129, 1000, 4096])
def test_antidiagonal_mass(n, block, dtype):
    q, k, _ = draw(n, 4, 2, 128, dtype, "cuda", 1)
    exact = mass_reference.antidiagonal_mass(q.double(), k.double(), block, 8)
    rounded = mass_reference.antidiagonal_mass(q, k, block, 8)
    assert_no_worse_than_rounding(mass_kernel.antidiagonal_mass(q, k, block, 8), exact, rounded)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n", [1000, 4096])
def test_attention_over_the_plan(name, n, tmp_path):
    q, k, v = draw(n, 8, 2, 128, torch.bfloat16, "cuda", 1)
    sparsity, options = 0.5, {"block": 64 if name in ("minference", "minference-aligned") else 128}
    if name.startswith("flashprefill"):  # its sinks and window are most of a few blocks
        sparsity, options = 0.3, {"block": 64 if n < 4096 else 128}
    if name == "moa":
        save_plan(tmp_path / "plan.json", [[0.0] * 8], [[0.125, 0.5] * 4])
        options["plan"] = tmp_path / "plan.json"
    if name == "moa" or (name, n) == ("flexprefill", 1000):  # the plan above, and a least budget of half the tokens
        sparsity = None
    method = create(name, sparsity=sparsity, **options)
    plan = method.plan(q, k, LayerContext())
    plan.check()  # a plan is made without it, so that no plan waits for the GPU
    exact, rounded = (method.exact(q, k, v, plan, dtype) for dtype in (torch.float64, q.dtype))
    assert_no_worse_than_rounding(method.attend(q, k, v, plan), exact, rounded)
    fixed = method.with_threshold_for(q, k, LayerContext()).plan(q, k, LayerContext())
    # A threshold keeps a diagonal of all heads of this method, or skips it: of n blocks up to 2 / n of all blocks.
    limit = 2 * options["block"] / n if name == "minference-aligned" else 1e-3
    assert abs(fixed.density() - plan.density()) < limit


def test_attention_over_the_authors_mask():
    """Check the kernel where most rows lack their diagonal block, in float16 and without grouped heads."""
    problem = AttentionProblem("cuda", "float16", 1, 8, 8, 128, 1000)
    q, k, v = random_inputs(problem, 0)
    check = check_attend(sparse_kernel("block_sparse"), q, k, v, authors_mask(q, k, 0.7, problem, 0))
    assert check.passed, check


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", ["fa2", "cudnn", "fa4", "flex", "flash-attn"])
def test_dense_kernels(name, head_dim):
    q, k, v = draw(1000, 8, 2, head_dim, torch.bfloat16, "cuda", 1)
    method = create(name)
    if reason := method.refuses(AttentionProblem("cuda", "bfloat16", 1, 8, 2, head_dim, 1000)):
        pytest.skip(reason)
    exact, rounded = reference_attention(q, k, v)[0], reference_attention(q, k, v, dtype=q.dtype)[0]
    assert_no_worse_than_rounding(method.attend(q, k, v, None), exact, rounded)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    "arm", [*({"kernel": kernel} for kernel in SPARSE_KERNELS), {"mean_correction": True}], ids=str
)
def test_another_kernel_or_means(arm, head_dim):
    q, k, v = draw(1000, 8, 2, head_dim, torch.bfloat16, "cuda", 1)
    method = variant(create("xattention", sparsity=0.5, block=128), **arm)
    if reason := method.refuses(AttentionProblem("cuda", "bfloat16", 1, 8, 2, head_dim, 1000, 128, 128)):
        pytest.skip(reason)
    check = check_method(method, q, k, v, LayerContext())
    assert check is not None
    assert check.passed, check
