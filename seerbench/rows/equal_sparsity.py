"""Compare losses at equal realised sparsity, by interpolation along the measured settings of one method.

Methods that were asked for the same sparsity skip slightly different shares of the blocks, and near 90% two points
change the loss by a tenth and more. So a method is compared with another at the sparsity that the other realised:

    rows of a method -> settings, by realised sparsity -> loss by document at any sparsity between two settings

Between two neighbouring settings the loss of each document is interpolated linearly, and only then are documents
paired and resampled, so the interval of a difference covers the interpolation. Losses grow faster than sparsity, so
a straight line is above the curve: the interpolated method appears slightly worse than it is. Nothing is
extrapolated: outside of the measured range there is no number.
"""

from __future__ import annotations

import pandas as pd

EQUAL = 0.005  # Sparsities that differ by at most this count as equal, since blocks cannot be split.
SETTING = ["gate", "sparsity_requested", "threshold"]  # what tells the settings of one method apart


def settings(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the measured losses of each setting of one method, in the order of their realised sparsity.

    Args:
        rows: rows of the table `perplexity` of one method (and one gate set) in one model, text and context. A
            document that was measured twice under a setting counts once.
    """
    measured = rows.loc[rows.status == "measured", [*SETTING, "document", "nll", "sparsity_realised"]]
    measured = measured.drop_duplicates([*SETTING, "document"])
    groups = [group for _, group in measured.groupby(SETTING, dropna=False)]
    return sorted(groups, key=realised)


def realised(setting: pd.DataFrame) -> float:
    """Return the realised sparsity of one setting: the mean over its documents."""
    return float(setting.sparsity_realised.mean())


def nll_at(rows: pd.DataFrame, sparsity: float) -> pd.Series | None:
    """Return the loss of one method at a realised sparsity, in nats per token by document.

    A setting within EQUAL of that sparsity is taken as it is, the nearest if there are several. Otherwise each
    document's loss is interpolated between the settings next below and next above, over the documents of both.

    Args:
        rows: as for `settings`.
        sparsity: the share of the causal blocks that is skipped.

    Returns:
        None if the sparsity is outside the measured range.
    """
    measured = settings(rows)
    nearest = min(measured, key=lambda setting: abs(realised(setting) - sparsity), default=None)
    if nearest is not None and abs(realised(nearest) - sparsity) <= EQUAL:
        return nearest.set_index("document").nll
    below = [setting for setting in measured if realised(setting) < sparsity]
    above = [setting for setting in measured if realised(setting) > sparsity]
    if not below or not above:
        return None
    low, high = realised(below[-1]), realised(above[0])
    share = (sparsity - low) / (high - low)
    first, second = (setting.set_index("document").nll for setting in (below[-1], above[0]))
    return ((1 - share) * first + share * second).dropna()
