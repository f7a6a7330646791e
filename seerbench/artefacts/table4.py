"""Table 4: time to first token over context, in seconds, its parts, and its speed-up over dense."""

from __future__ import annotations

import pandas as pd

from seerbench.artefacts import aggregates, colors, frames, labels, paper_numbers, style, table_format
from seerbench.artefacts import chart as charts
from seerbench.rows.schema import RANDOM_WEIGHTS
from seerbench.rows.store import Run

# The stages inside a forward and what remains of it -> the metrics of the frame, in the order of the table.
PARTS = {"attend": "attention", "plan": "planning", "rest": "rest"}
# In the order of the table: seconds of different machines do not compare, but their ratios to dense do.
METRICS = ["speedup", "speedup_over_fastest_dense", "seconds", *PARTS.values(), "peak_memory"]
# The report shows the paper's lines and this run's in one table.
BESIDE_THE_PAPER = True


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per method, context, sparsity and metric (METRICS)."""
    cells, every_sample = frames.timings(run, "ttft")
    samples = every_sample[every_sample.stage == "ttft"]
    printed = paper_numbers.printed(paper, "table4")
    sparse = ~cells.apply(aggregates.is_dense, axis=1)
    parts = [aggregates.dense_latencies(cells, samples), aggregates.latencies(cells[sparse], samples)]
    seconds = frames.tidy(*parts).assign(metric="seconds", unit="s")
    seconds[aggregates.NUMBERS] = seconds[aggregates.NUMBERS] / 1000
    over_reference = _dense_once(aggregates.speedups(cells, samples, "ttft"))
    over_fastest = _dense_once(aggregates.speedups(cells, samples, "ttft", "fastest"))
    measured = [seconds, over_reference]
    # With a single dense kernel, both comparisons are the same.
    if not set(over_fastest.base) <= set(over_reference.base):
        measured.append(over_fastest.assign(metric="speedup_over_fastest_dense"))
    measured += [_parts(cells, every_sample), _peaks(cells)]
    label = str(labels.label(run, cells, timed=True))
    measured = [part.assign(label=label) for part in measured if len(part)]
    # The paper's dense kernel is FlashAttention-2.
    renamed = (
        printed.assign(method=printed.method.replace("dense", "fa2")) if "fa2" in set(cells.method) else printed
    )
    unmeasured = frames.unmeasured_methods(renamed, measured[0])
    frame = frames.tidy(printed, speedups_of_the_paper(printed), *measured, unmeasured)
    # A method may be timed at several sparsities, which differ from context to context. The n-th line of a method
    # holds the n-th lowest sparsity of each context.
    frame = frame.sort_values("sparsity_requested", kind="stable")
    frame["variant"] = frame.groupby(["source", "method", "metric", "context"], dropna=False).cumcount()
    frame["place"] = frame.metric.map(METRICS.index)
    return table_format.ordered(frame, "variant", "place", "context").drop(columns="place")


def _parts(cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Return the seconds in attention, in planning and in the rest, each from the same forwards.

    Forwards whose parts were not timed have none.
    """
    forward = ["run_id", "cell", "method", "round"]
    wide = samples.pivot_table(index=forward, columns="stage", values="ms")
    if "plan" not in wide:
        return pd.DataFrame()
    wide["rest"] = wide.ttft - wide.plan - wide.attend
    long = wide[list(PARTS)].dropna().rename_axis(columns="stage").stack().rename("ms").reset_index()
    lines = aggregates.latencies(cells[cells.status == "measured"], long).dropna(subset="stage")
    lines[aggregates.NUMBERS] = lines[aggregates.NUMBERS] / 1000
    return _dense_once(lines).assign(metric=lambda frame: frame.stage.map(PARTS), unit="s")


def _peaks(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the GiB that one forward takes in addition to the weights: the cache and the largest layer."""
    lines = aggregates.cell_lines(cells[cells.peak_mib.notna()])
    lines = lines.assign(metric="peak_memory", unit="GiB", value=cells.peak_mib.dropna().to_numpy() / 1024)
    return _dense_once(lines)


def _dense_once(lines: pd.DataFrame) -> pd.DataFrame:
    """Return the measured lines, with one line per context for a dense kernel, which is timed in every cell."""
    lines = lines[lines.status == "measured"]
    dense = lines.sparsity_requested.isna() & (lines.sparsity_realised == 0)
    return pd.concat([lines[~dense], lines[dense].drop_duplicates(["method", "context", "stage"])])


def speedups_of_the_paper(printed: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's speed-ups, which are quotients of the seconds that it prints.

    printed: the paper's Table 4 in the columns of a frame.
    """
    dense = printed[printed.method == "dense"].set_index("context").value
    rows = printed[(printed.method != "dense") & printed.value.notna()]
    return rows.assign(metric="speedup", unit="x", base="dense", value=rows.context.map(dense) / rows.value)


def render(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per metric and method, the paper's beside this run's, with one column per context."""
    frame = _with_joined_parts(frame)
    frame = frame.assign(place=frame.metric.map(METRICS.index), rank=frame.method.map(colors.rank))
    frame = frame.sort_values(["place", "rank"], kind="stable")
    frame["method_name"] = frame.apply(table_format.method_name, axis=1)
    frame["quantity"] = frame.apply(_quantity, axis=1)
    lines = {"method_name": "method", "quantity": "quantity", "source": "source", "model": "model"}
    lines |= {"variant": "variant"}
    return table_format.grid(frame, lines, "context", _cell, style.size).drop(columns="variant")


def chart(frame: pd.DataFrame) -> charts.Chart:
    """Return the speed-up of a forward over dense attention by context, the paper's beside this run's."""
    faster = frame[frame.metric == "speedup"]
    origin = faster.source.map({"paper": ": paper", "measured": ""})
    variant = faster.variant.map(lambda place: f", setting {place + 1:.0f}" if place else "")
    names = pd.Series([table_format.method_name(entry) for _, entry in faster.iterrows()], faster.index)
    skipped = faster.sparsity_realised.fillna(faster.sparsity_requested)
    notes = skipped.map(lambda share: "" if pd.isna(share) else f"{share:.0%} of the blocks skipped")
    names = names + variant + origin
    points = charts.points(faster, panel="time to first token", x=faster.context, name=names, note=notes)
    return charts.Chart(charts.CONTEXT, charts.SPEED_UP, "Up is faster.", points)


def _with_joined_parts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with the three parts of a time in one line, whose column `text` holds them all."""
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


def _quantity(entry: pd.Series) -> str:
    if entry.metric == "seconds":
        return "seconds"
    if entry.metric == "peak_memory":
        return "peak memory in addition to the weights, GiB"
    if entry.metric == PARTS["attend"]:
        return "attention + planning + the rest, seconds"
    base = colors.display("fa2" if entry.source == "paper" else entry.base)
    return f"speed-up over {base}{', the fastest dense' if entry.metric != 'speedup' else ''}"


def _cell(entry: pd.Series) -> str:
    if entry.metric == PARTS["attend"]:
        return entry.text
    if entry.metric == "peak_memory":
        return f"{entry.value:.3g}"
    unit = "" if entry.metric == "seconds" else "x"
    realised = entry.sparsity_realised if pd.notna(entry.sparsity_realised) else entry.sparsity_requested
    skipped = "" if entry.method == "dense" else table_format.in_brackets(realised)
    return f"{table_format.number(entry.value, entry.low, entry.high)}{unit}{skipped}"


def remarks(frame: pd.DataFrame) -> list[str]:
    """Return how to read the cells."""
    seconds = frame[(frame.source == "measured") & (frame.metric == "seconds") & frame["count"].notna()]
    fewest = seconds.groupby("context")["count"].min()
    rounds = ", ".join(f"{int(count)} at {style.size(context)}" for context, count in fewest.items())
    notes = [
        "In brackets: the sparsity, requested for the paper and realised for this run. Seconds: median "
        "[quartiles]. Speed-up: median over rounds of dense time / method time [95% bootstrap interval; with three "
        f"rounds it is their range]; rounds: {rounds or 'none'}. The paper's speed-ups are quotients of its "
        "seconds.",
        "The paper's 10.09 s for FlashAttention-2 at 64k is probably a misprint of 12.09 s "
        "(results/paper/README.md).",
    ]
    if (frame.metric == PARTS["plan"]).any():
        notes.append(
            "Attention + planning + the rest: medians over the same forwards. The rest is the time in the linear "
            "layers, the norms, the rotations and the cache."
        )
    if (frame.inputs_kind == RANDOM_WEIGHTS).any():
        notes.append(
            "Random weights: SeerAttention has untrained gates, MoA a plan for random influence, and MInference "
            "its (512, 2048) scaled once so that it skips the paper's share. Without scaling it skips almost "
            "nothing on random weights (seerbench/models/random_weights.py)."
        )
    return [*notes, *aggregates.random_input_remarks(frame)]
