"""MoA: its run-time mask and its plan files. The search is tested in tests/search."""

import numpy as np
import pytest
import torch

from seerbench.baselines.moa import block_density, load_plan, save_plan, window_blocks, windows_and_sink
from seerbench.core.block_mask import BlockMask
from seerbench.core.problem import LayerContext
from seerbench.errors import ModelError, Refused
from seerbench.methods.registry import create

TOKENS, BLOCK = 500, 16


def test_moa_s_mask_by_definition():
    """Compare the mask with its description, written as loops: reserve, whole blocks, sink, window."""
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
    with pytest.raises(Refused, match="is for 1 layers of 2 heads"):
        method.plan(torch.zeros(1, 4, 100, 8), torch.zeros(1, 4, 100, 8), LayerContext())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("[[0]]", "another kind"),
        ('{"alphas": [[0]]}', "it has no betas"),
        ('{"alphas": [[0]], "betas": [[0, 1]]}', "one finite number per layer and head"),
        ('{"alphas": [0], "betas": [0]}', "one finite number"),
        ('{"alphas": [[0], [0, 1]], "betas": [[0], [0, 1]]}', "one finite number"),
        ('{"alphas": [[NaN]], "betas": [[1]]}', "one finite number"),
        ('{"alphas": [[0]], "betas": [["wide"]]}', "one finite number"),
        ('{"alphas": {"0": [0]}, "betas": {"0": [0]}}', "one finite number"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, content, words):
    (tmp_path / "bad.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=f"bad.json .*{words}"):
        create("moa", plan=tmp_path / "bad.json")
