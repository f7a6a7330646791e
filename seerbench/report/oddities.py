"""oddities."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from seerbench.artefacts import frames, style
from seerbench.paths import PAPER


def oddities(folder: Path | str = PAPER) -> list[str]:
    """What does not fit together in the paper's own numbers, with the arithmetic."""
    paper = frames.paper_values(folder)
    return [*_misprinted_time(paper), *_two_sparsities(paper), *_algorithm_1()]


def _misprinted_time(paper: pd.DataFrame) -> list[str]:
    table = paper[(paper.artefact == "table4") & paper.value.notna()]
    dense = table[table.method == "dense"].assign(length=lambda rows: rows.context.astype(float) / 1024)
    rest = dense[dense.context != "65536"]
    # Linear layers grow with the length, attention with its square: least squares on the relative error.
    terms = np.stack([rest.length, rest.length**2], axis=1)
    (linear, square), *_ = np.linalg.lstsq(terms / rest.value.to_numpy()[:, None], np.ones(len(rest)))
    miss = float(np.abs(terms @ (linear, square) / rest.value - 1).max())
    expected = linear * 64 + square * 64**2
    said = dense.value[dense.context == "65536"].item()
    seer = table.value[(table.method == "seer") & (table.context == "65536")].item()
    return [
        f"Table 4, FlashAttention-2 at 64k: {said} s is printed. {linear:.4f} L + {square:.6f} L^2 (L in thousands "
        f"of tokens) meets the other {len(rest)} lengths within {miss:.0%} and gives {expected:.2f} s, "
        f"{expected - said:+.2f} s: one digit. The speed-up there is {said / seer:.2f}x as printed and "
        f"{expected / seer:.2f}x by the fit."
    ]


def _two_sparsities(paper: pd.DataFrame) -> list[str]:
    own = paper[(paper.method == "minference") & paper.artefact.isin(["table1", "table4"])]
    sparsity = own.pivot(index="context", columns="artefact", values="sparsity")
    sparsity = sparsity.loc[sorted(sparsity.index, key=int)]
    pairs = [
        f"{style.size(int(context))}: {line.table1:.2f} and {line.table4:.2f}"
        for context, line in sparsity.iterrows()
        if line.table1 != line.table4
    ]
    return [
        f"MInference at one length has two sparsities, in Table 1 and in Table 4 ({'; '.join(pairs)}): its loss "
        "and its time to first token are not those of one setting."
    ]


def _algorithm_1() -> list[str]:
    """Algorithm 1 on one query row and two tiles of one key: scores 0 and 2, values 1 and 0."""
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
        f"Algorithm 1, line 14, as printed adds the old row sum without the factor exp(m(j-1) - m(j)): {example} "
        f"give {printed_sum:.3f} for exp(-2) + exp(0) = {true_sum:.3f}.",
        f"Algorithm 1, line 15, inverts the factor that rescales the output: the same example gives "
        f"{printed_out:.3f} for exp(-2) x 1 + 1 x 0 = {true_out:.3f} before the division by the row sum.",
        f"Algorithm 1, line 18, lost the minus of exp(r - m): the first tile's share would be {printed_max:.3f} "
        f"for {true_max:.3f}.",
    ]
