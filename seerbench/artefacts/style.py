"""The form of every figure: one style, series with their intervals, and a caption with the labels.

Figures are matplotlib `Figure` objects made without pyplot, so there is no global state and no window. Measured
points are filled and joined by solid lines; the paper's points are hollow and joined by dashed lines.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from seerbench.artefacts import colors

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "svg.hashsalt": "seerbench",  # Makes the identifiers of SVG elements equal in every run.
}
styled = rc_context(STYLE)  # Decorates every `draw`.
LINEAR_BELOW = 0.003  # nats per token. Intervals of smaller losses often include zero, which has no logarithm.
BAND = 0.15  # The opacity of the band that shows an interval.
WIDTH = 7.0  # The width of a figure in inches: two columns of a paper.
# What a line shows of a timed method: stage -> (line style, what its time includes). Solid lines have filled
# markers.
STAGE_LINES = {"total": ("-", "block selection included"), "attend": (":", "attention only")}


def size(tokens: float) -> str:
    """Return 8192 as "8k". A length that is not a multiple of 1024 is given in tokens."""
    tokens = int(tokens)
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def figure(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """Return a figure of the full width and its axes in one flat array. height: in inches; options: of subplots."""
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    return fig, np.atleast_1d(fig.subplots(rows, columns, **options)).ravel()


def context_axis(ax: Axes, contexts: Sequence[float]) -> None:
    """Make the x axis logarithmic (base 2) with one tick per measured context."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted({float(context) for context in contexts})))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(round(value))))
    ax.set_xlabel("context (tokens)")


def legend_of_methods(fig: Figure, axes: Sequence[Axes], methods: Iterable[str]) -> None:
    """Draw one legend above all panels, with an entry for each of the methods (keys) that has a line in any."""
    handles: dict[str, object] = {}
    for ax in axes:
        for handle, text in zip(*ax.get_legend_handles_labels()):
            handles.setdefault(text, handle)  # The first line of a method is its filled one.
    names = [name for name in map(colors.display, methods) if name in handles]
    fig.legend([handles[name] for name in names], names, loc="outside upper center", ncols=4, fontsize=6)


def log_axis(ax: Axes) -> None:
    """Make the y axis logarithmic (base 10) with plain numbers: 1, 2, 5, 10 and so on."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def loss_axis(ax: Axes, values: Sequence[float]) -> None:
    """Make the y axis logarithmic for losses in nats per token, but linear between LINEAR_BELOW and its negative.

    values: the smallest and the largest loss that is drawn; the ticks cover them.
    """
    ax.set_yscale("symlog", linthresh=LINEAR_BELOW, linscale=0.5)
    steps = {10.0**power * first for power in range(-3, 2) for first in (1, 3)}
    ticks = [sign * step for step in steps if step >= LINEAR_BELOW for sign in (-1, 1)]
    low, high = min(*values, 0), max(values)
    ax.yaxis.set_major_locator(FixedLocator([0, *(tick for tick in ticks if low * 2 <= tick <= high * 1.5)]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def line(
    ax: Axes,
    points: pd.DataFrame,
    label: str,
    method: str,
    *,
    color: Any = None,
    linestyle: str | None = None,
    fill: bool | None = None,
) -> None:
    """Draw one series: line, markers, interval, and a cross on the x axis for each point without a number.

    points: a frame with x, y, low, high, source and status. method: gives the color and the marker, unless
    `color` is given. fill: whether markers are filled; by default those of measured points are.
    """
    points = points.sort_values("x")
    known = points[points.y.notna()]
    paper = (points.source == "paper").all()
    filled = not paper if fill is None else fill
    color = color or colors.color(method)
    ax.plot(
        known.x,
        known.y,
        color=color,
        marker=colors.marker(method),
        markerfacecolor=color if filled else "white",
        markersize=6 if paper else STYLE["lines.markersize"],
        linestyle=linestyle or ("--" if paper else "-"),
        label=label,
    )
    if known.low.notna().any():
        ax.fill_between(known.x, known.low, known.high, color=color, alpha=BAND, linewidth=0)
    unknown = points[points.y.isna() & points.x.notna()]
    if len(unknown):
        where = ax.get_xaxis_transform()
        ax.plot(unknown.x, np.full(len(unknown), 0.02), "x", color=color, transform=where, clip_on=False)


def names_at_the_right(ax: Axes, ends: Mapping[str, tuple[float, float, str]], gap: float = 0.075) -> None:
    """Write the name of each line at the right of a panel, one below the other, with a thin line to its end.

    Call it when the panel has its lines and scales, since the names are sorted by where the lines end.

    ends: name -> (x, y, color) of the end of its line. gap: the least distance of two names as a share of the
    panel's height.
    """
    if not ends:
        return
    names = sorted(ends, key=lambda name: ends[name][1])
    to_axes = ax.transScale + ax.transLimits
    wanted = np.array([to_axes.transform(ends[name][:2])[1] for name in names])
    heights = spread(wanted, gap)
    for name, height in zip(names, heights):
        x, y, color = ends[name]
        ax.annotate(
            name,
            (x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=color,
            fontsize=6,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.4, "relpos": (0, 0.5), "shrinkB": 3},
        )


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Return ascending places moved apart until neighbours differ by `gap`, inside 0 to 1 if they fit."""
    moved = np.array(places)
    for place in range(1, len(moved)):
        moved[place] = max(moved[place], moved[place - 1] + gap)
    excess = max(0.0, moved[-1] - 1)
    moved[-1] -= excess
    for place in range(len(moved) - 2, -1, -1):
        moved[place] = min(moved[place], moved[place + 1] - gap)
    return moved


def losses(points: pd.DataFrame) -> pd.DataFrame:
    """Return points whose y and interval are the loss over dense in place of the perplexity, for `line`."""
    points = points.drop(columns=["y", "low", "high"])
    return points.rename(columns={"delta": "y", "delta_low": "low", "delta_high": "high"})


def unmeasured(frame: pd.DataFrame, most: int = 3) -> list[str]:
    """Return why cells have no number: "x on the axis: MInference at 8k: refused (head_dim 48)".

    Only points whose place on the x axis is known have a cross there; the others are introduced by "no number".

    most: the number of reasons that are written out. If there are more, there is one sentence per status.
    """
    empty = frame[~frame.status.isin(["measured", "printed"])]
    empty = empty.assign(crossed=empty.x.notna() if "x" in empty else False)
    reasons = empty.groupby(["crossed", "status", "reason"], sort=False, dropna=False)
    groups = reasons if reasons.ngroups <= most else empty.groupby(["crossed", "status"], sort=False)
    return [_unmeasured(cells, bool(crossed), str(status)) for (crossed, status, *_), cells in groups]


def _unmeasured(cells: pd.DataFrame, crossed: bool, status: str) -> str:
    """Return the sentence on cells of one status, with their reason or the number of their reasons."""
    names = ", ".join(dict.fromkeys(colors.display(method) for method in cells.method))
    contexts = ", ".join(size(context) for context in sorted(cells.context.dropna().unique()))
    at = f" at {contexts}" if contexts else ""
    reasons = cells.reason.dropna().unique()
    because = f" ({reasons[0]})" if len(reasons) == 1 else f" ({len(reasons)} reasons, in the CSV)"
    start = "x on the axis" if crossed else "no number"
    return f"{start}: {names}{at}: {status.replace('_', ' ')}{because if len(reasons) else ''}"


def caption(fig: Figure, frame: pd.DataFrame, *notes: str) -> None:
    """Write the caption under the panels: the notes, where the numbers come from, and why cells are empty."""
    lines = [*notes, *frame.label.dropna().unique(), *unmeasured(frame)]
    wrapped = "\n".join(textwrap.fill(text, 140, subsequent_indent="    ") for text in lines)
    fig.supxlabel(wrapped, fontsize=6, color="0.35", x=0.01, ha="left", linespacing=1.4)


def empty_panel(ax: Axes, reason: str) -> None:
    """Write into a panel without data why it has none."""
    ax.set_axis_off()
    ax.text(
        0.5,
        0.5,
        textwrap.fill(reason, 36),
        color="0.35",
        fontsize=6,
        ha="center",
        va="center",
        transform=ax.transAxes,
    )


@styled
def laid_out(fig: Figure) -> Figure:
    """Compute the layout of a figure once, so that writing it in several formats does not repeat it; return it."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    return fig


@styled
def image(fig: Figure, kind: str) -> bytes:
    """Return a figure as "svg" or "png", with equal bytes in every run: no date, no version, fixed identifiers."""
    content = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    fig.savefig(content, format=kind, dpi=160, metadata=metadata)
    return content.getvalue()
