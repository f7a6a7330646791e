"""Figure 1: fine-tuning loss (a), perplexity against sparsity after it (b), and kernel speed-up (c).

The paper draws losses in (a) and prints no values. All recipes read the same batches, whose difficulty would hide
how the recipes differ, so the panel draws the difference to dense YaRN at each step. Panel (b) of the paper plots
its Table 3, and of (c) it prints one number, 5.67x, without saying how it was timed. Points timed under the
conditions of the authors' later benchmark (the sweep `authors_kernel`) are drawn beside the others.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, labels, paper_numbers, style
from seerbench.errors import MissingRows
from seerbench.rows.store import Run

LOSS, QUALITY, SPEED = "a", "b", "c"
SMOOTHED = 5  # The loss in (a) is a running mean over this number of training steps.
AUTHORS = "as the authors timed"  # the series of the sweep `authors_kernel`
AUTHORS_MARKERS = "*Xd"  # by context
AUTHORS_REMARK = (
    "'As the authors timed' in (c): one random mask for all heads, the same share of blocks in every row, no "
    "forced diagonal, float16, as many key/value heads as query heads, as in the authors' later benchmark. These "
    "points differ from the paper's number in GPU and kernel, the others in these conditions too. Which of the "
    "conditions hold for the paper's number is not known."
)
RECIPES = {"post": ("gates trained after YaRN", "#332288"), "joint": ("YaRN with SeerAttention", "#D55E00")}


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of the three panels. A panel whose rows the run lacks has one line with the reason.

    Raises MissingRows if the run has none of the three.
    """
    parts = [_paper(paper)]
    measured_panels = 0
    for panel, measure in ((LOSS, _losses), (QUALITY, _perplexities), (SPEED, _speedups)):
        try:
            parts.append(measure(run).assign(panel=panel))
            measured_panels += 1
        except MissingRows as missing:
            if panel == SPEED and not measured_panels:
                raise
            reason = f"this run has no {missing.what}; measure them with `seerbench {missing.step}`"
            gap = {"panel": panel, "source": "measured", "series": None, "status": "missing", "reason": reason}
            parts.append(pd.DataFrame([gap]))
    return frames.tidy(*parts)


def _paper(paper: pd.DataFrame) -> pd.DataFrame:
    quality = paper_numbers.printed(paper, "table3")
    dense = quality[quality.method == "dense"].set_index("corpus").value
    quality = quality[quality.method != "dense"]
    quality = quality.assign(
        panel=QUALITY,
        metric="perplexity over dense YaRN",
        x=quality.sparsity_requested,
        y=quality.value / quality.corpus.map(dense),
    )
    speed = paper_numbers.printed(paper, "fig1c")
    speed = speed.assign(panel=SPEED, x=speed.sparsity_requested, y=speed.value)
    return frames.tidy(quality, speed)


def _losses(run: Run) -> pd.DataFrame:
    rows = run.table("training")
    rows = rows[(rows.kind == "finetune") & rows.lm_loss.notna()]
    if rows.empty:
        raise MissingRows("training", "training rows of the kind 'finetune'", "finetune PRESET yarn", run.folder)
    series = [
        "YaRN, dense" if recipe == "yarn" else f"{recipe}, {sparsity:.0%} skipped"
        for recipe, sparsity in zip(rows.recipe, rows.sparsity_requested)
    ]
    # One step reads only one or two windows, so the loss of single steps is mostly noise.
    smooth = rows.sort_values("step").groupby("name").lm_loss.rolling(SMOOTHED, min_periods=1).mean()
    lines = rows[["recipe", "context", "sparsity_requested"]].assign(
        source="measured",
        status="measured",
        metric=f"lm_loss, mean of {SMOOTHED} steps",
        unit="nats per token",
        series=series,
        method="seer",
        x=rows.step,
        y=smooth.droplevel(0).reindex(rows.index),
        label=str(labels.label(run, rows)),
    )
    dense = lines[lines.recipe == "yarn"].drop_duplicates("x").set_index("x").y
    lines["delta"] = lines.y - lines.x.map(dense)
    return lines.sort_values(["recipe", "sparsity_requested", "x"], ascending=[False, True, True])


def _perplexities(run: Run) -> pd.DataFrame:
    rows = frames.as_in_paper(frames.experiments(run, "perplexity", "yarn", "perplexity"))
    dense = rows[(rows.method == "dense") & (rows.recipe == "yarn")]
    cells = aggregates.perplexities(rows, dense)
    cells = cells[(cells.method != "dense") & (cells.context == aggregates.longest(cells))]
    # exp of the paired delta is the ratio of the two perplexities, with the paired interval.
    ratios = np.exp(cells[aggregates.DELTAS])
    x = cells.sparsity_realised.fillna(cells.sparsity_requested)
    cells = cells.assign(x=x, y=ratios.delta, low=ratios.delta_low, high=ratios.delta_high)
    return cells.assign(metric="perplexity over dense YaRN", unit="ratio", label=str(labels.label(run, rows)))


def _speedups(run: Run) -> pd.DataFrame:
    cells, samples = frames.timings(run, "kernel")
    # Gate-shaped masks take the same time as random ones within a few percent, so only the random ones are drawn.
    cells = cells[cells["mask"] != "gate-shaped"]
    faster = aggregates.speedups(cells, samples, "attend")
    faster = faster[~faster.method.isin(aggregates.REFERENCES)]
    faster = faster[faster.context == aggregates.longest(cells)]
    x = faster.sparsity_realised.fillna(faster.sparsity_requested)
    label = str(labels.label(run, cells, timed=True))
    lines = faster.rename(columns={"value": "y"}).assign(x=x, label=label)
    return pd.concat([lines, _speedups_as_the_authors_timed(run)], ignore_index=True)


def _speedups_as_the_authors_timed(run: Run) -> pd.DataFrame:
    """Return the speed-ups of the sweep `authors_kernel` at all its contexts; an empty frame without that sweep."""
    try:
        cells, samples = frames.timings(run, "authors_kernel")
    except MissingRows:
        return pd.DataFrame()
    faster = aggregates.speedups(cells, samples, "attend")
    faster = faster[~faster.method.isin(aggregates.REFERENCES)]
    x = faster.sparsity_realised.fillna(faster.sparsity_requested)
    label = str(labels.label(run, cells, timed=True))
    return faster.rename(columns={"value": "y"}).assign(x=x, label=label, series=AUTHORS)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw the three panels side by side."""
    fig, (left, middle, right) = style.figure(1, 3, 3.2, width_ratios=[4, 5, 4])
    loss = f"loss minus that of dense (mean of {SMOOTHED})"
    _panel(left, frame, LOSS, "(a) fine-tuning loss", "training step", loss)
    _panel(middle, frame, QUALITY, "(b) after the extension", "blocks skipped", "perplexity / dense YaRN")
    _panel(right, frame, SPEED, "(c) attention kernel only", "blocks skipped", "speed-up over dense (x)")
    # A missing panel shows its reason itself, so the caption does not list it among the empty cells.
    style.caption(
        fig,
        frame[frame.status != "missing"],
        "Paper: Figure 1 prints no values for (a), Table 3 has those of (b), and one number is printed for (c). "
        "Bands: 95% intervals over documents (b) and rounds (c). Above the dashed line of (c), a kernel also takes "
        "less time per block than the dense kernel that it is compared with.",
        *([AUTHORS_REMARK] if (frame.series == AUTHORS).any() else []),
        *(f"({gap.panel}): {gap.reason}" for gap in frame[frame.status == "missing"].itertuples()),
    )
    return fig


def _panel(ax: Axes, frame: pd.DataFrame, panel: str, title: str, x: str, y: str) -> None:
    ax.set(title=title, xlabel=x, ylabel=y)
    rows = frame[frame.panel == panel]
    present = rows[rows.status != "missing"]
    {LOSS: _draw_loss, QUALITY: _draw_quality, SPEED: _draw_speed}[panel](ax, present)
    if present.empty:
        style.empty_panel(ax, rows.reason.iloc[0])


def _draw_loss(ax: Axes, rows: pd.DataFrame) -> None:
    sparse = list(rows.series[rows.recipe != "yarn"].dropna().unique())
    tints = dict(zip(sparse, colors.shades(colors.color("seer"), len(sparse))))
    if rows.empty:
        return
    ax.axhline(0, color="black", linewidth=1, label="YaRN, dense")
    for name, points in rows[rows.recipe != "yarn"].groupby("series", sort=False):
        ax.plot(points.x, points.delta, color=tints[name], label=name, linewidth=1)
    if rows.delta.notna().any():
        low, high = rows.delta.min(), rows.delta.max()
        ax.set_ylim(top=high + 0.5 * (high - low))  # leaves room for the legend
        ax.legend(fontsize=6, loc="upper right")


def _draw_quality(ax: Axes, rows: pd.DataFrame) -> None:
    for (source, corpus, recipe), points in rows.groupby(["source", "corpus", "recipe"], sort=False):
        name, color = RECIPES.get(recipe, (recipe, None))
        source_name = f"paper, {corpus}" if source == "paper" else "measured"
        dash = ":" if corpus == "Proof-pile" and source == "paper" else None
        style.line(ax, points, f"{name}: {source_name}", "seer", color=color, linestyle=dash)
    ax.axhline(1, color="black", linewidth=0.8)
    if len(rows):
        ax.set_ylim(top=1 + 1.9 * (rows[["y", "high"]].max().max() - 1))  # leaves room for the legend
        ax.legend(fontsize=5.5, loc="upper left")


def _draw_speed(ax: Axes, rows: pd.DataFrame) -> None:
    ideal = np.linspace(0, 0.92, 100)
    ax.plot(
        ideal, 1 / (1 - ideal), color="0.6", linestyle="--", linewidth=0.8, label="in proportion: 1 / (1 - skipped)"
    )
    authors = rows[rows.series == AUTHORS]
    rows = rows[rows.series != AUTHORS]
    context = rows[rows.source == "measured"].context.max()
    if pd.notna(context):
        ax.set_title(f"(c) attention kernel only, {style.size(context)}")
    for (source, method), points in rows.groupby(["source", "method"], sort=False):
        label = colors.display(method)
        if source == "paper":
            label = f"paper, {style.size(points.context.max())}"
        style.line(ax, points, label, method)
    for shape, (at, points) in zip(AUTHORS_MARKERS, authors.groupby("context"), strict=False):
        label = f"{AUTHORS}, {style.size(at)}"
        ax.plot(points.x, points.y, shape, color="black", markerfacecolor="white", markersize=6, label=label)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set_ylim(bottom=0)
    # Narrow enough for ten entries above the curves, which are low to the left of 80%.
    ax.legend(fontsize=4.8, loc="upper left", labelspacing=0.15, handlelength=1.6)
