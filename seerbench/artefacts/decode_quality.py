"""Figure beyond the paper: what sparse decoding costs, by how many tokens of the cache a new token reads.

A panel shows the loss of decoded tokens, or the score of one experiment of tasks, at one context. There is one line
per way to decode, over budgets or thresholds. Dense decoding reads everything, so it is a horizontal line.

The x axis is not the budget, since the first and the current block are read in addition to it, and a threshold has
none. It is the share of the blocks that were read times the context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from seerbench.artefacts import colors, frames, labels, style
from seerbench.errors import MissingRows
from seerbench.rows import bootstrap, requests
from seerbench.rows.store import Run

EXPERIMENT = "decode"
DENSE = "dense"
PLACE = ["experiment", "model", "corpus", "context"]
PREFILL = ["method", "gate", "sparsity_requested", "last_rows_dense", "threshold"]
DECODE = ["decode", "decode_gate", "decode_block", "decode_budget", "decode_threshold"]
LOSS, SCORE = "loss", "score"
NO_REFERENCE = "dense decoding after a dense prefill was not measured on the same documents"
EXTRA = ("prefill", "block", "budget", "decode_sparsity")


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one line per panel, prefill and way to decode: tokens read (x), loss over dense or score (y).

    The loss is that over dense decoding after a dense prefill, paired by document. A score is the mean over the
    tasks of an experiment, in percent. `budget`, `block` and `threshold` are those of the method for decoding,
    which `method` names; `sparsity_requested` is that of the prefill. Raises MissingRows if the run has neither.
    """
    losses, scores = decoded(run, "perplexity"), decoded(run, "tasks")
    if losses.empty and scores.empty:
        what = f"rows of the experiment {EXPERIMENT!r} that say how tokens were decoded"
        raise MissingRows("perplexity", what, f"perplexity PRESET {EXPERIMENT}", run.folder)
    frame = pd.DataFrame([*_losses(losses), *_scores(scores)])
    frame["label"] = str(labels.label(run, losses, scores))
    frame["rank"] = frame.method.map(colors.rank)
    frame = frame.sort_values(["metric", "panel", "rank", "series", "x"], kind="stable")
    return frames.tidy(frame, extra=EXTRA)


def decoded(run: Run, table: str) -> pd.DataFrame:
    """Return the rows of the experiment `decode` and of its parts, such as `decode-ruler`."""
    rows = requests.decoded_rows(run, table)
    return rows[(rows.experiment == EXPERIMENT) | rows.experiment.str.startswith(f"{EXPERIMENT}-")]


def _losses(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for key, here in rows.groupby(PLACE, sort=False):
        place = dict(zip(PLACE, key))
        reference = here[(here.method == DENSE) & (here.decode == DENSE) & (here.status == "measured")]
        base = reference.set_index("document").nll
        panel = f"loss, {place['model']} on {place['corpus']}, {style.size(place['context'])}"
        for setting, cell in here.groupby([*PREFILL, *DECODE], dropna=False, sort=False):
            measured = cell[cell.status == "measured"].set_index("document").nll
            line = _line(place, setting, cell) | {"panel": panel, "metric": LOSS, "unit": "nats"}
            if measured.empty:
                yield line | {"status": cell.status.iloc[0], "reason": cell.reason.iloc[0]}
            elif measured.index.intersection(base.index).empty:
                yield line | {"status": "missing", "reason": NO_REFERENCE}
            else:
                yield line | _numbers(bootstrap.paired_delta(base, measured)) | {"count": len(measured)}


def _scores(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    rows = rows.assign(points=100 * rows.score.astype(float).fillna(rows.correct.astype(float)))
    for key, here in rows.groupby(PLACE, sort=False):
        place, tasks = dict(zip(PLACE, key)), list(here.task.unique())
        what = tasks[0] if len(tasks) == 1 else f"mean of {len(tasks)} tasks ({place['experiment']})"
        panel = f"{what}, {place['model']} on {place['corpus']}, {style.size(place['context'])}"
        for setting, cell in here.groupby([*PREFILL, *DECODE], dropna=False, sort=False):
            marked = cell[cell.points.notna()]
            line = _line(place, setting, cell) | {"panel": panel, "metric": SCORE, "unit": "%"}
            if set(marked.task) != set(tasks):  # means over other tasks would not compare
                lost = cell[cell.points.isna()].reason.dropna()
                reason = lost.iloc[0] if len(lost) else "not every task was answered"
                yield line | {"status": "refused", "reason": reason}
            else:
                groups = [part.points.to_numpy(float) for _, part in marked.groupby("task")]
                yield line | _numbers(bootstrap.mean_of_means(groups)) | {"count": len(marked)}


def _line(place: dict[str, Any], setting: tuple, cell: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of a line that say what was measured, without its number."""
    found = dict(zip([*PREFILL, *DECODE], setting))
    skipped = cell.decode_sparsity.mean()
    read = None if found["decode"] == DENSE else (1 - skipped) * place["context"]
    return {
        "source": "measured",
        "series": _series(found),
        "method": found["decode"],
        "gate": found["decode_gate"],
        "model": place["model"],
        "corpus": place["corpus"],
        "context": place["context"],
        "sparsity_requested": found["sparsity_requested"],
        "sparsity_realised": cell.sparsity_realised.mean(),
        "threshold": found["decode_threshold"],
        "x": read,
        "y": math.nan,
        "low": math.nan,
        "high": math.nan,
        "prefill": found["method"],
        "block": found["decode_block"],
        "budget": found["decode_budget"],
        "decode_sparsity": skipped,
        "status": "measured",
        "reason": None,
    }


def _numbers(interval: bootstrap.Interval) -> dict[str, float]:
    return dict(zip(("y", "low", "high"), interval))


def _series(setting: dict[str, Any]) -> str:
    """Return the name of a line: how tokens are decoded, and the prefill before them if it is not dense."""
    parts = [colors.display(setting["decode"], setting["decode_gate"])]
    if pd.notna(setting["decode_block"]):
        parts.append(f"blocks of {setting['decode_block']:.0f}")
    if pd.notna(setting["decode_threshold"]):
        parts.append("threshold")
    if setting["method"] != DENSE:
        share = "" if pd.isna(setting["sparsity_requested"]) else f" {setting['sparsity_requested']:.0%}"
        parts.append(f"after {colors.display(setting['method'], setting['gate'])}{share}")
    return ", ".join(parts)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw the panels in two columns, losses first, with one line per way to decode."""
    panels = list(dict.fromkeys(frame.panel))
    rows = -(-len(panels) // 2)
    fig, axes = style.figure(rows, 2, 1.3 + 2.3 * rows)
    for ax, panel in zip(axes, panels):
        _draw_panel(ax, frame[frame.panel == panel])
        ax.set_title(panel)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    handles = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels())}
    fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2, fontsize=6)
    style.caption(
        fig,
        frame,
        "Up is better in scores, down in losses. x: the share of the blocks that a new token reads times the "
        "context, the mean over layers, heads and steps; first and current block included. Solid lines: budgets; "
        "dotted: thresholds; hollow marks: after a sparse prefill. Horizontal: dense decoding.",
        "Loss: of the last tokens, each fed alone, over dense decoding after a dense prefill. Bands: 95% intervals "
        "over documents, paired, or over examples. The paper has no such figure.",
    )
    return fig


def _draw_panel(ax: Axes, lines: pd.DataFrame) -> None:
    for series, points in lines.groupby("series", sort=False):
        method, sparse_prefill = points.method.iloc[0], points.prefill.iloc[0] != DENSE
        known = points[points.y.notna()]
        if method == DENSE:
            for entry in known.itertuples():
                ax.axhline(
                    entry.y, color="black", linewidth=0.9, linestyle="--" if sparse_prefill else "-", label=series
                )
                ax.axhspan(entry.low, entry.high, color="black", alpha=style.BAND / 2, linewidth=0)
        else:
            dash = ":" if points.threshold.notna().any() else "-"
            style.line(ax, points, str(series), method, linestyle=dash, fill=not sparse_prefill)
    ax.set_xscale("log", base=2)
    read = lines.x.dropna()
    if len(read):
        powers = 2.0 ** np.arange(math.floor(math.log2(read.min())), math.ceil(math.log2(read.max())) + 1)
        ax.xaxis.set_major_locator(FixedLocator(np.outer(powers, (1, 1.5)).ravel()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: style.size(round(tokens))))
    ax.set_xlabel("tokens read per new token")
    if lines.metric.iloc[0] == SCORE:
        ax.set_ylabel("score (%)")
    else:
        ax.set_ylabel("loss over dense (nats per token)")
        numbers = lines[["low", "high"]].to_numpy(float)
        if not np.isnan(numbers).all():
            style.loss_axis(ax, [np.nanmin(numbers), np.nanmax(numbers)])
            ax.autoscale_view()  # with the margins of this scale
