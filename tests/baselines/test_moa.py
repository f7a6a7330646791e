"""MoA: its run-time mask and its plan files. The search is tested in tests/search."""

import numpy as np
import pytest
import torch

from seerbench.baselines.moa import block_density, load_plan, save_plan, span_of, window_blocks, windows_and_sink
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
        assert block_density(window_blocks([alpha], [beta], tokens, BLOCK))[0] == pytest.approx(mask.density())


def test_moa_s_mask_on_hand_made_numbers():
    """Check upstream's formula at 4096 tokens in blocks of 64, where generation adds 1024 tokens.

    alpha 512 and beta 1/8 span 512 + 5120 / 8 = 1152 tokens = 18 blocks, the first one and 17 nearest. alpha -2048
    and beta 1/2 span 512 tokens, 8 blocks. alpha 100 and beta 0 span less than the least of 128 tokens, 2 blocks.
    alpha 130 and beta 0 reach into a third block, which counts.
    """
    windows = window_blocks([512, -2048, 100, 130], [0.125, 0.5, 0, 0], 4096, 64)
    assert windows.shape == (4, 64)
    assert (windows.T == [17, 7, 1, 2]).all()


def test_a_span_that_is_no_whole_number_of_blocks_buys_part_of_a_row_s_block():
    """Check the mask at a requested sparsity: 2.5 blocks in 10 rows are 2.5 * 10 - 2.5 * 1.5 / 2 = 23.1 blocks."""
    for dense_rows in (0, 2):
        tokens = (10 + dense_rows) * BLOCK
        windows = window_blocks([2.5 * BLOCK, 2 * BLOCK], [0.0, 0.0], tokens, BLOCK, 0.7, dense_rows)
        assert windows[1].tolist() == 10 * [1] + dense_rows * [12]
        assert windows[0].tolist() == 6 * [1] + 4 * [2] + dense_rows * [12]
        mask = windows_and_sink(windows, 1, tokens, BLOCK)
        dense = 11 + 12 if dense_rows else 0
        assert mask.to_dense()[0].sum((1, 2)).tolist() == [23 + dense, 19 + dense]
        assert block_density(windows) == pytest.approx(mask.head_density()[0].tolist())
    assert span_of(2.5 * 10 - 2.5 * 1.5 / 2, 10) == pytest.approx(2.5)


def test_a_plan_of_another_sparsity_than_requested_is_refused(tmp_path):
    """Check that the mean over layers decides, so that one layer may keep more and another less."""
    n = 32
    q = torch.zeros(1, 2, n * BLOCK, 8)
    span = span_of(0.3 * n * (n + 1) / 2, n) * BLOCK
    save_plan(tmp_path / "even.json", [[span] * 2] * 2, [[0.0] * 2] * 2)
    even = create("moa", plan=tmp_path / "even.json", sparsity=0.7, block=BLOCK)
    assert even.plan(q, q, LayerContext(index=1)).density() == pytest.approx(0.3, abs=1 / n**2)
    save_plan(tmp_path / "uneven.json", [[span - 32] * 2, [span + 34] * 2], [[0.0] * 2] * 2)
    uneven = create("moa", plan=tmp_path / "uneven.json", sparsity=0.7, block=BLOCK)
    kept = [uneven.plan(q, q, LayerContext(index=index)).density() for index in (0, 1)]
    assert kept[0] < 0.28
    assert kept[1] > 0.32
    assert np.mean(kept) == pytest.approx(uneven.density_at(n * BLOCK))
    far = create("moa", plan=tmp_path / "even.json", sparsity=0.75, block=BLOCK)
    with pytest.raises(Refused, match="the mean over the layers of the plan even"):
        far.plan(q, q, LayerContext())
    even.last_rows_dense = 2
    with pytest.raises(Refused, match="was requested"):
        even.plan(q, q, LayerContext())


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
