"""How every figure looks: one style, one colour and marker a method, one caption with its labels.

Figures are plain matplotlib `Figure` objects, made without pyplot: no global state, no window. The
palette is Okabe and Ito's (2008), told apart by colour-blind readers, with a few of Paul Tol's.
Measured points are filled and joined by solid lines; the paper's are hollow and dashed.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from seerbench.artefacts.colors import colour, display, marker

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
    "svg.hashsalt": "seerbench",  # element ids that do not change from run to run
}
styled = rc_context(STYLE)  # decorates every `draw`
BAND = 0.15  # opacity of an interval
WIDTH = 7.0  # inches: two columns of a paper


def size(tokens: float) -> str:
    """8192 -> "8k"; lengths that are no multiple of 1024 stay in tokens."""
    tokens = int(tokens)
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def figure(rows: int, columns: int, height: float, **options: object) -> tuple[Figure, np.ndarray]:
    """A figure of the full width with a grid of axes, flattened."""
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    return fig, np.atleast_1d(fig.subplots(rows, columns, **options)).ravel()


def context_axis(ax: Axes, contexts: Sequence[float]) -> None:
    """A log-2 axis with a tick at each length that was used."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted({float(context) for context in contexts})))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(round(value))))
    ax.set_xlabel("context (tokens)")


def log_axis(ax: Axes) -> None:
    """A log-10 y axis with plain numbers: 1, 2, 5, 10 ..."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def line(
    ax: Axes,
    points: pd.DataFrame,
    label: str,
    method: str,
    *,
    color: object = None,
    linestyle: str | None = None,
    fill: bool | None = None,
) -> None:
    """One series of `points` (x, y, low, high, source, status): line, markers, interval, unmeasured cells.

    A cell without a value is a cross on the x axis; the caption gives its reason. Hollow means the
    paper's number unless `fill` says otherwise.
    """
    points = points.sort_values("x")
    known = points[points.y.notna()]
    paper = (points.source == "paper").all()
    filled = not paper if fill is None else fill
    color = color or colour(method)
    ax.plot(
        known.x,
        known.y,
        color=color,
        marker=marker(method),
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


def unmeasured(frame: pd.DataFrame, most: int = 3) -> list[str]:
    """A sentence a reason that a cell is empty: "MInference at 8k: refused (head_dim 48)"."""
    empty = frame[~frame.status.isin(["measured", "printed"])]
    said = []
    for (status, reason), cells in empty.groupby(["status", "reason"], sort=False, dropna=False):
        names = ", ".join(dict.fromkeys(display(method) for method in cells.method))
        contexts = ", ".join(size(context) for context in sorted(cells.context.dropna().unique()))
        at = f" at {contexts}" if contexts else ""
        because = f" ({reason})" if isinstance(reason, str) and reason else ""
        said.append(f"{names}{at}: {str(status).replace('_', ' ')}{because}")
    if len(said) > most:
        said = [*said[:most], f"{len(said) - most} more reasons stand in the CSV"]
    return [f"x on the axis: {sentence}" for sentence in said]


def caption(fig: Figure, frame: pd.DataFrame, *notes: str) -> None:
    """Under the panels: what is shown, whose numbers they are, and why cells are empty."""
    lines = [*notes, *frame.label.dropna().unique(), *unmeasured(frame)]
    wrapped = "\n".join(textwrap.fill(text, 140, subsequent_indent="    ") for text in lines)
    fig.supxlabel(wrapped, fontsize=6, color="0.35", x=0.01, ha="left", linespacing=1.4)


def say(ax: Axes, reason: str) -> None:
    """An empty panel says why it is empty."""
    ax.set_axis_off()
    place = {"ha": "center", "va": "center", "transform": ax.transAxes}
    ax.text(0.5, 0.5, textwrap.fill(reason, 36), color="0.35", fontsize=6, **place)


@styled
def image(fig: Figure, kind: str) -> bytes:
    """The figure as "svg" or "png", the same bytes each time: no date, no version, fixed ids."""
    content = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    fig.savefig(content, format=kind, dpi=160, metadata=metadata)
    return content.getvalue()
