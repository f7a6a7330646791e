"""Statistics against cases worked by hand, and the share of intervals that contain the true value."""

import numpy as np
import pandas as pd
import pytest

from seerbench.rows import bootstrap


def test_median_and_quartiles():
    assert bootstrap.median_iqr([4, 1, 3, 2, 5]) == (3.0, 2.0, 4.0)


def test_speedup_is_the_median_of_ratios_not_the_ratio_of_medians():
    # Ratios 2, 2, 8: the median is 2, while the ratio of the medians would be 4 / 1.
    median, low, high = bootstrap.paired_speedup([2.0, 4.0, 8.0], [1.0, 2.0, 1.0])
    assert median == 2.0
    assert (low, high) == (2.0, 8.0)


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(0)
    drift = rng.lognormal(0, 0.3, 20)  # clock and temperature, the same for both in a round
    median, low, high = bootstrap.paired_speedup(30 * drift, 10 * drift)
    assert (median, low, high) == pytest.approx((3.0, 3.0, 3.0))


def test_rounds_are_matched_by_their_number():
    base = pd.Series([10.0, 20.0, 40.0], index=[0, 1, 3])
    new = pd.Series([20.0, 5.0, 10.0], index=[3, 0, 1])  # another order, and no round 2
    assert bootstrap.paired_speedup(base, new)[0] == 2.0
    assert bootstrap.paired_speedup(base, new[:2])[0] == 2.0  # rounds 0 and 3


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match="position"):
        bootstrap.paired_speedup([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="common"):
        bootstrap.paired_speedup(pd.Series([1.0], index=[0]), pd.Series([1.0], index=[1]))
    with pytest.raises(ValueError, match="unique"):
        bootstrap.paired_delta(pd.Series([1.0, 2.0], index=["a", "a"]), pd.Series([1.0, 2.0], index=["a", "b"]))
    with pytest.raises(ValueError, match="NaN"):
        bootstrap.mean([1.0, np.nan])
    with pytest.raises(ValueError, match="least one"):
        bootstrap.mean([])


def test_perplexity_weighs_documents_equally():
    value, low, high = bootstrap.perplexity([1.0, 3.0])
    assert value == pytest.approx(np.exp(2.0))
    assert (low, high) == pytest.approx((np.exp(1.0), np.exp(3.0)))  # resamples: 1, 2 or 3


def test_one_document_has_no_interval():
    value, low, high = bootstrap.perplexity([2.0])
    assert value == pytest.approx(np.exp(2.0))
    assert np.isnan(low)
    assert np.isnan(high)


def test_a_paired_delta_sees_what_the_perplexities_hide():
    rng = np.random.default_rng(0)
    documents = [f"d{number}" for number in range(30)]
    dense = pd.Series(rng.normal(2.3, 0.5, 30), index=documents)
    sparse = (dense + rng.normal(0.01, 0.002, 30)).sample(frac=1, random_state=0)
    delta, low, high = bootstrap.paired_delta(dense, sparse)
    assert 0 < low < delta < high < 0.02
    assert bootstrap.perplexity(sparse)[1] < bootstrap.perplexity(dense)[0]  # the two intervals overlap


def test_the_seed_decides():
    values = np.random.default_rng(0).normal(size=20)
    assert bootstrap.mean(values, seed=1) == bootstrap.mean(values, seed=1)
    assert bootstrap.mean(values, seed=1) != bootstrap.mean(values, seed=2)


def test_wilson_by_hand():
    # 8 of 10 at z = 1.96: centre (0.8 + 0.19207) / 1.38415, half width 0.22658 (Wilson 1927).
    share, low, high = bootstrap.proportion(8, 10)
    assert (share, low, high) == pytest.approx((0.8, 0.4901625, 0.9433178), abs=1e-6)
    assert bootstrap.proportion(0, 20)[1] == 0.0
    assert bootstrap.proportion(0, 20)[2] == pytest.approx(0.1611, abs=1e-4)
    assert bootstrap.proportion(20, 20)[1:] == pytest.approx((0.8389, 1.0), abs=1e-4)
    for wrong in ((3, 2), (-1, 5), (0, 0)):
        with pytest.raises(ValueError, match="total"):
            bootstrap.proportion(*wrong)


def test_mean_of_proportions():
    assert bootstrap.mean_proportion([(8, 10)]) == pytest.approx(bootstrap.proportion(8, 10))
    value, low, high = bootstrap.mean_proportion([(8, 10), (8, 10)])
    assert value == pytest.approx(0.8)
    # Two equal tasks: the distances to the limits shrink by the square root of two.
    assert (0.8 - low) == pytest.approx((0.8 - 0.4901625) / np.sqrt(2), abs=1e-6)
    assert (high - 0.8) == pytest.approx((0.9433178 - 0.8) / np.sqrt(2), abs=1e-6)


def covered(interval, truth, trials=400):
    """Return the share of intervals that contain the true value; `interval` gets a random generator."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(trials):
        _, low, high = interval(rng)
        held += low <= truth <= high
    return held / trials


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    def rounds(rng):
        return bootstrap.paired_speedup(rng.lognormal(np.log(2), 0.1, 30), np.ones(30), resamples=400)

    def documents(rng):
        return bootstrap.mean(rng.normal(0, 1, 30), resamples=400)

    def tasks(rng):
        return bootstrap.mean_proportion([(rng.binomial(25, share), 25) for share in (0.9, 0.6, 0.3)])

    assert 0.90 <= covered(rounds, 2.0) <= 0.99
    assert 0.90 <= covered(documents, 0.0) <= 0.99
    assert 0.93 <= covered(tasks, 0.6, trials=2000) <= 0.99
