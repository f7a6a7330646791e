"""Statistics: from raw rows to a number with its 95% interval. Every artefact and claim computes here.

Intervals are percentile bootstraps (Efron and Tibshirani 1993, chapter 13) over the unit that is
independent: rounds for timings, documents for likelihoods. Counts use Wilson's score interval.
Fewer than two units give no interval: (estimate, nan, nan). With a handful of units a percentile
bootstrap is too narrow (about 90% for 10 documents), which is why documents are counted in the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

Interval = tuple[float, float, float]  # estimate, low, high
LEVEL = (0.025, 0.975)
Z = 1.959963984540054  # the standard normal's 97.5% point


def median_iqr(values: Sequence[float]) -> Interval:
    """(median, first quartile, third quartile): how one method's timings are described."""
    first, median, third = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75])
    return float(median), float(first), float(third)


def paired_speedup(
    base_ms: Sequence[float] | pd.Series,
    new_ms: Sequence[float] | pd.Series,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Median over rounds of base / new: how many times faster `new` is, with its bootstrap interval.

    Series are matched by their index (the round); plain sequences by position. Pairing removes what
    the two share in a round: clock, temperature, neighbours. Launches within a round are not
    independent, so rounds are what is resampled. "Faster" needs the low end above 1.
    """
    base, new = _paired(base_ms, new_ms, "rounds")
    return _bootstrap(base / new, np.median, resamples, seed)


def perplexity(nll: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval:
    """exp of the mean over documents of each document's mean negative log-likelihood (nats a token).

    Each document counts once, whatever its length: the definition of the paper's evaluator.
    """
    estimate, low, high = mean(nll, resamples, seed)
    return float(np.exp(estimate)), float(np.exp(low)), float(np.exp(high))


def paired_delta(
    dense: Sequence[float] | pd.Series,
    sparse: Sequence[float] | pd.Series,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean over documents of sparse - dense (nats a token), matched by index (the document).

    Documents differ far more from each other than sparse from dense on one of them: the paired
    interval sees a loss that the two perplexities' own intervals would hide.
    """
    dense_values, sparse_values = _paired(dense, sparse, "documents")
    return mean(sparse_values - dense_values, resamples, seed)


def mean(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean with its bootstrap interval."""
    return _bootstrap(np.asarray(values, dtype=float), np.mean, resamples, seed)


def proportion(correct: int, total: int) -> Interval:
    """correct / total with Wilson's score interval (Wilson 1927), sound at 0, at 1 and for small counts."""
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"a proportion needs 0 <= correct <= total and total > 0, got {correct} of {total}")
    share = correct / total
    centre = (share + Z**2 / (2 * total)) / (1 + Z**2 / total)
    half = Z / (1 + Z**2 / total) * np.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    return share, max(0.0, float(centre - half)), min(1.0, float(centre + half))


def mean_proportion(counts: Sequence[tuple[int, int]]) -> Interval:
    """Unweighted mean of several proportions (correct, total), each with Wilson's interval (`mean_of`)."""
    return mean_of([proportion(correct, total) for correct, total in counts])


def mean_of_means(groups: Sequence[Sequence[float]]) -> Interval:
    """Unweighted mean of the groups' means, as LongBench averages its tasks, each with its bootstrap interval."""
    return mean_of([mean(values) for values in groups])


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """The unweighted mean of independent estimates.

    Its interval combines theirs by the method of variance estimates recovery (Zou and Donner 2008): distances
    to the limits add in squares. One estimate keeps its interval; one without an interval leaves the mean without.
    """
    parts = np.array(intervals)
    estimate = parts[:, 0].mean()
    below = np.sqrt(((parts[:, 0] - parts[:, 1]) ** 2).sum()) / len(parts)
    above = np.sqrt(((parts[:, 2] - parts[:, 0]) ** 2).sum()) / len(parts)
    return float(estimate), float(estimate - below), float(estimate + above)


def _paired(first: Sequence[float] | pd.Series, second: Sequence[float] | pd.Series, unit: str) -> tuple:
    """Two float arrays of the units that both have."""
    if not isinstance(first, pd.Series) and len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} {unit} cannot be paired by position")
    left, right = pd.Series(first, dtype=float), pd.Series(second, dtype=float)
    if not left.index.is_unique or not right.index.is_unique:
        raise ValueError(f"the {unit} to be paired are not unique")
    shared = left.index.intersection(right.index)
    if shared.empty:
        raise ValueError(f"no {unit} in common, nothing to compare")
    return left[shared].to_numpy(), right[shared].to_numpy()


def _bootstrap(values: np.ndarray, statistic, resamples: int, seed: int) -> Interval:
    if values.size == 0 or np.isnan(values).any():
        raise ValueError("statistics need at least one value, and none that is NaN")
    if values.size < 2:
        return float(statistic(values)), float("nan"), float("nan")
    draws = np.random.default_rng(seed).choice(values, size=(resamples, values.size))
    low, high = np.quantile(statistic(draws, axis=1), LEVEL)
    return float(statistic(values)), float(low), float(high)
