"""Table 1: the loss over dense and the perplexity over context, for each method and sparsity.

Perplexities of documents differ far more than skipped blocks change any of them, so the paired losses come first.
"""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, colors, frames, labels, paper_numbers, style, table_format
from seerbench.artefacts import chart as charts
from seerbench.rows.store import Run

# The report shows the paper's lines and this run's in one table.
BESIDE_THE_PAPER = True


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell of the paper's Table 1 and of the experiment `contexts` of the run, by method."""
    rows = frames.experiment(run, "perplexity", "contexts", "perplexity")
    printed = paper_numbers.printed(paper, "table1")
    measured = aggregates.perplexities(rows, aggregates.dense_rows(run, rows))
    measured["label"] = str(labels.label(run, rows))
    printed = printed.assign(delta=paper_numbers.losses(printed).where(printed.method != "dense"))
    frame = frames.tidy(printed, measured, frames.unmeasured_methods(printed, measured))
    frame = table_format.ordered(frame, "sparsity_requested", "context")
    return frame.sort_values("method", key=lambda names: names.map(colors.rank), kind="stable", ignore_index=True)


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one column of losses per measured context, then the perplexities as the paper arranges them."""
    frame = frame.assign(
        method_name=frame.apply(table_format.method_name, axis=1),
        requested=frame.apply(table_format.requested, axis=1),
    )
    lines = {
        "method_name": "method",
        "requested": "sparsity",
        "source": "source",
        "model": "model",
        "corpus": "corpus",
    }
    cells = table_format.grid(frame, lines, "context", _perplexity, lambda at: f"perplexity, {style.size(at)}")
    contexts = frame[(frame.source == "measured") & frame.delta.notna()].context
    compared = frame[(frame.method != "dense") & frame.context.isin(contexts)]
    if compared.empty:
        return cells
    losses = table_format.grid(
        compared, lines, "context", _loss, lambda context: f"loss, {style.size(context)}", frame
    )
    cells = cells.merge(losses, how="left", on=list(lines.values())).fillna("")
    leading = [*lines.values(), *losses.columns[len(lines) :]]
    return cells[[*leading, *(name for name in cells if name not in leading)]]


def chart(frame: pd.DataFrame) -> charts.Chart:
    """Return the loss of each method over the share of blocks that it skips, the longest context first."""
    sparse = frame[(frame.source == "measured") & (frame.method != "dense")]
    sparse = sparse.sort_values("context", ascending=False, kind="stable")
    points = charts.points(
        sparse, panel=sparse.context.map(style.size), y=sparse.delta, low=sparse.delta_low, high=sparse.delta_high
    )
    how = "Right skips more and down is a smaller loss."
    return charts.Chart(charts.SKIPPED, charts.LOSS, how, points)


def _perplexity(entry: pd.Series) -> str:
    realised = "" if entry.method == "dense" else table_format.in_brackets(entry.sparsity_realised)
    return table_format.number(entry.value, entry.low, entry.high) + realised


def _loss(entry: pd.Series) -> str:
    if pd.isna(entry.delta):
        return "no dense rows"
    if entry.source == "paper":
        return f"{entry.delta:+.3f}"
    return table_format.number(entry.delta, entry.delta_low, entry.delta_high, sign=True)


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells, and where a sparser plan of MoA loses less than a denser one."""
    return [
        "Loss: nats per token above dense on the same documents [95% paired interval]. The paper's follow "
        "from its perplexities, which have two decimals, so they are known to 0.001 nats.",
        "Perplexity [95% bootstrap interval over documents] (realised sparsity).",
        "Sparsity: the requested one; own: the method takes none.",
        *_moa_out_of_order(frame),
    ]


def _moa_out_of_order(frame: pd.DataFrame) -> list[str]:
    """Return a note on the worst plan of MoA that a sparser plan beats with its whole interval, if there is one."""
    moa = frame[(frame.source == "measured") & (frame.method == "moa") & frame.sparsity_requested.notna()]
    pairs = moa.merge(moa, on=["model", "corpus", "context"], suffixes=("", "_sparser"))
    sparser = pairs.sparsity_requested_sparser > pairs.sparsity_requested
    pairs = pairs[sparser & (pairs.delta_high_sparser < pairs.delta_low)]
    if pairs.empty:
        return []
    worst = pairs.loc[pairs.delta.idxmax()]
    return [
        f"MoA at {worst.sparsity_requested:.0%} loses more than its plan at "
        f"{worst.sparsity_requested_sparser:.0%} ({style.size(worst.context)}: {worst.delta:+.3f} against "
        f"{worst.delta_sparser:+.3f} nats per token). MoA's search, like upstream's, must use 90-100% of its "
        "budget and so cannot return a sparser plan that is better. For MoA at a given sparsity, take its best "
        "plan at that sparsity or above."
    ]
