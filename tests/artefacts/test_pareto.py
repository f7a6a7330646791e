"""The figure of loss against speed-up joins both for one method, sparsity and context."""

import numpy as np
import pytest

from seerbench.artefacts import aggregates, frames
from seerbench.rows.store import Run


def test_it_joins_loss_and_speed_of_one_method_and_sparsity(collect, run_dir):
    frame = collect("pareto")
    assert set(frame.context) == {1024}  # the longest context that has both
    assert set(frame[frame.method == "seer"].gate) == {"long:v1"}  # the sweep times the paper's gate
    assert not frame.duplicated(["method", "sparsity_requested", "panel"]).any()
    cells, samples = frames.timings(Run(run_dir), "methods")
    faster = aggregates.speedups(cells[cells.context == 1024], samples, "total")
    speedup = faster.set_index(["method", "sparsity_requested"]).value
    losses = collect("table1").query("source == 'measured' and context == 1024")
    for point in frame[(frame.panel == "total") & (frame.status == "measured")].itertuples():
        assert point.x == pytest.approx(speedup[point.method, point.sparsity_requested])
        match = losses[(losses.method == point.method) & (losses.sparsity_requested == point.sparsity_requested)]
        assert np.isclose(match.delta, point.y).any()
