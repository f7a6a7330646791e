"""Table 1: perplexity over context for each method and sparsity, with the loss against dense."""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, frames, labels, paper_numbers, style, table_format
from seerbench.rows.store import Run


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell: the paper's Table 1, then the experiment `contexts` of the run."""
    rows = frames.experiment(run, "perplexity", "contexts", "perplexity")
    printed = paper_numbers.printed(paper, "table1")
    measured = aggregates.perplexities(rows, aggregates.dense_rows(run, rows))
    measured["label"] = str(labels.label(run, rows))
    frame = frames.tidy(printed, measured, frames.unmeasured_methods(printed, measured))
    return table_format.ordered(frame, "sparsity_requested", "context")


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the perplexities as the paper arranges them, then one column of delta NLL per measured context."""
    frame = frame.assign(
        method_name=frame.apply(table_format.method_name, axis=1),
        requested=frame.apply(table_format.requested, axis=1),
    )
    lines = {
        "source": "source",
        "model": "model",
        "corpus": "corpus",
        "method_name": "method",
        "requested": "sparsity",
    }
    cells = table_format.grid(frame, lines, "context", _perplexity, style.size)
    sparse = frame[(frame.source == "measured") & (frame.method != "dense")]
    if sparse.empty:
        return cells
    losses = table_format.grid(
        sparse, lines, "context", _loss, lambda context: f"delta NLL, {style.size(context)}", frame
    )
    return cells.merge(losses, how="left", on=list(lines.values())).fillna("")


def _perplexity(entry: pd.Series) -> str:
    realised = "" if entry.method == "dense" else table_format.in_brackets(entry.sparsity_realised)
    return table_format.number(entry.value, entry.low, entry.high) + realised


def _loss(entry: pd.Series) -> str:
    if pd.isna(entry.delta):
        return "no dense rows"
    return table_format.number(entry.delta, entry.delta_low, entry.delta_high, sign=True)


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells, and where a sparser plan of MoA loses less than a denser one."""
    return [
        "Perplexity [95% bootstrap interval over documents] (realised sparsity).",
        "Sparsity: the requested one; own: the method takes none.",
        "Delta NLL: nats per token above dense on the same documents [95% paired interval].",
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
