"""Table 1: perplexity over context for each method and sparsity, with the loss against dense."""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import sources, style, summaries, tables
from seerbench.results import Run


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """A line a cell: the paper's Table 1, then the run's experiment `contexts`."""
    rows = sources.experiment(run, "perplexity", "contexts", "perplexity")
    printed = sources.printed(paper, "table1")
    measured = summaries.perplexities(rows, summaries.dense_rows(run, rows))
    measured["label"] = sources.label(run, rows)
    frame = sources.tidy(printed, measured, sources.absent(printed, measured))
    return tables.ordered(frame, "sparsity_requested", "context")


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Perplexities as the paper lays them out, then a column of delta NLL for each measured context."""
    frame = frame.assign(shown_method=frame.apply(tables.method, axis=1), asked=frame.apply(tables.asked, axis=1))
    lines = {
        "source": "source",
        "model": "model",
        "corpus": "corpus",
        "shown_method": "method",
        "asked": "sparsity",
    }
    shown = tables.grid(frame, lines, "context", _perplexity, style.size)
    lossy = frame[(frame.source == "measured") & (frame.method != "dense")]
    if lossy.empty:
        return shown
    losses = tables.grid(lossy, lines, "context", _loss, lambda context: f"delta NLL, {style.size(context)}")
    return shown.merge(losses, how="left", on=list(lines.values())).fillna("")


def _perplexity(entry: pd.Series) -> str:
    realised = "" if entry.method == "dense" else tables.share(entry.sparsity_realised)
    return tables.number(entry.value, entry.low, entry.high) + realised


def _loss(entry: pd.Series) -> str:
    if pd.isna(entry.delta):
        return "no dense rows"
    return tables.number(entry.delta, entry.delta_low, entry.delta_high, sign=True)


def remarks(frame: pd.DataFrame) -> list[str]:
    """How to read the cells."""
    return [
        "Perplexity [95% bootstrap interval over documents] (realised sparsity).",
        "Sparsity: as requested; own: the method takes none.",
        "Delta NLL: nats a token above dense on the same documents [95% paired interval].",
    ]
