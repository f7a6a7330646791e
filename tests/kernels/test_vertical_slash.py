"""Tiles and columns: the index conversion against its definition, both kernels against the float64 reference."""

import pytest
import torch
from gpu.kernel_cases import INTERPRETED, draw, far_apart, run_in_interpreter

from seerbench.core.problem import AttentionProblem
from seerbench.core.reference import reference_attention
from seerbench.core.tolerance import assert_no_worse_than_rounding
from seerbench.kernels.vertical_slash import api, triton
from seerbench.kernels.vertical_slash import convert as kernel


def pick(n, chance, heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    columns, diagonals = (torch.rand(1, heads, n, generator=generator) < chance for _ in range(2))
    diagonals[..., 0] = True
    return columns, diagonals


def by_definition(columns, diagonals, m, tile):
    """Return the tiles and columns of row m, by plain loops that follow the description of the conversion."""
    end = tile * (m + 1)
    offsets = sorted((d for d in diagonals.nonzero()[:, 0].tolist() if d < end), reverse=True)
    low = high = None
    ranges = []
    for e in (max(end - d, tile) for d in offsets):
        if low is None:
            low, high = e - tile, e
        elif e > high + tile:
            ranges.append((low, high))
            low, high = e - tile, e
        elif e > high:
            high += tile
    ranges.append((low, high))
    tiles = [start for low, high in ranges for start in range(low, high, tile)]
    free = [
        c
        for c in columns.nonzero()[:, 0].tolist()
        if c < ranges[-1][1] and not any(low <= c < high for low, high in ranges)
    ]
    return tiles, free


def convert(columns, diagonals, tile):
    """Convert columns and diagonals to a TileMask: in torch, or by the Triton kernel if it is interpreted."""
    if not INTERPRETED:
        return api.vertical_slash_tiles(columns, diagonals, tile)
    n = columns.shape[-1]
    return kernel.tiles_of(*kernel.scan(columns, diagonals, chunk=128), -(-n // tile), n, tile)


@pytest.mark.parametrize("tile", [16, 64])
@pytest.mark.parametrize("chance", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_conversion_is_upstream_s_entry_for_entry(n, chance, tile):
    columns, diagonals = pick(n, chance)
    mask = convert(columns, diagonals, tile)
    for head in range(2):
        for m in range(-(-n // tile)):
            tiles, free = by_definition(columns[0, head], diagonals[0, head], m, tile)
            count, gathered = mask.tile_counts[0, head, m], mask.column_counts[0, head, m]
            assert mask.tile_starts[0, head, m, :count].tolist() == tiles
            assert mask.columns[0, head, m, :gathered].tolist() == free
            assert all(c < m * tile for c in free)
    # Every selected pair is computed, and the parts of the plan do not overlap.
    i = torch.arange(n)
    wanted = diagonals[:, :, (i[:, None] - i[None]).clamp_min(0)] | columns[:, :, None]
    assert not (wanted & torch.ones(n, n).tril().bool() & ~mask.to_token_mask()).any()


if not INTERPRETED:

    @pytest.mark.slow(seconds=9)
    def test_kernel_in_the_interpreter():
        run_in_interpreter(__file__)

    @pytest.mark.parametrize(("n", "tile"), [(1, 16), (65, 16), (333, 16), (333, 64)])
    def test_cpu_path_is_masked_attention(n, tile):
        q, k, v = draw(n, 4, 2, 16, torch.float32, batch=1)
        mask = api.vertical_slash_tiles(*pick(n, 0.03, heads=4), tile)
        out = api.tile_attention(q, k, v, mask)
        assert_no_worse_than_rounding(
            out, reference_attention(q, k, v, mask)[0], reference_attention(q, k, v, mask, q.dtype)[0]
        )

    def test_density_counts_executed_tiles():
        columns, diagonals = torch.zeros(2, 1, 1, 256, dtype=torch.bool)
        diagonals[..., 0] = True
        assert api.vertical_slash_tiles(columns, diagonals).density() == 4 / 10
        columns[..., 3] = True  # one column is one gathered tile in each of three rows
        mask = api.vertical_slash_tiles(columns, diagonals)
        assert mask.density() == 7 / 10
        assert mask.token_density() == (4 * 64 * 65 / 2 + 192) / (256 * 257 / 2)
        assert mask.flops(32) == 7 * 4 * 64 * 64 * 32

    def test_refuses_with_the_reason():
        case = AttentionProblem("cuda", "float32", 1, 4, 2, 64, 1000)
        assert "float32" in api.refuses(case)
        assert api.implementation(AttentionProblem("cuda", "bfloat16", 1, 4, 2, 64, 100)) == "triton-tiles"

    def test_diagonal_zero_is_needed():
        with pytest.raises(ValueError, match="diagonal 0"):
            api.vertical_slash_tiles(*torch.zeros(2, 1, 1, 100, dtype=torch.bool))

else:

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("chance", [0.0, 0.05, 1.0])
    @pytest.mark.parametrize("n", [1, 63, 64, 65, 270])
    def test_kernel_is_masked_attention(n, chance, dtype):
        q, k, v = draw(n, 4, 2, 16, dtype, batch=1)
        mask = api.vertical_slash_tiles(*pick(n, chance, heads=4))
        o = torch.full_like(q, torch.nan)
        triton.launch(q, k, v, mask, o)
        assert_no_worse_than_rounding(
            o, reference_attention(q, k, v, mask)[0], reference_attention(q, k, v, mask, q.dtype)[0]
        )

    @pytest.mark.parametrize(("dimension", "step"), [(0, 2**31 + 64), (1, 2**31 + 64), (2, 2**24)])
    def test_offsets_beyond_32_bits(dimension, step):
        near = draw(130, 2, 2, 16, torch.float16, batch=2 if dimension == 0 else 1)
        flags = [x.expand(near[0].shape[0], -1, -1) for x in pick(130, 0.1)]
        mask = api.vertical_slash_tiles(*flags)
        outs = [torch.full_like(near[0], torch.nan) for _ in range(2)]
        triton.launch(*near, mask, outs[0])
        triton.launch(*far_apart(near, dimension, step), mask, outs[1])
        assert torch.equal(*outs)

    def test_diagonal_zero_is_needed_by_the_kernel_too():
        columns, diagonals = pick(100, 0.3)
        diagonals[0, 1, 0] = False
        with pytest.raises(ValueError, match="diagonal 0"):
            convert(columns, diagonals, 16)
