"""Findings are explained in words; a disturbed cell is judged neither fast nor slow."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from compare.kernels import example, findings
from seerbench.compare import present


def test_what_is_recognised_is_told_alone():
    found = findings(example("wrong/ignores_mask.py"))
    suspected = replace(found[-1], guess=found[-1].trial.suspect, recognised=False)
    told = present.explain([found[0], suspected])
    assert told.count("guess") == 1
    assert "ignores the mask" in told
    assert present.explain([suspected]).count("guess") == 1


def summarised(**changes):
    """Return the summary of two cells in which `mine` is twice as fast as dense, with changed statuses."""
    frames = []
    for context in (1024, 2048):
        lines = [("dense", None, None, None), ("mine", 2.0, 1.9, 2.1)]
        frame = pd.DataFrame(lines, columns=["method", "speedup", "low", "high"], dtype=object)
        frame = frame.astype({"speedup": float, "low": float, "high": float})
        frame = frame.assign(
            cell=str(context),
            context=context,
            sparsity_requested=0.5,
            reference="dense",
            status="measured",
            reason=None,
        )
        frames.append(frame.assign(status="measured"))
    summary = pd.concat(frames, ignore_index=True)
    for place, status in changes.items():
        method, context = place.split("_at_")
        line = (summary.method == method) & (summary.context == int(context))
        summary.loc[line, ["status", "reason"]] = [status, f"a reason of {method}"]
        cell = summary.context == int(context)
        summary.loc[cell if method == "dense" else line, ["speedup", "low", "high"]] = np.nan
    return summary


@pytest.mark.parametrize(
    ("changes", "slow", "unclear"),
    [
        ({}, [], []),
        ({"mine_at_1024": "disturbed"}, [], [(1024, "a reason of mine")]),
        ({"dense_at_2048": "disturbed"}, [], [(2048, "a reason of dense")]),
        ({"mine_at_1024": "failed"}, [1024], []),
        ({"dense_at_1024": "refused"}, [1024], []),
        ({"mine_at_1024": "failed", "dense_at_1024": "disturbed"}, [1024], []),
        ({"mine_at_1024": "out_of_memory", "mine_at_2048": "disturbed"}, [1024], [(2048, "a reason of mine")]),
    ],
)
def test_a_disturbed_cell_is_neither_fast_nor_slow(changes, slow, unclear):
    summary = summarised(**changes)
    assert present.below(summary, "mine", 1.5).context.tolist() == slow
    found = present.not_judged(summary, "mine")
    assert list(zip(found.context, found.reason)) == unclear


def test_a_speed_up_that_is_measured_is_judged_whatever_happened_elsewhere():
    summary = summarised(mine_at_1024="disturbed")
    assert present.below(summary, "mine", 3.0).context.tolist() == [2048]
