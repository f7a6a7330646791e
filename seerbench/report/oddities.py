"""Oddities: numbers and formulas of the paper that contradict each other, with the arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from seerbench.artefacts import paper_numbers, style
from seerbench.paths import PAPER


def oddities(folder: Path | str = PAPER) -> list[str]:
    """Return one paragraph per contradiction in the paper's own numbers and formulas."""
    paper = paper_numbers.paper_values(folder)
    return [*_misprinted_time(paper), *_two_sparsities(paper), *_algorithm_1()]


def _misprinted_time(paper: pd.DataFrame) -> list[str]:
    """Fit the dense times of Table 4 without the one at 64k, which is probably misprinted."""
    table = paper[(paper.artefact == "table4") & paper.value.notna()]
    dense = table[table.method == "dense"].assign(length=lambda rows: rows.context.astype(float) / 1024)
    others = dense[dense.context != "65536"]
    # The time of linear layers grows with the length, that of attention with its square. Least squares on the
    # relative error.
    terms = np.stack([others.length, others.length**2], axis=1)
    (linear, square), *_ = np.linalg.lstsq(terms / others.value.to_numpy()[:, None], np.ones(len(others)))
    largest_error = float(np.abs(terms @ (linear, square) / others.value - 1).max())
    fitted = linear * 64 + square * 64**2
    printed = dense.value[dense.context == "65536"].item()
    seer = table.value[(table.method == "seer") & (table.context == "65536")].item()
    return [
        f"Table 4, FlashAttention-2 at 64k: {printed} s is printed. The fit {linear:.4f} L + {square:.6f} L^2 (L "
        f"in thousands of tokens) meets the other {len(others)} lengths within {largest_error:.0%} and gives "
        f"{fitted:.2f} s at 64k, a difference of {fitted - printed:+.2f} s: probably one digit is misprinted. The "
        f"speed-up there is {printed / seer:.2f}x as printed and {fitted / seer:.2f}x by the fit."
    ]


def _two_sparsities(paper: pd.DataFrame) -> list[str]:
    """List the contexts at which Tables 1 and 4 give MInference different sparsities."""
    minference = paper[(paper.method == "minference") & paper.artefact.isin(["table1", "table4"])]
    sparsity = minference.pivot(index="context", columns="artefact", values="sparsity")
    sparsity = sparsity.loc[sorted(sparsity.index, key=int)]
    pairs = [
        f"{style.size(int(context))}: {line.table1:.2f} and {line.table4:.2f}"
        for context, line in sparsity.iterrows()
        if line.table1 != line.table4
    ]
    return [
        f"Tables 1 and 4 give MInference different sparsities at the same length ({'; '.join(pairs)}), so its "
        "loss and its time to first token are not those of one setting."
    ]


def _algorithm_1() -> list[str]:
    """Evaluate Algorithm 1 as printed for one query row and two tiles of one key, and as it should be."""
    scores, values = (0.0, 2.0), (1.0, 0.0)
    top = max(scores)
    true_sum = sum(math.exp(score - top) for score in scores)
    printed_sum = math.exp(scores[0] - scores[0]) + math.exp(scores[1] - top)
    rescale = math.exp(scores[0] - top)
    true_out = rescale * values[0] + values[1]
    printed_out = values[0] / rescale + values[1]
    true_max, printed_max = math.exp(scores[0] - top) / true_sum, math.exp(scores[0] * top) / true_sum
    example = "one query, two tiles of one key, scores 0 and 2, values 1 and 0"
    return [
        "Algorithm 1, line 14, as printed adds the old row sum without the factor exp(m(j-1) - m(j)). In an "
        f"example ({example}) it gives {printed_sum:.3f} instead of exp(-2) + exp(0) = {true_sum:.3f}.",
        f"Algorithm 1, line 15, inverts the factor that rescales the output. In the same example it gives "
        f"{printed_out:.3f} instead of exp(-2) x 1 + 1 x 0 = {true_out:.3f}, before the division by the row sum.",
        "Algorithm 1, line 18, lacks the minus sign of exp(r - m). In the same example the share of the first "
        f"tile would be {printed_max:.3f} instead of {true_max:.3f}.",
    ]
