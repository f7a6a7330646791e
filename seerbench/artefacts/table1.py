"""Table 1: perplexity over context for each method and sparsity, with the loss against dense."""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, frames, style, table_format
from seerbench.rows.store import Run


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """A line a cell: the paper's Table 1, then the run's experiment `contexts`."""
    rows = frames.experiment(run, "perplexity", "contexts", "perplexity")
    printed = frames.printed(paper, "table1")
    measured = aggregates.perplexities(rows, aggregates.dense_rows(run, rows))
    measured["label"] = frames.label(run, rows)
    frame = frames.tidy(printed, measured, frames.absent(printed, measured))
    return table_format.ordered(frame, "sparsity_requested", "context")


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Perplexities as the paper lays them out, then a column of delta NLL for each measured context."""
    frame = frame.assign(
        shown_method=frame.apply(table_format.method, axis=1), asked=frame.apply(table_format.asked, axis=1)
    )
    lines = {
        "source": "source",
        "model": "model",
        "corpus": "corpus",
        "shown_method": "method",
        "asked": "sparsity",
    }
    shown = table_format.grid(frame, lines, "context", _perplexity, style.size)
    lossy = frame[(frame.source == "measured") & (frame.method != "dense")]
    if lossy.empty:
        return shown
    losses = table_format.grid(lossy, lines, "context", _loss, lambda context: f"delta NLL, {style.size(context)}")
    return shown.merge(losses, how="left", on=list(lines.values())).fillna("")


def _perplexity(entry: pd.Series) -> str:
    realised = "" if entry.method == "dense" else table_format.share(entry.sparsity_realised)
    return table_format.number(entry.value, entry.low, entry.high) + realised


def _loss(entry: pd.Series) -> str:
    if pd.isna(entry.delta):
        return "no dense rows"
    return table_format.number(entry.delta, entry.delta_low, entry.delta_high, sign=True)


def remarks(frame: pd.DataFrame) -> list[str]:
    """How to read the cells, and where a sparser plan of MoA's loses less than a denser one."""
    return [
        "Perplexity [95% bootstrap interval over documents] (realised sparsity).",
        "Sparsity: as requested; own: the method takes none.",
        "Delta NLL: nats a token above dense on the same documents [95% paired interval].",
        *_moa_out_of_order(frame),
    ]


def _moa_out_of_order(frame: pd.DataFrame) -> list[str]:
    """A note for the worst denser plan with a sparser one that is clearly better: its interval lies below."""
    moa = frame[(frame.source == "measured") & (frame.method == "moa") & frame.sparsity_requested.notna()]
    pairs = moa.merge(moa, on=["model", "corpus", "context"], suffixes=("", "_sparser"))
    sparser = pairs.sparsity_requested_sparser > pairs.sparsity_requested
    pairs = pairs[sparser & (pairs.delta_high_sparser < pairs.delta_low)]
    if pairs.empty:
        return []
    worst = pairs.loc[pairs.delta.idxmax()]
    return [
        f"MoA at {worst.sparsity_requested:.0%} loses more than its plan at {worst.sparsity_requested_sparser:.0%} "
        f"({style.size(worst.context)}: {worst.delta:+.3f} against {worst.delta_sparser:+.3f} nats): a plan must "
        "use 0.9 to 1 of its budget, as upstream's, and so may not be the sparser one (docs/LOG.md). Read MoA at a "
        "sparsity as the best of its plans there or above."
    ]
