"""Compute statistics with 95% intervals from rows, for all artefacts and claims.

Intervals are percentile bootstraps (Efron and Tibshirani 1993, chapter 13) over independent units: rounds for
timings, documents for losses. Counts use Wilson's score interval. Fewer than two units give no interval: (estimate,
NaN, NaN). For a handful of units a percentile bootstrap is too narrow (it covers about 90% for 10 documents), so
rows keep the number of documents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from seerbench.errors import MissingRows

Interval = tuple[float, float, float]  # estimate, low, high
Array: TypeAlias = np.ndarray[Any, Any]
Values: TypeAlias = Sequence[float] | pd.Series | Array  # one value per unit; a Series has the unit in its index
LEVEL = (0.025, 0.975)  # the quantiles at the ends of a 95% interval
Z = 1.959963984540054  # the 97.5% quantile of the standard normal distribution


def median_iqr(values: Values) -> Interval:
    """Return (median, first quartile, third quartile) of the timings of one method, in their unit."""
    first, median, third = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75])
    return float(median), float(first), float(third)


def paired_speedup(base_ms: Values, new_ms: Values, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return how many times faster `new` is: the median over rounds of base / new, with its interval.

    Pairing removes what both have in common in a round: clocks and temperature, not other processes. Calls within a
    round are not independent, so rounds are resampled. "Faster" needs a low end above 1. Raises ValueError where
    nothing can be paired.

    Args:
        base_ms: milliseconds of the base, matched by index (the round) if both are Series, else by position.
        new_ms: milliseconds of the method that is compared with the base.
        resamples: the number of bootstrap resamples.
        seed: seed of the resamples.
    """
    base, new = _paired(base_ms, new_ms, "rounds")
    return _bootstrap(base / new, _median, resamples, seed)


def perplexity(nll: Values, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return exp of the mean over documents of each document's loss in nats per token, with its interval.

    Each document counts once, however long it is: the definition of the paper's evaluation.
    """
    estimate, low, high = mean(nll, resamples, seed)
    return float(np.exp(estimate)), float(np.exp(low)), float(np.exp(high))


def paired_delta(dense: Values, sparse: Values, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean over documents of sparse - dense, in nats per token, with its interval.

    Documents differ far more from each other than two methods differ on one document, so the paired interval shows
    a loss that the intervals of the two perplexities would hide. Raises ValueError where nothing can be paired.

    Args:
        dense: losses by document, matched by index if both are Series, else by position.
        sparse: losses of the method that is compared with dense attention.
        resamples: the number of bootstrap resamples.
        seed: seed of the resamples.
    """
    dense_values, sparse_values = _paired(dense, sparse, "documents")
    return mean(sparse_values - dense_values, resamples, seed)


def mean(values: Values, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean with its interval. Raises ValueError for no values, and for a NaN among them."""
    return _bootstrap(np.asarray(values, dtype=float), np.mean, resamples, seed)


def proportion(correct: int, total: int) -> Interval:
    """Return correct / total with Wilson's score interval (Wilson 1927), sound at 0, at 1 and for small counts."""
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"a proportion needs 0 <= correct <= total and total > 0, got {correct} of {total}")
    share = correct / total
    center = (share + Z**2 / (2 * total)) / (1 + Z**2 / total)
    half = Z / (1 + Z**2 / total) * np.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    return share, max(0.0, float(center - half)), min(1.0, float(center + half))


def mean_proportion(counts: Sequence[tuple[int, int]]) -> Interval:
    """Return the unweighted mean of several proportions (correct, total), with an interval made of Wilson's."""
    return mean_of([proportion(correct, total) for correct, total in counts])


def mean_of_means(groups: Sequence[Values]) -> Interval:
    """Return the unweighted mean of the groups' means, as LongBench averages its tasks, with its interval."""
    return mean_of([mean(values) for values in groups])


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """Return the unweighted mean of independent estimates.

    Its interval combines theirs by the method of variance estimates recovery (Zou and Donner 2008): the distances
    to the limits add in squares. A single estimate keeps its interval. If one estimate has no interval, the mean
    has none.
    """
    table = np.array(intervals)
    estimate = table[:, 0].mean()
    below = np.sqrt(((table[:, 0] - table[:, 1]) ** 2).sum()) / len(table)
    above = np.sqrt(((table[:, 2] - table[:, 0]) ** 2).sum()) / len(table)
    return float(estimate), float(estimate - below), float(estimate + above)


def _paired(first: Values, second: Values, unit: str) -> tuple[Array, Array]:
    """Return two float arrays of the units that both have; `unit` names them in errors."""
    if not isinstance(first, pd.Series) and len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} {unit} cannot be paired by position")
    left, right = pd.Series(first, dtype=float), pd.Series(second, dtype=float)
    if not left.index.is_unique or not right.index.is_unique:
        raise ValueError(f"the {unit} to be paired are not unique")
    if len(left) and left.index.equals(right.index):  # the usual case
        return left.to_numpy(), right.to_numpy()
    shared = left.index.intersection(right.index)
    if shared.empty:
        table = "samples" if unit == "rounds" else "perplexity"
        raise MissingRows(table, f"{unit} that both were measured on, so there is nothing in common to compare")
    return left[shared].to_numpy(), right[shared].to_numpy()


def _bootstrap(values: Array, statistic: Callable[..., Any], resamples: int, seed: int) -> Interval:
    """Return a statistic (np.mean, _median) of the values with its percentile interval."""
    if values.size == 0 or np.isnan(values).any():
        raise ValueError("statistics need at least one value, and none that is NaN")
    return _interval(values.tobytes(), statistic, resamples, seed)


def _median(values: Array, axis: int = -1) -> Array:
    """Return the same as np.median, which is several times slower for many short rows."""
    ranked = np.sort(values, axis=axis)
    units = values.shape[axis]
    middle = ranked.take([(units - 1) // 2, units // 2], axis=axis)
    return middle.mean(axis=axis)


@functools.lru_cache(maxsize=2**16)
def _interval(content: bytes, statistic: Callable[..., Any], resamples: int, seed: int) -> Interval:
    """Return the interval of float64 values, given as bytes; cached, since artefacts and claims share many."""
    values = np.frombuffer(content)
    if values.size < 2:
        return float(statistic(values)), float("nan"), float("nan")
    draws = values.take(_drawn(values.size, resamples, seed))
    low, high = np.quantile(statistic(draws, axis=1), LEVEL)
    return float(statistic(values)), float(low), float(high)


@functools.lru_cache(maxsize=8)
def _drawn(units: int, resamples: int, seed: int) -> Array:
    """Return which units each resample has: (resamples, units) int64. Cached, since drawing takes longest."""
    return np.random.default_rng(seed).integers(0, units, size=(resamples, units))
