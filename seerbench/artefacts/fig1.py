"""Figure 1: fine-tuning loss (a), perplexity against sparsity after it (b), kernel speed-up (c).

The paper prints no values for (a); (b) plots its Table 3; of (c) it prints one point, 5.67x.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from seerbench.artefacts import aggregates, colors, frames, style
from seerbench.errors import ResultsError
from seerbench.rows.store import Run

LOSS, QUALITY, SPEED = "a", "b", "c"
SMOOTHED = 5  # training steps in the running mean of (a)
RECIPES = {"post": ("gates trained after YaRN", "#332288"), "joint": ("YaRN with SeerAttention", "#D55E00")}


def collect(run: Run, paper: pd.DataFrame) -> pd.DataFrame:
    """The three panels below each other; a panel whose rows the run lacks keeps a line with the reason."""
    parts = [_paper(paper)]
    found = 0
    for panel, measure in ((LOSS, _losses), (QUALITY, _perplexities), (SPEED, _speedups)):
        try:
            parts.append(measure(run).assign(panel=panel))
            found += 1
        except ResultsError as error:
            if panel == SPEED and not found:
                raise  # none of the three was measured
            reason = f"not in this run: {str(error).removeprefix(str(run.folder)).lstrip(' ')}"
            gap = {"panel": panel, "source": "measured", "series": None, "status": "missing", "reason": reason}
            parts.append(pd.DataFrame([gap]))
    return frames.tidy(*parts)


def _paper(paper: pd.DataFrame) -> pd.DataFrame:
    quality = frames.printed(paper, "table3")
    dense = quality[quality.method == "dense"].set_index("corpus").value
    quality = quality[quality.method != "dense"]
    quality = quality.assign(
        panel=QUALITY,
        metric="perplexity over dense YaRN",
        x=quality.sparsity_requested,
        y=quality.value / quality.corpus.map(dense),
    )
    speed = frames.printed(paper, "fig1c")
    speed = speed.assign(panel=SPEED, x=speed.sparsity_requested, y=speed.value)
    return frames.tidy(quality, speed)


def _losses(run: Run) -> pd.DataFrame:
    rows = run.table("training")
    rows = rows[(rows.kind == "finetune") & rows.lm_loss.notna()]
    if rows.empty:
        raise frames.unmeasured(run, "training", "training rows of the kind 'finetune'", "finetune PRESET yarn")
    named = [
        "YaRN, dense" if recipe == "yarn" else f"{recipe}, {sparsity:.0%} skipped"
        for recipe, sparsity in zip(rows.recipe, rows.sparsity_requested)
    ]
    columns = {
        "source": "measured",
        "status": "measured",
        "metric": f"lm_loss, mean of {SMOOTHED} steps",
        "unit": "nats a token",
    }
    kept = rows[["recipe", "context", "sparsity_requested"]]
    # A step sees a window or two: the running mean shows what the noise of single steps hides.
    smooth = rows.sort_values("step").groupby("name").lm_loss.rolling(SMOOTHED, min_periods=1).mean()
    loss = smooth.droplevel(0).reindex(rows.index)
    return kept.assign(
        **columns, series=named, method="seer", x=rows.step, y=loss, label=frames.label(run, rows)
    ).sort_values(["recipe", "sparsity_requested", "x"], ascending=[False, True, True])


def _perplexities(run: Run) -> pd.DataFrame:
    rows = frames.experiments(run, "perplexity", "yarn", "perplexity")
    dense = rows[(rows.method == "dense") & (rows.recipe == "yarn")]
    cells = aggregates.perplexities(rows, dense)
    cells = cells[(cells.method != "dense") & (cells.context == aggregates.longest(cells))]
    # exp of the paired delta is the ratio of the two perplexities, with the paired interval.
    ratios = np.exp(cells[aggregates.DELTAS])
    x = cells.sparsity_realised.fillna(cells.sparsity_requested)
    cells = cells.assign(x=x, y=ratios.delta, low=ratios.delta_low, high=ratios.delta_high)
    return cells.assign(metric="perplexity over dense YaRN", unit="ratio", label=frames.label(run, rows))


def _speedups(run: Run) -> pd.DataFrame:
    cells, samples = frames.timed(run, "kernel")
    cells = cells[cells["mask"] != "gate-shaped"]  # as fast as random ones within a few percent; in the rows
    faster = aggregates.speedups(cells, samples, "attend")
    faster = faster[~faster.method.isin(aggregates.REFERENCES)]
    faster = faster[faster.context == aggregates.longest(cells)]
    x = faster.sparsity_realised.fillna(faster.sparsity_requested)
    label = frames.label(run, cells, timed=True)
    return faster.rename(columns={"value": "y"}).assign(x=x, label=label)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Three panels."""
    fig, (left, middle, right) = style.figure(1, 3, 3.2, width_ratios=[4, 5, 4])
    _panel(left, frame, LOSS, "(a) fine-tuning loss", "training step", f"loss (nats a token, mean of {SMOOTHED})")
    _panel(middle, frame, QUALITY, "(b) after the extension", "blocks skipped", "perplexity / dense YaRN")
    _panel(right, frame, SPEED, "(c) attention kernel only", "blocks skipped", "speed-up over dense (x)")
    # A series is drawn where it has a number; a panel without any says why instead.
    style.caption(
        fig,
        frame[frame.status != "missing"],
        "Paper: prints no values for (a), its Table 3 for (b), one point for (c). Bands: 95% over documents (b) "
        "and rounds (c).",
        *(f"({gap.panel}): {gap.reason}" for gap in frame[frame.status == "missing"].itertuples()),
    )
    return fig


def _panel(ax, frame: pd.DataFrame, panel: str, title: str, x: str, y: str) -> None:
    ax.set(title=title, xlabel=x, ylabel=y)
    rows = frame[frame.panel == panel]
    known = rows[rows.status != "missing"]
    {LOSS: _draw_loss, QUALITY: _draw_quality, SPEED: _draw_speed}[panel](ax, known)
    if known.empty:
        style.say(ax, rows.reason.iloc[0])


def _draw_loss(ax, rows: pd.DataFrame) -> None:
    series = list(rows.series.dropna().unique())
    sparse = [name for name in series if not name.startswith("YaRN")]
    tints = dict(zip(sparse, colors.shades(colors.colour("seer"), len(sparse))))
    for name in series:
        points = rows[rows.series == name]
        ax.plot(points.x, points.y, color=tints.get(name, "black"), label=name, linewidth=1)
    if series:
        low, high = rows.y.min(), rows.y.max()
        ax.set_ylim(top=high + 0.5 * (high - low))  # room for the legend
        ax.legend(fontsize=6, loc="upper right")


def _draw_quality(ax, rows: pd.DataFrame) -> None:
    for (source, corpus, recipe), points in rows.groupby(["source", "corpus", "recipe"], sort=False):
        name, color = RECIPES.get(recipe, (recipe, None))
        whose = f"paper, {corpus}" if source == "paper" else "measured"
        dash = ":" if corpus == "Proof-pile" and source == "paper" else None
        style.line(ax, points, f"{name}: {whose}", "seer", color=color, linestyle=dash)
    ax.axhline(1, color="black", linewidth=0.8)
    if len(rows):
        ax.set_ylim(top=1 + 1.9 * (rows[["y", "high"]].max().max() - 1))  # room for the legend
        ax.legend(fontsize=5.5, loc="upper left")


def _draw_speed(ax, rows: pd.DataFrame) -> None:
    ideal = np.linspace(0, 0.92, 100)
    ax.plot(ideal, 1 / (1 - ideal), color="0.6", linestyle="--", linewidth=0.8, label="ideal: 1 / (1 - skipped)")
    measured = rows[rows.source == "measured"].context.max()
    if pd.notna(measured):
        ax.set_title(f"(c) attention kernel only, {style.size(measured)}")
    for (source, method), points in rows.groupby(["source", "method"], sort=False):
        label = colors.display(method)
        if source == "paper":
            label = f"paper, {style.size(points.context.max())}"
        style.line(ax, points, label, method)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=5.5, loc="upper left")
