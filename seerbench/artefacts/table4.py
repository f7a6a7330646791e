"""Table 4: time to first token over context, in seconds, as a speed-up over dense, and what it is made of."""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, colors, frames, style, table_format
from seerbench.rows.store import Run

# The stages inside a forward, and what is left of it: the metrics of the breakdown, in the order they are shown.
PARTS = {"attend": "attention", "plan": "planning", "rest": "rest"}
METRICS = ["seconds", *PARTS.values(), "speedup", "speedup_over_fastest_dense", "peak_memory"]  # in this order


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """A line a method, context and metric: METRICS."""
    cells, every = frames.timed(run, "ttft")
    samples = every[every.stage == "ttft"]
    printed = frames.printed(paper, "table4")
    skips = ~cells.apply(aggregates.is_dense, axis=1)
    parts = [aggregates.dense_latencies(cells, samples), aggregates.latencies(cells[skips], samples)]
    seconds = frames.tidy(*parts).assign(metric="seconds", unit="s")
    seconds[aggregates.NUMBERS] = seconds[aggregates.NUMBERS] / 1000
    faster = _once(aggregates.speedups(cells, samples, "ttft"))
    best = _once(aggregates.speedups(cells, samples, "ttft", "fastest"))
    best = best.assign(metric="speedup_over_fastest_dense")
    measured = [seconds, faster, best, _parts(cells, every), _peaks(cells)]
    if set(best.base) <= set(faster.base):  # one dense kernel only: the same comparison twice
        measured.pop(2)
    label = frames.label(run, cells, timed=True)
    measured = [part.assign(label=label) for part in measured if len(part)]
    # The paper's dense kernel is FlashAttention-2.
    named = printed.assign(method=printed.method.replace("dense", "fa2")) if "fa2" in set(cells.method) else printed
    missing = frames.absent(named, measured[0])
    frame = frames.tidy(printed, _ratios(printed), *measured, missing)
    # At one length a method may be timed at several sparsities, and at others than at the next length: its
    # lines are the lowest of each length, then the second ...
    frame = frame.sort_values("sparsity_requested", kind="stable")
    frame["variant"] = frame.groupby(["source", "method", "metric", "context"], dropna=False).cumcount()
    frame["place"] = frame.metric.map(METRICS.index)
    return table_format.ordered(frame, "variant", "place", "context").drop(columns="place")


def _parts(cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Seconds in attention, in planning and in the rest, each from the same forwards; none in older runs."""
    place = ["run_id", "cell", "method", "round"]
    wide = samples.pivot_table(index=place, columns="stage", values="ms")
    if "plan" not in wide:
        return pd.DataFrame()
    wide["rest"] = wide.ttft - wide.plan - wide.attend
    long = wide[list(PARTS)].rename_axis(columns="stage").stack().rename("ms").reset_index()
    lines = aggregates.latencies(cells[cells.status == "measured"], long)
    lines[aggregates.NUMBERS] = lines[aggregates.NUMBERS] / 1000
    return _once(lines).assign(metric=lambda frame: frame.stage.map(PARTS), unit="s")


def _peaks(cells: pd.DataFrame) -> pd.DataFrame:
    """GiB that one forward takes beyond the weights: the cache and the largest layer."""
    lines = aggregates.cell_lines(cells[cells.peak_mib.notna()])
    lines = lines.assign(metric="peak_memory", unit="GiB", value=cells.peak_mib.dropna().to_numpy() / 1024)
    return _once(lines)


def _once(faster: pd.DataFrame) -> pd.DataFrame:
    """The measured lines; a dense kernel, which is in every cell, once a context."""
    faster = faster[faster.status == "measured"]
    dense = faster.sparsity_requested.isna() & (faster.sparsity_realised == 0)
    return pd.concat([faster[~dense], faster[dense].drop_duplicates(["method", "context", "stage"])])


def _ratios(printed: pd.DataFrame) -> pd.DataFrame:
    """The paper's speed-ups, which are quotients of the seconds that it prints."""
    dense = printed[printed.method == "dense"].set_index("context").value
    rows = printed[(printed.method != "dense") & printed.value.notna()]
    return rows.assign(metric="speedup", unit="x", base="dense", value=rows.context.map(dense) / rows.value)


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """One line a method and metric, one column a context."""
    frame = _joined(frame).assign(shown_method=lambda joined: joined.apply(table_format.method, axis=1))
    frame["what"] = frame.apply(_what, axis=1)
    lines = {
        "source": "source",
        "model": "model",
        "shown_method": "method",
        "variant": "variant",
        "what": "quantity",
    }
    shown = table_format.grid(frame, lines, "context", _cell, style.size)
    return shown.drop(columns="variant")


def _joined(frame: pd.DataFrame) -> pd.DataFrame:
    """The three parts of a time as one line: the first entry's text holds them all."""
    first, *others = PARTS.values()
    place = ["source", "method", "context", "variant"]
    parts = frame[frame.metric.isin(PARTS.values())].set_index([*place, "metric"]).value
    text = {
        key[:-1]: " + ".join(f"{parts[(*key[:-1], name)]:.3f}" for name in PARTS.values())
        for key in parts.index
        if key[-1] == first
    }
    frame = frame[~frame.metric.isin(others)]
    keys = frame[place].itertuples(index=False, name=None)
    texts = [text[key] if metric == first else None for key, metric in zip(keys, frame.metric)]
    return frame.assign(text=texts)


def _what(entry: pd.Series) -> str:
    if entry.metric == "seconds":
        return "seconds"
    if entry.metric == "peak_memory":
        return "peak memory beyond the weights, GiB"
    if entry.metric == PARTS["attend"]:
        return "attention + planning + the rest, seconds"
    base = colors.display("fa2" if entry.source == "paper" else entry.base)
    return f"speed-up over {base}{', the fastest dense' if entry.metric != 'speedup' else ''}"


def _cell(entry: pd.Series) -> str:
    if entry.metric == PARTS["attend"]:
        return entry.text
    if entry.metric == "peak_memory":
        return f"{entry.value:.3g}"
    text = table_format.number(entry.value, entry.low, entry.high)
    if entry.metric != "seconds":
        return f"{text}x"
    realised = entry.sparsity_realised if pd.notna(entry.sparsity_realised) else entry.sparsity_requested
    return text + ("" if entry.method == "dense" else table_format.share(realised))


def remarks(frame: pd.DataFrame) -> list[str]:
    """How to read the cells."""
    seconds = frame[(frame.source == "measured") & (frame.metric == "seconds") & frame["count"].notna()]
    fewest = seconds.groupby("context")["count"].min()
    rounds = ", ".join(f"{int(count)} at {style.size(context)}" for context, count in fewest.items())
    found = [
        "Seconds: median [quartiles] (sparsity: the paper's as printed, measured ones realised). Speed-up: "
        f"median over rounds of dense / method [95% bootstrap interval; of three rounds it is their range]; "
        f"rounds: {rounds or 'none'}. The paper's are quotients of its seconds.",
        "The paper's 10.09 s for FlashAttention-2 at 64k is probably a misprint of 12.09 s "
        "(results/paper/README.md).",
    ]
    if (frame.metric == PARTS["plan"]).any():
        found.append(
            "Attention + planning + the rest: medians over the same forwards. The rest are the linear layers, with "
            "their norms, rotations and the cache."
        )
    if frame.model.astype(str).str.startswith("random weights").any():
        found.append(
            "Random weights: SeerAttention has gates as they are before training, MoA a plan for random influence, "
            "and MInference its (512, 2048) scaled once so that it skips the paper's share; unscaled it skips "
            "almost nothing on random weights (seerbench/random_weights.py)."
        )
    return found
