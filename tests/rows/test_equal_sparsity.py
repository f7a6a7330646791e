"""Losses between two measured sparsities, by hand: interpolated per document, and silent outside the range."""

import numpy as np
import pandas as pd
import pytest

from seerbench.rows import bootstrap
from seerbench.rows.equal_sparsity import nll_at, realised, settings


def rows(*points, gate="g:v1", status="measured"):
    """Return the rows of one method. A point is (requested, realised, NLL by document)."""
    return pd.DataFrame(
        [
            {
                "gate": gate,
                "sparsity_requested": requested,
                "threshold": None,
                "sparsity_realised": skipped,
                "document": f"d{document}",
                "nll": nll,
                "status": status,
            }
            for requested, skipped, losses in points
            for document, nll in enumerate(losses)
        ]
    )


CURVE = rows((0.5, 0.5, (2.0, 3.0)), (0.7, 0.7, (2.2, 3.1)), (0.9, 0.9, (3.0, 3.5)))


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        (0.6, (2.1, 3.05)),  # halfway
        (0.75, (2.4, 3.2)),  # a quarter of the way
        (0.5, (2.0, 3.0)),
        (0.496, (2.0, 3.0)),  # equal, though below the range
        (0.904, (3.0, 3.5)),
        (0.703, (2.2, 3.1)),  # equal: not interpolated
        (0.494, None),
        (0.906, None),
        (0.0, None),
    ],
)
def test_between_two_points_each_document_is_interpolated(sparsity, expected):
    found = nll_at(CURVE, sparsity)
    if expected is None:
        assert found is None
    else:
        assert found.to_dict() == pytest.approx({"d0": expected[0], "d1": expected[1]})


def test_a_single_point_holds_where_it_is_equal():
    point = rows((None, 0.804, (2.0, 3.0)))
    assert nll_at(point, 0.8).tolist() == [2.0, 3.0]
    assert nll_at(point, 0.79) is None
    assert nll_at(point[:0], 0.5) is None


def test_a_refused_point_is_no_end_of_a_segment():
    refused = rows((0.8, 0.8, (9.0, 9.0)), status="refused")
    assert nll_at(pd.concat([CURVE, refused]), 0.8).tolist() == pytest.approx([2.6, 3.3])
    assert nll_at(pd.concat([CURVE[:2], refused]), 0.6) is None


def test_settings_are_ordered_by_what_they_realise():
    """The plan for 90% realises less than the one for 70%, and the plans of a method may have their own names."""
    plans = [rows((0.9, 0.68, (1.0, 1.0)), gate="moa-0.90"), rows((0.7, 0.72, (2.0, 2.0)), gate="moa-0.70")]
    assert [realised(setting) for setting in settings(pd.concat(plans))] == pytest.approx([0.68, 0.72])
    twice = pd.concat([CURVE, CURVE])
    assert [len(setting) for setting in settings(twice)] == [2, 2, 2]
    assert nll_at(twice, 0.6).tolist() == pytest.approx([2.1, 3.05])


def test_only_documents_of_both_points_count():
    more = rows((0.9, 0.9, (3.0, 3.5, 4.0)))
    assert nll_at(pd.concat([CURVE[:2], more]), 0.7).index.tolist() == ["d0", "d1"]


def test_the_interval_of_a_difference_covers_the_interpolation():
    """The difference of each document is the mean of its differences at both ends, and these are resampled."""
    rng = np.random.default_rng(0)
    other = rng.normal(3, 1, 40)
    low, high = other + rng.normal(0.1, 0.02, 40), other + rng.normal(0.3, 0.1, 40)
    found = nll_at(rows((0.5, 0.5, low), (0.7, 0.7, high)), 0.6)
    theirs = pd.Series(other, [f"d{number}" for number in range(40)])
    estimate, lowest, highest = bootstrap.paired_delta(theirs, found)
    differences = (low + high) / 2 - other
    assert estimate == pytest.approx(differences.mean())
    half = 1.96 * differences.std() / 40**0.5
    assert highest - lowest == pytest.approx(2 * half, rel=0.1)
