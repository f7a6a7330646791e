"""The figure of loss against speed-up joins both for one method and sparsity, and its labels stand apart."""

import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from seerbench.artefacts import aggregates, colors, frames, pareto, style
from seerbench.rows.store import Run


def test_it_joins_loss_and_speed_of_one_method_and_sparsity(collect, run_dir):
    frame = collect("pareto")
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


def test_each_context_has_two_panels_and_each_line_one_name(collect):
    """Shares written at every point once lay on each other below 0.1 nats per token."""
    frame = collect("pareto")
    fig = style.laid_out(pareto.draw(frame))
    contexts = [style.size(context) for context in sorted(frame.context.unique())]
    titles = [ax.get_title() for ax in fig.axes]
    assert titles == [f"{text}, {words}" for text in contexts for _, words in style.STAGE_LINES.values()]
    for ax in fig.axes:
        assert ax.get_xscale() == "log"
        assert ax.get_yscale() == "symlog"
        names = [text.get_text().split(",")[0] for text in ax.texts]
        assert len(names) == len(set(names)) > 0
        boxes = sorted((Text.get_window_extent(text) for text in ax.texts), key=lambda box: box.y0)
        assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    first = frame[(frame.panel == "total") & frame.y.notna() & (frame.context == frame.context.min())]
    shown = {text.get_text() for text in fig.axes[0].texts}
    assert len(shown) == first.method.nunique()
    assert any(text.startswith(colors.display("seer")) for text in shown)
