"""Table 4: time to first token over context, in seconds and as a speed-up over dense."""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import sources, style, summaries, tables
from seerbench.results import Run


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """A line a method, context and metric: seconds, speed-up over the reference, over the fastest dense."""
    cells, samples = sources.timed(run, "ttft")
    printed = sources.printed(paper, "table4")
    skips = ~cells.apply(summaries.is_dense, axis=1)
    parts = [summaries.dense_latencies(cells, samples), summaries.latencies(cells[skips], samples)]
    seconds = sources.tidy(*parts).assign(metric="seconds", unit="s")
    seconds[summaries.NUMBERS] = seconds[summaries.NUMBERS] / 1000
    faster = _once(summaries.speedups(cells, samples, "ttft"))
    best = _once(summaries.speedups(cells, samples, "ttft", "fastest"))
    best = best.assign(metric="speedup_over_fastest_dense")
    measured = [seconds, faster, best]
    if set(measured[2].base) <= set(measured[1].base):  # one dense kernel only: the same comparison twice
        measured.pop()
    label = sources.label(run, cells, timed=True)
    measured = [part.assign(label=label) for part in measured if len(part)]
    missing = sources.absent(printed, measured[0])
    frame = sources.tidy(printed, _ratios(printed), *measured, missing)
    # At one length a method may be timed at several sparsities, and at others than at the next length: its
    # lines are the lowest of each length, then the second ...
    frame = frame.sort_values("sparsity_requested", kind="stable")
    frame["variant"] = frame.groupby(["source", "method", "metric", "context"], dropna=False).cumcount()
    return tables.ordered(frame, "variant", "metric", "context")


def _once(faster: pd.DataFrame) -> pd.DataFrame:
    """The measured lines; a dense kernel, which is in every cell, once a context."""
    faster = faster[faster.status == "measured"]
    dense = faster.sparsity_requested.isna() & (faster.sparsity_realised == 0)
    return pd.concat([faster[~dense], faster[dense].drop_duplicates(["method", "context"])])


def _ratios(printed: pd.DataFrame) -> pd.DataFrame:
    """The paper's speed-ups, which are quotients of the seconds that it prints."""
    dense = printed[printed.method == "dense"].set_index("context").value
    rows = printed[(printed.method != "dense") & printed.value.notna()]
    return rows.assign(metric="speedup", unit="x", base="dense", value=rows.context.map(dense) / rows.value)


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """One line a method and metric, one column a context."""
    frame = frame.assign(shown_method=frame.apply(tables.method, axis=1), what=frame.apply(_what, axis=1))
    lines = {
        "source": "source",
        "model": "model",
        "shown_method": "method",
        "variant": "variant",
        "what": "quantity",
    }
    shown = tables.grid(frame, lines, "context", _cell, style.size)
    return shown.drop(columns="variant")


def _what(entry: pd.Series) -> str:
    if entry.metric == "seconds":
        return "seconds"
    base = style.display("fa2" if entry.source == "paper" else entry.base)
    return f"speed-up over {base}{', the fastest dense' if entry.metric != 'speedup' else ''}"


def _cell(entry: pd.Series) -> str:
    text = tables.number(entry.value, entry.low, entry.high)
    if entry.metric != "seconds":
        return f"{text}x"
    realised = entry.sparsity_realised if pd.notna(entry.sparsity_realised) else entry.sparsity_requested
    return text + ("" if entry.method == "dense" else tables.share(realised))


def remarks(frame: pd.DataFrame) -> list[str]:
    """How to read the cells."""
    return [
        "Seconds: median [quartiles] (sparsity: the paper's as printed, measured ones realised). Speed-up: "
        "median over rounds of dense / method [95% bootstrap interval]; the paper's are quotients of its seconds.",
        "The paper's 10.09 s for FlashAttention-2 at 64k is probably a misprint of 12.09 s "
        "(results/paper/README.md).",
    ]
